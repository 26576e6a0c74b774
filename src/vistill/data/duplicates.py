"""Equal and nearly equal pictures: what a build compares and what it removes.

Two pictures are nearly equal when their 64-bit difference hashes differ in few bits and their 16x16 grey
thumbnails correlate. The hash (dHash: is a pixel of a 9x8 thumbnail brighter than its left neighbour) finds
candidates fast; alone it also pairs different chest X-rays or jumping people, which the thumbnails tell
apart. Both survive re-compression, resizing and changes of light, not crops, mirror images or rotations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vistill.data.records import EVALUATED

HASH_BITS = 64
THUMBNAIL = 16
# Copies (JPEG quality 30, half size, contrast) correlate at 0.998 or more, brightened ones at 0.96; different
# pictures whose hashes are at most 8 bits apart at 0.90 or less (see docs/data.md for the pictures measured).
MIN_CORRELATION = 0.95


@dataclass(frozen=True)
class Pair:
    """Two pictures, by row number with `first` < `second`, and how they are equal.

    `kind` is "bytes" (same file), "pixels" (same decoded picture) or "near"; `distance` is in bits of 64 and
    `correlation` that of the thumbnails, -1..1.
    """

    first: int
    second: int
    kind: str
    distance: int = 0
    correlation: float = 1.0


def difference_hash(image: Image.Image) -> int:
    """Return the 64-bit dHash of a picture of any mode; two equal pictures have equal hashes."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)  # [8, 9]
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def thumbnail(image: Image.Image) -> bytes:
    """Return the grey 16x16 thumbnail of a picture of any mode: 256 bytes."""
    return image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()


def find_pairs(
    sha256: Sequence[str],
    pixels: Sequence[str],
    hashes: NDArray[np.uint64],
    thumbnails: NDArray[np.uint8],
    splits: Sequence[str],
    threshold: int | None,
) -> list[Pair]:
    """Return every pair of equal and nearly equal pictures, sorted by row numbers.

    sha256, pixels: hashes of the files and of the decoded pictures [n]; hashes: difference hashes [n];
    thumbnails: [n, 256]; splits: [n]; threshold: bits by which near hashes may differ, None looks for equal
    pictures only. Of m equal pictures each is paired with one of them only, and not m * (m - 1) / 2 times:
    with the first in a split that is evaluated, so that no copy elsewhere is missed, else with the first.
    """
    pairs: dict[tuple[int, int], Pair] = {}
    for kind, values in (("bytes", sha256), ("pixels", pixels)):
        anchors: dict[str, int] = {}
        for row in sorted(range(len(values)), key=lambda row: (splits[row] not in EVALUATED, row)):
            anchor = anchors.setdefault(values[row], row)
            if anchor != row:
                key = (min(anchor, row), max(anchor, row))
                pairs.setdefault(key, Pair(*key, kind))
    if threshold is not None:
        for pair in near_pairs(hashes, thumbnails, threshold):
            if pixels[pair.first] != pixels[pair.second]:
                pairs[pair.first, pair.second] = pair
    return [pairs[key] for key in sorted(pairs)]


def near_pairs(hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], threshold: int) -> Iterator[Pair]:
    """Yield once each pair of hashes [n] at most `threshold` bits apart whose thumbnails [n, 256] correlate.

    Exact: cut into threshold + 1 bands, two such hashes agree in at least one whole band (pigeonhole), so
    only hashes of one bucket are compared. A pair is yielded from the first band in which it agrees.
    """
    bands = _bands(threshold + 1)
    for number, (shift, width) in enumerate(bands):
        values = _band(hashes, shift, width)
        order = np.argsort(values, kind="stable")
        ends = np.flatnonzero(np.diff(values[order])) + 1
        for bucket in np.split(order, ends):  # ascending row numbers, as the sort is stable
            for position, row in enumerate(bucket[:-1]):
                others = bucket[position + 1 :]
                distances = np.bitwise_count(hashes[others] ^ hashes[row])
                close = distances <= threshold
                for earlier_shift, earlier_width in bands[:number]:
                    if not close.any():
                        break
                    known = _band(hashes[others], earlier_shift, earlier_width)
                    close &= known != _band(hashes[row : row + 1], earlier_shift, earlier_width)
                if close.any():
                    yield from _correlated(int(row), others[close], distances[close], thumbnails)


def _correlated(
    row: int, others: NDArray[np.intp], distances: NDArray[np.uint8], thumbnails: NDArray[np.uint8]
) -> Iterator[Pair]:
    """Yield the pairs of `row` with those of `others` [m] whose thumbnails correlate."""
    correlations = _standardise(thumbnails[others]) @ _standardise(thumbnails[row : row + 1])[0]
    for other, distance, correlation in zip(others, distances, correlations, strict=True):
        if correlation >= MIN_CORRELATION:
            yield Pair(row, int(other), "near", int(distance), round(float(correlation), 3))


def _standardise(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return rows [m, 256] with mean 0 and norm 1; one of a single grey becomes 0, like nothing else."""
    rows = thumbnails.astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    standardised: NDArray[np.float64] = rows / np.where(norms > 0, norms, np.inf)
    return standardised


def _bands(count: int) -> list[tuple[int, int]]:
    """Cut 64 bits into `count` bands of nearly equal width: (shift, width) each."""
    edges = [round(HASH_BITS * n / count) for n in range(count + 1)]
    return [(low, high - low) for low, high in pairwise(edges)]


def _band(values: NDArray[np.uint64], shift: int, width: int) -> NDArray[np.uint64]:
    return (values >> np.uint64(shift)) & np.uint64((1 << width) - 1)


def removals(pairs: Sequence[Pair], splits: Sequence[str]) -> dict[int, Pair]:
    """Return {row to remove: the pair that tells why}.

    Of a pair with one picture in a split that is evaluated and one in a split that is not, the latter goes.
    Pairs inside a split, between dev and test or between train and extra remove nothing.
    """
    removed: dict[int, Pair] = {}
    for pair in pairs:
        evaluated = [splits[row] in EVALUATED for row in (pair.first, pair.second)]
        if evaluated == [True, False]:
            removed.setdefault(pair.second, pair)
        elif evaluated == [False, True]:
            removed.setdefault(pair.first, pair)
    return removed
