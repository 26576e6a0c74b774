"""`vistill embed`: pictures or lines of text in, vectors of one space out."""

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistill.cli.options import (
    MAX_BYTES,
    MAX_PIXELS,
    BatchSize,
    Bundle,
    FromFile,
    MaxBytes,
    MaxPixels,
    Paths,
    Recursive,
    Threads,
)

if TYPE_CHECKING:
    from vistill.archive.batch import Embedded
    from vistill.cli.pictures import Screen

_TEXTS = 1024  # lines that are embedded and kept together


def embed(
    out: Annotated[Path, typer.Option(help="A .parquet, .npz or .jsonl file; go on if it exists.")],
    paths: Paths = None,
    from_file: FromFile = None,
    texts: Annotated[
        str | None, typer.Option(help="Lines of text instead of pictures: a file, or - for stdin.")
    ] = None,
    recursive: Recursive = True,
    model: Bundle = None,
    as_json: Annotated[bool, typer.Option("--json", help="Failures as JSON objects on stdout.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing/--overwrite", help="Leave what is embedded, or begin anew.")
    ] = True,
    batch_size: BatchSize = 16,
    threads: Threads = None,
    max_bytes: MaxBytes = MAX_BYTES,
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Embed pictures or texts.

    The same command run again does only what is missing. Of equal lines of text one is kept, empty ones are
    left out. Exit code: 0 all embedded, 1 some failed (each is named with a reason), 2 nothing found or a
    wrong option, 130 interrupted.
    """
    from vistill.archive.batch import embed_paths
    from vistill.archive.embeddings import Kind, Row, open_embeddings
    from vistill.cli.pictures import Screen, check_list, check_names, count, pictures, reporting
    from vistill.errors import ConfigError
    from vistill.runtime.embedder import Embedder
    from vistill.runtime.image import Limits

    names = list(paths or ())
    if texts is None:
        check_names(names, from_file)
    elif names or from_file is not None:
        raise ConfigError("--texts embeds lines of text: name no pictures with it")
    elif texts != "-":
        check_list("--texts", Path(texts))
    limits = Limits(max_bytes, max_pixels)
    embedder = Embedder(model, threads=threads, batch_size=batch_size, limits=limits)
    kind = Kind("path" if texts is None else "text", embedder.hash, embedder.width)
    output = open_embeddings(out, kind, overwrite=not skip_existing)
    screen = Screen(as_json, printing=as_json, thing="picture" if texts is None else "text")
    todo = _Todo(output.has)
    try:
        with reporting(screen, lambda: None if texts else count(names, from_file, recursive)):
            if texts is not None:
                for lines in _batches(todo(_lines(texts))):
                    vectors = embedder.texts(lines)
                    output.write([Row(line, vector) for line, vector in zip(lines, vectors, strict=True)])
                    screen.finished += len(lines)
                    screen.advance(todo.skipped)
            else:
                found = todo(pictures(names, from_file, recursive, screen))
                for batch in embed_paths(embedder, found, batch_size, embedder.threads, limits):
                    rows = [Row(one.path, one.vector) for one in batch if one.vector is not None]
                    if rows:
                        output.write(rows)
                    _show(screen, batch, todo.skipped)
            if screen.finished or todo.skipped:  # else there is nothing to keep
                output.finish()
    finally:
        output.close()
    screen.finish("embedded", todo.skipped, names or [texts or ""], from_file)


class _Todo:
    """What an earlier run has not embedded, each key once; `skipped` counts the rest."""

    def __init__(self, has: Callable[[str], bool]) -> None:
        self.skipped = 0
        self._has = has
        self._seen: set[str] = set()

    def __call__(self, keys: Iterable[str]) -> Iterator[str]:
        for key in keys:
            if key in self._seen:
                continue
            self._seen.add(key)
            if self._has(key):
                self.skipped += 1
            else:
                yield key


def _lines(name: str) -> Iterator[str]:
    """The lines of a UTF-8 file or of stdin, without their ends; empty ones are left out."""
    from vistill.errors import DataError

    stream = sys.stdin.buffer if name == "-" else open(name, "rb")  # noqa: SIM115 - closed below
    with stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{name}, line {number}, is not UTF-8: {error.reason}") from error
            if text:
                yield text


def _batches(lines: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(lines, _TEXTS)):
        yield batch


def _show(screen: "Screen", batch: Iterable["Embedded"], skipped: int) -> None:
    for one in batch:
        if one.error is not None:
            screen.failed(one.path, one.error)
        else:
            screen.done()
    screen.advance(skipped)
