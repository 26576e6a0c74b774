"""Options that several commands share, word for word."""

from pathlib import Path
from typing import Annotated

import typer

Paths = Annotated[
    list[str] | None,
    typer.Argument(help="Pictures, folders, globs; - reads a list from stdin.", metavar="PATH..."),
]
FromFile = Annotated[Path | None, typer.Option(help="A list of pictures, one a line or separated by NUL.")]
Recursive = Annotated[
    bool, typer.Option("--recursive/--no-recursive", help="Go into the folders of folders.")
]
Bundle = Annotated[Path | None, typer.Option(help="Bundle folder; else the model in the package.")]
BundleOrCheckpoint = Annotated[
    Path | None, typer.Option(help="Bundle or checkpoint folder; else the model in the package.")
]
Beams = Annotated[int | None, typer.Option(min=1, help="1: greedy. Else as the model says.")]
Rerank = Annotated[
    bool,
    typer.Option("--rerank/--no-rerank", help="Let the bundle's consensus head, if it has one, choose."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures that go through the model together.")]
Threads = Annotated[int | None, typer.Option(min=1, max=256, help="Threads; else one for each CPU.")]
MaxBytes = Annotated[int, typer.Option(min=1, help="Refuse larger files.")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Refuse larger pictures, by their header.")]

MAX_BYTES = 128 * 2**20
MAX_PIXELS = 2**26
