"""`vistill score`: score captions or answers of any system from files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer


def score(
    results: Annotated[
        Path,
        typer.Option(
            help='[{"image_id", "caption"}], predictions.jsonl of `vistill evaluate`, or [{"question_id", '
            '"answer"}] (JSON, JSONL, TSV).'
        ),
    ],
    references: Annotated[
        Path | None,
        typer.Option(
            help="caption: COCO captions JSON (predictions.jsonl has its own); daquar: its data.csv."
        ),
    ] = None,
    task: Annotated[str, typer.Option(help="What is scored: caption, vqa or daquar.")] = "caption",
    questions: Annotated[
        Path | None, typer.Option(help="vqa: questions JSON; its questions without annotation are left out.")
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="vqa: annotations JSON.")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Comma-separated names. METEOR and SPICE only if named here: they need Java."),
    ] = None,
    per_image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write each picture's or answer's scores, one JSON object a line."),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples for 95% intervals over pictures; 0: none, 1000 is usual.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    require_all: Annotated[
        bool, typer.Option("--require-all", help="Refuse when a picture or question has no result.")
    ] = False,
    idf: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="COCO captions JSON whose document frequencies CIDEr-D takes."),
    ] = None,
) -> None:
    """Score captions as pycocoevalcap does, or answers as VQA v2 or DAQUAR do; JSON on stdout.

    Only pictures or questions with a result are scored; stderr says how many of the references have none.
    """
    from vistill.errors import ConfigError

    if task == "caption":
        _captions(
            results,
            references,
            metrics,
            per_image,
            bootstrap,
            seed,
            require_all,
            idf,
        )
        return
    if metrics or bootstrap or idf:
        raise ConfigError(f"--metrics, --bootstrap and --idf are for captions, not for --task {task}")
    if task == "vqa":
        _vqa(results, questions, _needed(annotations, "--annotations"), per_image, require_all)
    elif task == "daquar":
        _daquar(results, _needed(references, "--references"), per_image, require_all)
    else:
        raise ConfigError(f"--task: {task!r} is unknown; there are caption, vqa and daquar")


def _needed(path: Path | None, flag: str) -> Path:
    from vistill.errors import ConfigError

    if path is None:
        raise ConfigError(f"{flag} is missing: it names what the results are compared with")
    return path


def _captions(
    results: Path,
    references: Path | None,
    metrics: str | None,
    per_image: Path | None,
    bootstrap: int,
    seed: int,
    require_all: bool,
    idf: Path | None,
) -> None:
    import json

    from vistill.metrics.coco import (
        choose_metrics,
        read_predictions,
        read_references,
        read_results,
        score_results,
        write_lines,
    )

    names = choose_metrics(metrics)
    if references is None and results.suffix == ".jsonl":
        found, truth = read_predictions(results)
        references = results
    else:
        references = _needed(references, "--references")
        found, truth = read_results(results), read_references(references)
    _note_missing(found, truth, "pictures", references, require_all)
    more = None if idf is None else read_references(idf)
    with _against(results, references):
        scored = score_results(found, truth, names, bootstrap, seed, more)
    if per_image is not None:
        write_lines(per_image, scored.lines)
    typer.echo(json.dumps(scored.summary, indent=2))


def _vqa(
    results: Path, questions: Path | None, annotations: Path, per_question: Path | None, require_all: bool
) -> None:
    import json

    from vistill.errors import DataError
    from vistill.metrics.coco import write_lines
    from vistill.metrics.vqa import score_answers
    from vistill.metrics.vqa_files import read_annotations, read_answers, read_questions

    answers, truth = read_answers(results), read_annotations(annotations)
    if questions is not None:
        asked = read_questions(questions)
        strange = [key for key in truth if key not in asked]
        if strange:
            raise DataError(f"{annotations}: question_id {strange[0]} is not in {questions}")
        unanswered = [key for key in answers if key in asked and key not in truth]
        if unanswered:
            typer.echo(f"note: {len(unanswered)} answers are to questions without annotation", err=True)
            answers = {key: text for key, text in answers.items() if key in truth or key not in asked}
    _note_missing(answers, truth, "questions", annotations, require_all)
    with _against(results, annotations):
        scores = score_answers(answers, truth)
    if per_question is not None:
        pairs = zip(scores.keys, scores.per_question.tolist(), strict=True)
        write_lines(
            per_question, ({"question_id": k, "answer": answers[k], "accuracy": value} for k, value in pairs)
        )
    summary = {
        "accuracy": scores.overall,
        "per_answer_type": scores.per_answer_type,
        "per_question_type": scores.per_question_type,
        "questions": len(scores.keys),
    }
    typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))


def _daquar(results: Path, references: Path, per_question: Path | None, require_all: bool) -> None:
    import json

    from vistill.errors import ConfigError
    from vistill.metrics.vqa_files import read_answers, read_daquar
    from vistill.metrics.wups import score_sets, wordnet_similarity

    if per_question is not None:
        raise ConfigError("--per-image is not there for --task daquar")
    answers, truth = read_answers(results), read_daquar(references)
    _note_missing(answers, truth, "questions", references, require_all)
    try:
        similarity = wordnet_similarity()
    except ConfigError as error:
        typer.echo(f"note: accuracy alone: {error}", err=True)
        similarity = None
    with _against(results, references):
        scores = score_sets(answers, truth, similarity)
    typer.echo(json.dumps({**scores, "questions": len(answers)}, indent=2))


@contextmanager
def _against(results: Path, references: Path) -> Iterator[None]:
    """Errors of a comparison name both files."""
    from vistill.errors import DataError

    try:
        yield
    except DataError as error:
        raise DataError(f"{results} against {references}: {error}") from error


def _note_missing(
    found: Mapping[str, object], truth: Mapping[str, object], what: str, references: Path, require_all: bool
) -> None:
    """Say how many of the references have no result; DataError with `require_all`."""
    from vistill.errors import DataError

    left = [key for key in truth if key not in found]
    if not left:
        return
    message = f"{len(left)} of {len(truth)} {what} in {references} have no result, {left[0]} first"
    if require_all:
        raise DataError(f"{message}; without --require-all the others are scored")
    typer.echo(f"note: {message}; the others are scored", err=True)
