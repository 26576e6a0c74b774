"""Files of a built data set: atomic writes, and the Arrow folder that `datasets.load_from_disk` opens.

A file is written under a temporary name, fsynced and renamed, so a file that exists under its final name is
whole; that is all the journal a resumed build needs.
"""

import hashlib
import json
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Value
from datasets import List as ListOf

from vistill.data.records import Sample
from vistill.errors import DataError
from vistill.files import atomic_file, write_json

FEATURES = Features(
    {
        "key": Value("string"),
        "image": Value("binary"),  # "binary_view" where several rows share a picture: see `features`
        "width": Value("int32"),
        "height": Value("int32"),
        "captions": ListOf(Value("string")),
        "question": Value("string"),
        "answers": ListOf(Value("string")),
        "split": Value("string"),
        "source": Value("string"),
        "licence": Value("string"),
    }
)
COLUMNS = tuple(FEATURES)


def features(shared: bool) -> Features:
    """Return the columns of a data set; `shared` if several rows, which are questions, have one picture.

    Their pictures are Arrow's binary views: rows of a record batch point to the same bytes, so a picture is
    stored once and not once a question. `datasets` and pyarrow give each row its bytes all the same.
    """
    return Features({**FEATURES, "image": Value("binary_view")}) if shared else FEATURES


REPORT = "report.json"
STATE = "build.json"

# A record batch is closed at either bound: random access reads little, and a build holds one batch in memory.
BATCH_ROWS = 64
BATCH_BYTES = 32 * 2**20


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, which comes and goes; DataError(message) if it is taken.

    The system drops the lock of a killed process. Where there is no flock (Windows), nothing is locked.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(message) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one compact JSON object a line, atomically; all ASCII, so lone surrogates survive."""
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row, separators=(",", ":")).encode("ascii") + b"\n")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that `write_json_lines` wrote."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def read_report(folder: Path) -> dict[str, Any]:
    """Return report.json of a built data set; raises DataError when there is none."""
    path = folder / REPORT
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a folder that `vistill data build` made")
    report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return report


def split_names(folder: Path) -> list[str]:
    """Return the splits of a built data set, in the order train, dev, test, extra."""
    path = Path(folder) / "dataset_dict.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a folder that `vistill data build` made")
    names: list[str] = json.loads(path.read_text("utf-8"))["splits"]
    return names


def open_split(folder: Path, split: str) -> Dataset:
    """Return one split of a built data set, memory-mapped; its columns are the fields of `Sample`."""
    names = split_names(folder)
    if split not in names:
        raise DataError(f"{folder}: has no split {split!r}; it has {', '.join(names)}")
    return Dataset.load_from_disk(str(Path(folder) / split))


def open_dataset(folder: Path) -> DatasetDict:
    """Return all splits of a built data set, memory-mapped."""
    return DatasetDict({split: open_split(folder, split) for split in split_names(folder)})


def shard_names(rows: int, size: int) -> list[str]:
    """Return the names of the Arrow files of a split that holds `size` rows each."""
    total = -(-rows // size)
    return [_shard_name(number, total) for number in range(total)]


def print_row(sample: Sample, image_sha256: str) -> bytes:
    """Return what a split's fingerprint is taken over of one row: its fields, the picture as its SHA-256."""
    values = {**vars(sample), "image": image_sha256}
    return json.dumps([*values.values()]).encode("ascii") + b"\n"


def joint_fingerprint(splits: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the fingerprint of a data set from those of its splits, as its report counts them."""
    return hashlib.sha256("".join(split["fingerprint"] for split in splits.values()).encode()).hexdigest()


def write_shard(path: Path, samples: Iterable[Sample], shared: bool = False) -> None:
    """Write samples as one Arrow stream file, atomically, holding one record batch at a time.

    shared: neighbours with the same picture share its bytes, and no record batch ends between them.
    """
    schema = features(shared).arrow_schema
    with atomic_file(path) as file, pa.ipc.new_stream(file, schema) as writer:
        rows: list[Sample] = []
        size = 0
        for sample in samples:
            same = bool(shared and rows and sample.image == rows[-1].image)
            if rows and not same and (len(rows) >= BATCH_ROWS or size + len(sample.image) > BATCH_BYTES):
                writer.write_batch(_batch(rows, schema))
                rows, size = [], 0
            rows.append(sample)
            size += 0 if same else len(sample.image)
        if rows:
            writer.write_batch(_batch(rows, schema))


def _batch(rows: list[Sample], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*(astuple(row) for row in rows), strict=True)
    arrays = [
        _views(column) if field.type == pa.binary_view() else pa.array(list(column), field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _views(values: Sequence[bytes]) -> pa.Array:
    """Return a binary view array [n] of one data buffer, in which equal neighbours are the same bytes.

    A view has 16 bytes, little-endian: length, then up to 12 bytes themselves, or the first 4, the number of
    the buffer and the offset in it (Arrow columnar format, "Variable-size Binary View Layout").
    """
    views, data = bytearray(), bytearray()
    last, start = b"", 0
    for value in values:
        if len(value) <= 12:
            views += struct.pack("<i12s", len(value), value)
            continue
        if value != last:
            last, start = value, len(data)
            data += value
        views += struct.pack("<i4sii", len(value), value[:4], 0, start)
    buffers = [None, pa.py_buffer(bytes(views)), pa.py_buffer(bytes(data))]
    return pa.Array.from_buffers(pa.binary_view(), len(values), buffers)


def _shard_name(number: int, count: int) -> str:
    """Return the file name `datasets` uses for shard `number` of `count`."""
    return f"data-{number:05d}-of-{count:05d}.arrow"


def write_split_metadata(folder: Path, files: list[str], fingerprint: str, shared: bool = False) -> None:
    """Write what `load_from_disk` needs beside the shards: dataset_info.json and state.json."""
    columns = features(shared)
    info: dict[str, Any] = {
        "citation": "",
        "description": "",
        "features": columns.to_dict(),
        "homepage": "",
        "license": "",
    }
    assert DatasetInfo.from_dict(info).features == columns
    write_json(folder / "dataset_info.json", info)
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_json(folder / "state.json", state)
