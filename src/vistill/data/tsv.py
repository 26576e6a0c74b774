"""TSV files with a line index, as GenerativeImage2Text and its kin keep pictures: `key<TAB>base64` a row.

    out.tsv           rows of fields
    out.lineidx       the offset of each row, a decimal a line
    out.lineidx.8b    the same as little-endian int64

Either index gives random access. One that is missing or does not fit its file is made anew, beside it where
that can be written, else in memory.
"""

import mmap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vistill.data.pictures import decode_base64
from vistill.errors import DataError, ImageError
from vistill.files import atomic_file

Offsets = NDArray[np.int64]
_BLOCK = 2**24


class TsvFile:
    """The rows of a TSV by number, memory-mapped; `len()` of it is how many there are.

    say: told in a sentence when the index was made anew. Raises DataError where the file is missing.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda message: None) -> None:
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected a TSV")
        self.path = path
        with path.open("rb") as file:
            self.size = path.stat().st_size
            # An empty file cannot be mapped.
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        self.offsets = self._open_index(say)

    def __len__(self) -> int:
        return len(self.offsets)

    def span(self, row: int) -> tuple[int, int]:
        """(offset, length) of a row without its line end. Raises DataError if there is no such row."""
        if not 0 <= row < len(self):
            raise DataError(f"{self.path}: has no row {row}; it has {len(self)}, counted from 0")
        start = int(self.offsets[row])
        end = int(self.offsets[row + 1]) if row + 1 < len(self) else self.size
        while end > start and self._data[end - 1] in b"\r\n":
            end -= 1
        return start, end - start

    def fields(self, row: int) -> list[bytes]:
        """The fields of a row. Raises DataError if there is no such row or the index does not fit."""
        start, length = self.span(row)
        line = self._data[start : start + length]
        if b"\n" in line or (start and self._data[start - 1] != 10):
            raise DataError(f"{self.path}: its index does not fit at row {row}; delete the .lineidx files")
        return line.split(b"\t")

    def second(self, row: int) -> tuple[str, tuple[int, int]] | None:
        """(key, offset and length of the second field) of a row that is not read; None without a tab."""
        start, length = self.span(row)
        tab = self._data.find(b"\t", start, start + length)
        if tab < 0:
            return None
        key = self._data[start:tab].decode("utf-8", "surrogateescape")
        return key, (tab + 1, start + length - tab - 1)

    def picture(self, row: int) -> bytes:
        """The picture in the second field of a row. Raises DataError naming file and row if there is none."""
        fields = self.fields(row)
        if len(fields) < 2:
            raise DataError(f"{self.path}: row {row} is not key<TAB>base64")
        try:
            return decode_base64(fields[1], f"row {row}")
        except ImageError as error:
            raise DataError(f"{self.path}: {error.detail}") from error

    def _open_index(self, say: Callable[[str], None]) -> Offsets:
        reason = "has no index"
        lines, binary = index_paths(self.path)
        for path, read in ((binary, _read_8b), (lines, _read_lines)):
            if not path.is_file():
                continue
            offsets = read(path)
            if offsets is None:
                reason = f"has a broken {path.name}"
            elif path.stat().st_mtime_ns < self.path.stat().st_mtime_ns:
                reason = f"is newer than {path.name}"
            elif not self._fits(offsets):
                reason = f"does not fit {path.name}"
            else:
                return offsets
        offsets = line_offsets(self._data)
        try:
            write_index(self.path, offsets)
        except OSError as error:
            say(f"{self.path} {reason}; made one in memory ({error.strerror}: it could not be written)")
        else:
            say(f"{self.path} {reason}; wrote one of {len(offsets):,} rows")
        return offsets

    def _fits(self, offsets: Offsets) -> bool:
        """Whether the ends of the index and some rows between lie where rows begin, and the last one ends."""
        if not len(offsets) or not self.size:
            return len(offsets) == 0 and self.size == 0
        if offsets[0] != 0 or offsets[-1] >= self.size or (np.diff(offsets) <= 0).any():
            return False
        some = offsets[np.linspace(0, len(offsets) - 1, num=min(len(offsets), 1000)).astype(np.int64)]
        if any(self._data[int(start) - 1] != 10 for start in some if start):
            return False
        end = self._data.find(b"\n", int(offsets[-1]))
        return end in (-1, self.size - 1)


def index_paths(path: Path) -> tuple[Path, Path]:
    """`.lineidx` and `.lineidx.8b` of a TSV."""
    return path.with_suffix(".lineidx"), path.with_suffix(".lineidx.8b")


def write_tsv(path: Path, rows: Iterable[Sequence[str | bytes]]) -> int:
    """Write rows of fields and both indices, each file whole or not there; return the number of rows.

    Raises DataError for a row without a field, or for a tab or line end in a field.
    """
    offsets: list[int] = []
    size = 0
    with atomic_file(path) as file:
        for number, row in enumerate(rows):
            line = b"\t".join(field.encode() if isinstance(field, str) else field for field in row)
            if not line or line.count(b"\t") != len(row) - 1 or b"\n" in line or b"\r" in line:
                raise DataError(f"{path}: row {number} is empty, or a field holds a tab or line end")
            offsets.append(size)
            size += file.write(line + b"\n")
    write_index(path, np.array(offsets, dtype=np.int64))
    return len(offsets)


def write_index(path: Path, offsets: Offsets) -> None:
    """Write both indices of a TSV."""
    lines, binary = index_paths(path)
    with atomic_file(lines) as file:
        file.write("".join(f"{offset}\n" for offset in offsets.tolist()).encode())
    with atomic_file(binary) as file:
        file.write(offsets.astype("<i8").tobytes())


def line_offsets(data: bytes | mmap.mmap) -> Offsets:
    """The offset of each line [n]; an empty one at the end is none."""
    ends = [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(data), _BLOCK):
        block = np.frombuffer(data[start : start + _BLOCK], dtype=np.uint8)
        ends.append(np.flatnonzero(block == 10) + (start + 1))
    offsets = np.concatenate(ends).astype(np.int64)
    return offsets[offsets < len(data)]


def _read_lines(path: Path) -> Offsets | None:
    """The offsets of a `.lineidx`; None if it is broken."""
    words = path.read_bytes().split()
    return np.array(words).astype(np.int64) if all(word.isdigit() for word in words) else None


def _read_8b(path: Path) -> Offsets | None:
    """The offsets of a `.lineidx.8b`; None if it is broken."""
    data = path.read_bytes()
    return np.frombuffer(data, dtype="<i8").astype(np.int64) if len(data) % 8 == 0 else None
