"""How sure a score is: bootstrap over pictures (Efron 1979; paired, Koehn 2004).

A resample draws as many pictures as there are, with replacement. ROUGE-L and CIDEr of a resample are means of
the scores that its pictures have in the whole set; for CIDEr that keeps the document frequencies of the whole
set. BLEU is computed anew from the summed counts of the resample. An interval tells how far the score would
move with other pictures of the same kind; it knows nothing of another training run or of other references.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vistill.errors import ConfigError, DataError
from vistill.metrics.bleu import BleuCounts, bleu_per_picture
from vistill.metrics.caption import BLEU, CaptionScores

Floats = NDArray[np.float64]
CHUNK = 64  # resamples at a time: bounds memory, 64 x pictures x 8 bytes


@dataclass(frozen=True)
class Interval:
    """A score on the whole set and the percentile interval around it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Second system minus first: the difference with its interval, and how likely chance alone gives it.

    p is two-sided: twice the share of resamples on the other side of zero, at least 2 / (resamples + 1).
    """

    difference: Interval
    p: float


def intervals(
    scores: CaptionScores, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Interval of every corpus score. Raises ConfigError for a useless `samples` or `level`."""
    _check(samples, level)
    drawn = _resampled(scores, samples, seed)
    return {name: _interval(scores.corpus[name], values, level) for name, values in drawn.items()}


def compare(
    first: CaptionScores, second: CaptionScores, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Comparison]:
    """Paired bootstrap of two systems: both are scored on the same resampled pictures.

    Raises DataError unless both were scored on the same pictures in the same order.
    """
    _check(samples, level)
    if first.keys != second.keys:
        raise DataError("a paired comparison needs scores of the same pictures in the same order for both")
    ours, theirs = _resampled(first, samples, seed), _resampled(second, samples, seed)
    out = {}
    for name in ours:
        if name in theirs:
            difference = theirs[name] - ours[name]
            value = second.corpus[name] - first.corpus[name]
            beyond = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
            p = min(1.0, 2 * (beyond + 1) / (samples + 1))
            out[name] = Comparison(_interval(value, difference, level), p)
    return out


def _check(samples: int, level: float) -> None:
    if samples < 2:
        raise ConfigError(f"bootstrap needs at least 2 resamples, not {samples}; 1000 is usual")
    if not 0 < level < 1:
        raise ConfigError(f"the level of an interval lies between 0 and 1, not at {level}; 0.95 is usual")


def _interval(value: float, drawn: Floats, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _resampled(scores: CaptionScores, samples: int, seed: int) -> dict[str, Floats]:
    """Every corpus score on every resample; float64 [samples] a name. A seed draws the same pictures."""
    means = [name for name in scores.per_picture if name not in BLEU]
    values = np.stack([scores.per_picture[name] for name in means], axis=1) if means else None
    found: dict[str, list[Floats]] = {name: [] for name in scores.per_picture}
    for weights in _weights(len(scores.keys), samples, seed):
        if values is not None:
            for name, column in zip(means, (weights @ values / len(scores.keys)).T, strict=True):
                found[name].append(column)
        bleu = bleu_per_picture(BleuCounts(*(weights @ counts for counts in vars(scores.bleu).values())))
        for name, column in zip(BLEU, bleu.T, strict=True):
            found[name].append(column)
    return {name: np.concatenate(columns) for name, columns in found.items() if columns}


def _weights(pictures: int, samples: int, seed: int) -> Iterator[Floats]:
    """How often each picture is drawn in some resamples; float64 [up to CHUNK, pictures]."""
    random = np.random.default_rng(seed)
    for start in range(0, samples, CHUNK):
        rows = min(CHUNK, samples - start)
        draws = random.integers(pictures, size=(rows, pictures))
        yield np.stack([np.bincount(row, minlength=pictures) for row in draws]).astype(np.float64)
