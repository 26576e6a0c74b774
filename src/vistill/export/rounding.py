"""Weights to int8 so that the product, not the weight, is kept, and so that no processor overflows.

Two things are done beyond rounding to the nearest:

- **Error feedback** (GPTQ; Frantar et al. 2022, arXiv 2210.17323, after Hassibi and Stork 1993): weights are
  rounded one input after another, and what is lost is made good in the inputs that are still to come, given
  how the inputs go together in calibration data.
- **Safe pairs.** Processors with AVX2 and without VNNI multiply unsigned by signed bytes with `vpmaddubsw`,
  which adds two neighbouring products in 16 bits and saturates: 255 * (w0 + w1) must stay within +-32767. So
  no two neighbours of the same sign may sum to more than 128. That costs about a quarter of a bit where
  halving all weights (`reduce_range`) costs a whole one, and the same file is right on every processor.
"""

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

LARGEST = 127
LARGEST_PAIR = 128


def row_scales(weight: NDArray[np.floating], *, pairs: bool) -> Doubles:
    """Scale of each row of weight [N, K], such that the row fits int8 and, with `pairs`, so do its pairs."""
    rows = np.asarray(weight, np.float64)
    scale = np.abs(rows).max(axis=1) / LARGEST
    if pairs:
        padded = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
        positive = np.maximum(padded, 0).sum(axis=2).max(axis=1)
        negative = np.maximum(-padded, 0).sum(axis=2).max(axis=1)
        scale = np.maximum(scale, np.maximum(positive, negative) / LARGEST_PAIR)
    return np.maximum(scale, 1e-12)


def round_rows(
    weight: NDArray[np.floating], scale: NDArray[np.floating], *, pairs: bool, hessian: Doubles | None = None
) -> NDArray[np.int8]:
    """weight [N, K] -> int8 [N, K], which times scale [N] stands for it.

    hessian: sum of x x^T over calibration inputs x, [1, K, K] for all rows or [N, K, K] for each;
    without it every weight is rounded to the nearest, as far as its pair allows.
    """
    left = np.array(weight, np.float64)
    count = left.shape[1]
    feedback = None if hessian is None else _feedback(hessian)
    out = np.zeros(left.shape, np.int8)
    for k in range(count):
        low, high = np.full(len(left), -LARGEST), np.full(len(left), LARGEST)
        if pairs and k % 2:  # the first of the pair is fixed already
            before = out[:, k - 1].astype(np.int64)
            high = np.where(before > 0, np.minimum(high, LARGEST_PAIR - before), high)
            low = np.where(before < 0, np.maximum(low, -LARGEST_PAIR - before), low)
        out[:, k] = np.clip(np.rint(left[:, k] / scale), low, high)
        if feedback is not None:
            error = left[:, k] - out[:, k] * scale
            left[:, k + 1 :] -= error[:, None] * feedback[:, k, k + 1 :]
    return out


def _feedback(hessian: Doubles) -> Doubles:
    """For each input, what of its error goes to each later one: [G, K, K] -> [G, K, K], upper triangles."""
    count = hessian.shape[1]
    mean = np.trace(hessian, axis1=1, axis2=2) / count
    # Damping: what the calibration data hardly shows must not drive the other weights far.
    damped = hessian + (0.01 * mean + 1e-9)[:, None, None] * np.eye(count)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    return np.asarray(upper / np.diagonal(upper, axis1=1, axis2=2)[:, :, None])
