"""A text teacher's vectors, asked once: the smaller neighbour of the teacher cache, for texts alone.

Folder: `texts.txt` (one text a line, each once), `manifest.json` (who was asked, hash of the texts) and
`vectors-FIRST-END.HASH.npy` (float16 [END - FIRST, E]), where HASH begins the file's sha256. A file appears
under its name only when whole, so those that are there are the journal of a run, and a killed one goes on.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistill.data.store import locked
from vistill.data.texts import TextSet
from vistill.distill.answers import TeacherIdentity
from vistill.distill.cache import differences, digest
from vistill.distill.teachers_clip import TextTeacher
from vistill.errors import DataError
from vistill.files import atomic_file, write_json, write_text
from vistill.provenance import git_revision

FORMAT = 1
MANIFEST = "manifest.json"
TEXTS = "texts.txt"
SHARD = 2048
_NAME = re.compile(r"vectors-(?P<first>\d{8})-(?P<end>\d{8})\.(?P<hash>[0-9a-f]{16})\.npy")


class TextCache:
    """A finished cache: `number[text]` is its row in `vectors`, float16 [n, E] in memory.

    Raises DataError if there is none, or it is unfinished, damaged or of another format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.teacher = TeacherIdentity(**self.manifest["teacher"])
        self.texts = _read_texts(self.folder, self.manifest)
        self.number = {text: row for row, text in enumerate(self.texts)}
        files = _shards(self.folder)
        expected = _ranges(len(self.texts))
        missing = [part for part in expected if part not in files]
        if missing:
            raise DataError(
                f"{self.folder}: {len(missing)} of {len(expected)} files are missing, the first "
                f"begins with text {missing[0][0]}; run `vistill teach texts` again to complete it"
            )
        parts = [_read_shard(files[part]) for part in expected]
        self.vectors: NDArray[np.float16] = np.concatenate(parts)
        self.width = int(self.vectors.shape[1])

    def numbers(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The row of each text. Raises DataError, naming the first that the teacher was not asked about."""
        missing = [text for text in texts if text not in self.number]
        if missing:
            raise DataError(
                f"{self.folder}: holds no vector of {len(missing)} texts, the first: {missing[0]!r}; "
                "run `vistill teach texts` with the data set among its sources"
            )
        return np.array([self.number[text] for text in texts], np.int64)

    def of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors float32 [n, E] of texts. Raises DataError as `numbers`."""
        return self.vectors[self.numbers(texts)].astype(np.float32)


def run(
    folder: Path, teacher: TextTeacher, texts: TextSet, progress: Callable[[int, int], None] | None = None
) -> int:
    """Ask about every text that is not yet answered; returns how many that were.

    Raises DataError with the reasons if `folder` holds answers of another teacher or to other texts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "run.lock", f"{folder}: another process is asking the teacher already"):
        _check_or_write(folder, teacher.identity, texts)
        there, made = _shards(folder), 0
        for first, end in _ranges(len(texts.texts)):
            if (first, end) not in there:
                _write_shard(folder, first, end, teacher(texts.texts[first:end]))
                made += end - first
            if progress is not None:
                progress(end, len(texts.texts))
    return made


def _check_or_write(folder: Path, teacher: TeacherIdentity, texts: TextSet) -> None:
    path = folder / MANIFEST
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "teacher": asdict(teacher),
        "texts": {"count": len(texts.texts), "hash": _texts_hash(texts.texts)},
        "sources": [asdict(count) for count in texts.counts],
        "code": git_revision(),
    }
    if not path.is_file():
        write_text(folder / TEXTS, "\n".join(texts.texts) + "\n")
        write_json(path, manifest)
        return
    kept = ("teacher", "texts")
    before = _read_manifest(folder)
    reasons = differences({name: before[name] for name in kept}, {name: manifest[name] for name in kept})
    if reasons:
        raise DataError(f"{folder}: holds other answers: {'; '.join(reasons)}; choose another folder")


def _write_shard(folder: Path, first: int, end: int, vectors: NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, vectors.astype(np.float16))
    name = hashlib.sha256(buffer.getbuffer()).hexdigest()[:16]
    with atomic_file(folder / f"vectors-{first:08d}-{end:08d}.{name}.npy") as file:
        file.write(buffer.getbuffer())


def _read_shard(path: Path) -> NDArray[np.float16]:
    if digest(path) != path.suffixes[-2].removeprefix("."):
        raise DataError(f"{path}: is damaged; remove it and run `vistill teach texts` again")
    vectors: NDArray[np.float16] = np.load(path)
    return vectors


def _shards(folder: Path) -> dict[tuple[int, int], Path]:
    """{(first, end): file} of those that are whole."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if match := _NAME.fullmatch(name):
            found[int(match["first"]), int(match["end"])] = folder / name
    return found


def _ranges(count: int) -> list[tuple[int, int]]:
    return [(first, min(first + SHARD, count)) for first in range(0, count, SHARD)]


def _texts_hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _read_texts(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    path = folder / TEXTS
    if not path.is_file():
        raise DataError(f"{path}: no such file; the cache is incomplete")
    texts = path.read_text("utf-8").removesuffix("\n").split("\n")
    if _texts_hash(texts) != manifest["texts"]["hash"]:
        raise DataError(f"{path}: is not what the manifest describes; make the cache again")
    return texts


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a folder that `vistill teach texts` made")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        found = manifest["format"]
        TeacherIdentity(**manifest["teacher"]), manifest["texts"]["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is no manifest of a cache of text vectors ({error!r})") from error
    if found != FORMAT:
        raise DataError(f"{path}: has format {found}, this version reads {FORMAT}; make the cache again")
    return manifest
