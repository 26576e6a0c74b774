"""The photos nearest to a vector: exactly for tens of thousands, through FAISS for millions.

Below `LISTS_FROM` photos every vector is looked at. Above, `vistill index` lays the vectors out in lists (an
inverted file of FAISS with one byte a number), and a question looks into the nearest lists alone. That file
is derived: it says which ids it covers, photos that came later are looked at one by one, photos that went are
left out, and the best candidates are scored again with the vectors of the catalogue. So what is found is
right whenever the file was written, and the file may be lost at any time.
"""

import importlib.util
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistill.archive.catalogue import Catalogue
from vistill.errors import DataError
from vistill.files import atomic_file
from vistill.runtime.image import printable

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

LISTS_FROM = 50_000
"""Photos from which FAISS is used: so many vectors are read in half a second and compared in a few ms."""
_STALE = 0.02  # share of photos that may be new or gone before the lists are brought up to date
_AGAIN = 4  # candidates for each result wanted that are scored again


@dataclass(frozen=True)
class Hit:
    """A photo and its cosine with what was asked for."""

    path: str
    """Absolute: below the folder that was indexed."""
    score: float


class Searcher:
    """Asks one state of an index, which is read into memory: open it again after `vistill index`."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Raises DataError."""
        self._catalogue = catalogue
        self._lists = _open_lists(catalogue)
        covered = 0 if self._lists is None else catalogue.manifest.covered
        self._gone = catalogue.gone()
        self._ids, self._vectors = _later(catalogue, covered)

    def __call__(self, query: Floats, top: int) -> list[Hit]:
        """The `top` photos nearest to `query` [E] (unit norm), best first. Raises DataError."""
        found = _best(self._ids, self._vectors @ query, top)
        if self._lists is not None:
            found += self._ask_lists(query, top)
        # Equal scores in the order in which the photos were indexed, whichever way they were found.
        best = sorted(found, key=lambda pair: (-pair[0], pair[1]))[:top]
        root = self._catalogue.manifest.root
        paths = [(self._catalogue.path_of(id), score) for score, id in best]
        return [Hit(os.path.join(root, path), score) for path, score in paths if path is not None]

    def _ask_lists(self, query: Floats, top: int) -> list[tuple[float, int]]:
        """Candidates out of the nearest lists, scored with the vectors of the catalogue."""
        import faiss

        settings = faiss.SearchParametersIVF(nprobe=probes(self._lists.nlist))
        if len(self._gone):
            selector = faiss.IDSelectorBatch(self._gone)  # has to live as long as `settings`
            settings.sel = faiss.IDSelectorNot(selector)
        _, ids = self._lists.search(query[None], _AGAIN * top, params=settings)
        candidates = self._catalogue.vectors_of(ids[0][ids[0] >= 0].tolist())
        return [(float(vector @ query), id) for id, vector in candidates.items()]


def _best(ids: Ids, scores: Floats, top: int) -> list[tuple[float, int]]:
    """The `top` highest scores with their ids."""
    if len(ids) > top:
        chosen = np.argpartition(-scores, top - 1)[:top]
        chosen = np.flatnonzero(scores >= scores[chosen].min())  # ties with the last one too
        chosen = chosen[np.argsort(-scores[chosen], kind="stable")][:top]
        ids, scores = ids[chosen], scores[chosen]
    return [(float(score), int(id)) for score, id in zip(scores, ids, strict=True)]


def _later(catalogue: Catalogue, covered: int) -> tuple[Ids, Floats]:
    """Ids [n] and vectors float32 [n, E] of the photos above `covered`, with no second copy on the way."""
    count = catalogue.later(covered)
    ids = np.empty(count, np.int64)
    vectors = np.empty((count, catalogue.manifest.model.width), np.float32)
    end = 0
    for some, block in catalogue.vectors(after=covered):
        start, end = end, min(count, end + len(some))  # more may have come since they were counted
        ids[start:end], vectors[start:end] = some[: end - start], block[: end - start]
    return ids[:end], vectors[:end]


def wants_lists(catalogue: Catalogue, limit: int = LISTS_FROM) -> bool:
    """Whether lists would serve and are absent, or too many photos have come and gone since."""
    count = len(catalogue)
    if count < limit:
        return False
    manifest = catalogue.manifest
    if not manifest.lists or not (catalogue.folder / manifest.lists).is_file():
        return True
    return catalogue.later(manifest.covered) + len(catalogue.gone()) > _STALE * count


def has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None


def write_lists(catalogue: Catalogue) -> None:
    """Lay the vectors out in lists, or bring the lists up to date if they still suit the number of photos.

    The file gets a new name, and the catalogue turns to it in one transaction; then the old one goes. Raises
    DataError where the disk refuses, ModuleNotFoundError without FAISS.
    """
    import faiss

    manifest = catalogue.manifest
    covered, count = catalogue.last_id(), len(catalogue)
    index = _open_lists(catalogue) if manifest.trained and count < 4 * manifest.trained else None
    trained = manifest.trained
    if index is None:
        index, trained = _train(catalogue, count), count
        new = catalogue.vectors()
    else:
        index.remove_ids(faiss.IDSelectorBatch(catalogue.gone()))
        new = catalogue.vectors(after=manifest.covered)
    for ids, vectors in new:
        index.add_with_ids(vectors, ids)
    name = f"lists-{covered}-{os.urandom(4).hex()}.faiss"
    try:
        with atomic_file(catalogue.folder / name) as file:
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
    except OSError as error:
        raise DataError(f"cannot write {name} in {printable(catalogue.folder)}: {error.strerror}") from error
    with catalogue.transaction():
        catalogue.write_manifest(
            replace(manifest, lists=name, covered=covered, trained=trained), forget_gone=True
        )
    _remove_others(catalogue.folder, name)


def _train(catalogue: Catalogue, count: int) -> Any:
    """An empty index whose lists suit the vectors: 4 sqrt(n) lists, from 40 vectors for each."""
    import faiss

    lists = max(1, round(4 * math.sqrt(count)))
    every = max(1, count // (40 * lists))
    sample = np.concatenate([vectors for _, vectors in catalogue.vectors(every=every)])
    name = f"IVF{min(lists, len(sample))},SQ8"
    index = faiss.index_factory(catalogue.manifest.model.width, name, faiss.METRIC_INNER_PRODUCT)
    index.cp.niter = 10
    index.cp.min_points_per_centroid = 1
    index.cp.seed = 1
    index.train(sample)
    return index


def probes(lists: int) -> int:
    """How many lists a question looks into: one in 64, and 16 at least."""
    return min(lists, max(16, lists // 64))


def _open_lists(catalogue: Catalogue) -> Any:
    """The index of the lists; None if there is none, or no FAISS to read it with."""
    if not catalogue.manifest.lists or not has_faiss():
        return None
    import faiss

    path = catalogue.folder / catalogue.manifest.lists
    try:
        with path.open("rb") as file:
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
    except FileNotFoundError:  # a newer one has taken its place, or somebody made room: not needed
        return None
    except (OSError, RuntimeError) as error:
        raise DataError(f"{printable(path)} is damaged: remove it and run `vistill index` again") from error
    if index.d != catalogue.manifest.model.width:
        raise DataError(f"{printable(path)} is of another index: remove it and run `vistill index` again")
    return index


def _remove_others(folder: Path, kept: str) -> None:
    """Lists of earlier states, and what a killed run left."""
    for path in folder.glob("lists-*"):
        if path.name != kept:
            path.unlink(missing_ok=True)
