"""Flickr8k in its original layout: a token file, split files and a folder of photos.

Hodosh, Young and Hockenmaier, "Framing image description as a ranking task" (JAIR 2013).

    ROOT/Flickr8k_text/Flickr8k.token.txt        name.jpg#0<TAB>caption
    ROOT/Flickr8k_text/Flickr_8k.trainImages.txt one name a line; also devImages, testImages
    ROOT/Flicker8k_Dataset/*.jpg                 (the misspelling is the official one)

Photos in no split file get the split `extra`. The official token file has five captions under the stray key
`2258277193_586949ec62.jpg.1`; they are dropped as `stray_key`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vistill.data.records import Annotation, Dropped, Entry, Item
from vistill.data.sources.common import (
    PICTURE_SUFFIXES,
    lost,
    picture_path,
    read_lines,
    require_file,
    require_folder,
)

LICENCE = "Flickr8k terms: non-commercial research and education; photos belong to their authors"
TOKEN_FILE = "Flickr8k_text/Flickr8k.token.txt"
PHOTOS = "Flicker8k_Dataset"
# Evaluated splits first: a photo that stands in two files stays in the one that is evaluated.
SPLIT_FILES = (("test", "testImages"), ("dev", "devImages"), ("train", "trainImages"))


def read(root: Path) -> Iterator[Item]:
    """Yield the photos of Flickr8k in the order of the token file.

    Raises DataError when the token file, the photo folder or every split file is missing.
    """
    tokens = require_file(root / TOKEN_FILE, "the Flickr8k token file (Flickr8k_text.zip unpacked)")
    photos = require_folder(root / PHOTOS, "the Flickr8k photos (Flickr8k_Dataset.zip unpacked)")
    yield Annotation(tokens)
    captions: dict[str, list[str]] = {}
    for number, line in read_lines(tokens):
        if isinstance(line, Dropped):
            yield line
            continue
        parsed = token_line(line)
        if parsed is None:
            detail = f"line {number} is {line[:80]!r}, not name#number<TAB>caption"
            yield Dropped(f"{tokens.name}:{number}", "bad_row", detail)
            continue
        name, caption = parsed
        captions.setdefault(name, []).append(caption)
    splits: dict[str, str] = {}
    for item in listed_splits(_split_files(tokens.parent), str.strip):
        if isinstance(item, tuple):
            splits[item[0]] = item[1]
        else:
            yield item
    for name, texts in captions.items():
        split = splits.pop(name, "extra")
        found = picture_path(photos, name, name)
        if isinstance(found, Path):
            yield Entry(name, found, tuple(texts), split, "flickr8k", licence=LICENCE)
        elif found.reason == "missing_picture" and Path(name).suffix.lower() not in PICTURE_SUFFIXES:
            yield Dropped(name, "stray_key", f"{len(texts)} captions under a key that names no picture")
        else:
            yield lost(found, split, len(texts))
    for name, split in splits.items():
        yield Dropped(name, "no_caption", f"listed in split {split}, absent from {tokens.name}")


def token_line(line: str) -> tuple[str, str] | None:
    """Return (name, caption) of a line of a token file, name#number<TAB>caption; None for another line."""
    key, tab, caption = line.partition("\t")
    name, hash_sign, _ = key.rpartition("#")
    return (name, caption) if tab and hash_sign and name else None


def _split_files(folder: Path) -> list[tuple[str, Path]]:
    files = [(split, folder / f"Flickr_8k.{stem}.txt") for split, stem in SPLIT_FILES]
    if not any(path.is_file() for _, path in files):
        require_file(files[-1][1], "the list of training photos (Flickr8k_text.zip unpacked)")
    return [(split, path) for split, path in files if path.is_file()]


def listed_splits(
    files: Sequence[tuple[str, Path]], name_of: Callable[[str], str]
) -> Iterator[tuple[str, str] | Annotation | Dropped]:
    """Yield (name, split) of every line of files with a name a line, the files, and names of two splits.

    name_of: the photo's name of a line. A name stays in the first split that lists it.
    """
    seen: dict[str, str] = {}
    for split, path in files:
        yield Annotation(path)
        for number, line in read_lines(path):
            if isinstance(line, Dropped):
                yield line
                continue
            name = name_of(line)
            if seen.setdefault(name, split) != split:
                detail = f"{path.name}:{number} lists it as {split}; it stays in {seen[name]}"
                yield Dropped(name, "conflicting_split", detail)
            else:
                yield name, split
