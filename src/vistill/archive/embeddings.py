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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vistill.archive.outputs import (
    JournalledOutput,
    TextOutput,
    json_line,
    json_records,
    printable_utf8,
    same_picture,
)
from vistill.errors import ConfigError, DataError

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


def _whole_output(path: Path, kind: Kind, overwrite: bool) -> JournalledOutput[Row]:
    read, write = _FORMATS[path.suffix.lower()]

    def write_all(file: IO[bytes], old: Path | None, rows: Iterator[dict[str, Any]]) -> None:
        write(file, kind, chain(read(old, kind) if old else (), _blocks(kind, rows)))

    return JournalledOutput(
        path,
        lambda journal: _lines_output(journal, kind, overwrite, compact=True),
        kind.column,
        lambda old: (key for keys, _ in read(old, kind) for key in keys),
        write_all,
        lambda row: Row(printable_utf8(row.key), row.vector),
        overwrite,
    )


def _blocks(kind: Kind, rows: Iterator[dict[str, Any]]) -> Blocks:
    """The journal's rows, so many at a time."""
    while some := list(islice(rows, _BLOCK)):
        vectors = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in some]
        yield [row[kind.column] for row in some], np.stack(vectors)


def open_embeddings(
    path: Path, kind: Kind, overwrite: bool = False
) -> TextOutput[Row] | JournalledOutput[Row]:
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
        return _whole_output(path, kind, overwrite)
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
