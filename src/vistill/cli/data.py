"""`vistill data build` and `vistill data info`."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Build data sets and look into them.", no_args_is_help=True)


@app.command()
def build(
    source: Annotated[str, typer.Argument(help="flickr8k")],
    root: Annotated[Path, typer.Argument(help="Folder of the data set as it was downloaded.")],
    out: Annotated[Path, typer.Option(help="Folder to build; it appears when the build is complete.")],
    near_duplicates: Annotated[
        int, typer.Option(help="Bits of 64 in which near duplicates may differ; -1: equal pictures only.")
    ] = 4,
    min_caption_chars: Annotated[int, typer.Option(help="Letters and digits a caption must have.")] = 2,
    unique_captions: Annotated[
        bool, typer.Option("--unique-captions", help="Drop captions that repeat inside a picture.")
    ] = False,
    allow_uncaptioned: Annotated[
        bool, typer.Option("--allow-uncaptioned", help="Keep pictures without any caption.")
    ] = False,
    licence: Annotated[
        str | None, typer.Option(help="Licence to record instead of the source's own.")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Pictures in one Arrow file.")] = 1000,
    workers: Annotated[int, typer.Option(help="Threads that decode; 0: one for each core, 8 at most.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Start again, replacing what was built.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Build DIR from SOURCE under ROOT; a killed build goes on where it was."""
    from vistill.data.dataset import BuildConfig
    from vistill.data.dataset import build as build_dataset

    config = BuildConfig(
        min_caption_chars=min_caption_chars,
        unique_captions=unique_captions,
        allow_uncaptioned=allow_uncaptioned,
        near_duplicates=None if near_duplicates < 0 else near_duplicates,
        shard_size=shard_size,
        licence=licence,
    )
    with _Progress() as progress:
        report = build_dataset(
            source,
            root,
            out,
            config,
            force=force,
            workers=workers or min(8, os.cpu_count() or 1),
            progress=progress.show,
        )
    _summary(report)
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False, indent=1))
    else:
        typer.echo(str(out))


class _Progress:
    """A rich progress bar on stderr with one line for each step of the build."""

    def __enter__(self) -> "_Progress":
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.bar = Progress(
            TextColumn("{task.description:>6}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self.tasks: dict[str, Any] = {}
        self.bar.start()
        return self

    def show(self, step: str, done: int, total: int) -> None:
        if step not in self.tasks:
            self.tasks[step] = self.bar.add_task(step, total=total or None)
        self.bar.update(self.tasks[step], completed=done, total=total or None)

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()


def _summary(report: dict[str, Any]) -> None:
    """Say on stderr what is in the data set and what is not."""
    for name, split in report["splits"].items():
        typer.echo(f"{name:>6}: {split['pictures']:,} pictures, {split['captions']:,} captions", err=True)
    for reason, count in report["dropped"]["counts"].items():
        named = [item["key"] for item in report["dropped"]["items"] if item["reason"] == reason]
        more = f" and {count - 3} more" if count > 3 else ""
        typer.echo(f"dropped {count} {reason}: {', '.join(named[:3])}{more}", err=True)
    if report["dropped"]["counts"]:
        typer.echo("report.json names each of them", err=True)
