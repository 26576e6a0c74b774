"""ROUGE-L (Lin 2004) as pycocoevalcap counts it: beta 1.2, best precision and best recall."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vistill.errors import DataError

BETA = 1.2


def rouge_l(
    candidates: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[Sequence[str]]]
) -> NDArray[np.float64]:
    """ROUGE-L of tokenised captions, in the order of `candidates`; float64 [n].

    An empty caption counts as one empty word, as splitting "" at spaces gives. Raises DataError for a key
    without references.
    """
    return np.array([_one(caption or [""], references.get(key), key) for key, caption in candidates.items()])


def _one(candidate: Sequence[str], references: Sequence[Sequence[str]] | None, key: str) -> float:
    if not references:
        raise DataError(f"picture {key!r} has no references")
    where: dict[str, int] = {}
    for i, word in enumerate(candidate):
        where[word] = where.get(word, 0) | 1 << i
    precision = recall = 0.0
    for reference in references:
        words = reference or [""]
        common = _common(where, len(candidate), words)
        precision = max(precision, common / len(candidate))
        recall = max(recall, common / len(words))
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(where: Mapping[str, int], length: int, words: Sequence[str]) -> int:
    """Length of the longest common subsequence, a bit a position (Hyyrö 2004, "Bit-parallel LCS-length")."""
    full = (1 << length) - 1
    row = full
    for word in words:
        match = row & where.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return length - row.bit_count()
