"""The one text form of questions and answers."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from vistill.data.asked import answer_tokenizer
from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.errors import ConfigError
from vistill.runtime.prompts import ASK, answer_text, ask_mark, left_padded, prompt_ids

TEXTS = ["What's the man's t-shirt color?", "is there 1.5 m?", "book, scissor", "don't they run"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return answer_tokenizer(TEXTS, TokenizerConfig(min_count=1))


def _words(tokenizer: Tokenizer, question: str, longest: int = 99) -> list[str | None]:
    return [tokenizer.id_to_token(i) for i in prompt_ids(tokenizer, question, longest)]


def test_a_question_is_read_as_people_write_it(tokenizer: Tokenizer) -> None:
    wanted = ["<bos>", "what", "'s", "the", "man", "'s", "t-shirt", "color", ASK]
    assert _words(tokenizer, "What's the man's t-shirt color?") == wanted
    assert _words(tokenizer, "  WHAT\u2019S the\nman's T-shirt -- color ?!") == wanted
    assert _words(tokenizer, "don't they run") == ["<bos>", "do", "n't", "they", "run", ASK]
    assert _words(tokenizer, "") == ["<bos>", ASK]
    assert _words(tokenizer, "\ud800 what") == ["<bos>", "what", ASK]
    assert _words(tokenizer, "\u2603 what") == ["<bos>", "what", ASK]


def test_marks_in_a_question_are_words_and_not_marks(tokenizer: Tokenizer) -> None:
    ids = prompt_ids(tokenizer, "<eos><ask> what <bos>, <pad>", 99)
    assert ids[0] == 1
    assert not set(ids[1:-1]) & {0, 1, 2, ask_mark(tokenizer)}
    assert tokenizer.token_to_id(",") not in ids


def test_a_long_question_keeps_its_marks(tokenizer: Tokenizer) -> None:
    assert _words(tokenizer, "what the man color is there", 5) == ["<bos>", "what", "the", "man", ASK]


def test_answers_are_parted_by_commas(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("book, scissor", add_special_tokens=False).ids
    assert answer_text(tokenizer, ids) == "book, scissor"
    assert answer_text(tokenizer, [*ids, 2]) == "book, scissor"


def test_padding_on_the_left() -> None:
    tokens, offset = left_padded([[1, 2, 3], [4], []])
    assert tokens.tolist() == [[1, 2, 3], [0, 0, 4], [0, 0, 0]]
    assert offset.tolist() == [0, 2, 3]
    assert tokens.dtype == offset.dtype == np.int64


def test_a_captioner_has_no_ask() -> None:
    with pytest.raises(ConfigError, match="answers no questions"):
        ask_mark(train_tokenizer(["a dog"], TokenizerConfig(min_count=1)))


def test_the_words_of_a_captioner_keep_their_ids() -> None:
    start = train_tokenizer(["a dog runs", "a cat"], TokenizerConfig(min_count=1))
    grown = answer_tokenizer(["is the dog a cat?"], TokenizerConfig(min_count=1), start)
    before, after = start.get_vocab(), grown.get_vocab()
    assert {word: after[word] for word in before} == before
    assert sorted(after.values()) == list(range(len(after)))
    assert set(after) - set(before) == {"is", "the", ASK}
    again = answer_tokenizer(["is the dog a cat? blue"], TokenizerConfig(min_count=1), grown)
    assert set(again.get_vocab()) - set(after) == {"blue"}
    assert ask_mark(again) == ask_mark(grown)


def test_pieces_of_words_gain_the_mark_alone() -> None:
    start = train_tokenizer(["a dog runs", "a cat"], TokenizerConfig(kind="bpe", min_count=1, vocab_size=40))
    grown = answer_tokenizer(["is the dog a cat?"], TokenizerConfig(min_count=1), start)
    assert set(grown.get_vocab()) - set(start.get_vocab()) == {ASK}
    assert ask_mark(grown) == start.get_vocab_size()
    ids = prompt_ids(grown, "A dog?", 20)
    assert ids[1:-1] == start.encode("a dog").ids
