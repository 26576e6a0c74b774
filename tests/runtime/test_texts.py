"""Texts to token ids: marks, cutting, padding, and nothing that the tokenizer would add itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vistill.errors import ConfigError
from vistill.runtime.texts import encode_texts, text_marks

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "a", "dog", "runs", "far"]


def word_tokenizer(words: list[str] = WORDS) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_texts_stand_between_marks_with_zeros_on_the_right() -> None:
    found = encode_texts(word_tokenizer(), ["a dog runs far", "dog", "", "a cat"], 40)
    assert found.dtype == np.int64
    assert found.tolist() == [
        [1, 4, 5, 6, 7, 2],
        [1, 5, 2, 0, 0, 0],
        [1, 2, 0, 0, 0, 0],
        [1, 4, 3, 2, 0, 0],
    ]
    assert encode_texts(word_tokenizer(), [], 40).shape == (0, 2)


def test_a_long_text_keeps_its_end_mark() -> None:
    assert encode_texts(word_tokenizer(), ["a dog runs far"], 4).tolist() == [[1, 4, 5, 2]]
    assert encode_texts(word_tokenizer(), ["a dog runs far"], 2).tolist() == [[1, 2]]
    with pytest.raises(ConfigError, match="context=1"):
        encode_texts(word_tokenizer(), ["a"], 1)


def test_what_the_tokenizer_would_add_cut_or_pad_is_not_used() -> None:
    tokenizer = word_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    assert encode_texts(tokenizer, ["a dog runs far"], 40).tolist() == [[1, 4, 5, 6, 7, 2]]
    assert tokenizer.truncation is not None, "the caller's tokenizer is left as it was"
    assert tokenizer.padding is not None


def test_marks_of_clip_and_missing_marks() -> None:
    clip = word_tokenizer(["a", "<unk>", "<|startoftext|>", "<|endoftext|>"])
    assert text_marks(clip) == (2, 3)
    assert encode_texts(clip, ["a a"], 9).tolist() == [[2, 0, 0, 3]]
    with pytest.raises(ConfigError, match=r"no marks .* known are <bos> <eos>, <\|startoftext"):
        text_marks(word_tokenizer(["a", "<bos>"]))


@given(st.lists(st.text(max_size=30), max_size=6), st.integers(2, 12))
def test_every_row_is_begin_text_end_zeros(texts: list[str], context: int) -> None:
    found = encode_texts(word_tokenizer(), texts, context)
    assert found.shape[0] == len(texts)
    assert found.shape[1] <= context
    for row in found.tolist():
        end = row.index(2)
        assert row[0] == 1
        assert not any(row[end + 1 :])
        assert 0 not in row[:end]
