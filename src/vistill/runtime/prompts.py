"""A question and its answer as token ids: `<bos> question <ask> answer <eos>`, here and in training.

The tokenizer of an answerer takes questions as people write them: its own normaliser and pre-tokenizer fold
case, part words and drop punctuation. `<ask>` stands between a question and its answer.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vistill.errors import ConfigError
from vistill.runtime.texts import readable, text_marks

ASK = "<ask>"
_NO_PART_OF_A_QUESTION = re.compile("[<>,]")  # marks of the vocabulary, and what parts answers


def ask_mark(tokenizer: Tokenizer) -> int:
    """Id of `<ask>`. Raises ConfigError for the tokenizer of a model that answers no questions."""
    found = tokenizer.token_to_id(ASK)
    if found is None:
        raise ConfigError(f"the tokenizer has no {ASK}: this model answers no questions")
    return int(found)


def prompt_ids(tokenizer: Tokenizer, question: str, longest: int) -> list[int]:
    """`<bos> question <ask>` in at most `longest` ids; what is too long loses its last words."""
    begin, _ = text_marks(tokenizer)
    words = _NO_PART_OF_A_QUESTION.sub(" ", readable(question))
    ids = tokenizer.encode(words, add_special_tokens=False).ids
    return [begin, *ids[: longest - 2], ask_mark(tokenizer)]


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of ids -> int64 [B, T] filled with 0 on the left, and how many of these each has, int64 [B]."""
    longest = max(map(len, rows))
    offset = np.array([longest - len(row) for row in rows], np.int64)
    out = np.zeros((len(rows), longest), np.int64)
    for place, row, start in zip(out, rows, offset, strict=True):
        place[start:] = row
    return out, offset


def answer_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The ids of an answer, without marks, as text; several answers are parted by ", "."""
    text: str = tokenizer.decode(list(ids))
    return text.replace(" ,", ",").strip()
