"""How sure a score is: bootstrap over pictures (Efron 1979; paired, Koehn 2004).

A resample draws as many pictures as there are, with replacement. ROUGE-L and CIDEr of a resample are means of
the scores that its pictures have in the whole set; for CIDEr that keeps the document frequencies of the whole
set. BLEU is computed anew from the summed counts of the resample. An interval tells how far the score would
move with other pictures of the same kind; it knows nothing of another training run or of other references.

A system that was trained with S seeds is drawn twice (`draw`): the pictures, then S of its seeds, with
replacement and for each system on its own. The variance of few seeds drawn that way is too small, by
(S - 1) / S; their deviations are stretched by the root of its inverse (Rao and Wu 1988).
"""

from collections.abc import Iterator, Mapping, Sequence
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


def ratio_intervals(
    ratios: Mapping[str, tuple[Floats, Floats]], samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Interval of sum(parts) / sum(wholes) for each (parts, wholes), float64 [n] over the same n pictures.

    wholes are above 0. Raises ConfigError for a useless `samples` or `level`.
    """
    _check(samples, level)
    parts = np.stack([part for part, _ in ratios.values()], axis=1)
    wholes = np.stack([whole for _, whole in ratios.values()], axis=1)
    drawn = np.concatenate([w @ parts / (w @ wholes) for w in _weights(len(parts), samples, seed)])
    values = parts.sum(axis=0) / wholes.sum(axis=0)
    return {name: _interval(float(values[i]), drawn[:, i], level) for i, name in enumerate(ratios)}


def compare(
    first: CaptionScores, second: CaptionScores, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Comparison]:
    """Paired bootstrap of two systems: both are scored on the same resampled pictures.

    Raises DataError unless both were scored on the same pictures in the same order.
    """
    return compare_drawn(draw([first], samples, seed), draw([second], samples, seed), level)


@dataclass(frozen=True)
class Drawn:
    """A system, its seeds averaged, on the whole set and on R resamples: `samples` is float64 [R] a score."""

    keys: tuple[str, ...]
    corpus: dict[str, float]
    samples: dict[str, Floats]
    seed: int


def draw(seeds: Sequence[CaptionScores], samples: int = 1000, seed: int = 0, stream: int = 0) -> Drawn:
    """Resample the pictures and seeds of one system; `seeds` holds its scores with S training seeds.

    The same `seed` draws the same pictures for every system, which pairs them. Each system should have a
    `stream` of its own: it draws training seeds, and those of different systems have no order in common.
    Raises DataError unless all seeds were scored on the same pictures in the same order.
    """
    _check(samples, 0.5)
    if not seeds:
        raise DataError("there are no scores to draw from")
    if any(scores.keys != seeds[0].keys for scores in seeds):
        raise DataError("seeds of one system need scores of the same pictures in the same order")
    each = [_resampled(scores, samples, seed) for scores in seeds]
    count = len(seeds)
    chosen = np.random.default_rng([seed, 1 + stream]).integers(count, size=(samples, count))
    corpus, drawn = {}, {}
    for name in each[0]:
        values = np.stack([one[name] for one in each], axis=1)  # [samples, S]
        middle = values.mean(axis=1)
        corpus[name] = float(np.mean([scores.corpus[name] for scores in seeds]))
        if count == 1:
            drawn[name] = middle
            continue
        moved = np.take_along_axis(values, chosen, axis=1).mean(axis=1) - middle
        drawn[name] = middle + np.sqrt(count / (count - 1)) * moved
    return Drawn(seeds[0].keys, corpus, drawn, seed)


def intervals_drawn(system: Drawn, level: float = 0.95) -> dict[str, Interval]:
    """Interval of every score of a system."""
    _check(2, level)
    return {name: _interval(system.corpus[name], drawn, level) for name, drawn in system.samples.items()}


def compare_drawn(first: Drawn, second: Drawn, level: float = 0.95) -> dict[str, Comparison]:
    """Second minus first, paired by pictures. Raises DataError unless both drew the same pictures."""
    _check_paired(first, second, level)
    out = {}
    for name, ours in first.samples.items():
        if name in second.samples:
            difference = second.samples[name] - ours
            value = second.corpus[name] - first.corpus[name]
            beyond = min(int((difference <= 0).sum()), int((difference >= 0).sum()))
            p = min(1.0, 2 * (beyond + 1) / (len(difference) + 1))
            out[name] = Comparison(_interval(value, difference, level), p)
    return out


def share_drawn(whole: Drawn, part: Drawn, name: str, level: float = 0.95) -> Interval | None:
    """The score `name` of `part` as a share of that of `whole`, paired by pictures; None if that has 0.

    Raises DataError unless both drew the same pictures.
    """
    _check_paired(whole, part, level)
    if whole.corpus[name] <= 0 or bool((whole.samples[name] <= 0).any()):
        return None
    shares = part.samples[name] / whole.samples[name]
    return _interval(part.corpus[name] / whole.corpus[name], shares, level)


def _check_paired(first: Drawn, second: Drawn, level: float) -> None:
    _check(2, level)
    same = first.seed == second.seed and all(
        len(drawn) == len(second.samples.get(name, drawn)) for name, drawn in first.samples.items()
    )
    if first.keys != second.keys or not same:
        raise DataError("a paired comparison needs scores of the same pictures in the same order for both")


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
