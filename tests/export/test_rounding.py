"""Rounding of weights: range, safe pairs, and the error of the product."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistill.export.rounding import round_rows, row_scales


def worst_pairs(ints: np.ndarray) -> int:
    """Largest sum of two neighbours of one sign: 255 times it must fit 16 bits."""
    wide = ints.astype(np.int64)
    padded = np.pad(wide, ((0, 0), (0, wide.shape[1] % 2))).reshape(len(wide), -1, 2)
    return int(max(np.maximum(padded, 0).sum(axis=2).max(), np.maximum(-padded, 0).sum(axis=2).max()))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000), rows=st.integers(1, 5), columns=st.integers(1, 21), feedback=st.booleans()
)
def test_no_pair_overflows_sixteen_bits(seed: int, rows: int, columns: int, feedback: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns)) * rng.choice([1e-4, 1, 50], (rows, 1))
    x = rng.standard_normal((40, columns))
    scale = row_scales(weight, pairs=True)
    ints = round_rows(weight, scale, pairs=True, hessian=(x.T @ x)[None] if feedback else None)
    assert ints.dtype == np.int8
    assert 255 * worst_pairs(ints) <= 32767
    assert np.abs(ints.astype(int)).max() <= 127
    if not feedback:
        assert (np.abs(ints * scale[:, None] - weight) <= 1.01 * scale[:, None]).all()


def test_without_pairs_it_is_rounding_to_the_nearest() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 9))
    scale = row_scales(weight, pairs=False)
    np.testing.assert_allclose(scale, np.abs(weight).max(axis=1) / 127)
    ints = round_rows(weight, scale, pairs=False)
    np.testing.assert_array_equal(ints, np.rint(weight / scale[:, None]))
    assert worst_pairs(ints) > 128  # so the bound above is no accident


@pytest.mark.parametrize("each_row", [False, True])
def test_feedback_keeps_the_product_better_than_the_nearest(each_row: bool) -> None:
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((32, 32)) @ np.diag(np.geomspace(1, 0.01, 32)) @ rng.standard_normal((32, 32))
    x = rng.standard_normal((500, 32)) @ mix + 1.0  # inputs that go together, as activations do
    weight = rng.standard_normal((16, 32))
    scale = row_scales(weight, pairs=True)
    hessian = (x.T @ x)[None]
    if each_row:
        hessian = np.repeat(hessian, 16, axis=0)

    def error(ints: np.ndarray) -> float:
        return float(np.linalg.norm(x @ (ints * scale[:, None] - weight).T))

    fed = round_rows(weight, scale, pairs=True, hessian=hessian)
    assert error(fed) < 0.5 * error(round_rows(weight, scale, pairs=True))


def test_inputs_never_seen_and_rows_of_zero_do_no_harm() -> None:
    weight = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    scale = row_scales(weight, pairs=True)
    hessian = np.zeros((1, 3, 3))
    hessian[0, 0, 0] = 1.0
    ints = round_rows(weight, scale, pairs=True, hessian=hessian)
    np.testing.assert_allclose((ints * scale[:, None])[0], [1, 2, 3], atol=0.05)
    assert (ints[1] == 0).all()
