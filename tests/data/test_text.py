"""Tokenizers trained on captions."""

import pytest

from vistill.data.text import TokenizerConfig, encode, normalise, pad, train_tokenizer
from vistill.errors import ConfigError
from vistill.models.tokens import BOS, EOS, PAD, SPECIAL, UNK

CAPTIONS = ["A dog runs .", "A dog sits on grass .", "Two dogs run !", "A man's dog ."]


def test_special_tokens_come_first() -> None:
    for kind in ("word", "bpe"):
        tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(kind=kind, min_count=1))
        assert [tokenizer.id_to_token(i) for i in range(4)] == list(SPECIAL)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_known_captions_come_back_as_the_metrics_see_them(kind: str) -> None:
    tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(kind=kind, min_count=1))
    for caption in CAPTIONS:
        ids = encode(tokenizer, caption, 40)
        assert (ids[0], ids[-1]) == (BOS, EOS)
        assert tokenizer.decode(ids[1:-1]) == normalise(caption)


def test_rare_words_are_unknown() -> None:
    tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(min_count=3))
    assert encode(tokenizer, "a dog flies", 10) == [
        BOS,
        tokenizer.token_to_id("a"),
        tokenizer.token_to_id("dog"),
        UNK,
        EOS,
    ]


def test_a_long_caption_is_cut() -> None:
    tokenizer = train_tokenizer(CAPTIONS, TokenizerConfig(min_count=1))
    ids = encode(tokenizer, "a dog " * 20, 8)
    assert len(ids) == 8
    assert EOS not in ids


def test_padding() -> None:
    assert pad([[5], [6, 7]]) == [[5, PAD], [6, 7]]


def test_wrong_settings_name_the_key() -> None:
    with pytest.raises(ConfigError, match="kind"):
        TokenizerConfig(kind="char")
    with pytest.raises(ConfigError, match="min_count"):
        TokenizerConfig(min_count=0)
