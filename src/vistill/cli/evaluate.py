"""`vistill evaluate`: score a checkpoint or a bundle on a built data set."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vistill.cli.options import BatchSize, Threads
from vistill.cli.progress import counting

COMPILE_FROM = 200
"""Pictures from which compiling the towers of a checkpoint is paid back."""


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
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest caption in tokens.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Above 1 favours longer captions.")] = None,
    batch_size: BatchSize = 16,
    threads: Threads = None,
    time_pictures: Annotated[
        int, typer.Option(min=0, help="Pictures captioned one at a time for the time of one; 0 skips it.")
    ] = 32,
    pictures: Annotated[int, typer.Option(min=0, help="Best, worst and other pictures shown, each.")] = 24,
    coco: Annotated[Path | None, typer.Option(help="Write the captions as a COCO results file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json instead of a table.")] = False,
) -> None:
    """Score a model on a split, with 95% intervals.

    A captioner by BLEU, ROUGE-L and CIDEr; an answerer by accuracy, kind by kind, beside what can be answered
    without looking; a retriever by recall at 1, 5 and 10 both ways. Writes metrics.json, predictions.jsonl
    and report.html, a page with pictures that opens from a disk (and, of a retriever, report.md).
    """
    from vistill.data.dataset import open_split
    from vistill.errors import ConfigError

    if task not in ("caption", "answer", "retrieval"):
        raise ConfigError(f"task={task!r}: use caption, answer or retrieval")
    searched: dict[str, Any] = {
        "num_beams": num_beams,
        "max_new_tokens": max_new_tokens,
        "length_penalty": length_penalty,
    }
    foreign = {
        "caption": {"texts": texts, "folds": folds > 1},
        "answer": {"texts": texts, "folds": folds > 1, "coco": coco},
        "retrieval": searched | {"coco": coco},
    }[task]
    odd = [name for name, value in foreign.items() if value]
    if odd:
        raise ConfigError(f"{odd[0]} means nothing for task={task}")
    folder = out or Path("runs") / "evaluate" / f"{display_name(model)}-{split}"
    if task == "answer":
        _answers(model, data, split, folder, limit, threads, pictures, as_json, searched)
        return
    rows = open_split(data, split)
    if limit:
        rows = rows.select(range(min(limit, len(rows))))
    if task == "retrieval":
        _retrieval(model, texts, rows, data, split, folder, folds, threads, pictures, as_json)
        return
    import json

    from vistill.files import write_text
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

    opened = open_model(model, threads, compiled=len(rows) >= COMPILE_FROM, **searched)
    with counting("captioning", len(rows)) as told:
        run = caption_rows(opened, rows, batch_size=batch_size, progress=told)
    speed = measure_speed(opened, rows, time_pictures)
    scored = score_run(run)
    metrics = to_json(scored, opened, display_name(model), data.resolve().name, split, speed)
    page = render(build_page(scored, rows, metrics, pictures=pictures))
    _write(folder, metrics, prediction_lines(scored), {"report.html": page})
    if coco:
        coco.parent.mkdir(parents=True, exist_ok=True)
        write_text(coco, json.dumps(coco_results(run), ensure_ascii=False) + "\n")
    table = [
        f"{name:8} {figure['value']:7.2f}  ({figure['low']:.2f} to {figure['high']:.2f})"
        for name, figure in scored.figures.items()
    ]
    _tell(folder, metrics, table, as_json)


def _answers(
    model: str,
    data: Path,
    split: str,
    folder: Path,
    limit: int,
    threads: int | None,
    pictures: int,
    as_json: bool,
    searched: dict[str, Any],
) -> None:
    """`evaluate` of an answerer; the blind answers beside it learn from train."""
    from vistill.data.asked import first_pictures, open_asked
    from vistill.report.answering import open_answerer
    from vistill.report.answers import (
        evaluate_answers,
        figure_rows,
        prediction_lines,
        render_answers,
        to_json,
    )

    answering = open_answerer(Path(model), threads, **searched)
    part = first_pictures(open_asked(data, split), limit)
    learned = open_asked(data, "train").questions
    with counting("answering", len(part.asked)) as told:
        found = evaluate_answers(answering, part, learned, told)
    metrics = to_json(found, answering, display_name(model), data.resolve().name, split, "train")
    page = render_answers(found, part, metrics, examples=pictures)
    _write(folder, metrics, prediction_lines(found), {"report.html": page})
    lines = []
    for kind, questions, value, low, high, *blind, beats in figure_rows(found):
        beside = f"blind {max(blind):5.1f}  {'above' if beats == 'yes' else 'not above'}"
        lines.append(f"{kind:9} {questions:6} {value:6.1f}  ({low:.1f} to {high:.1f})  {beside}")
    _tell(folder, metrics, lines, as_json)


def _retrieval(
    model: str,
    texts: str,
    rows: Any,
    data: Path,
    split: str,
    folder: Path,
    folds: int,
    threads: int | None,
    pictures: int,
    as_json: bool,
) -> None:
    """`evaluate` of a retriever."""
    from vistill.report.retrieval import open_sides, prediction_lines, retrieve, to_json
    from vistill.report.retrieval_page import markdown, render_retrieval

    eyes, words = open_sides(model, texts, threads)
    with counting("embedding", len(rows)) as told:
        found = retrieve(eyes, words, rows, folds, told)
    name = display_name(model) + (f" with {display_name(texts)}" if texts else "")
    metrics = to_json(found, eyes, words, name, data.resolve().name, split, rows)
    page = render_retrieval(found, rows, metrics, examples=pictures)
    pages = {"report.html": page, "report.md": markdown(found, metrics)}
    _write(folder, metrics, prediction_lines(found), pages)
    table = [
        f"{name:18} {figure.value:7.2f}  ({figure.low:.2f} to {figure.high:.2f})"
        for name, figure in found.figures.items()
    ]
    table += [
        f"{way} median rank {ranks['median']:g}, mean {ranks['mean']:.1f}"
        for way, ranks in metrics["ranks"].items()
    ]
    _tell(folder, metrics, table, as_json)


def _write(folder: Path, metrics: dict[str, Any], lines: list[str], pages: dict[str, str]) -> None:
    """Write predictions.jsonl, the pages and, when these are there, metrics.json."""
    from vistill.files import write_json, write_text

    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "predictions.jsonl", "".join(f"{line}\n" for line in lines))
    for name, text in pages.items():
        write_text(folder / name, text)
    write_json(folder / "metrics.json", metrics)


def _tell(folder: Path, metrics: dict[str, Any], table: list[str], as_json: bool) -> None:
    """The table, or metrics.json, on stdout; where the page is on stderr."""
    import json

    for line in [json.dumps(metrics, indent=2, ensure_ascii=False)] if as_json else table:
        typer.echo(line)
    typer.echo(f"{folder / 'report.html'}", err=True)


def display_name(model: str) -> str:
    """A model's name for titles and folders: that of its folder, with the run's name before `best`."""
    if not Path(model).exists() and "+" in model:
        return "+".join(display_name(part) for part in model.split("+"))
    folder = Path(model).resolve()
    return f"{folder.parent.name}-{folder.name}" if folder.name in ("best", "last") else folder.name
