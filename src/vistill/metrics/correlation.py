"""Rank correlation, without SciPy."""

import numpy as np
from numpy.typing import NDArray

from vistill.errors import DataError


def spearman(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Spearman's correlation of two series [n], n >= 2: Pearson's of their ranks, ties sharing the mean rank.

    Raises DataError if the lengths differ or one of them is constant, for which there is no correlation.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise DataError(f"spearman: needs two series of one length from 2 up, found {a.shape} and {b.shape}")
    x, y = mean_ranks(a), mean_ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    if size == 0:
        raise DataError("spearman: a series is constant, so its ranks say nothing")
    return float(x @ y) / size


def mean_ranks(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Ranks from 1 of [n]; equal values share the mean of their places."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks
