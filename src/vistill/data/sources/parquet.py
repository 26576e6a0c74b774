"""Parquet files with pictures inside: our own schema, what `datasets` writes, or any columns that are named.

    ROOT/**/*.parquet    image (bytes, or {"bytes", "path"}), captions (text or a list of texts), and if
                         there: key, question, answers, split, source, licence

Without a split column the split is told by the first folder (train/...) or by the file's name
(train-00000-of-00004.parquet), else it is train. One or two row groups at a time are held in
memory. The files are not hashed for the report: that would read each twice.

Links to folders are not followed: each is reported as dropped, as is a folder that cannot be listed.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vistill.data.records import Dropped, Entry, Item, normalise_split, split_order
from vistill.data.sources.common import files_below, folder_split, no_archive, told_dropped
from vistill.errors import ConfigError, DataError

# Our column -> the names it is known by, tried in this order.
NAMES = {
    "image": ("image", "jpg", "image_bytes", "bytes", "img"),
    "captions": ("captions", "caption", "text", "txt", "sentences"),
    "key": ("key", "__key__", "image_id", "file_name", "filename", "id"),
    "question": ("question",),
    "answers": ("answers", "answer"),
    "split": ("split",),
    "source": ("source",),
    "licence": ("licence", "license"),
}


def read(root: Path, columns: Sequence[str] = ()) -> Iterator[Item]:
    """Yield the rows of all Parquet files below `root`, files of evaluated splits first.

    columns: OURS=THEIRS, where a column has a name that is not known. Raises ConfigError for a malformed or
    unknown column and DataError when there is no Parquet file, or none of the columns it needs in one.
    """
    named = _named(columns)
    paths, dropped = files_below(root, ".parquet")
    if not paths:
        raise DataError(f"{root}: holds no .parquet file{told_dropped(dropped)}")
    yield from dropped
    files = [(_file_split(path, root), path) for path in paths]
    for split, path in sorted(files, key=lambda file: split_order(file[0])):
        if problem := no_archive(path):
            yield problem
            continue
        try:
            with pq.ParquetFile(path) as file:
                yield from _read_file(file, path, split or "train", named)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: is not a Parquet file: {error}") from error
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error}") from error


def _named(columns: Sequence[str]) -> dict[str, str]:
    named = {}
    for column in columns:
        ours, equals, theirs = column.partition("=")
        if not (equals and theirs) or ours not in NAMES:
            raise ConfigError(f"column {column!r} is not OURS=THEIRS with OURS one of {', '.join(NAMES)}")
        named[ours] = theirs
    return named


def _file_split(path: Path, root: Path) -> str:
    parts = path.relative_to(root).parts
    return (folder_split(parts[0]) if len(parts) > 1 else "") or folder_split(
        re.split(r"[-_.]", path.name)[0]
    )


def _read_file(file: pq.ParquetFile, path: Path, split: str, named: dict[str, str]) -> Iterator[Item]:
    columns = _columns(file.schema_arrow.names, path, named)
    texts = {ours: theirs for ours, theirs in columns.items() if ours != "image"}
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=list(texts.values()))
        for number in range(file.metadata.row_group(group).num_rows):
            row = {ours: table.column(theirs)[number].as_py() for ours, theirs in texts.items()}
            yield _entry(row, path, (group, number, columns["image"]), split)


def _columns(names: Sequence[str], path: Path, named: dict[str, str]) -> dict[str, str]:
    """Return {our column: the file's column}."""
    found = {}
    for ours, known in NAMES.items():
        candidates = (named[ours],) if ours in named else known
        theirs = next((name for name in candidates if name in names), None)
        if theirs is not None:
            found[ours] = theirs
        elif ours in named or ours == "image":
            raise DataError(
                f"{path}: has columns {', '.join(names)}; expected {' or '.join(candidates)} for {ours}"
            )
    return found


def _entry(row: dict[str, Any], path: Path, cell: tuple[int, int, str], split: str) -> Entry | Dropped:
    where = f"{path.stem}:{cell[0]}:{cell[1]}"
    captions, answers = _texts(row.get("captions")), _texts(row.get("answers"))
    if captions is None or answers is None:
        return Dropped(where, "bad_row", f"captions {str(row.get('captions'))[:80]} are not text")
    if row.get("split"):
        split = normalise_split(str(row["split"]), f"{path.name}, row {cell[1]} of row group {cell[0]}")
    return Entry(
        key=where if row.get("key") is None else str(row["key"]),
        path=path,
        captions=captions,
        split=split,
        source=str(row.get("source") or "parquet"),
        question=str(row.get("question") or ""),
        answers=answers,
        licence=str(row.get("licence") or ""),
        cell=cell,
    )


def _texts(value: Any) -> tuple[str, ...] | None:
    """Return a text or a list of texts as a tuple; None for anything else."""
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    return tuple(texts)
