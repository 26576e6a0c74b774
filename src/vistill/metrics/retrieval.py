"""Retrieval: where the right picture stands among all pictures for a text, and the right text for a picture.

Similarity is the cosine. A text looks for its one picture. A picture looks for the best placed of its texts;
its other texts are not in the way (Karpathy and Fei-Fei 2015, arXiv 1412.2306). Rank 1 is the best place.
What is as similar as the right answer stands before it: a model that gives the same vector to everything gets
the last rank, not the first. Cosines within `TIE` are as similar, for rounding alone can part them so far.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vistill.errors import ConfigError, DataError
from vistill.metrics.bootstrap import Interval, ratio_intervals

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

TIE = 1e-5  # a float32 sum of some hundred products is off by some 1e-6, in the worst case by 1e-5
AT = (1, 5, 10)


@dataclass(frozen=True)
class RankScores:
    """Recall at 1, 5 and 10 as shares from 0 to 1; median and mean of the ranks, 1 at best."""

    r1: float
    r5: float
    r10: float
    median: float
    mean: float


@dataclass(frozen=True)
class RetrievalScores:
    """Both ways."""

    text_to_image: RankScores
    image_to_text: RankScores

    @property
    def mean_r10(self) -> float:
        """Mean of R@10 of both ways: one number to choose a model by."""
        return (self.text_to_image.r10 + self.image_to_text.r10) / 2

    @property
    def mean_recall(self) -> float:
        """Mean of R@1, R@5 and R@10 of both ways, called mR in papers."""
        ways = (self.text_to_image, self.image_to_text)
        return sum(way.r1 + way.r5 + way.r10 for way in ways) / 6

    def to_dict(self) -> dict[str, dict[str, float]]:
        """{"text_to_image": {"r1": ...}, "image_to_text": {...}}."""
        return asdict(self)


@dataclass(frozen=True)
class Ranks:
    """The rank of every right answer, 1 at best."""

    text_to_image: Ints
    """[m]: of the picture of each text."""
    image_to_text: Ints
    """[n]: of the best placed text of each picture; 0 for a picture without texts."""


def retrieval_scores(
    image: Floats, text: Floats, owner: Ints, folds: int = 1, chunk: int = 1024
) -> RetrievalScores:
    """Score image [n, E] against text [m, E], whose picture is owner [m] (0 to n - 1).

    folds: the pictures are cut, in their order, into so many parts of equal size (but for one), each is
    scored as if it were alone, and the scores are averaged: 5 for the "1k" figures of 5,000 COCO pictures.
    Raises as `retrieval_ranks`, and ConfigError if there are fewer pictures than folds.
    """
    return mean_scores(fold_ranks(image, text, owner, folds, chunk))


def fold_ranks(image: Floats, text: Floats, owner: Ints, folds: int = 1, chunk: int = 1024) -> list[Ranks]:
    """The ranks of each fold, see `retrieval_scores`; its pictures and texts keep their order."""
    _check(image, text, owner)
    return [
        retrieval_ranks(image[part], text[inside], owner[inside] - part.start, chunk)
        for part, inside in _folds(len(image), owner, folds)
    ]


def joined_ranks(ranks: list[Ranks], owner: Ints) -> Ranks:
    """Ranks of several folds as those of the whole set, each picture and text in its place."""
    pictures = sum(len(fold.image_to_text) for fold in ranks)
    to_image = np.empty(len(owner), np.int64)
    for fold, (_, inside) in zip(ranks, _folds(pictures, owner, len(ranks)), strict=True):
        to_image[inside] = fold.text_to_image
    return Ranks(to_image, np.concatenate([fold.image_to_text for fold in ranks]))


def retrieval_ranks(image: Floats, text: Floats, owner: Ints, chunk: int = 1024) -> Ranks:
    """Ranks of the right answers both ways; no more than chunk x chunk similarities exist at a time.

    image [n, E] and text [m, E] are brought to length 1; owner [m] is the picture of each text. A picture
    without texts is in the way of others but is not scored itself. Raises DataError for shapes that do not
    fit, an owner out of range, and vectors that are not finite or zero.
    """
    _check(image, text, owner)
    if chunk < 1:
        raise ConfigError(f"chunk={chunk}: must be at least 1")
    n, m = len(image), len(text)
    own = np.empty(m)
    for rows in _chunks(m, chunk):
        pair = _unit(text[rows], "text"), _unit(image[owner[rows]], "image")
        own[rows] = np.einsum("me,me->m", *pair, dtype=np.float64)
    best = np.full(n, np.inf)  # nothing beats a picture without texts
    best[owner] = -np.inf
    np.maximum.at(best, owner, own)
    floor_text, floor_image = (own - TIE).astype(np.float32), (best - TIE).astype(np.float32)
    to_image, to_text = np.ones(m, np.int64), np.ones(n, np.int64)
    for rows in _chunks(m, chunk):
        texts = _unit(text[rows], "text")
        for columns in _chunks(n, chunk):
            similar = texts @ _unit(image[columns], "image").T  # [chunk of m, chunk of n]
            place = owner[rows] - columns.start
            here = np.flatnonzero((place >= 0) & (place < similar.shape[1]))
            similar[here, place[here]] = -np.inf  # a right answer is not in its own way
            to_image[rows] += (similar >= floor_text[rows, None]).sum(axis=1)
            to_text[columns] += (similar >= floor_image[columns]).sum(axis=0)
    to_text[np.isposinf(best)] = 0
    return Ranks(to_image, to_text)


def mean_scores(folds: list[Ranks]) -> RetrievalScores:
    """Scores of each fold, averaged."""

    def mean(each: list[Ints]) -> RankScores:
        values = np.mean([_summary(ranks[ranks > 0]) for ranks in each], axis=0)
        return RankScores(*map(float, values))

    return RetrievalScores(
        mean([ranks.text_to_image for ranks in folds]), mean([ranks.image_to_text for ranks in folds])
    )


def retrieval_intervals(
    ranks: Ranks, owner: Ints, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of recall, "text_to_image.r1" and so on: the pictures are drawn again, each with its texts.

    Ranks stay as they are: the pictures and texts that are searched remain those of the whole set.
    """
    scored = np.flatnonzero(ranks.image_to_text > 0)
    texts = np.bincount(owner, minlength=len(ranks.image_to_text))[scored].astype(np.float64)
    ratios: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for k in AT:
        hits = np.bincount(owner, ranks.text_to_image <= k, minlength=len(ranks.image_to_text))
        ratios[f"text_to_image.r{k}"] = (hits[scored].astype(np.float64), texts)
    for k in AT:
        found = (ranks.image_to_text[scored] <= k).astype(np.float64)
        ratios[f"image_to_text.r{k}"] = (found, np.ones(len(scored)))
    return ratio_intervals(ratios, samples, level, seed)


def chance_scores(pictures: int, owner: Ints, folds: int = 1) -> RetrievalScores:
    """What similarities drawn at random would score, expected: the row to compare a model with."""
    found = []
    for part, inside in _folds(pictures, owner, folds):
        here = owner[inside] - part.start
        texts_of = np.bincount(here, minlength=part.stop - part.start)
        kinds, counts = np.unique(texts_of[texts_of > 0], return_counts=True)
        shares = {int(kind): float(count / counts.sum()) for kind, count in zip(kinds, counts, strict=True)}
        found.append((_chance(len(texts_of), {1: 1.0}), _chance(len(here), shares)))
    means = [np.mean([list(asdict(fold[way]).values()) for fold in found], axis=0) for way in (0, 1)]
    return RetrievalScores(*(RankScores(*map(float, values)) for values in means))


def _chance(size: int, shares: Mapping[int, float]) -> RankScores:
    """The best of c right answers among `size` in random order, `shares` of the queries having c."""
    later = np.zeros(size)  # chance that no right answer is among the first 1, 2, ... places
    mean = 0.0
    for c, share in shares.items():
        places = np.arange(size)
        later += share * np.cumprod(np.maximum(size - c - places, 0) / (size - places))
        mean += share * (size + 1) / (c + 1)
    found = 1 - later
    r1, r5, r10 = (float(found[min(k, size) - 1]) for k in AT)
    # A median of ranks lies between two of them where exactly half of the chance lies below.
    low, high = np.searchsorted(found, [0.5 - 1e-12, 0.5 + 1e-12]) + 1
    return RankScores(r1, r5, r10, median=float(low + high) / 2, mean=mean)


def fold_slices(pictures: int, folds: int) -> list[slice]:
    """The pictures of each fold. Raises ConfigError if there are fewer pictures than folds."""
    if not 1 <= folds <= max(pictures, 1):
        raise ConfigError(f"folds={folds}: must lie between 1 and the number of pictures, {pictures}")
    edges = np.linspace(0, pictures, folds + 1).round().astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _folds(pictures: int, owner: Ints, folds: int) -> list[tuple[slice, NDArray[np.bool_]]]:
    """The pictures of each fold and which texts are theirs."""
    parts = fold_slices(pictures, folds)
    return [(part, (owner >= part.start) & (owner < part.stop)) for part in parts]


def _summary(ranks: Ints) -> list[float]:
    """The values of RankScores in the order of its fields."""
    if len(ranks) == 0:
        raise DataError("a set or a fold of it has no text, so that nothing can be retrieved")
    return [*(float((ranks <= k).mean()) for k in AT), float(np.median(ranks)), float(ranks.mean())]


def _check(image: Floats, text: Floats, owner: Ints) -> None:
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise DataError(
            f"embeddings must be [n, E] and [m, E] of one width, found image {image.shape}, text {text.shape}"
        )
    if owner.shape != (len(text),):
        raise DataError(f"owner must name one picture a text, [{len(text)}], found {owner.shape}")
    if len(image) == 0 or len(text) == 0:
        raise DataError(f"retrieval needs pictures and texts, found {len(image)} and {len(text)}")
    if owner.min() < 0 or owner.max() >= len(image):
        raise DataError(f"owner names picture {owner.max()} or {owner.min()}; there are {len(image)}, from 0")


def _chunks(size: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, size)) for start in range(0, size, chunk)]


def _unit(rows: Floats, what: str) -> NDArray[np.float32]:
    rows = rows.astype(np.float32, copy=False)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        raise DataError(f"an {what} embedding is zero or not finite: nothing can be compared with it")
    out: NDArray[np.float32] = rows / length
    return out
