"""Score captions from files: a results list and a captions JSON of COCO, or the lines of an evaluation."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vistill.errors import ConfigError, DataError
from vistill.files import write_text
from vistill.metrics import java
from vistill.metrics.bootstrap import intervals
from vistill.metrics.caption import NAMES, CaptionScores, score_captions
from vistill.metrics.json_files import id_of, load_json, load_rows, text_of
from vistill.metrics.ptb import tokenize

DEFAULT = (*NAMES, "CIDEr-D")
"""Metrics that are computed unless others are named."""
KNOWN = (*DEFAULT, *java.METRICS)


@dataclass(frozen=True)
class Result:
    """One caption of a results file; `image_id` as it stands there."""

    image_id: int | str
    caption: str


@dataclass(frozen=True)
class Scored:
    """What `vistill score` prints and what it writes for each picture."""

    summary: dict[str, Any]
    lines: list[dict[str, Any]]


def read_results(path: Path) -> dict[str, Result]:
    """Captions by picture (its id as text) from `[{"image_id", "caption"}]`.

    Raises DataError, with file, entry and key, for broken JSON, another shape, an empty list and a picture
    that comes twice.
    """
    entries = load_json(path)
    if not isinstance(entries, list):
        raise DataError(f'{path}: a results file is a list, [{{"image_id": 1, "caption": "a dog"}}, ...]')
    if not entries:
        raise DataError(f"{path}: the list is empty, there is no caption to score")
    found: dict[str, Result] = {}
    where: dict[str, int] = {}
    for number, entry in enumerate(entries):
        image_id = id_of(entry, "image_id", f"{path}: entry {number}")
        key = str(image_id)
        if key in found:
            raise DataError(
                f"{path}: entry {number}: image_id {image_id!r} comes twice, first in entry {where[key]}; "
                "one caption a picture is scored"
            )
        where[key] = number
        found[key] = Result(image_id, text_of(entry, "caption", f"{path}: entry {number}"))
    return found


def read_references(path: Path) -> dict[str, list[str]]:
    """References by picture (its id as text) from COCO captions JSON, in the order of `images`.

    Pictures without captions are left out: a result for one is an error later. Raises DataError, with file,
    entry and key, for broken JSON, another shape, a picture listed twice, a caption of a picture that is not
    listed, and no caption at all.
    """
    content = load_json(path)
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{path}: key {key!r} with a list is missing; COCO captions look like "
                '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a dog"}]}'
            )
    captions: dict[str, list[str]] = {}
    for number, image in enumerate(content["images"]):
        key = str(id_of(image, "id", f"{path}: images, entry {number}"))
        if key in captions:
            raise DataError(f"{path}: images, entry {number}: id {key} comes twice")
        captions[key] = []
    for number, annotation in enumerate(content["annotations"]):
        place = f"{path}: annotations, entry {number}"
        key = str(id_of(annotation, "image_id", place))
        if key not in captions:
            raise DataError(f"{place}: image_id {key} is not among the images of this file")
        captions[key].append(text_of(annotation, "caption", place))
    if not any(captions.values()):
        raise DataError(f"{path}: there is no caption in it")
    return {key: texts for key, texts in captions.items() if texts}


def read_predictions(path: Path) -> tuple[dict[str, Result], dict[str, list[str]]]:
    """Captions and references by picture from a predictions.jsonl of `vistill evaluate`.

    Raises DataError, with file, row and key, for a line without key, caption or references, and for a
    picture that comes twice.
    """
    results: dict[str, Result] = {}
    references: dict[str, list[str]] = {}
    for place, line in load_rows(path):
        key, texts = text_of(line, "key", place), line.get("references")
        if key in results:
            raise DataError(f"{place}: key {key!r} comes twice")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{place}: key 'references' has to be a list of texts, not {texts!r}; only the "
                "predictions.jsonl of `vistill evaluate` goes without --references"
            )
        results[key], references[key] = Result(key, text_of(line, "caption", place)), texts
    if not results:
        raise DataError(f"{path}: there is no caption in it")
    return results, references


def choose_metrics(names: str | None) -> tuple[str, ...]:
    """Metrics out of a comma-separated list, DEFAULT for None; "BLEU" stands for all four. ConfigError."""
    if names is None:
        return DEFAULT
    by_name = {name.lower(): (name,) for name in KNOWN} | {"bleu": NAMES[:4]}
    chosen: dict[str, None] = {}
    for name in names.split(","):
        if name.strip().lower() not in by_name:
            raise ConfigError(f"--metrics: {name.strip()!r} is unknown; there are {', '.join(KNOWN)}")
        chosen |= dict.fromkeys(by_name[name.strip().lower()])
    for name in chosen:
        lacking = java.missing(name) if name in java.METRICS else None
        if lacking:
            raise ConfigError(f"--metrics: {lacking}")
    return tuple(chosen)


def score_results(
    results: Mapping[str, Result],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = DEFAULT,
    samples: int = 0,
    seed: int = 0,
    idf_references: Mapping[str, Sequence[str]] | None = None,
) -> Scored:
    """Score the pictures that have a result, on the scale of the published code (0 to 1, CIDEr 0 to 10).

    The summary holds one number a metric, `pictures`, and with `samples` the 95% `intervals` of all that the
    bootstrap knows (not METEOR and SPICE). Raises DataError for a result without references.
    """
    unknown = [result.image_id for key, result in results.items() if key not in references]
    if unknown:
        raise DataError(
            f"image_id {unknown[0]!r} has a result but no reference caption ({len(unknown)} such results)"
        )
    ours = {key: _tokens(result.caption) for key, result in results.items()}
    theirs = {key: [_tokens(text) for text in references[key]] for key in results}
    idf = None if idf_references is None else {k: [_tokens(t) for t in v] for k, v in idf_references.items()}
    scores = score_captions(ours, theirs, tokenized=True, idf_references=idf)
    if idf is None:  # then CIDEr-D is what everybody calls CIDEr
        scores = replace(
            scores,
            corpus=scores.corpus | {"CIDEr-D": scores.corpus["CIDEr"]},
            per_picture=scores.per_picture | {"CIDEr-D": scores.per_picture["CIDEr"]},
        )
    corpus, pictures = dict(scores.corpus), dict(scores.per_picture)
    for name in set(metrics) & set(java.METRICS):
        corpus[name], pictures[name] = java.score(name, ours, theirs)
    summary: dict[str, Any] = {name: corpus[name] for name in metrics} | {"pictures": len(results)}
    if samples:
        summary["intervals"] = _intervals(scores, metrics, samples, seed)
    lines = [
        {
            "image_id": results[key].image_id,
            "caption": results[key].caption,
            "scores": {name: float(pictures[name][i]) for name in metrics},
        }
        for i, key in enumerate(scores.keys)
    ]
    return Scored(summary, lines)


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines whole or not at all."""
    try:
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


def _tokens(text: str) -> str:
    return " ".join(tokenize(text))


def _intervals(
    scores: CaptionScores, metrics: Sequence[str], samples: int, seed: int
) -> dict[str, dict[str, float]]:
    found = intervals(scores, samples, seed=seed)
    return {name: {"low": found[name].low, "high": found[name].high} for name in metrics if name in found}
