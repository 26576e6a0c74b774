"""VQA-RAD: questions of clinicians about X-ray, CT and MR pictures.

Lau et al., "A dataset of clinically generated visual questions and answers about radiology images"
(Scientific Data 2018).

    ROOT/VQA_RAD Dataset Public.json    [{"qid", "image_name", "question", "answer", "answer_type": "CLOSED"}]
    ROOT/images/synpic54610.jpg

The published train and test parts share pictures, so splits are drawn here, by picture. A row is a question:
its key is the qid, its source is `vqa_rad:closed` or `vqa_rad:open`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vistill.data.records import Annotation, Dropped, Entry, Item, split_order
from vistill.data.sources.common import (
    drawn_splits,
    lost,
    picture_path,
    read_json,
    require_file,
    require_folder,
    require_fractions,
)
from vistill.errors import DataError

FILE = "VQA_RAD Dataset Public.json"
LICENCE = "CC0 1.0 (questions and answers); pictures of MedPix, an open database of the US NLM"


def read(root: Path, dev_fraction: float = 0.0, test_fraction: float = 0.0, seed: int = 0) -> Iterator[Item]:
    """Yield the questions, evaluated splits first, those of one picture one after another.

    dev_fraction, test_fraction: parts of the pictures that are drawn for dev and test, with all their
    questions. Raises ConfigError for fractions outside 0..1 and DataError for missing or malformed files.
    """
    require_fractions(dev_fraction, test_fraction)
    path = require_file(root / FILE, "the questions of VQA-RAD")
    folder = require_folder(root / "images", "the pictures of VQA-RAD")
    yield Annotation(path)
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: is no file of VQA-RAD; expected a list of questions")
    asked: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(rows):
        if isinstance(row, dict) and isinstance(row.get("image_name"), str) and row.get("qid") is not None:
            asked.setdefault(row["image_name"], []).append(row)
        else:
            yield Dropped(f"{path.name}[{number}]", "bad_row", f"is {str(row)[:80]}")
    splits = drawn_splits(asked, dev_fraction, test_fraction, seed)
    for image in sorted(asked, key=lambda image: split_order(splits[image])):
        found = picture_path(folder, image, image)
        if isinstance(found, Dropped):
            yield lost(found, splits[image], len(asked[image]), "questions")
            continue
        for row in asked[image]:
            yield _entry(row, found, splits[image])


def _entry(row: dict[str, Any], path: Path, split: str) -> Entry | Dropped:
    question, answer = (" ".join(str(row.get(name, "")).split()) for name in ("question", "answer"))
    if not question or not answer:
        return Dropped(str(row["qid"]), "no_answer", f"question {question!r}, answer {answer!r}")
    kind = str(row.get("answer_type") or "").strip().lower()
    source = f"vqa_rad:{kind}" if kind else "vqa_rad"
    return Entry(
        str(row["qid"]), path, (), split, source, question=question, answers=(answer,), licence=LICENCE
    )
