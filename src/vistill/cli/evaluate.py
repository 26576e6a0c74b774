"""`vistill evaluate`: score a checkpoint or a bundle on a built data set."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from vistill.cli.options import Rerank, Threads
from vistill.cli.progress import counting

COMPILE_FROM = 200
"""Pictures from which compiling the towers of a checkpoint is paid back."""
BATCH_SIZE = 16
TIMED = 32


@dataclass(frozen=True)
class Request:
    """What is to be scored, whatever the task."""

    model: str
    data: Path
    split: str
    limit: int
    threads: int | None
    pictures: int
    search: dict[str, Any]
    """Settings of the search that replace the model's own; None leaves one alone."""

    @property
    def names(self) -> tuple[str, str, str]:
        """The model, the data set and the split as metrics.json names them."""
        return display_name(self.model), self.data.resolve().name, self.split

    def rows(self) -> Any:
        """The split, or the first `limit` pictures of it."""
        from vistill.data.dataset import open_split

        rows = open_split(self.data, self.split)
        return rows.select(range(min(self.limit, len(rows)))) if self.limit else rows


class Outcome(NamedTuple):
    """What an evaluation found: metrics.json, predictions.jsonl, pages by name, the table on the screen.

    coco: the captions as COCO's results file.
    """

    metrics: dict[str, Any]
    predictions: list[str]
    pages: dict[str, str]
    table: list[str]
    coco: str = ""


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Checkpoint, run or bundle folder; checkpoints joined by + are an ensemble; folder of a "
            "captioner or CLIP of transformers.",
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder that `vistill data build` wrote.")],
    task: Annotated[
        str, typer.Option(help="caption, answer, or retrieval of pictures by texts and back.")
    ] = "caption",
    split: Annotated[str, typer.Option(help="Split to score: train, dev, test or extra.")] = "dev",
    texts: Annotated[
        str,
        typer.Option(help="Retrieval: who embeds the texts if not MODEL: minilm, a folder, a hub name, A+B."),
    ] = "",
    folds: Annotated[
        int, typer.Option(min=1, help="Retrieval: cut the pictures into so many parts, average their scores.")
    ] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder to write; else runs/evaluate/MODEL-SPLIT.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Score the first so many pictures; 0 takes all.")] = 0,
    num_beams: Annotated[int | None, typer.Option(help="Beams; 1 is greedy. Else as the model says.")] = None,
    rerank: Rerank = True,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest caption in tokens.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Above 1 favours longer captions.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help=f"Pictures captioned together; else {BATCH_SIZE}.")
    ] = None,
    threads: Threads = None,
    time_pictures: Annotated[
        int | None,
        typer.Option(
            min=0, help=f"Pictures captioned one at a time for the time of one; else {TIMED}, 0 skips it."
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, help="Best, worst and other pictures shown, each.")] = 24,
    coco: Annotated[Path | None, typer.Option(help="Write the captions as a COCO results file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json instead of a table.")] = False,
) -> None:
    """Score a model on a split, with 95% intervals.

    A captioner by BLEU, ROUGE-L and CIDEr; an answerer by accuracy, kind by kind, beside what can be answered
    without looking; a retriever by recall at 1, 5 and 10 both ways. Writes metrics.json, predictions.jsonl
    and report.html, a page with pictures that opens from a disk (and, of a retriever, report.md).
    """
    from vistill.errors import ConfigError
    from vistill.files import write_text

    if task not in ("caption", "answer", "retrieval"):
        raise ConfigError(f"task={task!r}: use caption, answer or retrieval")
    search: dict[str, Any] = {
        "num_beams": num_beams,
        "max_new_tokens": max_new_tokens,
        "length_penalty": length_penalty,
    }
    sides: dict[str, Any] = {"texts": texts or None, "folds": folds if folds > 1 else None}
    captions: dict[str, Any] = {
        "coco": coco,
        "batch_size": batch_size,
        "time_pictures": time_pictures,
        "no_rerank": None if rerank else True,
    }
    foreign = {"caption": sides, "answer": sides | captions, "retrieval": search | captions}[task]
    odd = [name for name, value in foreign.items() if value is not None]
    if odd:
        raise ConfigError(f"{odd[0]} means nothing for task={task}")
    folder = out or Path("runs") / "evaluate" / f"{display_name(model)}-{split}"
    _check_place("--out", folder)
    if coco:
        _check_place("--coco", coco.parent)
    request = Request(model, data, split, limit, threads, pictures, search)
    if task == "answer":
        found = _answers(request)
    elif task == "retrieval":
        found = _retrieval(request, texts, folds)
    else:
        timed = TIMED if time_pictures is None else time_pictures
        found = _captions(request, batch_size or BATCH_SIZE, timed, rerank)
    _write(folder, found)
    if coco:
        coco.parent.mkdir(parents=True, exist_ok=True)
        write_text(coco, found.coco)
    for line in [json.dumps(found.metrics, indent=2, ensure_ascii=False)] if as_json else found.table:
        typer.echo(line)
    typer.echo(f"{folder / 'report.html'}", err=True)


def _check_place(option: str, folder: Path) -> None:
    """Raise ConfigError, before the work is done, if no file can be written in `folder`, once it is made."""
    from vistill.errors import ConfigError

    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if not there.is_dir():
        raise ConfigError(f"{option}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{option}: nothing may be written in {there}")


def _captions(request: Request, batch_size: int, time_pictures: int, rerank: bool) -> Outcome:
    from vistill.report.captions import (
        caption_rows,
        coco_results,
        measure_speed,
        prediction_lines,
        score_run,
        to_json,
    )
    from vistill.report.captions_page import build_page
    from vistill.report.generate import open_model
    from vistill.report.page import render

    rows = request.rows()
    compiled = len(rows) >= COMPILE_FROM
    model = open_model(request.model, request.threads, compiled=compiled, rerank=rerank, **request.search)
    with counting("captioning", len(rows)) as told:
        run = caption_rows(model, rows, batch_size=batch_size, progress=told)
    speed = measure_speed(model, rows, time_pictures)
    scored = score_run(run)
    metrics = to_json(scored, model, *request.names, speed)
    page = render(build_page(scored, rows, metrics, pictures=request.pictures))
    table = [
        f"{name:8} {figure['value']:7.2f}  ({figure['low']:.2f} to {figure['high']:.2f})"
        for name, figure in scored.figures.items()
    ]
    results = json.dumps(coco_results(run), ensure_ascii=False) + "\n"
    return Outcome(metrics, prediction_lines(scored), {"report.html": page}, table, results)


def _answers(request: Request) -> Outcome:
    """The blind answers beside the model's learn from train."""
    from vistill.data.asked import first_pictures, open_asked
    from vistill.report.answering import open_answerer
    from vistill.report.answers import (
        evaluate_answers,
        figure_rows,
        prediction_lines,
        render_answers,
        to_json,
    )

    answering = open_answerer(Path(request.model), request.threads, **request.search)
    part = first_pictures(open_asked(request.data, request.split), request.limit)
    learned = open_asked(request.data, "train").questions
    with counting("answering", len(part.asked)) as told:
        found = evaluate_answers(answering, part, learned, told)
    metrics = to_json(found, answering, *request.names, "train")
    page = render_answers(found, part, metrics, examples=request.pictures)
    table = []
    for kind, questions, value, low, high, *blind, beats in figure_rows(found):
        beside = f"blind {max(blind):5.1f}  {'above' if beats == 'yes' else 'not above'}"
        table.append(f"{kind:9} {questions:6} {value:6.1f}  ({low:.1f} to {high:.1f})  {beside}")
    return Outcome(metrics, prediction_lines(found), {"report.html": page}, table)


def _retrieval(request: Request, texts: str, folds: int) -> Outcome:
    from vistill.report.retrieval import open_sides, prediction_lines, retrieve, to_json
    from vistill.report.retrieval_page import markdown, render_retrieval

    rows = request.rows()
    eyes, words = open_sides(request.model, texts, request.threads)
    with counting("embedding", len(rows)) as told:
        found = retrieve(eyes, words, rows, folds, told)
    model, data, split = request.names
    name = f"{model} with {display_name(texts)}" if texts else model
    metrics = to_json(found, eyes, words, name, data, split, rows)
    page = render_retrieval(found, rows, metrics, examples=request.pictures)
    table = [
        f"{name:18} {figure.value:7.2f}  ({figure.low:.2f} to {figure.high:.2f})"
        for name, figure in found.figures.items()
    ]
    table += [
        f"{way} median rank {ranks['median']:g}, mean {ranks['mean']:.1f}"
        for way, ranks in metrics["ranks"].items()
    ]
    pages = {"report.html": page, "report.md": markdown(found, metrics)}
    return Outcome(metrics, prediction_lines(found), pages, table)


def _write(folder: Path, found: Outcome) -> None:
    """Write predictions.jsonl, the pages and, when these are there, metrics.json."""
    from vistill.files import write_json, write_text

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "predictions.jsonl", "".join(f"{line}\n" for line in found.predictions))
    for name, text in found.pages.items():
        write_text(folder / name, text)
    write_json(folder / "metrics.json", found.metrics)


def display_name(model: str) -> str:
    """A model's name for titles and folders: that of its folder, with the run's name before `best`."""
    if not Path(model).exists() and "+" in model:
        return "+".join(display_name(part) for part in model.split("+"))
    folder = Path(model).resolve()
    return f"{folder.parent.name}-{folder.name}" if folder.name in ("best", "last") else folder.name
