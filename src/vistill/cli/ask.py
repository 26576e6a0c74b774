"""`vistill ask`: questions about a picture, answers out."""

from typing import Annotated

import typer

from vistill.cli.options import Beams, BundleOrCheckpoint, Threads


def ask(
    photo: Annotated[str, typer.Argument(metavar="PHOTO", help="A picture.")],
    questions: Annotated[list[str], typer.Argument(metavar="QUESTION...", help="One question or several.")],
    model: BundleOrCheckpoint = None,
    num_beams: Beams = None,
    num_return: Annotated[int, typer.Option(min=1, help="Answers a question, best first.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a question on stdout.")] = False,
    threads: Threads = None,
) -> None:
    """Answer questions about a picture.

    One question prints its answer; several print question<TAB>answer each, in their order. The picture is
    looked at once. Exit code: 0 answered, 1 the picture cannot be read, 2 a wrong option or model.
    """
    import json

    from vistill.errors import ImageError
    from vistill.report.answering import open_answerer
    from vistill.runtime.image import printable

    answering = open_answerer(model, threads, num_beams=num_beams)
    try:
        found = answering.answer([(photo, question) for question in questions], num_return)
    except ImageError as error:
        typer.echo(f"error: {error}", err=True)  # it names the picture
        raise typer.Exit(1) from error
    for question, answers in zip(questions, found, strict=True):
        if as_json:
            told = [{"text": answer.text, "score": round(answer.score, 6)} for answer in answers]
            row = {"path": photo, "question": question, "answer": answers[0].text, "answers": told}
            typer.echo(json.dumps(row))
            continue
        for answer in answers:
            typer.echo(answer.text if len(questions) == 1 else f"{printable(question)}\t{answer.text}")
