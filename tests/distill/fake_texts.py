"""A text teacher of arithmetic: a text's vector is the mean of the seeded vectors of its words."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vistill.distill.answers import TeacherIdentity


def identity(weights: str = "w1") -> TeacherIdentity:
    """Who the fake says that it is."""
    return TeacherIdentity("fake", "fake", weights, "p1", "t1", vocab_size=40)


@dataclass
class FakeTexts:
    """Texts that share words are alike."""

    identity: TeacherIdentity = field(default_factory=identity)
    width: int = 16
    asked: list[int] = field(default_factory=list)
    """Texts of each call."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append(len(texts))
        return np.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> NDArray[np.float32]:
        words = [int.from_bytes(hashlib.sha256(w.encode()).digest()[:4], "little") for w in text.split()]
        mean = np.mean([np.random.default_rng(word).normal(size=self.width) for word in words], axis=0)
        unit: NDArray[np.float32] = (mean / np.linalg.norm(mean)).astype(np.float32)
        return unit
