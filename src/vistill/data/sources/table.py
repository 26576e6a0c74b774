"""A table of your own: a CSV, TSV or JSON lines file that names pictures and their captions.

    ROOT/captions.csv      image,caption,split     (a header; split may be absent or empty)
    ROOT/captions.jsonl    {"image": "a.jpg", "caption": "...", "split": "val"}; captions: a list of texts

Several rows of one picture are joined. The columns may also be called as in a `folder` (file_name, filename;
captions, text). A CSV may have semicolons. Unlike in a `folder`, pictures that the table does not name are
not looked at.

The split is the table's; pictures without one are drawn: sorted by sha256(seed, name), the first part goes to
dev, the next to test, the rest to train.
"""

from collections.abc import Iterator
from pathlib import Path

from vistill.data.records import Annotation, Dropped, Entry, Item, split_order
from vistill.data.sources.common import (
    drawn_splits,
    only_file,
    require_file,
    require_folder,
    require_fractions,
)
from vistill.data.sources.folder import Picture, rows, take_row

SUFFIXES = (".csv", ".tsv", ".jsonl")


def read(
    root: Path,
    annotations: str = "",
    images: str = "",
    dev_fraction: float = 0.0,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Iterator[Item]:
    """Yield the pictures of the table, evaluated splits first, in the order of their names.

    annotations: the table, relative to `root`; by default the only one there. images: the folder that names
    are relative to; by default `root`. dev_fraction, test_fraction: parts of the pictures without a split.
    Raises ConfigError for fractions outside 0..1 and DataError for a missing or ambiguous table, one without
    the columns it needs, and an unknown split.
    """
    require_fractions(dev_fraction, test_fraction)
    path = require_file(root / annotations, "a table of captions") if annotations else _only_table(root)
    folder = require_folder(root / images, f"the pictures of {path.name}")
    yield Annotation(path)
    pictures: dict[str, Picture] = {}
    for row in rows(path, _delimiter(path)):
        if isinstance(row, Dropped):
            yield row
        else:
            yield from take_row(folder, folder, row, pictures)
    open_names = [name for name, picture in pictures.items() if not picture.split]
    for name, split in drawn_splits(open_names, dev_fraction, test_fraction, seed).items():
        pictures[name].split = split
    for name, picture in sorted(pictures.items(), key=lambda pair: (split_order(pair[1].split), pair[0])):
        yield Entry(name, picture.path, tuple(picture.captions), picture.split, "table")


def _only_table(root: Path) -> Path:
    found = (path for path in root.glob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return only_file(found, root, f"{', '.join(SUFFIXES)} file")


def _delimiter(path: Path) -> str:
    """Return what separates columns: tabs in a .tsv, semicolons where the header has these and no comma."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    with path.open("rb") as file:
        header = file.readline(65536)
    return ";" if b";" in header and b"," not in header else ","
