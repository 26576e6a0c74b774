"""BLEU-1 to BLEU-4 (Papineni et al. 2002) as pycocoevalcap counts it.

Clipped n-gram precision against all references of a picture, the brevity penalty against the reference length
that is closest (the shorter of two equally close ones), no smoothing but the constants below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vistill.errors import DataError
from vistill.metrics.ngrams import ORDER, Ints, count_ngrams, find, flatten, number_words

SMALL, TINY = 1e-9, 1e-15  # pycocoevalcap's guards against division by zero
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU is made of, for each of n pictures; sums over pictures give the corpus score.

    correct, guess: int64 [n, 4]; candidate_length, reference_length: int64 [n].
    """

    correct: Ints
    guess: Ints
    candidate_length: Ints
    reference_length: Ints


def bleu_counts(
    candidates: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[Sequence[str]]]
) -> BleuCounts:
    """Counts for tokenised captions in the order of `candidates`. DataError for a key without references."""
    keys = list(candidates)
    without = [key for key in keys if not references.get(key)]
    if without:
        raise DataError(f"picture {without[0]!r} has no references ({len(without)} such keys)")
    theirs = [caption for key in keys for caption in references[key]]
    per_picture = np.array([len(references[key]) for key in keys], np.int64)
    picture = np.repeat(np.arange(len(keys)), per_picture)
    numbers = number_words([*candidates.values(), *theirs])
    flat = flatten([*candidates.values(), *theirs], numbers)
    n = len(keys)
    correct, guess = np.zeros((n, ORDER), np.int64), np.zeros((n, ORDER), np.int64)
    for order, grams in enumerate(count_ngrams(flat, max(len(numbers), 1))):
        total = max(len(grams.codes), 1)
        ours = grams.caption < n
        pair = picture[grams.caption[~ours] - n] * total + grams.gram[~ours]
        pairs, group = np.unique(pair, return_inverse=True)
        most = np.zeros(len(pairs), np.int64)
        np.maximum.at(most, group, grams.count[~ours])
        at, there = find(pairs, grams.caption[ours] * total + grams.gram[ours])
        clipped = np.minimum(grams.count[ours], most[at] if len(most) else 0) * there
        correct[:, order] = np.bincount(grams.caption[ours], clipped, minlength=n)
        guess[:, order] = np.maximum(flat.lengths[:n] - order, 0)
    return BleuCounts(correct, guess, flat.lengths[:n], _closest(flat.lengths[:n], flat.lengths[n:], picture))


def bleu_of_sums(counts: BleuCounts) -> Floats:
    """BLEU-1..4 of the corpus -> float64 [4]."""
    sums = BleuCounts(*(value.sum(0, keepdims=True) for value in vars(counts).values()))
    return bleu_per_picture(sums)[0]


def bleu_per_picture(counts: BleuCounts) -> Floats:
    """BLEU-1..4 of each picture -> float64 [n, 4]."""
    precision = np.cumprod((counts.correct + TINY) / (counts.guess + SMALL), axis=1)
    score = precision ** (1 / np.arange(1, ORDER + 1))
    ratio = (counts.candidate_length + TINY) / (counts.reference_length + SMALL)
    penalty = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    out: Floats = score * penalty[:, None]
    return out


def _closest(candidate: Ints, reference: Ints, picture: Ints) -> Ints:
    """Length of the closest reference of each picture, the shorter one of two equally close; int64 [n]."""
    distance = np.abs(reference - candidate[picture])
    order = np.lexsort((reference, distance, picture))
    first = np.searchsorted(picture[order], np.arange(len(candidate)))
    return reference[order[first]]
