"""The bytes of a planned picture: a whole file, a piece of a tar or TSV, or a cell of a Parquet file."""

import base64
import binascii
import errno
import threading
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vistill.errors import DataError, ImageError

_OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP)
"""Errors that tell of one file: no permission, a broken place of the disk, a loop of links."""

_lock = threading.Lock()


def read_picture(row: dict[str, Any], root: Path) -> bytes:
    """Return the bytes of a row of the plan; an empty Parquet cell gives none.

    A compressed one that turns out broken or of another length than its archive says gives none either, which
    the scan drops. Raises DataError when the file is gone, when the picture has another length than planned
    or when the system can open no file at all. Raises ImageError, which costs this picture alone, for a file
    that is refused or cannot be read and for base64 that is none.
    """
    path = root / row["path"]
    try:
        if "cell" in row:
            return _cell(path, *row["cell"])
        if "offset" in row:
            with path.open("rb") as file:
                file.seek(row["offset"])
                data = file.read(row["bytes"])
        else:
            data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _OF_THE_FILE:
            raise ImageError("unreadable", reason) from error
        raise DataError(f"{path}: cannot be read any more ({reason}); build again with --force") from error
    if len(data) != row["bytes"]:
        raise DataError(f"{path}: changed while the data set was built; build again with --force")
    if "base64_row" in row:
        return decode_base64(data, f"row {row['base64_row']}")
    return _inflate(data, row["inflated"]) if "inflated" in row else data


def decode_base64(field: bytes, where: str) -> bytes:
    """The bytes that a field of a TSV holds. Raises ImageError("corrupt") naming `where`."""
    try:
        return base64.b64decode(field, validate=True)
    except binascii.Error as error:
        raise ImageError("corrupt", f"{where} is not base64: {error}") from error


def _inflate(data: bytes, size: int) -> bytes:
    """A raw deflate stream that holds `size` bytes; never unpacks more, and gives none for another stream."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = stream.decompress(data, size + 1)
    except zlib.error:
        return b""
    return out if stream.eof and len(out) == size else b""


def _cell(path: Path, group: int, row: int, column: str) -> bytes:
    modified = path.stat().st_mtime_ns
    with _lock:  # threads that ask for the same row group wait for the one that reads it
        values = _column(path, modified, group, column)
    value = values[row].as_py()
    if isinstance(value, dict):  # how `datasets` stores an Image: {"bytes", "path"}
        value = value.get("bytes")
    return value or b""


@lru_cache(maxsize=2)
def _column(path: Path, modified: int, group: int, column: str) -> pa.ChunkedArray:
    """Return a column of a row group; `modified` makes a changed file another one."""
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(0)
