"""Caption files that survive a kill at any moment: JSON lines, CSV, Parquet.

JSON lines and CSV are appended to, a batch at a time, each batch forced to disk. A kill can tear only the
last record; the next run cuts the torn end off, reads which pictures are there, and goes on behind them.
Parquet cannot be appended to: its rows go to a journal of JSON lines beside it, which `finish` turns
into the Parquet file, under a temporary name that it then renames.

A run that fails before its first row changes nothing: only that row empties a file to overwrite, and a new
file that got none goes again unless the run is finished.

Only captions are kept. A picture that failed has no row, so the next run tries it again.
"""

import csv
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, Generic, Protocol, TypeVar

from vistill.errors import ConfigError, DataError
from vistill.files import atomic_file

SUFFIXES = (".jsonl", ".csv", ".parquet")
_ROWS_IN_MEMORY = 10_000
R = TypeVar("R")
Scan = Callable[[BinaryIO, Path, bytes], Iterator[tuple[str | None, int]]]


@dataclass(frozen=True)
class Row:
    """One picture's outcome: its best caption and, where several were asked for, all with their scores."""

    path: str
    caption: str
    captions: tuple[tuple[str, float], ...] = ()


class Output(Protocol):
    """Where rows go."""

    path: Path

    def has(self, path: str) -> bool:
        """Whether an earlier run wrote this picture's row."""
        ...

    def write(self, rows: Sequence[Row]) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


def open_output(path: Path, ranked: bool, overwrite: bool = False) -> Output:
    """Open a caption file for going on, or from the start if `overwrite`.

    ranked: rows carry several captions with scores. Raises ConfigError for an unknown suffix or if Parquet is
    asked for without pyarrow, DataError if the file is not a caption file, has rows with other fields, is in
    use or cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"--out {path}: the name must end in {', '.join(SUFFIXES)}")
    try:
        if suffix == ".parquet":
            return _parquet_output(path, ranked, overwrite)
        if suffix == ".csv":
            return TextOutput(path, _csv_header(ranked), _csv_row, _csv_paths, overwrite)
        return TextOutput(path, b"", _json_row, partial(_json_paths, ranked=ranked), overwrite)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error


def _check_file(path: Path) -> None:
    """Raise DataError for a pipe, a device or the like: it has no end to read up to or to append to."""
    if path.exists() and not path.is_file() and not path.is_dir():  # to open a folder tells itself
        raise DataError(f"cannot write {path}: it is no file, nor a link to one")


def same_picture(path: str) -> str:
    """The key by which pictures are told apart: photos/a.jpg and ./photos/a.jpg are one."""
    return os.path.abspath(path)


class TextOutput(Generic[R]):
    """An append-only file of records.

    scan(file, path, header) yields, for every whole record, the picture's path (None for a header) and the
    record's end; it raises DataError where the file was not written by this class. same(path) is the key by
    which two records are of one thing. `empty`: nothing is kept yet, neither by an earlier run that this one
    goes on with nor by this one; with `overwrite` the old file still lies there then.
    """

    def __init__(
        self,
        path: Path,
        header: bytes,
        encode: Callable[[R], bytes],
        scan: Scan,
        overwrite: bool,
        same: Callable[[str], str] = same_picture,
    ) -> None:
        self.path = path
        self.same = same
        self._done: set[str] = set()
        self._header = header
        self._encode = encode
        self._created = not os.path.lexists(path)
        _check_file(path)
        path.touch(exist_ok=True)
        # Held open and locked until close(); unbuffered, so that nothing is left to fail there.
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115
        try:
            lock_file(self._file, path)
            end = 0
            if not overwrite:
                reader = io.BufferedReader(self._file)
                for found, record_end in scan(reader, path, header):
                    end = record_end
                    if found is not None:
                        self._done.add(same(found))
                reader.detach()
                self._file.truncate(end)
                self._file.seek(end)
            self.empty = end == 0
        except BaseException:
            self._file.close()
            raise

    def has(self, path: str) -> bool:
        return self.same(path) in self._done

    def write(self, rows: Sequence[R]) -> None:
        """Append the rows and force them to disk. Raises DataError if the disk refuses."""
        data = b"".join(self._encode(row) for row in rows)
        if self.empty:
            self._file.truncate(0)
            self._file.seek(0)
            data = self._header + data
        self._append(data)
        self.empty = False

    def finish(self) -> None:
        """Close; a run without a row gives an empty file, but leaves an older one as it is."""
        if self.empty and self._created:
            self.write([])
        self.close()

    def close(self) -> None:
        if self._file.closed:
            return
        self._file.close()
        if self._created and self.empty:
            self.path.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}; run again to go on") from error


class JournalledOutput(Generic[R]):
    """A file of a format that cannot be appended to: it gets the rows of its journal when the run ends.

    journal: opens the JSON lines beside it. keys(path) lists the keys of the rows of an older file;
    write(file, path, rows) writes the older file's rows, unless path is None, and then the journal's, JSON
    objects with the key under `column`. printable(row) is a row whose key is valid UTF-8.
    """

    def __init__(
        self,
        path: Path,
        journal: Callable[[Path], TextOutput[R]],
        column: str,
        keys: Callable[[Path], Iterable[str]],
        write: Callable[[IO[bytes], Path | None, Iterator[dict[str, Any]]], None],
        printable: Callable[[R], R],
        overwrite: bool,
    ) -> None:
        _check_file(path)
        self.path = path
        self._column, self._write, self._printable = column, write, printable
        self._keep = path.exists() and not overwrite
        self._journal = journal(path.with_name(path.name + ".journal.jsonl"))
        self._done: set[str] = set()
        try:
            if self._keep:
                self._done = {self._journal.same(key) for key in keys(path)}
        except BaseException:
            self.close()
            raise

    def has(self, path: str) -> bool:
        path = printable_utf8(path)
        return self._journal.same(path) in self._done or self._journal.has(path)

    def write(self, rows: Sequence[R]) -> None:
        self._journal.write([self._printable(row) for row in rows])

    def finish(self) -> None:
        """Old rows and the journal's into a new file, which replaces the old; then the journal goes.

        Where the journal has none, an old file stays as it is.
        """
        if self._journal.empty and self.path.exists():
            self.close()
            journal = self._journal.path
            if journal.exists() and not journal.stat().st_size:  # of a run killed before its first row
                journal.unlink()
            return
        try:
            with atomic_file(self.path) as file:
                self._write(file, self.path if self._keep else None, self._rows())
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error}; run again to go on") from error
        self.close()
        self._journal.path.unlink(missing_ok=True)

    def close(self) -> None:
        self._journal.close()

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The journal's rows, less those that a run killed just after its rename has in the file already."""
        with open(self._journal.path, "rb") as file:
            for line in file:
                row = json.loads(line)
                if self._journal.same(row[self._column]) not in self._done:
                    yield row


def _parquet_output(path: Path, ranked: bool, overwrite: bool) -> JournalledOutput[Row]:
    if importlib.util.find_spec("pyarrow") is None:
        way_out = "pip install 'vistill[parquet]', or write .jsonl or .csv"
        raise ConfigError(f"--out {path} needs the package pyarrow: {way_out}")
    return JournalledOutput(
        path,
        lambda journal: TextOutput(journal, b"", _json_row, partial(_json_paths, ranked=ranked), overwrite),
        "path",
        _parquet_paths,
        partial(_write_parquet, ranked=ranked),
        lambda row: replace(row, path=printable_utf8(row.path)),
        overwrite,
    )


def _parquet_paths(path: Path) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(path).iter_batches(_ROWS_IN_MEMORY, columns=["path"]):
            yield from batch.column("path").to_pylist()
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{path} is not a Parquet file of captions: {error}") from error


def _write_parquet(file: IO[bytes], old: Path | None, rows: Iterator[dict[str, Any]], ranked: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("path", pa.string()), ("caption", pa.string())])
    if ranked:
        scored = pa.list_(pa.struct([("text", pa.string()), ("score", pa.float64())]))
        schema = schema.append(pa.field("captions", scored))
    with pq.ParquetWriter(file, schema) as writer:
        if old is not None:
            for batch in pq.ParquetFile(old).iter_batches(_ROWS_IN_MEMORY):
                writer.write_batch(_like(batch, schema, old))
        while some := list(islice(rows, _ROWS_IN_MEMORY)):
            writer.write_table(pa.Table.from_pylist(some, schema=schema))


def printable_utf8(path: str) -> str:
    """A path as valid UTF-8, for formats that hold nothing else: undecodable bytes become \\udcxx."""
    return path.encode("utf-8", "backslashreplace").decode()


def json_line(values: dict[str, Any]) -> bytes:
    """One JSON object and a newline, readable UTF-8 where possible; names that are not UTF-8 are escaped."""
    try:
        return json.dumps(values, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(values).encode() + b"\n"


def row_values(row: Row) -> dict[str, Any]:
    """A row as a JSON object: path, caption and, where there are several, captions with text and score."""
    values: dict[str, Any] = {"path": row.path, "caption": row.caption}
    if row.captions:
        values["captions"] = [{"text": text, "score": score} for text, score in row.captions]
    return values


def _json_row(row: Row) -> bytes:
    return json_line(row_values(row))


def _json_paths(file: BinaryIO, path: Path, header: bytes, ranked: bool) -> Iterator[tuple[str | None, int]]:
    def path_of(values: Any) -> str | None:
        found: str = os.fspath(values["path"])
        if "caption" not in values:
            values["error"]  # a failure as --json prints it: a record of ours, but nothing done
            return None
        if ("captions" in values) != ranked:
            there, here = ("without", "with") if ranked else ("with", "without")
            raise DataError(
                f"{path} has rows {there} `captions`, this run writes them {here}: "
                "choose another file or --overwrite"
            )
        return found

    return json_records(file, path, b'{"path": ', path_of, "caption")


def json_records(
    file: BinaryIO, path: Path, start: bytes, key_of: Callable[[Any], str | None], kind: str
) -> Iterator[tuple[str | None, int]]:
    """A scan of JSON lines for TextOutput: records begin with `start`; `key_of` raises for foreign ones."""
    end = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            _check_torn(line, start, path, end, kind)
            return
        end += len(line)
        if not line.strip():
            continue
        try:
            found = key_of(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}, line {number}, is not a {kind} record: choose another file") from error
        yield found, end


def _csv_header(ranked: bool) -> bytes:
    return b"path,caption,captions\n" if ranked else b"path,caption\n"


def _csv_row(row: Row) -> bytes:
    fields = [row.path, row.caption]
    if row.captions:
        fields.append(json.dumps(row_values(row)["captions"]))
    # Not csv.writer: it leaves a lone carriage return unquoted, which no reader takes.
    quoted = ['"' + f.replace('"', '""') + '"' if set(f) & set('",\r\n') else f for f in fields]
    return (",".join(quoted) + "\n").encode("utf-8", "surrogateescape")


def _csv_paths(file: BinaryIO, path: Path, header: bytes) -> Iterator[tuple[str | None, int]]:
    """A record ends at the line break before which the quotes are even: names may hold line breaks."""
    end, record = 0, b""
    for line in file:
        record += line
        if not line.endswith(b"\n") or record.count(b'"') % 2:
            continue
        if end == 0:
            if record.replace(b"\r\n", b"\n") != header:
                raise DataError(
                    f"{path} has the columns {record.decode(errors='replace').strip()}, this run writes "
                    f"{header.decode().strip()}: choose another file or --overwrite"
                )
            found = None
        else:
            fields = next(csv.reader(io.StringIO(record.decode("utf-8", "surrogateescape"), newline="")), [])
            found = fields[0] if fields else None
        end += len(record)
        record = b""
        yield found, end
    _check_torn(record, header, path, end)


def _check_torn(tail: bytes, start: bytes, path: Path, end: int, kind: str = "caption") -> None:
    """A torn record is cut off only if it is ours: alone in the file, it must start as ours do."""
    tail = tail.rstrip(b"\0")  # a crash of the machine may leave zeros
    if end == 0 and not tail.startswith(start[: len(tail)]):
        raise DataError(f"{path} is not a file of {kind}s: choose another file or --overwrite")


def _like(batch: Any, schema: Any, path: Path) -> Any:
    """A batch of an older run under today's columns. Raises DataError if it has other ones."""
    if batch.schema.names != schema.names:
        raise DataError(
            f"{path} has the columns {batch.schema.names}, this run writes {schema.names}: "
            "choose another file or --overwrite"
        )
    return batch.cast(schema)


def lock_file(file: BinaryIO, path: Path) -> None:
    """Keep a second run off the file for as long as it is open here. Raises DataError if one has it."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"another run is writing {path}") from error
