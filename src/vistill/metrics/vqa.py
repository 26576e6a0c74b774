"""VQA accuracy by the rule of the VQA challenge (visualqa.org/evaluation.html).

Antol et al., "VQA: Visual Question Answering" (arXiv 1505.00468). A question has the answers of ten people; a
predicted answer scores min(matches / 3, 1) against each nine of them, and the mean of the ten is its
accuracy. Answers are compared after a normalisation that is told by example in the published code, oddities
included: see `normalise`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vistill.errors import DataError

NUMBERS = {
    word: str(value)
    for value, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
ARTICLES = frozenset(("a", "an", "the"))
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""Removed or made a blank. Apostrophes, colons and full stops are not among them."""

_DIGITS_AROUND_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the published code hands re.UNICODE (32) to `count`

# What the published table knows; its keys are these words without one of their apostrophes.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""


def _contractions() -> dict[str, str]:
    table = {}
    for word in _CONTRACTIONS.split():
        for place, char in enumerate(word):
            if char == "'":
                table[word[:place] + word[place + 1 :]] = word
    return table | {"somebody'd": "somebodyd"}  # the other way round, in the published table too


CONTRACTIONS = _contractions()


@lru_cache(maxsize=2**17)
def normalise(answer: str) -> str:
    """An answer as the challenge compares it.

    Punctuation becomes a blank, or nothing if any such mark stands beside a blank or a comma stands between
    digits; a full stop goes unless a digit follows; then lower case, number words to ten as digits ("none" is
    0), no articles, contractions with their apostrophe, single blanks.
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    joined = _DIGITS_AROUND_COMMA.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        if mark in text:
            beside = joined or f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if beside else " ")
    out = _PERIOD.sub("", out, count=_MOST_PERIODS)
    words = (NUMBERS.get(word, word) for word in out.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def answer_accuracy(answer: str, people: Sequence[str]) -> float:
    """Accuracy of one answer against those of n people: mean of min(matches / 3, 1) over all n - 1 of them.

    As in the published code nothing but blanks is normalised where all people gave literally the same answer.
    Raises DataError without any person.
    """
    if not people:
        raise DataError("a question without an answer of anybody cannot be scored")
    stripped = [_strip(text) for text in people]
    if len(set(stripped)) > 1:
        wanted = normalise(answer)
        matches = sum(normalise(text) == wanted for text in stripped)
    else:
        matches = len(people) * (stripped[0] == _strip(answer))
    n = len(people)
    # Left out is one of the `matches` people who said the same, or one of the others.
    return (matches * min((matches - 1) / 3, 1.0) + (n - matches) * min(matches / 3, 1.0)) / n


def _strip(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@dataclass(frozen=True)
class Question:
    """A question of an annotations file: what people answered, and the types of question and answer."""

    answers: tuple[str, ...]
    question_type: str = ""
    answer_type: str = ""


@dataclass(frozen=True)
class VqaScores:
    """Accuracies on the scale 0 to 1; `per_question` [n] lies in the order of `keys`."""

    keys: tuple[str, ...]
    per_question: NDArray[np.float64]
    overall: float
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]


def score_answers(answers: Mapping[str, str], questions: Mapping[str, Question]) -> VqaScores:
    """Score the answers by question id; every one of them needs its question. Raises DataError otherwise."""
    if not answers:
        raise DataError("there is no answer to score")
    for key in answers:
        if key not in questions:
            raise DataError(f"question_id {key} has an answer but no annotation")
    keys = tuple(answers)
    asked = [questions[key] for key in keys]
    values = np.array(
        [answer_accuracy(answers[key], of.answers) for key, of in zip(keys, asked, strict=True)]
    )
    return VqaScores(
        keys=keys,
        per_question=values,
        overall=float(values.mean()),
        per_answer_type=_means(values, [of.answer_type for of in asked]),
        per_question_type=_means(values, [of.question_type for of in asked]),
    )


def _means(values: NDArray[np.float64], groups: Sequence[str]) -> dict[str, float]:
    """Mean of the values [n] of each group, in alphabetical order; questions without a group are left out."""
    names, places = np.unique(groups, return_inverse=True)
    means = np.bincount(places, values) / np.bincount(places)
    return {str(name): float(mean) for name, mean in zip(names, means, strict=True) if name}
