"""DAQUAR's scores: accuracy and WUPS, for answers that are sets of words ("book, scissor, papers").

Malinowski and Fritz, "A Multi-World Approach to Question Answering about Real-World Scenes based on Uncertain
Input" (NIPS 2014). For a predicted set A and a true set T, with a similarity of two words in 0..1:

    WUPS(A, T) = min(prod over a in A of max over t in T of s(a, t),
                     prod over t in T of max over a in A of s(a, t))

s is the Wu-Palmer similarity of the nearest two meanings in WordNet, times 0.1 below the threshold. With the
threshold 0.9 near synonyms count, with 0.0 everything counts by its nearness. With equality in place of s it
is accuracy: 1 if the sets are equal.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from vistill.errors import ConfigError, DataError

THRESHOLDS = (0.9, 0.0)
BELOW = 0.1
"""What a similarity below the threshold is multiplied by."""

Similarity = Callable[[str, str], float]


def answer_set(text: str) -> tuple[str, ...]:
    """The words of an answer: between commas, without blanks around them, in lower case."""
    return tuple(word for part in text.lower().split(",") if (word := part.strip()))


def wups(predicted: Sequence[str], true: Sequence[str], similarity: Similarity, threshold: float) -> float:
    """WUPS of two sets of words; two empty sets agree, one alone scores 0."""
    if not predicted or not true:
        return float(not predicted and not true)

    def scaled(a: str, b: str) -> float:
        value = similarity(a, b)
        return value if value >= threshold else BELOW * value

    forth = math.prod(max(scaled(a, t) for t in true) for a in predicted)
    back = math.prod(max(scaled(a, t) for a in predicted) for t in true)
    return min(forth, back)


def equality(a: str, b: str) -> float:
    """1 for the same word, else 0."""
    return float(a == b)


def score_sets(
    answers: Mapping[str, str], truth: Mapping[str, str], similarity: Similarity | None = None
) -> dict[str, float]:
    """Mean accuracy, and with a similarity WUPS@0.9 and WUPS@0.0, over the questions with an answer; 0 to 1.

    Raises DataError for an answer to a question that is not in `truth`, or for no answer at all.
    """
    if not answers:
        raise DataError("there is no answer to score")
    unknown = [key for key in answers if key not in truth]
    if unknown:
        raise DataError(f"question {unknown[0]!r} is not in the data set ({len(unknown)} such answers)")
    pairs = [(answer_set(text), answer_set(truth[key])) for key, text in answers.items()]
    scores = {"accuracy": sum(wups(a, t, equality, 0.0) for a, t in pairs) / len(pairs)}
    if similarity is not None:
        for threshold in THRESHOLDS:
            total = sum(wups(a, t, similarity, threshold) for a, t in pairs)
            scores[f"WUPS@{threshold}"] = total / len(pairs)
    return scores


def wordnet_similarity() -> Similarity:
    """Wu-Palmer similarity of the nearest two noun senses in nltk's WordNet; words outside of it score 0.

    As in the authors' script the same word scores 1, and "_" joins the words of one thing ("tape_dispenser").
    Raises ConfigError saying what to install.
    """
    try:
        from nltk.corpus import wordnet
    except ModuleNotFoundError as error:
        raise ConfigError(
            "WUPS needs WordNet: pip install nltk, then python -m nltk.downloader wordnet"
        ) from error
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise ConfigError("WUPS needs the data of WordNet: python -m nltk.downloader wordnet") from error

    @lru_cache(maxsize=2**14)
    def senses(word: str) -> list[Any]:
        return list(wordnet.synsets(word, pos=wordnet.NOUN))

    @lru_cache(maxsize=2**18)
    def similarity(a: str, b: str) -> float:
        if a == b:
            return 1.0
        found = (x.wup_similarity(y) or 0.0 for x in senses(a) for y in senses(b))
        return float(max(found, default=0.0))

    return similarity
