"""Bring the index of a folder of photos up to date: only what is new, changed or gone costs anything.

A photo is looked at again if its size or time on disk is another; if its bytes then turn out the same
(sha256), or are those of another photo, it is not embedded again. Every batch is one transaction, so a killed
run goes on where it was.
"""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vistill.archive.batch import ArrayEmbedder, Pixels, read_batches
from vistill.archive.catalogue import FILE, Catalogue, Model, Stamp, create_catalogue, open_catalogue
from vistill.archive.walk import walk
from vistill.errors import ConfigError, DataError, ImageError
from vistill.runtime.image import DEFAULT_LIMITS, Limits, preprocess, printable

Outcome = tuple[str, ImageError | None]

KINDS = ("added", "changed", "removed", "unchanged", "failed")


class Embedding(ArrayEmbedder, Protocol):
    """What is needed of `vistill.runtime.embedder.Embedder`."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def width(self) -> int: ...
    def texts(self, texts: list[str]) -> NDArray[np.float32]: ...


def model_of(embedder: Embedding) -> Model:
    """What an index remembers of the embedder that fills it."""
    return Model(embedder.name, embedder.hash, embedder.width)


def check_model(catalogue: Catalogue, embedder: Embedding) -> None:
    """Raise ConfigError if the index was made with another model: its vectors mean something else."""
    mine, theirs = model_of(embedder), catalogue.manifest.model
    if mine != theirs:
        raise ConfigError(
            f"{printable(catalogue.folder)} was made with the model {theirs.name} ({theirs.hash[:12]}), "
            f"this is {mine.name} ({mine.hash[:12]}): name that model with --model, or another --index"
        )


def open_index(folder: Path, root: Path, embedder: Embedding) -> Catalogue:
    """The index of the photos in `root`, for updating; made if it is not there.

    An index whose folder of photos is no more takes `root` for its new place: the photos have moved.
    Raises DataError if `root` is no folder, ConfigError if the index is of other photos or of another model.
    """
    if not root.is_dir():
        raise DataError(f"{printable(root)}: there is no such folder")
    place = os.path.abspath(root)
    if not (folder / FILE).is_file():
        return create_catalogue(folder, place, model_of(embedder))
    catalogue = open_catalogue(folder)
    try:
        check_model(catalogue, embedder)
        old = catalogue.manifest.root
        if old != place:
            if os.path.isdir(old) and not os.path.samefile(old, place):
                raise ConfigError(
                    f"{printable(folder)} is the index of {printable(old)}: choose another one for "
                    f"{printable(root)} with --index"
                )
            with catalogue.transaction():
                catalogue.write_manifest(replace(catalogue.manifest, root=place))
    except BaseException:
        catalogue.close()
        raise
    return catalogue


@dataclass(frozen=True)
class _Seen:
    """A file that was looked into: its state, and its pixels unless its vector is known."""

    stamp: Stamp
    pixels: Pixels | None


class Update:
    """One pass over the folder of an index. `counts` tells, by KINDS, what became of the photos so far.

    limits, batch_size, workers: as in `archive.batch`. Raises DataError where the disk refuses, and if every
    photo has vanished at once: a drive that is not there must not empty its index.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        embedder: Embedding,
        batch_size: int = 16,
        workers: int = 2,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self._catalogue = catalogue
        self._embedder = embedder
        self._batch_size = batch_size
        self._workers = workers
        self._limits = limits
        self._root = catalogue.manifest.root
        self._met = np.zeros(catalogue.last_id() + 1, bool)  # by id
        self._closed: list[str] = []  # folders that could not be read, relative to the root
        self._expected: dict[str, bytes] = {}  # what the bytes of a path on its way were at the last run

    def run(self) -> Iterator[list[Outcome]]:
        """For each batch of new or changed photos: path, and the error of one that cannot be read."""
        problems: list[Outcome] = []

        def unreadable(folder: str, error: OSError) -> None:
            self._closed.append(os.path.relpath(folder, self._root))
            text = f"{printable(folder)}: {error.strerror or error}"
            self.counts["failed"] += 1
            problems.append((folder, ImageError("unreadable", text)))

        for batch in read_batches(self._todo(unreadable), self._look, self._batch_size, self._workers):
            yield [*problems, *self._keep(batch)]
            problems.clear()
        self._remove_vanished()
        yield problems

    def _todo(self, unreadable: Callable[[str, OSError], None]) -> Iterator[str]:
        """Photos whose state on disk is not that of the catalogue."""
        for path in walk(self._root, True, unreadable):
            known = self._catalogue.find(self._name(path))
            if known is not None:
                self._met[known.id] = True
                if _same_state(path, known.stamp):
                    self.counts["unchanged"] += 1
                    continue
                self._expected[path] = known.stamp.digest
            yield path

    def _look(self, path: str) -> _Seen:
        """Runs in a thread. The state is taken before the bytes: the next run finds a change in between."""
        try:
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode) and status.st_size <= self._limits.max_bytes:
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
                stamp = Stamp(status.st_size, status.st_mtime_ns, digest)
                if self._expected.get(path) == digest:
                    return _Seen(stamp, None)
                return _Seen(stamp, preprocess(path, self._embedder.preprocess, self._limits))
        except OSError as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
            raise ImageError(reason, f"{printable(path)}: {error.strerror or error}") from error
        preprocess(path, self._embedder.preprocess, self._limits)  # says what is wrong with it
        raise ImageError("unreadable", f"{printable(path)} changes while it is read")

    def _keep(self, batch: list[tuple[str, _Seen | ImageError]]) -> list[Outcome]:
        """One transaction. A photo that can no longer be read leaves the index."""
        catalogue = self._catalogue
        done: list[Outcome] = []
        vectors = self._vectors([seen for _, seen in batch if isinstance(seen, _Seen)])
        with catalogue.transaction():
            for path, seen in batch:
                name = self._name(path)
                known = catalogue.find(name)
                self._expected.pop(path, None)
                if isinstance(seen, ImageError):
                    if known is not None:
                        catalogue.remove(known.id)
                    self.counts["failed"] += 1
                    done.append((path, seen))
                    continue
                if known is not None and known.stamp.digest == seen.stamp.digest:
                    catalogue.touch(known.id, seen.stamp)
                    self.counts["unchanged"] += 1
                else:
                    catalogue.insert(name, seen.stamp, vectors[seen.stamp.digest])
                    self.counts["added" if known is None else "changed"] += 1
                done.append((path, None))
        return done

    def _vectors(self, seen: list[_Seen]) -> dict[bytes, NDArray[np.float32]]:
        """Vectors by digest, out of the catalogue where these bytes are known; the rest are embedded."""
        found = {}
        fresh = {}
        for one in seen:
            digest = one.stamp.digest
            vector = self._catalogue.vector_of(digest)
            if vector is None:
                assert one.pixels is not None  # it has none only if the catalogue has its vector
                fresh[digest] = one.pixels
            else:
                found[digest] = vector
        if fresh:
            arrays = self._embedder.image_arrays(np.stack(list(fresh.values())))
            found |= dict(zip(fresh, arrays, strict=True))
        return found

    def _remove_vanished(self) -> None:
        """Photos that the walk did not meet, unless they lie in a folder that it could not read."""
        vanished = [
            id
            for id, name in self._catalogue.rows()
            if id < len(self._met) and not self._met[id] and not self._behind_closed(name)
        ]
        if vanished and not self._met.any() and not self.counts["added"]:
            where = printable(self._root)
            raise DataError(
                f"{where} has none of the {len(vanished)} photos of its index any more: is its drive there? "
                f"If they are gone for good, remove {printable(self._catalogue.folder)}"
            )
        with self._catalogue.transaction():
            for id in vanished:
                self._catalogue.remove(id)
        self.counts["removed"] += len(vanished)

    def _behind_closed(self, name: str) -> bool:
        return any(folder == "." or name.startswith(folder + os.sep) for folder in self._closed)

    def _name(self, path: str) -> str:
        return os.path.relpath(path, self._root)


def _same_state(path: str, stamp: Stamp) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False  # looked into again, and named with its error there
    return (status.st_size, status.st_mtime_ns) == (stamp.size, stamp.mtime)
