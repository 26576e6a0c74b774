"""A folder of pictures with their captions: a metadata file, or a `.txt` beside each picture.

    ROOT/metadata.jsonl or metadata.csv   columns file_name (or image), caption (or text, captions), split
    ROOT/**/photo.jpg, photo.txt          each line of the text file is a caption

A metadata file may also lie in a split's folder (ROOT/train/metadata.jsonl); its names are relative to it. A
picture may have several rows, each adds its captions. Captions come from metadata, else from the text file.

Links to folders are not followed: each is reported as dropped, as is a folder that cannot be listed.

The split is the metadata's, else the name of the first folder (train, val, dev, test ...), else drawn: of the
pictures left, sorted by sha256(seed, key), the first part goes to dev, the next to test, the rest to train.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistill.data.records import Annotation, Dropped, Entry, Item, normalise_split, split_order
from vistill.data.sources.common import (
    PICTURE_SUFFIXES,
    csv_rows,
    drawn_splits,
    folder_split,
    json_rows,
    picture_path,
    read_lines,
    require_fractions,
    told_dropped,
    walk_folders,
)
from vistill.errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv")
NAME_COLUMNS = ("file_name", "image", "filename")
CAPTION_COLUMNS = ("captions", "caption", "text")


@dataclass
class Picture:
    """What is known of one picture before its split is settled."""

    path: Path
    captions: list[str] = field(default_factory=list)
    split: str = ""  # "" while unknown


def read(root: Path, dev_fraction: float = 0.0, test_fraction: float = 0.0, seed: int = 0) -> Iterator[Item]:
    """Yield the pictures of a folder and its subfolders, split after split, in the order of their paths.

    dev_fraction, test_fraction: parts of the pictures without a split of their own that are drawn for dev and
    test. Raises ConfigError for fractions outside 0..1 and DataError when there is no picture, for metadata
    without a name or caption column and for an unknown split.
    """
    require_fractions(dev_fraction, test_fraction)
    pictures, texts, unentered = _walk(root)
    if not pictures:
        known = ", ".join(sorted(PICTURE_SUFFIXES))
        raise DataError(f"{root}: holds no picture ({known}){told_dropped(unentered)}")
    yield from unentered
    described = False
    for path in _metadata_files(root):
        described = True
        yield Annotation(path)
        for row in rows(path):
            if isinstance(row, Dropped):
                yield row
            else:
                yield from take_row(root, path.parent, row, pictures)
    for key, picture in pictures.items():
        sidecar = picture.path.with_suffix(".txt")
        if not picture.captions and sidecar in texts:
            for line in _sidecar_lines(sidecar):
                if isinstance(line, Dropped):
                    yield Dropped(key, line.reason, f"{sidecar.name}: {line.detail}")
                else:
                    picture.captions.append(line)
    if not described:
        stems = {picture.path.with_suffix("") for picture in pictures.values()}
        for text in sorted(texts):
            if text.with_suffix("") not in stems:
                name = text.relative_to(root).as_posix()
                yield Dropped(name, "missing_picture", "a text file without a picture of its name")
    _settle_splits(root, pictures, dev_fraction, test_fraction, seed)
    for key, picture in sorted(pictures.items(), key=lambda pair: (split_order(pair[1].split), pair[0])):
        yield Entry(key, picture.path, tuple(picture.captions), picture.split, "folder")


def _walk(root: Path) -> tuple[dict[str, Picture], set[Path], list[Dropped]]:
    """Return {key: picture} and the text files below `root`, and the folders that were not entered.

    Hidden files and folders are left out.
    """
    pictures: dict[str, Picture] = {}
    texts: set[Path] = set()
    unentered: list[Dropped] = []
    for found in walk_folders(root, hidden=False):
        if isinstance(found, Dropped):
            unentered.append(found)
            continue
        folder, names = found
        for name in names:
            path = folder / name
            suffix = path.suffix.lower()
            if name.startswith("."):
                continue
            if suffix in PICTURE_SUFFIXES:
                pictures[path.relative_to(root).as_posix()] = Picture(path)
            elif suffix == ".txt":
                texts.add(path)
    return pictures, texts, unentered


def _sidecar_lines(path: Path) -> Iterator[str | Dropped]:
    """Yield the lines of the text file of one picture; whatever is wrong with it costs no other picture."""
    try:
        for number, line in read_lines(path):
            if isinstance(line, str) and "\x00" in line:  # UTF-16 without a byte-order mark
                yield Dropped(f"{path.name}:{number}", "not_utf8", f"line {number} holds NUL bytes")
            else:
                yield line
    except DataError:  # all that read_lines refuses
        yield Dropped(path.name, "not_utf8", "is UTF-16; convert it to UTF-8")
    except OSError as error:
        yield Dropped(path.name, "bad_row", f"cannot be read: {error.strerror}")


def _metadata_files(root: Path) -> list[Path]:
    """Return the metadata files of `root` and of its folders named after a split."""
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and folder_split(path.name))]
    found = []
    for folder in folders:
        # os.path.isfile, for a folder that cannot be read is reported and must not stop the build.
        here = [folder / name for name in METADATA if os.path.isfile(folder / name)]
        if len(here) > 1:
            raise DataError(f"{folder}: holds {' and '.join(METADATA)}; keep one of them")
        found += here
    return found


def rows(path: Path, delimiter: str = ",") -> Iterator[dict[str, Any] | Dropped]:
    """Yield the rows of a .jsonl file or a table, with lower-case column names and `FILE:LINE` under `#`.

    Raises DataError where the first row has no column for the picture's name or its captions.
    """
    table = path.suffix.lower() != ".jsonl"
    found: Iterator[dict[str, Any] | Dropped] = csv_rows(path, delimiter) if table else json_rows(path)
    checked = False
    for row in found:
        if isinstance(row, dict):
            row = {str(name).lower(): value for name, value in row.items()}
        if isinstance(row, dict) and not checked:
            checked = True
            for columns in (NAME_COLUMNS, CAPTION_COLUMNS):
                if not any(name in row for name in columns):
                    names = ", ".join(name for name in row if name != "#")
                    raise DataError(f"{path}: has columns {names}; expected one of {', '.join(columns)}")
        yield row


def take_row(
    root: Path, folder: Path, row: dict[str, Any], pictures: dict[str, Picture]
) -> Iterator[Dropped]:
    """Add a row's captions and split to its picture: its name is relative to `folder`, its key to `root`."""
    name = next((row[column] for column in NAME_COLUMNS if row.get(column)), None)
    value: Any = next((row[column] for column in CAPTION_COLUMNS if row.get(column)), [])
    captions = [value] if isinstance(value, str) else value
    if not isinstance(name, str) or not isinstance(captions, list):
        yield Dropped(row["#"], "bad_row", f"file name {name!r}, captions {str(value)[:80]!r}")
        return
    if not all(isinstance(caption, str) for caption in captions):
        yield Dropped(row["#"], "bad_row", f"captions of {name!r} are not all text")
        return
    found = picture_path(folder, name, name)
    if isinstance(found, Dropped):
        yield Dropped(name, found.reason, f"{row['#']}: {found.detail}; {len(captions)} captions lost")
        return
    key = found.relative_to(root).as_posix()
    picture = pictures.setdefault(key, Picture(found))  # a picture without a known suffix counts when named
    picture.captions += captions
    if row.get("split"):
        split = normalise_split(str(row["split"]), row["#"])
        if picture.split and picture.split != split:
            split, other = sorted((split, picture.split), key=split_order)
            yield Dropped(key, "conflicting_split", f"{row['#']}: in {split} and {other}; it goes to {split}")
        picture.split = split


def _settle_splits(
    root: Path, pictures: dict[str, Picture], dev_fraction: float, test_fraction: float, seed: int
) -> None:
    """Give every picture its split."""
    open_keys = []
    for key, picture in pictures.items():
        parts = picture.path.relative_to(root).parts
        picture.split = picture.split or (folder_split(parts[0]) if len(parts) > 1 else "")
        if not picture.split:
            open_keys.append(key)
    for key, split in drawn_splits(open_keys, dev_fraction, test_fraction, seed).items():
        pictures[key].split = split
