"""`vistill classify`: the likeliest of some labels for each picture, without training."""

import os
from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.options import Bundle, Recursive, Threads

_CHUNK = 256  # pictures after which answers are printed


def classify(
    paths: Annotated[
        list[str],
        typer.Argument(help="Pictures, folders, globs; - reads a list from stdin.", metavar="PHOTO..."),
    ],
    labels: Annotated[str, typer.Option(help="Labels, separated by commas.")] = "",
    labels_file: Annotated[Path | None, typer.Option(help="A file of labels, one a line.")] = None,
    template: Annotated[str, typer.Option(help="The sentence that a label is put in.")] = "a photo of {}",
    model: Bundle = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a picture on stdout.")] = False,
    recursive: Recursive = True,
    threads: Threads = None,
) -> None:
    """Choose among labels for each picture.

    Prints path<TAB>label<TAB>score for the likeliest one; --json has them all. The scores of a picture sum to
    1 over the labels given: one of them is always the likeliest, even if none fits. Exit code: 0 all
    classified, 1 some failed (each is named with a reason), 2 nothing found or a wrong option.
    """
    from itertools import islice

    from vistill.archive.outputs import json_line
    from vistill.cli.pictures import Screen, check_names, count, pictures, reporting
    from vistill.errors import ImageError
    from vistill.runtime.embedder import Embedder
    from vistill.runtime.image import printable

    check_names(paths, None)
    choice = _labels(labels, labels_file)
    embedder = Embedder(model, threads=threads)
    screen = Screen(as_json, quiet=len(paths) == 1 and os.path.isfile(paths[0]))
    found = pictures(paths, None, recursive, screen)
    with reporting(screen, lambda: count(paths, None, recursive)):
        while some := list(islice(found, _CHUNK)):
            errors: dict[int, ImageError] = {}
            answers = embedder.classify(some, choice, template, on_error=errors.__setitem__)
            for number, (path, best) in enumerate(zip(some, answers, strict=True)):
                if number in errors:
                    screen.failed(path, errors[number])
                elif as_json:
                    scores = [{"label": one.text, "score": round(one.score, 6)} for one in best]
                    screen.done(json_line({"path": path, "labels": scores}))
                else:
                    line = f"{printable(path)}\t{best[0].text}\t{best[0].score:.3f}\n"
                    screen.done(line.encode("utf-8", "backslashreplace"))
            screen.advance(0)
    screen.finish("classified", 0, paths)


def _labels(named: str, file: Path | None) -> list[str]:
    """The labels of both options, each once, in their order. Raises ConfigError if there are not two."""
    from vistill.errors import ConfigError

    lines: list[str] = []
    if file is not None:
        if not file.is_file():
            raise ConfigError(f"--labels-file {file}: there is no such file")
        try:
            lines = file.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError(f"--labels-file {file} is not UTF-8: {error.reason}") from error
    found = list(dict.fromkeys(label.strip() for label in [*named.split(","), *lines] if label.strip()))
    if len(found) < 2:
        raise ConfigError("name two labels at least: --labels dog,cat or --labels-file FILE")
    return found
