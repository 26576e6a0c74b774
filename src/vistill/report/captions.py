"""Evaluate a captioner: captions of a split, their scores with intervals, and the files about it."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistill.errors import DataError, ImageError
from vistill.metrics.bootstrap import intervals
from vistill.metrics.caption import score_captions
from vistill.metrics.diversity import diversity
from vistill.metrics.ptb import tokenize
from vistill.provenance import stamp
from vistill.report.generate import Caption, Model

FORMAT = 1
VARIETY = ("vocabulary", "mean_length", "distinct_captions", "distinct_1", "distinct_2", "repetition")
"""Fields of `Diversity` that are told."""
Rows = Sequence[Mapping[str, Any]]
"""Rows of a built data set: key, image (bytes), captions, ..."""


@dataclass(frozen=True)
class Run:
    """Captions of some pictures, in order, and how long it took (decoding the pictures included)."""

    keys: list[str]
    captions: list[str]
    model_scores: list[float | None]
    references: list[list[str]]
    seconds: float
    fingerprint: str
    """sha256 over keys, pictures and references."""


def caption_rows(
    model: Model, rows: Rows, *, batch_size: int, progress: Callable[[int], None] = lambda done: None
) -> Run:
    """Caption every row; `progress` is called with the number of pictures done.

    Raises DataError for no rows, a row without captions and a picture that cannot be decoded.
    """
    if not len(rows):
        raise DataError("there is no picture to evaluate")
    digest = hashlib.sha256()
    keys: list[str] = []
    found: list[Caption] = []
    references: list[list[str]] = []
    seconds = 0.0
    for start in range(0, len(rows), batch_size):
        batch = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        for row in batch:
            _check(row)
            digest.update(_print(row))
        began = time.perf_counter()
        with decoding(batch):
            found.extend(model.caption([row["image"] for row in batch]))
        seconds += time.perf_counter() - began
        keys.extend(row["key"] for row in batch)
        references.extend(list(row["captions"]) for row in batch)
        progress(len(keys))
    return Run(
        keys, [f.text for f in found], [f.score for f in found], references, seconds, digest.hexdigest()
    )


@contextmanager
def decoding(batch: Rows) -> Iterator[None]:
    """A picture of the batch that cannot be decoded is a DataError that names the batch."""
    try:
        yield
    except ImageError as error:
        names = ", ".join(row["key"] for row in batch)
        raise DataError(
            f"a picture out of {names} cannot be decoded: {error}; build the data set again"
        ) from error


def fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """sha256 (hex) over keys, references and pictures, as a `Run` has it."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_print(row))
    return digest.hexdigest()


def _print(row: Mapping[str, Any]) -> bytes:
    words = json.dumps([row["key"], list(row["captions"])]).encode()
    return words + hashlib.sha256(row["image"]).digest()


def _check(row: Mapping[str, Any]) -> None:
    if not row["captions"]:
        raise DataError(f"picture {row['key']!r} has no caption to compare with; choose a split that has")


@dataclass(frozen=True)
class Speed:
    """Milliseconds from an encoded picture to its caption, one picture at a time."""

    pictures: int
    threads: int | None
    median_ms: float
    low_ms: float
    high_ms: float
    """Quartiles of what a clock shows."""
    cpu_ms: float
    """Median of the processor time of all threads, which other work on the machine changes far less."""


def measure_speed(model: Model, rows: Rows, count: int) -> Speed | None:
    """Caption `count` pictures one by one after two to warm up, spread over `rows`; None for count 0.

    Each is one that `caption_rows` could read.
    """
    if not count:
        return None
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int).tolist()
    times, work = [], []
    for number in [*chosen[:2], *chosen]:
        image = rows[number]["image"]
        began, worked = time.perf_counter(), time.process_time()
        model.caption([image])
        times.append(1000 * (time.perf_counter() - began))
        work.append(1000 * (time.process_time() - worked))
    kept = slice(len(times) - len(chosen), None)
    low, median, high = (round(float(q), 3) for q in np.quantile(times[kept], [0.25, 0.5, 0.75]))
    cpu = round(float(np.median(work[kept])), 3)
    return Speed(len(chosen), model.threads, median, low, high, cpu)


@dataclass(frozen=True)
class Scored:
    """A run with its scores: of the whole (0 to 100, as papers print) and of each picture."""

    run: Run
    figures: dict[str, dict[str, float]]
    """{score: {value, low, high}} with 95% bootstrap intervals over pictures."""
    pictures: dict[str, NDArray[np.float64]]
    """{score: [M]}, 0 to 100 like the figures."""
    variety: dict[str, dict[str, float]]
    """{figure: {model, people}}: how varied the captions are, beside one caption a picture by people."""


def score_run(run: Run) -> Scored:
    """Score a run against its references: figures with intervals, scores of each picture, variety."""
    scores = score_captions(
        dict(zip(run.keys, run.captions, strict=True)), dict(zip(run.keys, run.references, strict=True))
    )
    figures = {
        name: {"value": 100 * found.value, "low": 100 * found.low, "high": 100 * found.high}
        for name, found in intervals(scores).items()
    }
    pictures = {name: 100 * values for name, values in scores.per_picture.items()}
    model = asdict(diversity([tokenize(caption) for caption in run.captions]))
    people = asdict(diversity([tokenize(texts[0]) for texts in run.references]))
    variety = {name: {"model": model[name], "people": people[name]} for name in VARIETY}
    return Scored(run, figures, pictures, variety)


def to_json(
    scored: Scored, model: Model, name: str, data: str, split: str, speed: Speed | None = None
) -> dict[str, Any]:
    """What metrics.json holds; `parameters`, `bytes`, `trained`, `speed` and `rerank` (where there is a
    consensus head) joined format 1 later."""
    run = scored.run
    choice = {} if model.rerank is None else {"rerank": model.rerank}
    who: dict[str, Any] = {
        "name": name,
        "kind": model.kind,
        "sha256": model.hash,
        "preprocess": model.preprocess,
        "parameters": model.parameters,
        "bytes": model.bytes,
        "trained": list(model.trained),
    }
    return {
        "format": FORMAT,
        "task": "caption",
        "model": who,
        "data": {
            "name": data,
            "split": split,
            "pictures": len(run.keys),
            "references": sum(map(len, run.references)),
            "fingerprint": run.fingerprint,
        },
        "generation": asdict(model.generation) | choice,
        "scores": scored.figures,
        "variety": scored.variety,
        "speed": asdict(speed) if speed else None,
        "seconds": round(run.seconds, 3),
        "pictures_per_second": round(len(run.keys) / run.seconds, 2),
        **stamp(),
    }


def prediction_lines(scored: Scored) -> list[str]:
    """One JSON object a picture: key, caption, model_score, references, scores."""
    run = scored.run
    return [
        json.dumps(
            {
                "key": key,
                "caption": run.captions[i],
                "model_score": _rounded(run.model_scores[i]),
                "references": run.references[i],
                "scores": {name: round(float(values[i]), 3) for name, values in scored.pictures.items()},
            },
            ensure_ascii=False,
        )
        for i, key in enumerate(run.keys)
    ]


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def coco_results(run: Run) -> list[dict[str, str | int]]:
    """COCO results, `[{"image_id", "caption"}]`; ids are numbers if every key is one."""
    numbers = all(key.isascii() and key.isdecimal() for key in run.keys)
    return [
        {"image_id": int(key) if numbers else key, "caption": caption}
        for key, caption in zip(run.keys, run.captions, strict=True)
    ]
