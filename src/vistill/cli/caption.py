"""`vistill caption`: pictures in, captions out; many of them, and again and again."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vistill.cli.options import (
    MAX_BYTES,
    MAX_PIXELS,
    BatchSize,
    Beams,
    Bundle,
    FromFile,
    MaxBytes,
    MaxPixels,
    Paths,
    Recursive,
    Rerank,
    Threads,
)

if TYPE_CHECKING:
    from vistill.archive.batch import Result


def caption(
    paths: Paths = None,
    from_file: FromFile = None,
    recursive: Recursive = True,
    model: Bundle = None,
    num_beams: Beams = None,
    num_return: Annotated[int, typer.Option(min=1, help="Captions a picture, best first.")] = 1,
    rerank: Rerank = True,
    prefix: Annotated[str, typer.Option(help="Text before every caption, spaces included.")] = "",
    suffix: Annotated[str, typer.Option(help="Text behind every caption, spaces included.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a picture on stdout.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Keep captions in a .jsonl, .csv or .parquet file; go on if it exists."),
    ] = None,
    sidecar: Annotated[str | None, typer.Option(help="txt: write photo.txt beside photo.jpg.")] = None,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing/--overwrite", help="Leave what is captioned, or begin anew."),
    ] = True,
    batch_size: BatchSize = 16,
    threads: Threads = None,
    max_bytes: MaxBytes = MAX_BYTES,
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Caption pictures.

    One picture prints its caption; several print path<TAB>caption each. With --out or --sidecar the captions
    go there instead (add --json to see them too), and the same command run again does only what is missing:
    pictures that failed are tried again, pictures that are done are not. Exit code: 0 all captioned, 1 some
    failed (each is named with a reason), 2 nothing found or a wrong option, 130 interrupted.
    """
    from vistill.archive.batch import caption_paths
    from vistill.archive.keep import Keeper
    from vistill.archive.outputs import open_output
    from vistill.cli.pictures import Screen, check_names, count, pictures, reporting
    from vistill.runtime.image import Limits
    from vistill.runtime.pipelines import Captioner

    names = list(paths or ())
    _check(sidecar, num_beams, num_return, prefix, suffix)
    check_names(names, from_file)
    beams: dict[str, Any] = {} if num_beams is None else {"num_beams": num_beams}
    captioner = Captioner(model, threads=threads, batch_size=batch_size, rerank=rerank, **beams)
    output = None if out is None else open_output(out, num_return > 1, overwrite=not skip_existing)
    keeper = Keeper(output, sidecar, ranked=num_return > 1, overwrite=not skip_existing)
    printing = as_json or (output is None and sidecar is None)
    bare = from_file is None and len(names) == 1 and os.path.isfile(names[0])
    screen = Screen(as_json, quiet=bare, printing=printing)
    try:
        with reporting(screen, lambda: count(names, from_file, recursive)):
            found = pictures(names, from_file, recursive, screen)
            todo = keeper.todo(found, lambda result: screen.failed(result.path, result.error))
            limits = Limits(max_bytes, max_pixels)
            for results in caption_paths(captioner, todo, batch_size, captioner.threads, num_return, limits):
                for result in keeper.keep([_decorated(r, prefix, suffix) for r in results]):
                    if result.error is not None:
                        screen.failed(result.path, result.error)
                    else:
                        screen.done(_line(result, as_json, bare, num_return > 1) if printing else b"")
                screen.advance(keeper.skipped)
            if output is not None and (screen.finished or keeper.skipped):  # else there is nothing to keep
                output.finish()
    finally:
        if output is not None:
            output.close()
    screen.finish("captioned", keeper.skipped, names, from_file)


def _line(result: "Result", as_json: bool, bare: bool, ranked: bool) -> bytes:
    """What stdout gets of a captioned picture; bare: without its path."""
    from vistill.archive.keep import as_row
    from vistill.archive.outputs import json_line, row_values
    from vistill.runtime.image import printable

    if as_json:
        return json_line(row_values(as_row(result, ranked)))
    before = "" if bare else printable(result.path) + "\t"
    lines = "".join(f"{before}{text}\n" for text, _ in result.captions)
    return lines.encode("utf-8", "backslashreplace")


def _check(sidecar: str | None, num_beams: int | None, num_return: int, prefix: str, suffix: str) -> None:
    from vistill.archive.sidecars import SIDECAR_KINDS
    from vistill.errors import ConfigError

    if sidecar is not None and sidecar not in SIDECAR_KINDS:
        raise ConfigError(f"--sidecar must be one of {', '.join(SIDECAR_KINDS)}, got {sidecar!r}")
    if num_beams is not None and num_beams < num_return:
        raise ConfigError(f"--num-return {num_return} needs as many beams: got --num-beams {num_beams}")
    for option, text in (("--prefix", prefix), ("--suffix", suffix)):
        if "\n" in text or "\r" in text:
            raise ConfigError(f"{option} {text!r}: a caption is one line; leave the line break away")


def _decorated(result: "Result", prefix: str, suffix: str) -> "Result":
    return replace(result, captions=tuple((prefix + text + suffix, score) for text, score in result.captions))
