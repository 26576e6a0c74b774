"""`vistill data questions` and `vistill data blind`: questions out of captions, answers without looking."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.progress import steps


def questions(
    folder: Annotated[Path, typer.Argument(help="Data set with captions that `vistill data build` made.")],
    out: Annotated[Path, typer.Option(help="Folder of the data set of questions.")],
    seed: Annotated[int, typer.Option(help="Seed of the questions that are left out to balance.")] = 0,
    max_share: Annotated[
        float,
        typer.Option(help="Largest share of one answer in a kind of question; yes/no is half and half."),
    ] = 0.35,
    max_frame_share: Annotated[
        float, typer.Option(help="Largest share of one answer in questions that share verb or thing.")
    ] = 0.5,
    min_answer: Annotated[int, typer.Option(help="Train questions that an answer needs.")] = 10,
    force: Annotated[bool, typer.Option("--force", help="Replace the data set in OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Make questions out of the captions of pictures.

    They ask for what the captions of a picture agree on: objects, numbers, colours and more.
    """
    from vistill.data.questions_build import QuestionsConfig, build_questions

    config = QuestionsConfig(seed, max_share, max_frame_share, min_answer)
    with steps() as show:
        report = build_questions(folder, out, config, force=force, progress=show)
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False, indent=1))
        return
    for split, kinds in report["questions"].items():
        counts = ", ".join(f"{found['questions']:,} {kind}" for kind, found in kinds.items())
        typer.echo(f"{split:>6}: {counts}", err=True)
    for reason, number in report["dropped"]["counts"].items():
        typer.echo(f"left out {number:,} for {reason}", err=True)
    typer.echo(str(out))


def blind(
    folder: Annotated[Path, typer.Argument(help="Data set with questions and answers.")],
    learn: Annotated[str, typer.Option(help="Split to learn from.")] = "train",
    split: Annotated[str, typer.Option(help="Split to answer.")] = "dev",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Answer without looking.

    What an answerer has to beat, for each kind of question.
    """
    from dataclasses import asdict

    from vistill.data.asked import open_asked
    from vistill.metrics.vqa_baselines import blind_scores

    scores = blind_scores(open_asked(folder, learn).questions, open_asked(folder, split).questions)
    if as_json:
        typer.echo(json.dumps({k: asdict(s) | {"best": s.best} for k, s in scores.items()}, indent=1))
        return
    typer.echo(f"{'kind':<9} {'questions':>9} {'most frequent':>14} {'same question':>14} {'its words':>10}")
    for kind, score in scores.items():
        shares = (score.most_frequent, score.same_question, score.question_words)
        first, second, third = (f"{100 * share:.1f}" for share in shares)
        typer.echo(f"{kind:<9} {score.questions:>9,} {first:>14} {second:>14} {third:>10}")
