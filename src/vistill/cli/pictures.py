"""What commands over many pictures share: which pictures are meant, and what a person and a pipe see."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from vistill.errors import ImageError


class Screen:
    """Results on stdout; progress, failures and notes on stderr.

    as_json: failures are objects on stdout. quiet: no bar and no last line, as for one picture. printing:
    results go to stdout. thing: what the results are of.
    """

    def __init__(
        self, as_json: bool, quiet: bool = False, printing: bool = True, thing: str = "picture"
    ) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self.printing = printing
        self.thing = thing
        self.finished = 0
        self.failures = 0
        self._bar: Any = None

    def progress(self, count: Callable[[], int | None]) -> AbstractContextManager[None]:
        """A bar on stderr, unless nobody would see it or the results are on the same screen."""
        shown = sys.stderr.isatty() and not self.quiet and not (self.printing and sys.stdout.isatty())
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

    def done(self, line: bytes = b"") -> None:
        """Count a result; `line` goes to stdout."""
        self.finished += 1
        if line:
            write(line)

    def failed(self, path: str, error: "ImageError | None") -> None:
        """Name a failure: on stdout as JSON if that was asked for, else on stderr."""
        from vistill.archive.outputs import json_line

        assert error is not None
        self.failures += 1
        if self.as_json:
            write(json_line({"path": path, "error": error.reason, "detail": error.detail}))
        else:
            self.note(f"error: {error.reason}: {error.detail}")

    def advance(self, skipped: int) -> None:
        """Move the bar to what is finished, failed and skipped."""
        if self._bar is not None:
            speed = self._bar.tasks[0].finished_speed or self._bar.tasks[0].speed
            rate = "" if speed is None else f"{speed:.1f}/s"
            self._bar.update(self._task, completed=self.finished + self.failures + skipped, rate=rate)

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text, err=True)

    def finish(self, verb: str, skipped: int, names: Sequence[str], from_file: Path | None = None) -> None:
        """The last line and the exit code. Raises ConfigError if nothing was found at all."""
        from vistill.errors import ConfigError
        from vistill.runtime.image import printable

        if not (self.finished or self.failures or skipped):
            where = ", ".join(printable(n) for n in names) if from_file is None else printable(from_file)
            raise ConfigError(f"found no {self.thing}s in {where}")
        if not self.quiet or self.failures:
            parts = [f"{self.finished} {verb}"]
            parts += [f"{skipped} done before"] * bool(skipped) + [f"{self.failures} failed"] * bool(
                self.failures
            )
            self.note(", ".join(parts))
        if self.failures:
            raise typer.Exit(1)


@contextmanager
def reporting(screen: Screen, count: Callable[[], int | None]) -> Iterator[None]:
    """The bar around a piece of work, and the ends that are no errors: Ctrl-C and a reader that has gone."""
    try:
        with screen.progress(count):
            yield
    except KeyboardInterrupt:
        screen.note(f"stopped after {screen.finished} {screen.thing}s; the same command goes on from here")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader of stdout has gone: write nothing more, at exit neither
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None


def write(data: bytes) -> None:
    """Bytes, because JSON is UTF-8 whatever the locale says; at once, for whoever reads the pipe."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def check_names(names: Sequence[str], from_file: Path | None) -> None:
    """Raise ConfigError if no picture is named at all, or by a list that is not there or cannot be read."""
    from vistill.errors import ConfigError

    if not names and from_file is None:
        raise ConfigError("name pictures or folders, - for a list on stdin, or --from-file LIST")
    if from_file is not None:
        check_list("--from-file", from_file)
    hush_pillow()


def check_list(option: str, path: Path) -> None:
    """Raise ConfigError unless a list can be read there: a file, or a pipe as of `<(find ...)`."""
    from vistill.errors import ConfigError
    from vistill.runtime.image import printable

    problem = "there is no such file"
    if os.path.isdir(path):
        problem = "is a folder; name a file with a line for each"
    elif os.path.exists(path):
        if os.access(path, os.R_OK):
            return
        problem = "Permission denied"
    raise ConfigError(f"{option} {printable(path)}: {problem}")


def hush_pillow() -> None:
    """Pillow warns of odd metadata in sound pictures; what matters comes as an error."""
    import warnings

    warnings.filterwarnings("ignore", module=r"PIL\.")


def pictures(names: Sequence[str], from_file: Path | None, recursive: bool, screen: Screen) -> Iterator[str]:
    """All pictures named, in order; a name that stands for none is noted, a closed folder is a failure."""
    from vistill.archive.walk import expand
    from vistill.errors import ImageError
    from vistill.runtime.image import printable

    def unreadable(folder: str, error: OSError) -> None:
        text = f"{printable(folder)}: {error.strerror or error}"
        screen.failed(folder, ImageError("unreadable", text))

    for name in _names(names, from_file):
        found = False
        for found_path in expand(name, recursive, unreadable):
            found = True
            yield found_path
        if not found:
            screen.note(f"no pictures in {printable(name)}")


def _names(names: Sequence[str], from_file: Path | None) -> Iterator[str]:
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


def count(names: Sequence[str], from_file: Path | None, recursive: bool) -> int | None:
    """How many pictures there are, for the bar; None if they come from a pipe, which cannot be read twice."""
    from vistill.archive.walk import expand

    if "-" in names or (from_file is not None and not from_file.is_file()):
        return None
    return sum(1 for n in _names(names, from_file) for _ in expand(n, recursive, lambda *_: None))
