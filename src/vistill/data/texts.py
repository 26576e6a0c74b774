"""Texts without pictures: captions, questions, lines, from files of several kinds, each text once.

    a built data set, or FOLDER#SPLIT     its captions, as written and as shown with a mirrored picture
    .json                                 COCO annotations, VQA questions, Karpathy's sentences
    .tsv                                  the first column: Conceptual Captions (caption<TAB>url)
    any other file                        one text a line

A name may end in .gz or .gzip; what is inside is then told by the rest of the name, or by its first letter.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistill.data.collate import mirror_words
from vistill.data.dataset import open_split, split_names
from vistill.errors import DataError

_PACKED = (".gz", ".gzip")


@dataclass(frozen=True)
class SourceCount:
    """What one source gave: texts read, and how many of them were empty or there before."""

    source: str
    read: int
    empty: int
    duplicates: int


@dataclass(frozen=True)
class TextSet:
    """Texts of several sources, each once, in the order of their first appearance."""

    texts: list[str]
    counts: list[SourceCount]


def clean(text: str) -> str:
    """One space between words and none around them; what UTF-8 cannot hold becomes a question mark."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def gather_texts(sources: Sequence[str]) -> TextSet:
    """All texts of these sources. Raises DataError, naming the source, if one cannot be read or is empty."""
    seen: dict[str, None] = {}
    counts = []
    for source in sources:
        read = empty = before = 0
        size = len(seen)
        for text in read_texts(source):
            read += 1
            text = clean(text)
            if not text:
                empty += 1
                continue
            seen[text] = None
        before = read - empty - (len(seen) - size)
        if read == empty:
            raise DataError(f"{source}: there is no text in it")
        counts.append(SourceCount(_shown(source), read, empty, before))
    return TextSet(list(seen), counts)


def read_texts(source: str) -> Iterator[str]:
    """The texts of one source, as they are written there. Raises DataError, naming the file."""
    name, _, split = source.partition("#")
    path = Path(source)
    if not path.exists():
        path = Path(name)
    if not path.exists():
        raise DataError(f"{source}: there is no such file or folder")
    if path.is_dir():
        yield from _captions(path, split)
        return
    try:
        if _is_json(path):
            yield from _of_json(path)
        else:
            with _open(path) as file:
                for line in file:
                    yield line.split("\t", 1)[0] if ".tsv" in path.suffixes else line
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text: {error}") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def with_mirrored(caption: str) -> list[str]:
    """A caption as it is shown: as written and, where that differs, with left and right swapped."""
    plain = clean(caption)
    return list(dict.fromkeys((plain, mirror_words(plain))))


def _captions(folder: Path, split: str) -> Iterator[str]:
    for name in [split] if split else split_names(folder):
        for captions in open_split(folder, name)["captions"][:]:
            for caption in captions:
                yield from with_mirrored(caption)


def _is_json(path: Path) -> bool:
    kinds = [suffix for suffix in path.suffixes if suffix not in _PACKED]
    if kinds or path.suffix not in _PACKED:
        return kinds[-1:] == [".json"]
    with _open(path) as file:
        return file.read(64).lstrip()[:1] in ("{", "[")


def _of_json(path: Path) -> Iterator[str]:
    with _open(path) as file:
        try:
            raw: Any = json.load(file)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is not JSON: {error}") from error
    try:
        if isinstance(raw, dict) and "questions" in raw:
            yield from (row["question"] for row in raw["questions"])
        elif isinstance(raw, dict) and "annotations" in raw:
            yield from (row["caption"] for row in raw["annotations"])
        elif isinstance(raw, dict) and "images" in raw:
            yield from (text["raw"] for row in raw["images"] for text in row["sentences"])
        elif isinstance(raw, dict):
            raise KeyError("annotations")
        else:
            yield from (row if isinstance(row, str) else row["caption"] for row in raw)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: {error!r}: expected COCO annotations (annotations[].caption), VQA questions "
            "(questions[].question), Karpathy's file (images[].sentences[].raw) or a list of texts"
        ) from error


def _open(path: Path) -> Any:
    if path.suffix in _PACKED:
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _shown(source: str) -> str:
    """Without the path before it: nobody's folders are published."""
    name, mark, split = source.partition("#")
    return f"{Path(name).name}{mark}{split}"
