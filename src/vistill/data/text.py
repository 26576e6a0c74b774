"""Captions to token ids: tokenizers trained on the train captions, and the ids of a caption."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vistill.errors import ConfigError
from vistill.metrics.ptb import tokenize
from vistill.models.tokens import BOS, EOS, PAD, SPECIAL


@dataclass(frozen=True)
class TokenizerConfig:
    """How a tokenizer is trained on captions, which are lower-cased words without punctuation."""

    kind: str = "word"
    """`word` keeps whole words; `bpe` splits rare ones (byte-pair encoding)."""
    min_count: int = 4
    """Words (or pairs) seen less often get no entry of their own."""
    vocab_size: int = 8000
    """Largest number of entries, special tokens included."""

    def __post_init__(self) -> None:
        if self.kind not in ("word", "bpe"):
            raise ConfigError(f"datamodule.tokenizer.kind={self.kind!r}: use word or bpe")
        if self.min_count < 1 or self.vocab_size <= len(SPECIAL):
            raise ConfigError("datamodule.tokenizer: min_count must be at least 1 and vocab_size above 4")


def normalise(caption: str) -> str:
    """A caption as the metrics see it: PTB tokens, lower-case, no punctuation, one space between."""
    return " ".join(tokenize(caption))


def train_tokenizer(captions: Iterable[str], config: TokenizerConfig, *, ready: bool = False) -> Tokenizer:
    """A tokenizer over normalised captions with `<pad> <bos> <eos> <unk>` as ids 0 to 3.

    ready: the texts are tokens with blanks between them already.
    """
    texts = captions if ready else (normalise(caption) for caption in captions)
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "min_frequency": config.min_count,
        "special_tokens": list(SPECIAL),
        "show_progress": False,
    }
    if config.kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        trainer: Any = trainers.WordLevelTrainer(**settings)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
        trainer = trainers.BpeTrainer(**settings, end_of_word_suffix="</w>")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def with_words(tokenizer: Tokenizer, words: Iterable[str]) -> Tokenizer:
    """A copy of a tokenizer with those of the words that it lacks behind its own; pieces stay as they are."""
    raw: dict[str, Any] = json.loads(tokenizer.to_str())
    if raw["model"]["type"] == "WordLevel":
        known = tokenizer.get_vocab()
        following = max(known.values()) + 1
        new = [word for word in words if word not in known]
        # in the model itself: the id of a token beside it would move when words are added once more
        raw["model"]["vocab"] = {**known, **{word: following + n for n, word in enumerate(new)}}
    return Tokenizer.from_str(json.dumps(raw))


def by_id(tokenizer: Tokenizer) -> list[str]:
    """The entries of a tokenizer in the order of their ids."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def encode(tokenizer: Tokenizer, caption: str, longest: int) -> list[int]:
    """Ids of a caption between `<bos>` and `<eos>`, cut to `longest` ids; a cut caption has no `<eos>`."""
    ids = tokenizer.encode(normalise(caption)).ids
    return [BOS, *ids, EOS][:longest]


def pad(rows: Sequence[Sequence[int]], fill: int = PAD) -> list[list[int]]:
    """Rows of ids filled with `fill` on the right to the longest."""
    longest = max(map(len, rows))
    return [[*row, *[fill] * (longest - len(row))] for row in rows]
