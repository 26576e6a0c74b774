"""DAQUAR: questions about photos of rooms (NYU Depth v2).

Malinowski and Fritz, "A Multi-World Approach to Question Answering about Real-World Scenes based on Uncertain
Input" (NIPS 2014).

    ROOT/data.csv              question,answer,image_id     the answer may be several words: "book, scissor"
    ROOT/images/image3.png

A row is a question; its key is picture#number, counted over the picture's rows in the file from 0. It has one
answer, the words as they stand there: together they are the answer, and no word is one alone.
"""

from collections.abc import Iterator
from pathlib import Path

from vistill.data.records import Annotation, Dropped, Entry, Item, split_order
from vistill.data.sources.common import (
    PICTURE_SUFFIXES,
    csv_rows,
    drawn_splits,
    first_picture,
    lost,
    require_file,
    require_folder,
    require_fractions,
)

COLUMNS = ("question", "answer", "image_id")
SUFFIXES = (".png", *sorted(PICTURE_SUFFIXES))  # the published pictures are .png


def read(root: Path, dev_fraction: float = 0.0, test_fraction: float = 0.0, seed: int = 0) -> Iterator[Item]:
    """Yield the questions, evaluated splits first, those of one picture one after another.

    dev_fraction, test_fraction: parts of the pictures that are drawn for dev and test, with all their
    questions. Raises ConfigError for fractions outside 0..1 and DataError for missing files or columns.
    """
    require_fractions(dev_fraction, test_fraction)
    path = require_file(root / "data.csv", "DAQUAR's questions (question,answer,image_id)")
    folder = require_folder(root / "images", "DAQUAR's photos")
    yield Annotation(path)
    asked: dict[str, list[tuple[str, str]]] = {}
    for row in csv_rows(path, columns=COLUMNS):
        if isinstance(row, Dropped):
            yield row
            continue
        asked.setdefault(row["image_id"], []).append((row["question"].strip(), row["answer"].strip()))
    splits = drawn_splits(asked, dev_fraction, test_fraction, seed)
    for image in sorted(asked, key=lambda image: split_order(splits[image])):
        found = first_picture(folder, (image + suffix for suffix in SUFFIXES), image)
        if isinstance(found, Dropped):
            yield lost(found, splits[image], len(asked[image]), "questions")
            continue
        for number, (question, answer) in enumerate(asked[image]):
            key = f"{image}#{number}"
            if question and answer:
                yield Entry(key, found, (), splits[image], "daquar", question=question, answers=(answer,))
            else:
                yield Dropped(key, "no_answer", f"question {question!r}, answer {answer!r}")
