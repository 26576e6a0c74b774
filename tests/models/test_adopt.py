"""A public language model under vistill's vocabulary: same embeddings, same logits, four ids higher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from vistill.data.text import TokenizerConfig, encode, train_tokenizer
from vistill.errors import ConfigError
from vistill.models.adopt import (
    OFFSET,
    adopt,
    load_language,
    reads_its_own_way,
    shift_tokenizer,
    with_ask_mark,
)
from vistill.models.torchvision_repair import repair_torchvision
from vistill.runtime.prompts import ask_mark

repair_torchvision()
TEXTS = ["a red dog runs", "a blue dog sits on a mat", "two dogs run"] * 3


def byte_level() -> Tokenizer:
    """A tokenizer as GPT-2's: byte-level pairs and one special token, at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def tiny_gpt2(vocab: int, **settings: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    marks = {"bos_token_id": vocab - 1, "eos_token_id": vocab - 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, **{**sizes, **marks, **settings})).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_logits_move_up_by_the_offset(tied: bool) -> None:
    tokenizer = byte_level()
    vocab = tokenizer.get_vocab_size()
    language = tiny_gpt2(vocab, tie_word_embeddings=tied)
    ids = torch.tensor([tokenizer.encode("a blue dog").ids])
    with torch.inference_mode():
        before = language(input_ids=ids).logits
        adopted, shifted, blocked = adopt(language, tokenizer)
        after = adopted(input_ids=ids + OFFSET).logits
    assert shifted.encode("a blue dog").ids == (ids + OFFSET)[0].tolist()
    torch.testing.assert_close(after[..., OFFSET:], before)
    torch.testing.assert_close(after[..., 2], before[..., vocab - 1])  # <eos> starts as the model's own mark
    assert blocked == (vocab - 1 + OFFSET,)
    assert (adopted.config.bos_token_id, adopted.config.eos_token_id, adopted.config.vocab_size) == (
        1,
        2,
        vocab + 4,
    )


def test_the_mark_of_a_question_takes_the_place_of_a_mark_of_its_own() -> None:
    tokenizer = byte_level()
    vocab = tokenizer.get_vocab_size()
    _, shifted, blocked = adopt(tiny_gpt2(vocab + 3), tokenizer)
    assert reads_its_own_way(shifted)
    assert not reads_its_own_way(train_tokenizer(TEXTS, TokenizerConfig(min_count=1)))
    asking = with_ask_mark(shifted, blocked)
    assert ask_mark(asking) == vocab - 1 + OFFSET, "the id of <|endoftext|>"
    assert asking.get_vocab_size() == shifted.get_vocab_size()
    assert asking.encode("a blue dog").ids == shifted.encode("a blue dog").ids
    assert asking.decode([*asking.encode("a blue dog").ids, ask_mark(asking)]) == "a blue dog"
    assert with_ask_mark(asking, ()) is asking
    with pytest.raises(ConfigError, match="no mark of its own"):
        with_ask_mark(shifted, (vocab + OFFSET,))


def test_rows_that_no_token_names_are_blocked() -> None:
    tokenizer = byte_level()
    vocab = tokenizer.get_vocab_size()
    language = tiny_gpt2(vocab + 3)
    _, _, blocked = adopt(language, tokenizer)
    assert blocked == tuple(range(vocab - 1 + OFFSET, vocab + 3 + OFFSET))


def test_text_survives_the_shift() -> None:
    shifted = shift_tokenizer(byte_level())
    assert [shifted.id_to_token(i) for i in range(4)] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    ids = encode(shifted, "A red dog's mat, naïve!", 40)
    assert ids[0] == 1
    assert ids[-1] == 2
    assert min(ids[1:-1]) >= OFFSET
    assert shifted.decode(ids) == "a red dog 's mat naïve"


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_other_kinds_of_vocabulary(kind: str) -> None:
    if kind == "wordpiece":
        names = ["<pad>", "<unk>", "[CLS]", "a", "dog", "##s"]
        tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", special_tokens=[("[CLS]", 2)]
        )
        words = "a dogs zebra"
        expected = [7, 8, 9, 3]  # an unknown word is vistill's <unk>
    else:
        pieces = [("<unk>", 0.0), ("▁a", -1.0), ("▁dog", -2.0), ("s", -3.0)]
        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        words = "a dogs"
        expected = [5, 6, 7]
    tokenizer.pre_tokenizer = tokenizer.pre_tokenizer or pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=12)
    assert shift_tokenizer(tokenizer).encode(words).ids == expected


def test_load_language(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level()
    vocab = tokenizer.get_vocab_size()
    language = tiny_gpt2(vocab)
    language.save_pretrained(tmp_path / "lm")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
        tmp_path / "lm"
    )
    found, shifted, blocked = load_language(str(tmp_path / "lm"))
    torch.testing.assert_close(found.get_input_embeddings().weight[OFFSET:], language.transformer.wte.weight)
    assert shifted.get_vocab_size() == vocab + OFFSET
    assert blocked == (vocab - 1 + OFFSET,)


def test_a_model_with_our_marks_comes_as_it_is(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(min_count=1))
    language = tiny_gpt2(tokenizer.get_vocab_size())
    language.save_pretrained(tmp_path / "lm")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(tmp_path / "lm")
    found, same, blocked = load_language(str(tmp_path / "lm"))
    assert found.config.vocab_size == tokenizer.get_vocab_size() == same.get_vocab_size()
    assert blocked == ()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_language(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="not a pair"):
        adopt(tiny_gpt2(20), byte_level())


def test_a_model_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level()
    tiny_gpt2(tokenizer.get_vocab_size()).save_pretrained(tmp_path / "lm")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "lm")
    weights = tmp_path / "lm" / "model.safetensors"
    state = load_file(weights)
    del state["transformer.h.0.mlp.c_fc.weight"]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"h\.0\.mlp\.c_fc\.weight"):
        load_language(str(tmp_path / "lm"))
