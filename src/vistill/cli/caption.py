"""`vistill caption`: pictures in, captions out; many of them, and again and again."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vistill.archive.batch import Result


def caption(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Pictures, folders, globs; - reads a list from stdin.", metavar="PATH..."),
    ] = None,
    from_file: Annotated[
        Path | None, typer.Option(help="A list of pictures, one a line or separated by NUL.")
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive/--no-recursive", help="Go into the folders of folders.")
    ] = True,
    model: Annotated[Path | None, typer.Option(help="Bundle folder; else the model in the package.")] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="1: greedy. Else as the bundle says.")] = None,
    num_return: Annotated[int, typer.Option(min=1, help="Captions a picture, best first.")] = 1,
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
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that go through the model together.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; else one for each CPU.")] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Refuse larger files.")] = 128 * 2**20,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger pictures, by their header.")] = 2**26,
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
    from vistill.runtime.image import Limits
    from vistill.runtime.pipelines import Captioner

    names = list(paths or ())
    _check(names, from_file, sidecar)
    beams: dict[str, Any] = {} if num_beams is None else {"num_beams": num_beams}
    captioner = Captioner(model, threads=threads, batch_size=batch_size, **beams)
    output = None if out is None else open_output(out, num_return > 1, overwrite=not skip_existing)
    keeper = Keeper(output, sidecar, ranked=num_return > 1, overwrite=not skip_existing)
    printing = as_json or (output is None and sidecar is None)
    bare = from_file is None and len(names) == 1 and os.path.isfile(names[0])
    screen = _Screen(as_json, bare, printing, ranked=num_return > 1)
    try:
        with screen.progress(lambda: _count(names, from_file, recursive)):
            todo = keeper.todo(_pictures(names, from_file, recursive, screen), screen.failed)
            limits = Limits(max_bytes, max_pixels)
            for results in caption_paths(captioner, todo, batch_size, captioner.threads, num_return, limits):
                screen.results(keeper.keep([_decorated(r, prefix, suffix) for r in results]), keeper.skipped)
        if output is not None:
            output.finish()
    except KeyboardInterrupt:
        screen.note(f"stopped after {screen.captioned} pictures; the same command goes on from here")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader of stdout has gone: write nothing more, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None
    finally:
        if output is not None:
            output.close()
    _finish(screen, keeper.skipped, names, from_file)


class _Screen:
    """What a person and a pipe see: captions on stdout; progress, failures and notes on stderr."""

    def __init__(self, as_json: bool, bare: bool, printing: bool, ranked: bool) -> None:
        self.as_json = as_json
        self.bare = bare  # one picture: its caption alone, without its path
        self.printing = printing
        self.ranked = ranked
        self.captioned = 0
        self.failures = 0
        self._bar: Any = None

    def progress(self, count: Any) -> AbstractContextManager[None]:
        """A bar on stderr, unless nobody would see it or the captions are on the same screen."""
        shown = sys.stderr.isatty() and not self.bare and not (self.printing and sys.stdout.isatty())
        return self._progress(count()) if shown else nullcontext()

    @contextmanager
    def _progress(self, total: int | None) -> Iterator[None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        console = Console(stderr=True)
        with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bar:
            self._task = bar.add_task("", total=total, rate="")
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def results(self, results: Sequence["Result"], skipped: int) -> None:
        """Print a batch and move the bar on."""
        for result in results:
            if result.error is not None:
                self.failed(result)
            else:
                self.captioned += 1
                if self.printing:
                    _write(self._line(result))
        if self._bar is not None:
            speed = self._bar.tasks[0].finished_speed or self._bar.tasks[0].speed
            rate = "" if speed is None else f"{speed:.1f}/s"
            self._bar.update(self._task, completed=self.captioned + self.failures + skipped, rate=rate)

    def failed(self, result: "Result") -> None:
        """Name a failure: on stdout as JSON if that was asked for, else on stderr."""
        from vistill.archive.outputs import json_line

        assert result.error is not None
        self.failures += 1
        reason, detail = result.error.reason, result.error.detail
        if self.as_json:
            _write(json_line({"path": result.path, "error": reason, "detail": detail}))
        else:
            self.note(f"error: {reason}: {detail}")

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text, err=True)

    def _line(self, result: "Result") -> bytes:
        from vistill.archive.keep import as_row
        from vistill.archive.outputs import json_line, row_values
        from vistill.runtime.image import printable

        if self.as_json:
            return json_line(row_values(as_row(result, self.ranked)))
        before = "" if self.bare else printable(result.path) + "\t"
        lines = "".join(f"{before}{text}\n" for text, _ in result.captions)
        return lines.encode("utf-8", "backslashreplace")


def _write(data: bytes) -> None:
    """Bytes, because JSON is UTF-8 whatever the locale says; at once, for whoever reads the pipe."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _check(names: list[str], from_file: Path | None, sidecar: str | None) -> None:
    import warnings

    from vistill.archive.sidecars import SIDECAR_KINDS
    from vistill.errors import ConfigError

    if sidecar is not None and sidecar not in SIDECAR_KINDS:
        raise ConfigError(f"--sidecar must be one of {', '.join(SIDECAR_KINDS)}, got {sidecar!r}")
    if not names and from_file is None:
        raise ConfigError("name pictures or folders, - for a list on stdin, or --from-file LIST")
    if from_file is not None and not from_file.is_file():
        raise ConfigError(f"--from-file {from_file}: there is no such file")
    # Pillow warns of odd metadata in sound pictures; what matters comes as an error.
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _pictures(names: list[str], from_file: Path | None, recursive: bool, screen: _Screen) -> Iterator[str]:
    """All pictures named, in order; a name that stands for none is noted."""
    from vistill.archive.batch import Result
    from vistill.archive.walk import expand
    from vistill.errors import ImageError
    from vistill.runtime.image import printable

    def unreadable(folder: str, error: OSError) -> None:
        text = f"{printable(folder)}: {error.strerror or error}"
        screen.failed(Result(folder, error=ImageError("unreadable", text)))

    for name in _names(names, from_file):
        found = False
        for found_path in expand(name, recursive, unreadable):
            found = True
            yield found_path
        if not found:
            screen.note(f"no pictures in {printable(name)}")


def _names(names: list[str], from_file: Path | None) -> Iterator[str]:
    """The arguments, with lists in the place of - and of --from-file."""
    from vistill.archive.walk import read_list

    for name in names:
        if name == "-":
            yield from read_list(sys.stdin.buffer)
        else:
            yield name
    if from_file is not None:
        with open(from_file, "rb") as stream:
            yield from read_list(stream)


def _count(names: list[str], from_file: Path | None, recursive: bool) -> int | None:
    """How many pictures there are, for the bar; None if they come from stdin, which cannot be read twice."""
    from vistill.archive.walk import expand

    if "-" in names:
        return None
    return sum(1 for n in _names(names, from_file) for _ in expand(n, recursive, lambda *_: None))


def _decorated(result: "Result", prefix: str, suffix: str) -> "Result":
    return replace(result, captions=tuple((prefix + text + suffix, score) for text, score in result.captions))


def _finish(screen: _Screen, skipped: int, names: list[str], from_file: Path | None) -> None:
    """The last line and the exit code. Raises ConfigError if nothing was found at all."""
    from vistill.errors import ConfigError
    from vistill.runtime.image import printable

    if not (screen.captioned or screen.failures or skipped):
        where = ", ".join(printable(n) for n in names) if from_file is None else printable(from_file)
        raise ConfigError(f"found no pictures in {where}")
    if not screen.bare or screen.failures:
        parts = [f"{screen.captioned} captioned"]
        parts += [f"{skipped} done before"] * bool(skipped) + [f"{screen.failures} failed"] * bool(
            screen.failures
        )
        screen.note(", ".join(parts))
    if screen.failures:
        raise typer.Exit(1)
