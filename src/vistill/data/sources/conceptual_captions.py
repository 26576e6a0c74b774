"""Conceptual Captions: a TSV of captions and addresses, beside the pictures that could be downloaded.

Sharma et al., "Conceptual Captions" (ACL 2018).

    ROOT/Train_GCC-training.tsv                  caption<TAB>url
    ROOT/pictures/66/66016c3b....jpg             as `vistill data fetch conceptual-captions` writes them:
                                                 named by the first 32 hex digits of the SHA-256 of the url
    ROOT/pictures/00000.tar                      or tars of img2dataset, whose JSON holds the url

The split is told by a word of the TSV's name (training, Validation), else it is train. The key of a picture
is that name, out of the SHA-256 of its url. A url that stands in several rows keeps their captions.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from vistill.data.records import Annotation, Dropped, Entry, Item, split_order
from vistill.data.sources.common import (
    PICTURE_SUFFIXES,
    folder_split,
    parse_json,
    read_lines,
    require_file,
    require_folder,
    walk_folders,
)
from vistill.data.sources.webdataset import member_text, samples
from vistill.errors import DataError

Place = tuple[Path, tuple[int, int] | None]  # a file, or a span of a tar


def picture_name(url: str) -> str:
    """The name of the picture of a url, without suffix: 32 hex digits."""
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def read(root: Path, annotations: str = "", images: str = "pictures") -> Iterator[Item]:
    """Yield the pictures that are there, files of evaluated splits first; the others come as Dropped.

    annotations: the TSV, relative to `root`; by default all `*.tsv` there. images: the folder of the
    pictures, relative to `root`. Raises DataError where either is missing.
    """
    files = [root / annotations] if annotations else sorted(root.glob("*.tsv"))
    if not files:
        raise DataError(f"{root}: holds no .tsv file (caption<TAB>url)")
    folder = require_folder(root / images, "the downloaded pictures")
    places: dict[str, Place] = {}
    for item in _places(folder):
        if isinstance(item, Dropped):
            yield item
        else:
            places.setdefault(*item)
    splits = {path: _split(path) for path in files}
    for path in sorted(files, key=lambda path: split_order(splits[path])):
        yield Annotation(require_file(path, "captions and addresses (caption<TAB>url)"))
        yield from _read_file(path, splits[path], places)


def rows(path: Path) -> Iterator[tuple[str, str] | Dropped]:
    """Yield (caption, url) of each row of a TSV, or why it cannot be used."""
    for number, line in read_lines(path):
        if isinstance(line, Dropped):
            yield line
            continue
        caption, tab, url = line.rpartition("\t")
        if tab and url.strip():
            yield caption, url.strip()
        else:
            yield Dropped(f"{path.name}:{number}", "bad_row", f"{line[:80]!r} is not caption<TAB>url")


def _read_file(path: Path, split: str, places: dict[str, Place]) -> Iterator[Item]:
    captions: dict[str, list[str]] = {}
    for row in rows(path):
        if isinstance(row, Dropped):
            yield row
        else:
            captions.setdefault(row[1], []).append(row[0])
    for url, texts in captions.items():
        key = picture_name(url)
        if key in places:
            file, span = places[key]
            yield Entry(key, file, tuple(texts), split, "conceptual_captions", span=span)
        else:
            yield Dropped(key, "missing_picture", f"{url} was not downloaded; split {split}")


def _places(folder: Path) -> Iterator[tuple[str, Place] | Dropped]:
    """Yield (picture name, its place) of every picture file and every sample of a tar below `folder`.

    Links to folders are not followed: each comes as Dropped, as does a folder that cannot be listed.
    """
    for found in walk_folders(folder):
        if isinstance(found, Dropped):
            yield found
            continue
        parent, names = found
        for name in names:
            path = parent / name
            if path.suffix.lower() in PICTURE_SUFFIXES:
                yield path.stem, (path, None)
            elif path.suffix == ".tar":
                yield from _tar_places(path)


def _tar_places(path: Path) -> Iterator[tuple[str, Place] | Dropped]:
    for key, members in samples(path):
        if isinstance(members, Dropped):
            yield members
            continue
        picture = next((member for suffix, member in members.items() if suffix in PICTURE_SUFFIXES), None)
        if picture is None or ".json" not in members:
            yield Dropped(key, "bad_row", f"{path.name} holds no picture or no JSON of it")
            continue
        try:
            url = parse_json(member_text(path, members[".json"]))["url"]
        except (ValueError, KeyError, TypeError) as error:  # a text that is not UTF-8 is a ValueError too
            yield Dropped(key, "bad_row", f"{path.name}: its JSON has no url: {error}")
            continue
        if picture.offset_data + picture.size > path.stat().st_size:
            yield Dropped(key, "broken_archive", f"{path.name} ends inside of {picture.name}")
        else:
            yield picture_name(str(url)), (path, (picture.offset_data, picture.size))


def _split(path: Path) -> str:
    found = (folder_split(word) for word in re.split(r"[-_.]", path.stem))
    return next((split for split in found if split), "train")
