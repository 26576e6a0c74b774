"""`vistill predict`: answers to the questions of a TSV about the pictures of another."""

from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.options import BatchSize, Beams, BundleOrCheckpoint, Threads
from vistill.cli.progress import bars


def predict(
    image_tsv: Annotated[Path, typer.Option(help="Pictures: key<TAB>base64 a row.")],
    question_tsv: Annotated[
        Path, typer.Option(help='Questions: key<TAB>[{"question_id", "question"}] a row.')
    ],
    out: Annotated[Path, typer.Option(help='Answers to write, {"answer", "question_id"} a row; goes on.')],
    model: BundleOrCheckpoint = None,
    num_beams: Beams = None,
    batch_size: BatchSize = 16,
    threads: Threads = None,
) -> None:
    """Answer every question; the same command run again does only what is missing.

    `vistill convert vqa-evalai OUT answers.json` makes the file that EvalAI takes. Exit code: 0 all answered,
    1 some pictures are missing or broken (each is named), 2 a wrong option, file or model.
    """
    from vistill.data.tsv import TsvFile
    from vistill.report.answering import open_answerer
    from vistill.report.predictions import predict as predict_all
    from vistill.runtime.image import printable

    def say(message: str) -> None:
        typer.echo(message, err=True)

    answering = open_answerer(model, threads, num_beams=num_beams)
    images, questions = TsvFile(image_tsv, say), TsvFile(question_tsv, say)
    with bars() as progress:
        task = progress.add_task("questions", total=None)

        def told(done: int, problems: list[str]) -> None:
            for problem in problems:
                progress.console.print(printable(problem), markup=False, highlight=False)
            progress.update(task, completed=done)

        lost = predict_all(answering.answer, images, questions, out, batch_size, told)
    typer.echo(str(out))
    if lost:
        typer.echo(f"{lost:,} questions stay without an answer", err=True)
        raise typer.Exit(1)
