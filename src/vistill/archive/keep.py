"""Which pictures still need a caption, and where finished captions are kept."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vistill.archive.batch import Result
from vistill.archive.outputs import Output, Row, same_picture
from vistill.archive.sidecars import sidecar_path, write_sidecar
from vistill.errors import ImageError
from vistill.runtime.image import printable


class Keeper:
    """Keeps captions in a caption file, in sidecars, in both or nowhere, and knows what an earlier run kept.

    output: an open caption file or None. sidecar: kind of sidecar ("txt") or None. ranked: rows carry several
    captions with scores. overwrite: caption pictures again that have a sidecar. `skipped` counts the pictures
    that needed nothing.
    """

    def __init__(self, output: Output | None, sidecar: str | None, ranked: bool, overwrite: bool) -> None:
        self.output = output
        self.ranked = ranked
        self.sidecar = sidecar
        self.overwrite = overwrite
        self.skipped = 0
        self._seen: set[str] = set()
        self._owners: dict[Path, str] = {}

    def todo(self, paths: Iterable[str], fail: Callable[[Result], None]) -> Iterator[str]:
        """The paths that need a caption, each once.

        A picture whose sidecar belongs to another one of this run (photo.jpg and photo.png) goes to `fail`.
        """
        for path in paths:
            key = same_picture(path)
            if key in self._seen:
                continue
            self._seen.add(key)
            if self.sidecar:
                sidecar = sidecar_path(key, self.sidecar)
                owner = self._owners.setdefault(sidecar, path)
                if owner != path:
                    text = f"{printable(path)}: {sidecar.name} is the sidecar of {printable(owner)}"
                    fail(Result(path, error=ImageError("sidecar_taken", text)))
                    continue
            if self._kept(path):
                self.skipped += 1
            else:
                yield path

    def keep(self, results: Sequence[Result]) -> list[Result]:
        """Store a batch; returns it, with an error where a sidecar could not be written. Raises DataError."""
        results = [self._with_sidecar(result) for result in results] if self.sidecar else list(results)
        if self.output is not None:
            rows = [
                as_row(r, self.ranked) for r in results if r.error is None and not self.output.has(r.path)
            ]
            if rows:
                self.output.write(rows)
        return results

    def _kept(self, path: str) -> bool:
        if self.output is None and self.sidecar is None:
            return False
        if self.output is not None and not self.output.has(path):
            return False
        if self.sidecar is not None:
            return not self.overwrite and os.path.lexists(sidecar_path(path, self.sidecar))
        return True

    def _with_sidecar(self, result: Result) -> Result:
        if result.error is not None or self.sidecar is None:
            return result
        path = sidecar_path(result.path, self.sidecar)
        if not self.overwrite and os.path.lexists(path):
            return result
        try:
            write_sidecar(path, result.captions[0][0])
        except OSError as error:
            text = f"{printable(path)}: {error.strerror or error}"
            return replace(result, captions=(), error=ImageError("sidecar_unwritable", text))
        return result


def as_row(result: Result, ranked: bool) -> Row:
    """A captioned picture as it is written: its best caption, and all with scores if `ranked`."""
    return Row(result.path, result.captions[0][0], result.captions if ranked else ())
