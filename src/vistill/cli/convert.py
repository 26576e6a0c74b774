"""`vistill convert`: files of one format into another."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Turn files of one format into another.", no_args_is_help=True)


@app.callback()
def _formats() -> None:
    """Turn files of one format into another."""


@app.command("vqa-evalai")
def vqa_evalai(
    source: Annotated[Path, typer.Argument(help='TSV or JSONL, {"question_id", "answer"} in each row.')],
    target: Annotated[Path, typer.Argument(help="JSON list to write, for EvalAI or `vistill score`.")],
) -> None:
    """Make EvalAI's JSON list of answers that lie in rows.

    How many there are comes on stderr.
    """
    from vistill.metrics.vqa_files import write_evalai

    count = write_evalai(source, target)
    typer.echo(f"{count:,} answers", err=True)
    typer.echo(str(target))
