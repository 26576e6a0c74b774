"""Files of embeddings that survive a kill at any moment: JSON lines, Parquet, NumPy.

JSON lines are appended to, a batch at a time, as captions are (`archive/outputs.py`). Parquet and .npz cannot
be: their rows go to a journal of JSON lines beside them, which `finish` turns into the file. A row is a
picture's path or a text, with its vector; every file says which model made it, and a run with another
model does not go on in it.

| format | holds |
|---|---|
| .jsonl | `path` or `text`, `model` (12 digits of its hash), `embedding` (E numbers) |
| .parquet | columns `path` or `text`, `embedding` (fixed_size_list of E float32); metadata `vistill.model` |
| .npz | arrays `paths` or `texts`, `embeddings` float32 [n, E], `model` |
"""

import base64
import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vistill.archive.outputs import TextOutput, json_line, json_records, printable_utf8, same_picture
from vistill.errors import ConfigError, DataError
from vistill.files import atomic_file

Floats = NDArray[np.float32]
Blocks = Iterator[tuple[list[str], Floats]]

SUFFIXES = (".parquet", ".npz", ".jsonl")
_BLOCK = 10_000
_SHORT = 12  # digits of a hash


@dataclass(frozen=True)
class Kind:
    """What the rows are of."""

    column: str
    """`path` or `text`, the name of a row's key."""
    model: str
    """sha256 of the embedder."""
    width: int
    """E."""

    @property
    def tag(self) -> str:
        return self.model[:_SHORT]

    def same(self, key: str) -> str:
        """photos/a.jpg and ./photos/a.jpg are one picture; a text is itself."""
        return same_picture(key) if self.column == "path" else key


@dataclass(frozen=True)
class Row:
    """A picture's path or a text, and its vector [E]."""

    key: str
    vector: Floats


def _lines_output(path: Path, kind: Kind, overwrite: bool, compact: bool = False) -> TextOutput[Row]:
    """JSON lines; `compact` ones hold the vector as base64 of float32, little-endian."""
    encode = partial(_line, kind=kind, compact=compact)
    return TextOutput(path, b"", encode, partial(_keys, kind), overwrite, kind.same)


class ArrayOutput:
    """A file of another format that gets the rows of its journal when the run ends."""

    def __init__(self, path: Path, kind: Kind, overwrite: bool) -> None:
        self.path = path
        self._kind = kind
        self._read, self._write = _FORMATS[path.suffix.lower()]
        self._keep = path.exists() and not overwrite
        journal = path.with_name(path.name + ".journal.jsonl")
        self._journal = _lines_output(journal, kind, overwrite, compact=True)
        self._done: set[str] = set()
        try:
            if self._keep:
                self._done = {kind.same(key) for keys, _ in self._read(path, kind) for key in keys}
        except BaseException:
            self.close()
            raise

    def has(self, key: str) -> bool:
        key = printable_utf8(key)
        return self._kind.same(key) in self._done or self._journal.has(key)

    def write(self, rows: Sequence[Row]) -> None:
        self._journal.write([Row(printable_utf8(row.key), row.vector) for row in rows])

    def finish(self) -> None:
        """Old rows and the journal's into a new file, which replaces the old; then the journal goes."""
        try:
            with atomic_file(self.path) as file:
                self._write(file, self._kind, self._blocks())
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error}; run again to go on") from error
        self.close()
        self._journal.path.unlink()

    def close(self) -> None:
        self._journal.close()

    def _blocks(self) -> Blocks:
        if self._keep:
            yield from self._read(self.path, self._kind)
        keys: list[str] = []
        vectors: list[Floats] = []
        with open(self._journal.path, "rb") as file:
            for line in file:
                row = json.loads(line)
                # A run killed just after its rename has the journal's rows in the file already.
                if self._kind.same(row[self._kind.column]) in self._done:
                    continue
                keys.append(row[self._kind.column])
                vectors.append(np.frombuffer(base64.b64decode(row["embedding"]), "<f4"))
                if len(keys) == _BLOCK:
                    yield keys, np.stack(vectors)
                    keys, vectors = [], []
        if keys:
            yield keys, np.stack(vectors)


def open_embeddings(path: Path, kind: Kind, overwrite: bool = False) -> TextOutput[Row] | ArrayOutput:
    """Open a file of embeddings for going on, or from the start if `overwrite`.

    Raises ConfigError for an unknown suffix or if Parquet is asked for without pyarrow, DataError if the file
    is of other rows or of another model, is in use or cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"--out {path}: the name must end in {', '.join(SUFFIXES)}")
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        way_out = "pip install 'vistill[parquet]', or write .npz or .jsonl"
        raise ConfigError(f"--out {path} needs the package pyarrow: {way_out}")
    try:
        if suffix == ".jsonl":
            return _lines_output(path, kind, overwrite)
        return ArrayOutput(path, kind, overwrite)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error


def vector_values(vector: Floats) -> list[float]:
    """A vector as JSON numbers that give the same float32 again, and no longer ones than that takes."""
    return [float(str(number)) for number in vector.astype(np.float32)]


def _line(row: Row, kind: Kind, compact: bool) -> bytes:
    vector: Any = vector_values(row.vector)
    if compact:
        vector = base64.b64encode(row.vector.astype("<f4").tobytes()).decode("ascii")
    return json_line({kind.column: row.key, "model": kind.tag, "embedding": vector})


def _keys(kind: Kind, file: BinaryIO, path: Path, header: bytes) -> Iterator[tuple[str | None, int]]:
    def key_of(values: Any) -> str:
        key: str = values[kind.column]
        if values["model"] != kind.tag:
            raise _other_model(path, values["model"], kind)
        values["embedding"]
        return key

    return json_records(file, path, f'{{"{kind.column}": '.encode(), key_of, f"{kind.column} embedding")


def _other_model(path: Path, found: object, kind: Kind) -> DataError:
    return DataError(
        f"{path} holds embeddings of the model {str(found)[:_SHORT]!r}, this one is {kind.tag!r}: name that "
        "model with --model, or choose another file or --overwrite"
    )


def _foreign(path: Path, kind: Kind, error: object) -> DataError:
    return DataError(
        f"{path} is not a file of {kind.column} embeddings ({error}): choose another file or --overwrite"
    )


def _read_npz(path: Path, kind: Kind) -> Blocks:
    try:
        with np.load(path, allow_pickle=False) as kept:
            model, keys, vectors = str(kept["model"]), kept[f"{kind.column}s"], kept["embeddings"]
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise _foreign(path, kind, error) from error
    if model != kind.model:
        raise _other_model(path, model, kind)
    yield keys.tolist(), vectors


def _write_npz(file: Any, kind: Kind, blocks: Blocks) -> None:
    keys: list[str] = []
    vectors = [np.empty((0, kind.width), np.float32)]
    for some, array in blocks:
        keys += some
        vectors.append(array)
    arrays: dict[str, Any] = {
        f"{kind.column}s": np.array(keys, np.str_),
        "embeddings": np.concatenate(vectors),
    }
    np.savez(file, model=np.array(kind.model), **arrays)


def _read_parquet(path: Path, kind: Kind) -> Blocks:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            model = (file.schema_arrow.metadata or {}).get(b"vistill.model", b"").decode()
            if file.schema_arrow.names != [kind.column, "embedding"]:
                raise KeyError(f"columns {', '.join(file.schema_arrow.names)}")
            if model != kind.model:
                raise _other_model(path, model, kind)
            for batch in file.iter_batches(_BLOCK):
                flat = batch.column("embedding").flatten().to_numpy()
                yield batch.column(kind.column).to_pylist(), flat.reshape(-1, kind.width)
    except (pa.ArrowException, KeyError) as error:
        raise _foreign(path, kind, error) from error


def _write_parquet(file: Any, kind: Kind, blocks: Blocks) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vector = pa.list_(pa.float32(), kind.width)
    schema = pa.schema(
        [(kind.column, pa.string()), ("embedding", vector)], metadata={"vistill.model": kind.model}
    )
    with pq.ParquetWriter(file, schema) as writer:
        for keys, vectors in blocks:
            flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
            columns = [pa.array(keys, pa.string()), pa.FixedSizeListArray.from_arrays(flat, kind.width)]
            writer.write_batch(pa.record_batch(columns, schema=schema))


_FORMATS: dict[str, tuple[Callable[[Path, Kind], Blocks], Callable[[Any, Kind, Blocks], None]]] = {
    ".npz": (_read_npz, _write_npz),
    ".parquet": (_read_parquet, _write_parquet),
}
