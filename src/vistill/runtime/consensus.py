"""The consensus head: which of the captions that a search found would people agree with most?

A beam search ends with captions that the model finds about equally likely. This head predicts, from the
picture, what people's captions of it have in common, and the caption that has most of it comes first. What
is predicted is the mean of their tf-idf vectors of 1- to 4-grams: its product with the vector of a caption is
the consensus that CIDEr measures (Vedantam et al. 2015, eq. 3; without the penalties of CIDEr-D). Nearest
neighbours were used so by Devlin et al. 2015 ("Exploring Nearest Neighbor Approaches for Image Captioning");
here a kernel regression on the captioner's own tower takes their place: no training picture or caption is
kept.

    features of the vision tower, mean over patches [B, F]
        -> standardised, on their principal components, unit norm [B, P]
        -> random Fourier features of a Gaussian kernel (Rahimi & Recht 2007) [B, D + 1]
        -> linear -> what people would say, [B, R]
    a caption -> its n-grams, hashed into H rows -> their mean by tf-idf [R]

`export/consensus.py` fits it in closed form.
"""

import io
import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vistill.errors import BundleError
from vistill.runtime.bundle import Bundle
from vistill.runtime.decode import GenerationConfig

ORDERS = 4
"""Longest n-gram in words."""
WEIGHT = 200.0
"""What the consensus counts for beside the mean log-probability of a word. Chosen on Flickr8k dev, where
CIDEr hardly changes from 120 to 1,000."""
BIAS = 0.3
"""The constant feature."""
UNSEEN = 255
"""In the table of idf: an n-gram of fewer than two training pictures, of which nothing was learnt."""

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ConsensusHead:
    """Arrays of the head; int8 tables are `table * scale` of their last axis.

    mean float32 [F]; projection float16 [F, P]; frequencies float16 [P, D]; phases float32 [D]; weights int8
    [D + 1, R] and weight_scale float32 [R]; grams int8 [H, R] and gram_scale float32 [R]; idf uint8 [I], in
    steps of most_idf / 254, UNSEEN where nothing is known.
    """

    mean: Floats
    projection: NDArray[np.float16]
    frequencies: NDArray[np.float16]
    phases: Floats
    weights: NDArray[np.int8]
    weight_scale: Floats
    grams: NDArray[np.int8]
    gram_scale: Floats
    idf: NDArray[np.uint8]
    most_idf: Floats

    def __post_init__(self) -> None:
        features, kept = self.projection.shape
        random = len(self.phases)
        reduced, rows, table = self.weights.shape[1], len(self.grams), len(self.idf)
        fits = (
            self.mean.shape == (features,)
            and self.frequencies.shape == (kept, random)
            and self.weights.shape == (random + 1, reduced)
            and self.grams.shape == (rows, reduced)
            and self.weight_scale.shape == self.gram_scale.shape == (reduced,)
            and self.most_idf.shape == (1,)
            and _power_of_two(rows)
            and _power_of_two(table)
        )
        if not fits:
            raise ValueError("the shapes of its tables do not belong together")

    def expect(self, features: Floats) -> Floats:
        """Features [B, F] -> what people would say of each picture [B, R]."""
        projection, frequencies, weights = self._tables
        random = fourier(projected(features, self.mean, projection), frequencies, self.phases)
        out: Floats = random @ weights
        return out

    @cached_property
    def _tables(self) -> tuple[Floats, Floats, Floats]:
        """Projection, frequencies and weights as float32, turned into it once: at every picture it would take
        longer than all else that the head does."""
        weights = self.weights.astype(np.float32) * (self.weight_scale * self.gram_scale)
        return self.projection.astype(np.float32), self.frequencies.astype(np.float32), weights

    def consensus(self, expected: Floats, captions: Sequence[str]) -> list[float]:
        """Of each caption, with what is expected of its picture, one row [R] of `expect`."""
        scores = []
        for caption in captions:
            places, weights = hashed(words(caption), self.idf, float(self.most_idf[0]), len(self.grams))
            scores.append(float(weights @ (self.grams[places].astype(np.float32) @ expected)))
        return scores

    def ranked(
        self, expected: Floats, captions: Sequence[str], scores: Sequence[float]
    ) -> list[tuple[int, float]]:
        """(place among `captions`, its score with WEIGHT times the consensus added), the best one first."""
        agreed = self.consensus(expected, captions)
        whole = [score + WEIGHT * consensus for score, consensus in zip(scores, agreed, strict=True)]
        return sorted(enumerate(whole), key=lambda one: -one[1])

    def to_bytes(self) -> bytes:
        """As `from_bytes` reads it: an .npz file, compressed."""
        out = io.BytesIO()
        np.savez_compressed(out, **{name: getattr(self, name) for name in TYPES})
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "ConsensusHead":
        """Raises BundleError, naming `where`, for anything else than such a file. Nothing is unpickled."""
        kinds = {name: np.dtype(kind) for name, kind in TYPES.items()}
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                if set(file.files) != set(kinds):
                    raise ValueError(f"it holds {', '.join(sorted(file.files))}")
                arrays = {name: file[name] for name in kinds}
            for name, array in arrays.items():
                if array.dtype != kinds[name]:
                    raise ValueError(f"{name} is {array.dtype}, not {kinds[name]}")
            return cls(**arrays)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{where}: is no consensus head: {error}") from error


TYPES = {
    "mean": "f4", "projection": "f2", "frequencies": "f2", "phases": "f4", "weights": "i1",
    "weight_scale": "f4", "grams": "i1", "gram_scale": "f4", "idf": "u1", "most_idf": "f4",
}  # fmt: skip


def open_head(bundle: Bundle) -> ConsensusHead | None:
    """The consensus head of a captioner's bundle; None if it has none. Raises BundleError."""
    if "consensus" not in bundle.manifest.files:
        return None
    return ConsensusHead.from_bytes(bundle.read("consensus"), str(bundle.path("consensus")))


def to_choose_from(config: GenerationConfig) -> GenerationConfig:
    """The search that leaves a head the choice: all that it finds are candidates."""
    return config if config.do_sample else replace(config, num_return=config.num_beams)


def projected(features: Floats, mean: Floats, projection: Floats) -> Floats:
    """Features [B, F] on the columns of the projection, of unit norm [B, P]."""
    x = (features - mean) @ projection
    out: Floats = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return out


def fourier(x: Floats, frequencies: Floats, phases: Floats) -> Floats:
    """Random Fourier features with a constant one behind: [B, F] -> float32 [B, D + 1]."""
    waves = np.cos(x @ frequencies + phases) * math.sqrt(2 / len(phases))
    return np.concatenate((waves, np.full((len(x), 1), BIAS, np.float32)), axis=1, dtype=np.float32)


def words(text: str) -> list[str]:
    """Words of a caption: lower-case, without punctuation."""
    return _WORD.findall(text.lower())


def n_grams(caption: Sequence[str]) -> list[Counter[int]]:
    """{hash: count} of the n-grams of each order, 1 to ORDERS; a hash has 32 bits."""
    encoded = [word.encode("utf-8", "replace") for word in caption]
    return [
        Counter(zlib.crc32(b" ".join(encoded[i : i + n])) for i in range(len(encoded) - n + 1))
        for n in range(1, ORDERS + 1)
    ]


def hashed(
    caption: Sequence[str], idf: NDArray[np.uint8], most_idf: float, rows: int
) -> tuple[NDArray[np.int64], Floats]:
    """Rows and weights of the n-grams of a caption that something was learnt of.

    Each order is a tf-idf vector of norm 1 / ORDERS, counted over all its n-grams.
    """
    places, weights = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    for counts in n_grams(caption):
        keys = np.fromiter(counts, np.int64, len(counts))
        steps = idf[keys & (len(idf) - 1)]
        known = steps != UNSEEN
        tf_idf = np.fromiter(counts.values(), np.float32, len(counts))
        tf_idf *= np.where(known, steps, UNSEEN - 1) * np.float32(most_idf / (UNSEEN - 1))
        norm = math.sqrt(float(tf_idf @ tf_idf)) * ORDERS
        if norm > 0:
            places.append((keys[known] >> 8) & (rows - 1))
            weights.append(tf_idf[known] / np.float32(norm))
    return np.concatenate(places), np.concatenate(weights)


def _power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
