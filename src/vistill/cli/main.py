"""The `vistill` command: one file a sub-command, and nothing heavy imported before one is chosen."""

import os
import sys
from typing import Annotated

import typer

from vistill import __version__
from vistill.cli.ask import ask
from vistill.cli.caption import caption
from vistill.cli.classify import classify
from vistill.cli.convert import app as convert
from vistill.cli.data import app as data
from vistill.cli.embed import embed
from vistill.cli.evaluate import evaluate
from vistill.cli.export import export
from vistill.cli.index import index
from vistill.cli.predict import predict
from vistill.cli.report import app as report
from vistill.cli.score import score
from vistill.cli.search import search
from vistill.cli.teach import app as teach
from vistill.cli.train import train
from vistill.errors import VistillError

# A module that only an extra brings -> that extra.
EXTRAS = {
    "datasets": "data",
    "faiss": "search",
    "hydra": "train",
    "lightning": "train",
    "omegaconf": "train",
    "onnx": "train",
    "onnxscript": "train",
    "pyarrow": "parquet",
    "pycocoevalcap": "eval",
    "ray": "ray",
    "safetensors": "train",
    "tensorboard": "train",
    "timm": "train",
    "torch": "train",
    "transformers": "train",
}

app = typer.Typer(
    name="vistill",
    help="Small image-to-text models: caption pictures, build data, train, score and export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vistill {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Small image-to-text models: caption pictures, build data, train, score and export."""


app.command(short_help="Caption pictures: files, folders, lists.")(caption)
app.command(short_help="Ask questions about a picture.")(ask)
app.command(short_help="Answer the questions of a TSV.")(predict)
app.command(short_help="Index a folder of photos, to search it in words.")(index)
app.command(short_help="Find photos of an index by words or by a picture.")(search)
app.command(short_help="Choose among labels for each picture.")(classify)
app.command(short_help="Pictures or texts to vectors of one space.")(embed)
app.add_typer(data, name="data", short_help="Build data sets and look into them.")
app.add_typer(teach, name="teach", short_help="Ask a teacher once and keep its answers.")
app.command(short_help="Train a model by an experiment.")(train)
app.command(short_help="Score captions or answers that lie in files.")(score)
app.add_typer(convert, name="convert", short_help="Turn files of one format into another.")
app.command(short_help="Score a model on a data set; write a page.")(evaluate)
app.add_typer(report, name="report", short_help="Pages about a distillation or a training run.")
app.command(short_help="Turn a checkpoint into a bundle that runs without torch.")(export)


def main() -> None:
    """Run the command line; an error meant for people becomes `error: ...` on stderr and exit code 2."""
    try:
        app()
    except VistillError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        message = f"this needs the package {error.name}: pip install 'vistill[{extra}]'"
    except OSError as error:  # what a disk or the system refuses, as a person can read it
        if error.strerror is None:
            raise
        message = _refusal(error)
    else:
        return
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)


def _refusal(error: OSError) -> str:
    """Say what the system refused; where it was stdout, leave nothing there to fail once more at exit."""
    from vistill.runtime.image import printable

    if error.filename is not None:
        return f"{printable(os.fsdecode(error.filename))}: {error.strerror}"
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"cannot write to stdout: {error.strerror}"
    return str(error.strerror)
