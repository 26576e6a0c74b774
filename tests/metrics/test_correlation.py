"""Spearman's correlation beside SciPy's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistill.errors import DataError
from vistill.metrics.correlation import mean_ranks, spearman

stats = pytest.importorskip("scipy.stats")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-1, 1)), min_size=2, max_size=40))
def test_equal_to_scipy(pairs: list[tuple[int, float]]) -> None:
    a, b = np.array(pairs, float).T
    if len(set(a)) < 2 or len(set(b)) < 2:
        with pytest.raises(DataError, match="constant"):
            spearman(a, b)
        return
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_order_alone_counts() -> None:
    x = np.array([3.0, 1.0, 2.0, 9.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)
    assert mean_ranks(np.array([5.0, 1.0, 5.0])).tolist() == [2.5, 1.0, 2.5]


@pytest.mark.parametrize("size", [0, 1])
def test_too_short(size: int) -> None:
    with pytest.raises(DataError, match="from 2 up"):
        spearman(np.zeros(size), np.zeros(size))
