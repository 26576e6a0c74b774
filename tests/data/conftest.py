"""Makers of tiny data sets, shared by the tests of this room."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakePhoto = Callable[..., bytes]


def _photo(seed: int, size: tuple[int, int] = (48, 36), quality: int = 90, format: str = "JPEG") -> bytes:
    """A coloured picture with its own rough structure: photos of different seeds are no near duplicates."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": quality} if format == "JPEG" else {}))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photo() -> MakePhoto:
    """Return `photo(seed, size=(48, 36), quality=90, format="JPEG") -> bytes`."""
    return _photo


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    """A Flickr8k of 12 photos with the dirt of the real one: 8 train, 2 dev, 2 in no split."""
    root = tmp_path / "flickr"
    photos, text = root / "Flicker8k_Dataset", root / "Flickr8k_text"
    photos.mkdir(parents=True)
    text.mkdir()
    names = [f"{number}_abc.jpg" for number in range(12)]
    lines = []
    for number, name in enumerate(names):
        photos.joinpath(name).write_bytes(_photo(number))
        lines += [f"{name}#{n}\tA dog number {n} runs past photo {number} ." for n in range(5)]
    lines[5 * 10] = "10_abc.jpg#0\tA"  # the one-letter caption, of a photo without a split
    lines += [f"2258277193_586949ec62.jpg.1#{n}\tA stray caption ." for n in range(5)]
    lines += [f"missing.jpg#{n}\tA photo nobody has ." for n in range(5)]
    text.joinpath("Flickr8k.token.txt").write_text("\n".join(lines) + "\n", "utf-8")
    text.joinpath("Flickr_8k.trainImages.txt").write_text("\n".join([*names[:8], "missing.jpg"]) + "\n")
    text.joinpath("Flickr_8k.devImages.txt").write_text("\n".join(names[8:10]) + "\n")
    return root
