"""Near duplicates: the hash, the search, and what is removed."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from vistill.data.duplicates import (
    Pair,
    difference_hash,
    find_pairs,
    near_pairs,
    removals,
    thumbnail,
)
from vistill.data.records import EVALUATED


def _thumbnails(images: list[Image.Image]) -> np.ndarray:
    return np.frombuffer(b"".join(map(thumbnail, images)), np.uint8).reshape(len(images), 256)


def test_difference_hash_by_hand() -> None:
    """Brighter to the right: all bits; darker to the right: none; the first bit is the top left."""
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))
    assert difference_hash(Image.fromarray(ramp)) == 2**64 - 1
    assert difference_hash(Image.fromarray(ramp[:, ::-1].copy())) == 0
    one = np.zeros((8, 9), np.uint8)
    one[0, 1:] = 200
    assert difference_hash(Image.fromarray(one)) == 1 << 63


def test_search_equals_brute_force_at_every_threshold() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 40, dtype=np.uint64)
    hashes = np.concatenate([base, base, base])
    for row in range(40, 120):  # copies with 0 to 11 bits flipped
        for bit in rng.choice(64, row % 12, replace=False):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    same = np.tile(np.arange(256, dtype=np.uint8), (120, 1))  # thumbnails that always correlate
    for threshold in (0, 1, 4, 8, 16):
        expected = {
            (i, j, (int(hashes[i]) ^ int(hashes[j])).bit_count())
            for i in range(120)
            for j in range(i + 1, 120)
            if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= threshold
        }
        found = [(pair.first, pair.second, pair.distance) for pair in near_pairs(hashes, same, threshold)]
        assert len(found) == len(set(found)), "a pair was found twice"
        assert set(found) == expected


def test_close_hashes_of_different_pictures_are_no_pair() -> None:
    """The thumbnails decide: two chest X-rays of two people may have hashes one bit apart."""
    rng = np.random.default_rng(1)
    thumbnails = rng.integers(0, 256, (3, 256), dtype=np.uint8)
    thumbnails[2] = np.clip(thumbnails[0].astype(int) // 2 + 40, 0, 255)  # darker and greyer: correlates
    hashes = np.array([7, 7, 6], np.uint64)
    pairs = list(near_pairs(hashes, thumbnails, 2))
    assert [(pair.first, pair.second, pair.distance) for pair in pairs] == [(0, 2, 1)]
    assert pairs[0].correlation > 0.99


def test_blank_pictures_are_no_near_duplicates() -> None:
    blank = _thumbnails([Image.new("RGB", (20, 20), (value, value, value)) for value in (0, 128, 255)])
    assert not list(near_pairs(np.zeros(3, np.uint64), blank, 8))


@pytest.mark.parametrize("change", ["jpeg", "half", "bright", "native"])
def test_copies_of_a_picture_are_near(photo, change: str) -> None:
    original = Image.open(io.BytesIO(photo(3, (224, 224)))).convert("RGB")
    if change == "jpeg":
        buffer = io.BytesIO()
        original.save(buffer, "JPEG", quality=30)
        copy = Image.open(buffer).convert("RGB")
    else:
        copy = {
            "half": lambda: original.resize((112, 112)),
            "bright": lambda: ImageEnhance.Brightness(original).enhance(1.1),
            "native": lambda: original.resize((500, 375)),
        }[change]()
    hashes = np.array([difference_hash(original), difference_hash(copy)], np.uint64)
    assert len(list(near_pairs(hashes, _thumbnails([original, copy]), 8))) == 1


def test_each_copy_is_paired_with_the_evaluated_one() -> None:
    """Two train copies before a dev copy: both must be found as copies of the dev picture."""
    splits = ["train", "train", "dev", "train"]
    pairs = find_pairs(
        ["a", "a", "a", "b"],
        ["p", "p", "p", "p"],
        np.zeros(4, np.uint64),
        np.zeros((4, 256), np.uint8),
        splits,
        threshold=8,
    )
    assert pairs == [Pair(0, 2, "bytes"), Pair(1, 2, "bytes"), Pair(2, 3, "pixels")]
    assert set(removals(pairs, splits)) == {0, 1, 3}


def test_threshold_none_finds_equal_pictures_only() -> None:
    splits = ["train", "dev"]
    one = np.tile(np.arange(256, dtype=np.uint8), (2, 1))
    hashes = np.zeros(2, np.uint64)
    assert find_pairs(["a", "b"], ["p", "q"], hashes, one, splits, None) == []
    assert [pair.kind for pair in find_pairs(["a", "b"], ["p", "q"], hashes, one, splits, 0)] == ["near"]


@pytest.mark.parametrize(
    ("splits", "removed"),
    [
        (("train", "dev"), {0}),
        (("dev", "train"), {1}),
        (("extra", "test"), {0}),
        (("train", "train"), set()),
        (("dev", "test"), set()),
        (("train", "extra"), set()),
    ],
)
def test_only_what_is_not_evaluated_is_removed(splits: tuple[str, str], removed: set[int]) -> None:
    assert set(removals([Pair(0, 1, "near", 3, 0.99)], splits)) == removed
    assert not any(splits[row] in EVALUATED for row in removed)
