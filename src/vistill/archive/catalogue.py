"""What is kept of a folder of photos: the name, the state on disk and the vector of each; no picture.

An index is a folder with one SQLite file, `photos.sqlite`. Every change is a transaction, so a kill or a
power cut at any moment leaves the state before or after it. An `id` is given once and never again: a photo
whose bytes change gets a new one, so a derived file (`archive/search.py`) can say which ids it covers.
Names are bytes relative to the folder of photos: any name fits, and the folder may move.
"""

import json
import os
import sqlite3
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistill.archive.outputs import lock_file
from vistill.errors import DataError
from vistill.runtime.image import printable

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

FORMAT = 1
FILE = "photos.sqlite"
_BLOCK = 4_000  # rows read at once
_ASKED = 500  # ids in one question: SQLite takes 999 at least
_WAIT = 60.0  # seconds that a reader waits for a writer's transaction, which takes a fraction of one

_SCHEMA = """
CREATE TABLE manifest (value TEXT NOT NULL);
CREATE TABLE photo (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    path BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    mtime INTEGER NOT NULL,
    digest BLOB NOT NULL,
    vector BLOB NOT NULL
);
CREATE INDEX photo_digest ON photo (digest);
CREATE TABLE gone (id INTEGER PRIMARY KEY);
"""


@dataclass(frozen=True)
class Model:
    """Which embedder made the vectors."""

    name: str
    hash: str
    width: int
    """E, numbers in a vector."""


@dataclass(frozen=True)
class Manifest:
    """What an index says of itself."""

    root: str
    """The folder of photos, absolute."""
    model: Model
    lists: str = ""
    """Name of the file for quick search that belongs to this state; empty if there is none."""
    covered: int = 0
    """That file knows the photos with ids up to this one, less those in the table `gone`."""
    trained: int = 0
    """How many photos there were when its lists were laid out."""
    format: int = FORMAT
    identity: str = ""


@dataclass(frozen=True)
class Stamp:
    """The state of a file: bytes, time of change in nanoseconds, sha256 of its bytes."""

    size: int
    mtime: int
    digest: bytes


@dataclass(frozen=True)
class Known:
    """A photo in the catalogue."""

    id: int
    stamp: Stamp


class Catalogue:
    """An opened index. Not to be shared between threads. Every method may raise DataError."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection
        self.manifest = self._read_manifest()

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM photo"))

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes within become durable at its end, or none does."""
        self._run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._run("ROLLBACK")
            raise
        self._run("COMMIT")

    def find(self, path: str) -> Known | None:
        """The photo of that name, relative to the root."""
        sql = "SELECT id, size, mtime, digest FROM photo WHERE path = ?"
        row = self._run(sql, (os.fsencode(path),)).fetchone()
        return None if row is None else Known(row[0], Stamp(*row[1:]))

    def vector_of(self, digest: bytes) -> Floats | None:
        """The vector of a photo with these very bytes, whatever its name."""
        row = self._run("SELECT vector FROM photo WHERE digest = ? LIMIT 1", (digest,)).fetchone()
        return None if row is None else self._vector(row[0])

    def insert(self, path: str, stamp: Stamp, vector: Floats) -> None:
        """A new photo, or new bytes under an old name."""
        known = self.find(path)
        if known is not None:
            self.remove(known.id)
        values = (os.fsencode(path), stamp.size, stamp.mtime, stamp.digest, vector.astype("<f2").tobytes())
        self._run("INSERT INTO photo (path, size, mtime, digest, vector) VALUES (?, ?, ?, ?, ?)", values)

    def touch(self, id: int, stamp: Stamp) -> None:
        """The same bytes with another size or time on disk."""
        self._run("UPDATE photo SET size = ?, mtime = ? WHERE id = ?", (stamp.size, stamp.mtime, id))

    def remove(self, id: int) -> None:
        self._run("DELETE FROM photo WHERE id = ?", (id,))
        if id <= self.manifest.covered:
            self._run("INSERT OR IGNORE INTO gone VALUES (?)", (id,))

    def last_id(self) -> int:
        """The largest id there is; 0 if there is none."""
        return int(self._one("SELECT coalesce(max(id), 0) FROM photo"))

    def rows(self) -> Iterator[tuple[int, str]]:
        """(id, path) of every photo."""
        for id, path in self._run("SELECT id, path FROM photo ORDER BY id"):
            yield id, os.fsdecode(path)

    def gone(self) -> Ids:
        """Ids that the file for quick search still has and the catalogue has no more."""
        return np.array([id for (id,) in self._run("SELECT id FROM gone ORDER BY id")], np.int64)

    def vectors(self, after: int = 0, every: int = 1) -> Iterator[tuple[Ids, Floats]]:
        """Blocks of ids [n] and vectors float32 [n, E] of the photos with ids above `after`.

        every: only ids that it divides, for a sample.
        """
        sql = "SELECT id, vector FROM photo WHERE id > ? AND id % ? = 0 ORDER BY id"
        cursor = self._run(sql, (after, every))
        while rows := cursor.fetchmany(_BLOCK):
            flat = np.frombuffer(b"".join(vector for _, vector in rows), "<f2").astype(np.float32)
            yield np.array([id for id, _ in rows], np.int64), flat.reshape(len(rows), -1)

    def vectors_of(self, ids: Sequence[int]) -> dict[int, Floats]:
        """The vectors of some photos; those that are not there lack."""
        found = {}
        for start in range(0, len(ids), _ASKED):
            some = ids[start : start + _ASKED]
            sql = f"SELECT id, vector FROM photo WHERE id IN ({','.join('?' * len(some))})"
            found.update({id: self._vector(vector) for id, vector in self._run(sql, some)})
        return found

    def later(self, id: int) -> int:
        """How many photos have larger ids."""
        return int(self._one("SELECT count(*) FROM photo WHERE id > ?", (id,)))

    def path_of(self, id: int) -> str | None:
        """The name of a photo, relative to the root; None if it has gone."""
        row = self._run("SELECT path FROM photo WHERE id = ?", (id,)).fetchone()
        return None if row is None else os.fsdecode(row[0])

    def write_manifest(self, manifest: Manifest, forget_gone: bool = False) -> None:
        """Replace the manifest, within a transaction."""
        self._run("UPDATE manifest SET value = ?", (json.dumps(asdict(manifest)),))
        if forget_gone:
            self._run("DELETE FROM gone")
        self.manifest = manifest

    def _read_manifest(self) -> Manifest:
        raw = json.loads(self._one("SELECT value FROM manifest"))
        if raw.get("format") != FORMAT:
            raise DataError(
                f"{self.folder}: this vistill reads indexes of format {FORMAT}, found {raw.get('format')!r}: "
                "remove the folder and index again"
            )
        known = {f.name for f in fields(Manifest)}
        return Manifest(**{k: v for k, v in raw.items() if k in known} | {"model": Model(**raw["model"])})

    def _vector(self, data: bytes) -> Floats:
        return np.frombuffer(data, "<f2").astype(np.float32)

    def _one(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The one value of a question that always has an answer."""
        return self._run(sql, values).fetchone()[0]

    def _run(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        with _told(self.folder):
            return self._connection.execute(sql, values)


def open_catalogue(folder: Path) -> Catalogue:
    """Open an index that is there. Raises DataError."""
    if not (folder / FILE).is_file():
        raise DataError(f"{printable(folder)} is no index of photos: it has no {FILE}; see `vistill index`")
    # Not read-only: what a killed run left half-done has to be rolled back before it can be read.
    with _told(folder):
        uri = f"file:{urllib.parse.quote(os.fsencode(os.path.abspath(folder / FILE)))}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=_WAIT, isolation_level=None)
        return Catalogue(folder, connection)


def create_catalogue(folder: Path, root: str, model: Model) -> Catalogue:
    """Make an empty index; it appears whole under its name. Raises DataError."""
    temporary = folder / f".{FILE}.{os.getpid()}.tmp"
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        connection = sqlite3.connect(temporary, isolation_level=None)
        connection.executescript(_SCHEMA)
        manifest = Manifest(root, model, identity=uuid.uuid4().hex)
        connection.execute("INSERT INTO manifest VALUES (?)", (json.dumps(asdict(manifest)),))
        connection.close()
        os.replace(temporary, folder / FILE)
    return open_catalogue(folder)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep a second `vistill index` off this folder. The system drops the lock of a killed process."""
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "ab")  # noqa: SIM115 - held open and locked until the end
    with file:
        lock_file(file, folder)
        yield


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Errors of SQLite and of the disk as DataError."""
    name = printable(folder)
    try:
        yield
    except sqlite3.OperationalError as error:
        raise DataError(f"{name}: {error}; is the disk full, or another program writing there?") from error
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{name} holds a damaged {FILE} ({error}): remove it and index again") from error
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error
