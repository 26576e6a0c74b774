"""The special tokens of every tokenizer that vistill trains, and their ids."""

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PAD, BOS, EOS, UNK = range(4)
NEVER_GENERATED = (PAD, BOS, UNK)
