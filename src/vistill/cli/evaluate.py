"""`vistill evaluate`: score a checkpoint or a bundle on a built data set."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Checkpoint, run or bundle folder; checkpoints joined by + are an ensemble; folder of a "
            "captioner of transformers.",
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder that `vistill data build` wrote.")],
    split: Annotated[str, typer.Option(help="Split to score: train, dev, test or extra.")] = "dev",
    out: Annotated[Path | None, typer.Option(help="Folder to write; else runs/evaluate/MODEL-SPLIT.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Score the first so many pictures; 0 takes all.")] = 0,
    num_beams: Annotated[int | None, typer.Option(help="Beams; 1 is greedy. Else as the model says.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest caption in tokens.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Above 1 favours longer captions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures that go through the model together.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; else one for each CPU.")] = None,
    time_pictures: Annotated[
        int, typer.Option(min=0, help="Pictures captioned one at a time for the time of one; 0 skips it.")
    ] = 32,
    pictures: Annotated[int, typer.Option(min=0, help="Best, worst and other pictures shown, each.")] = 24,
    coco: Annotated[Path | None, typer.Option(help="Write the captions as a COCO results file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics.json instead of a table.")] = False,
) -> None:
    """Caption a split and score it: BLEU, ROUGE-L and CIDEr with 95% intervals.

    Writes metrics.json, predictions.jsonl and report.html, a page with pictures that opens from a disk.
    """
    import json

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from vistill.data.dataset import open_split
    from vistill.files import write_json, write_text
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

    rows = open_split(data, split)
    if limit:
        rows = rows.select(range(min(limit, len(rows))))
    opened = open_model(
        model, threads, num_beams=num_beams, max_new_tokens=max_new_tokens, length_penalty=length_penalty
    )
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("captioning", total=len(rows))
        run = caption_rows(
            opened, rows, batch_size=batch_size, progress=lambda done: progress.update(task, completed=done)
        )
    speed = measure_speed(opened, rows, time_pictures)
    scored = score_run(run)
    metrics = to_json(scored, opened, display_name(model), data.resolve().name, split, speed)

    folder = out or Path("runs") / "evaluate" / f"{display_name(model)}-{split}"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "predictions.jsonl", "".join(f"{line}\n" for line in prediction_lines(scored)))
    write_text(folder / "report.html", render(build_page(scored, rows, metrics, pictures=pictures)))
    write_json(folder / "metrics.json", metrics)
    if coco:
        coco.parent.mkdir(parents=True, exist_ok=True)
        write_text(coco, json.dumps(coco_results(run), ensure_ascii=False) + "\n")

    if as_json:
        typer.echo(json.dumps(metrics, indent=2, ensure_ascii=False))
    else:
        for name, figure in scored.figures.items():
            typer.echo(f"{name:8} {figure['value']:7.2f}  ({figure['low']:.2f} to {figure['high']:.2f})")
    typer.echo(f"{folder / 'report.html'}", err=True)


def display_name(model: str) -> str:
    """A model's name for titles and folders: that of its folder, with the run's name before `best`."""
    if not Path(model).exists() and "+" in model:
        return "+".join(display_name(part) for part in model.split("+"))
    folder = Path(model).resolve()
    return f"{folder.parent.name}-{folder.name}" if folder.name in ("best", "last") else folder.name
