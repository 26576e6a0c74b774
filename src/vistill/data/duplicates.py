"""Equal and nearly equal pictures: 64-bit difference hashes, their neighbours, and what a build removes.

The difference hash (dHash) compares each pixel of a 9x8 grey thumbnail with its right neighbour: it survives
re-compression, resizing and small changes of light, not crops, mirror images or rotations.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_BITS = 64

# Splits that are scored; a picture of another split that equals one of theirs is removed from the other split.
EVALUATED = ("test", "dev")


@dataclass(frozen=True)
class Pair:
    """Two pictures, by row number with `first` < `second`, and how they are equal.

    `kind` is "bytes" (same file), "pixels" (same decoded picture) or "near"; `distance` is in bits of 64.
    """

    first: int
    second: int
    kind: str
    distance: int


def difference_hash(image: Image.Image) -> int:
    """Return the 64-bit dHash of a picture of any mode; two equal pictures have equal hashes."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)  # [8, 9]
    bits = grey[:, 1:] > grey[:, :-1]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hashes: NDArray[np.uint64], threshold: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first, second, distance) once for each pair of hashes [n] at most `threshold` bits apart.

    Exact: cut into threshold + 1 bands, two such hashes agree in at least one whole band (pigeonhole), so only
    hashes of one bucket are compared. A pair is yielded from the first band in which it agrees.
    """
    bands = _bands(threshold + 1)
    for number, (shift, width) in enumerate(bands):
        values = _band(hashes, shift, width)
        order = np.argsort(values, kind="stable")
        ends = np.flatnonzero(np.diff(values[order])) + 1
        for bucket in np.split(order, ends):
            yield from _pairs_in_bucket(hashes, bucket, threshold, bands[:number])


def _pairs_in_bucket(
    hashes: NDArray[np.uint64],
    bucket: NDArray[np.intp],
    threshold: int,
    earlier: Sequence[tuple[int, int]],
) -> Iterator[tuple[int, int, int]]:
    for position in range(len(bucket) - 1):
        first, rest = bucket[position], bucket[position + 1 :]
        distances = np.bitwise_count(hashes[rest] ^ hashes[first])
        for second, distance in zip(
            rest[distances <= threshold], distances[distances <= threshold], strict=True
        ):
            if not any(
                _band(hashes[first], shift, width) == _band(hashes[second], shift, width)
                for shift, width in earlier
            ):
                yield int(first), int(second), int(distance)


def _bands(count: int) -> list[tuple[int, int]]:
    """Cut 64 bits into `count` bands of nearly equal width: (shift, width) each."""
    edges = [round(HASH_BITS * n / count) for n in range(count + 1)]
    return [(low, high - low) for low, high in zip(edges, edges[1:], strict=False)]


def _band(values: NDArray[np.uint64], shift: int, width: int) -> NDArray[np.uint64]:
    mask = np.uint64((1 << width) - 1)
    return (values >> np.uint64(shift)) & mask


def find_pairs(
    sha256: Sequence[str], pixels: Sequence[str], hashes: Sequence[int], threshold: int | None
) -> list[Pair]:
    """Return every pair of equal pictures, and of pictures whose hashes are at most `threshold` bits apart.

    Of n equal pictures each is paired with the first only, not n * (n - 1) / 2 times. `threshold` None looks
    for equal ones only. Sorted by row numbers.
    """
    pairs: dict[tuple[int, int], Pair] = {}
    for kind, values in (("bytes", sha256), ("pixels", pixels)):
        first: dict[str, int] = {}
        for row, value in enumerate(values):
            start = first.setdefault(value, row)
            if start != row:
                pairs.setdefault((start, row), Pair(start, row, kind, 0))
    if threshold is not None:
        for one, other, distance in near_pairs(np.asarray(hashes, dtype=np.uint64), threshold):
            key = (min(one, other), max(one, other))
            if pixels[one] != pixels[other]:
                pairs.setdefault(key, Pair(*key, "near", distance))
    return [pairs[key] for key in sorted(pairs)]


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
