"""An embedder without a model: the vector of a picture is its four by four pixels, scaled to length 1."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vistill.runtime.image import Preprocess

Floats = NDArray[np.float32]
WIDTH = 48


def unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


class FakeEmbedder:
    """As `vistill.runtime.embedder.Embedder`, as far as the archive uses it; counts its pictures."""

    preprocess = Preprocess((4, 4), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    width = WIDTH

    def __init__(self, name: str = "fake") -> None:
        self.name = name
        self.hash = hashlib.sha256(name.encode()).hexdigest()
        self.embedded = 0

    def image_arrays(self, pixels: Floats) -> Floats:
        self.embedded += len(pixels)
        return unit(pixels.reshape(len(pixels), -1) + np.float32(1e-3))

    def texts(self, texts: Sequence[str]) -> Floats:
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) for text in texts]
        return unit(np.stack([np.random.default_rng(s).standard_normal(WIDTH, np.float32) for s in seeds]))
