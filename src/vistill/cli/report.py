"""`vistill report distill|train`: one page about a distillation, or about a training run."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Write one page about a distillation or a training run.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")]


@app.command()
def distill(
    row: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=EVAL,EVAL,...",
            help="A student: its name and, for each training seed, the folder that `vistill evaluate` wrote. "
            "Again for each student.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write report.html, report.md and report.json to.")],
    teacher: Annotated[str, typer.Option(metavar="NAME=EVAL,...", help="The teacher, in the same way.")] = "",
    baseline: Annotated[str, typer.Option(help="Row that others are compared with; else the first.")] = "",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that `vistill data build` wrote, to show the pictures of the examples."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Pictures shown with the caption of each row.")] = 12,
    as_json: Json = False,
) -> None:
    """Compare a teacher and students by size, speed and scores.

    The scores are over seeds and have intervals; example pictures show what each one says.
    """
    import json
    from dataclasses import asdict

    from vistill.files import write_json, write_text
    from vistill.report.distill import compare_systems, read_system
    from vistill.report.distill_page import HEAD, score_rows, to_html, to_markdown
    from vistill.report.pictures import example_pictures

    students = [read_system(text) for text in row]
    report = compare_systems(students, read_system(teacher) if teacher else None, baseline, examples=examples)
    pictures = example_pictures(data, report.data, [one.key for one in report.examples]) if data else {}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", asdict(report))
    write_text(out / "report.md", to_markdown(report))
    write_text(out / "report.html", to_html(report, pictures))
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2, ensure_ascii=False))
    else:
        for cells in (HEAD, *score_rows(report)):
            typer.echo("\t".join(cells))
    for note in report.notes:
        typer.echo(note, err=True)
    typer.echo(f"{out / 'report.html'}", err=True)


@app.command()
def train(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, as runs/NAME; it may go on.")],
    out: Annotated[Path | None, typer.Option(help="File to write; else RUN/report.html.")] = None,
    as_json: Json = False,
) -> None:
    """Show a run's scores, curves, samples and settings.

    The scores are those before and after; whether it over-fitted is told too.
    """
    import json
    from dataclasses import asdict

    from vistill.files import write_text
    from vistill.report.train import judge, read_run, scores, warnings
    from vistill.report.train_page import build_page

    found = read_run(run)
    verdict = judge(found.curves, found.main)
    path = out or run / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, build_page(found, verdict))
    figures = scores(found.curves, found.main)
    notes = warnings(found.curves)
    if as_json:
        told = {"run": run.resolve().name, "verdict": asdict(verdict), "dev": figures, "warnings": notes}
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        width = max(map(len, figures), default=0)
        for name, one in figures.items():
            line = "   ".join(f"{place} {one[place]:7.2f}" for place in ("first", "best", "last"))
            typer.echo(f"{name:{width}} {line}")
        typer.echo(verdict.text)
        for note in notes:
            typer.echo(note)
    typer.echo(f"{path}", err=True)
