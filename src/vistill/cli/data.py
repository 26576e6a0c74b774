"""`vistill data build` and `vistill data info`; others are in `fetch.py` and `questions.py`."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vistill.cli.fetch import fetch
from vistill.cli.progress import steps
from vistill.cli.questions import blind, questions

app = typer.Typer(help="Build data sets and look into them.", no_args_is_help=True)
app.command()(fetch)
app.command()(questions)
app.command()(blind)


@app.command()
def build(
    source: Annotated[
        str,
        typer.Argument(
            help="flickr8k, flickr30k, folder, table, coco, karpathy, webdataset, parquet, diffusiondb, "
            "medicat, roco, conceptual_captions, tsv, vqa_v2, daquar or vqa_rad."
        ),
    ],
    root: Annotated[Path, typer.Argument(help="Folder of the data set as it was downloaded.")],
    out: Annotated[Path, typer.Option(help="Folder to build; it appears when the build is complete.")],
    near_duplicates: Annotated[
        int, typer.Option(help="Bits of 64 in which near duplicates may differ; -1: equal pictures only.")
    ] = 8,
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
    clean: Annotated[
        list[str] | None,
        typer.Option(
            help="Change captions by this rule and count what it changed; once for each: html, urls, "
            "figure_labels, citations, panels, typography, spacing, lowercase."
        ),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(help="Keep so many pictures, drawn from all splits; else all.")
    ] = None,
    sample_seed: Annotated[int | None, typer.Option(help="Seed of that draw; else 0.")] = None,
    dev_fraction: Annotated[
        float | None,
        typer.Option(help="Where a source draws splits: part of those without one that goes to dev."),
    ] = None,
    test_fraction: Annotated[
        float | None,
        typer.Option(help="Where a source draws splits: part of those without one that goes to test."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of that draw.")] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            help="coco: SPLIT:ANNOTATIONS:PICTURES; tsv: SPLIT:IMAGES:TEXTS; vqa_v2: "
            "SPLIT:QUESTIONS:ANNOTATIONS:PICTURES; relative to ROOT, once for each."
        ),
    ] = None,
    keys: Annotated[
        str | None, typer.Option(help="coco: what identifies a picture: id or file_name.")
    ] = None,
    annotations: Annotated[
        str | None,
        typer.Option(help="karpathy, table, flickr30k, medicat: the file, relative to ROOT; else found."),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(help="karpathy, table, flickr30k, medicat: the folder of the pictures; else found."),
    ] = None,
    restval: Annotated[
        str | None, typer.Option(help="karpathy: where restval goes: train, extra or drop; else train.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="parquet: OURS=THEIRS where a column has an unknown name.")
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(
            "--text", help="medicat: caption, references or subcaptions; once for each. Else caption."
        ),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(help="medicat (else all), roco (else radiology): all, radiology, non-radiology."),
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Pictures in one Arrow file.")] = 1000,
    workers: Annotated[int, typer.Option(help="Threads that decode; 0: one for each core, 8 at most.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Start again, replacing what was built.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Build a data set from SOURCE under ROOT.

    A killed build goes on where it was.
    """
    from vistill.data.dataset import BuildConfig
    from vistill.data.dataset import build as build_dataset

    options = {
        "dev_fraction": dev_fraction,
        "test_fraction": test_fraction,
        "seed": seed,
        "parts": part or None,
        "keys": keys,
        "annotations": annotations,
        "images": images,
        "restval": restval,
        "columns": column or None,
        "texts": texts or None,
        "subset": subset,
    }
    config = BuildConfig(
        min_caption_chars=min_caption_chars,
        unique_captions=unique_captions,
        allow_uncaptioned=allow_uncaptioned,
        near_duplicates=None if near_duplicates < 0 else near_duplicates,
        shard_size=shard_size,
        licence=licence,
        clean=tuple(clean) if clean else None,
        num_samples=num_samples,
        sample_seed=sample_seed,
        options={name: value for name, value in options.items() if value is not None},
    )
    with steps() as show:
        report = build_dataset(
            source,
            root,
            out,
            config,
            force=force,
            workers=workers or min(8, os.cpu_count() or 1),
            progress=show,
        )
    _summary(report)
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False, indent=1))
    else:
        typer.echo(str(out))


@app.command()
def info(
    folder: Annotated[Path, typer.Argument(help="Folder that `vistill data build` made.")],
    long_words: Annotated[int, typer.Option(help="Captions with more words are counted as long.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print what is in a built data set and what was left out."""
    from vistill.data.dataset import info as summarise

    summary = summarise(folder, long_words)
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, indent=1))
    else:
        _print_info(summary)


def _print_info(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    splits = summary["splits"]
    rows = {
        "pictures": lambda split: f"{split['pictures']:,}",
        "bytes": lambda split: f"{split['bytes']:,}",
        "captions": lambda split: f"{split['captions']:,}",
        "per picture": lambda split: _counts(split["captions_per_picture"]),
        "questions": lambda split: f"{split['questions']:,}",
        "words (quartiles)": lambda split: _quartiles(split["caption_words"]),
        "vocabulary": lambda split: f"{split['vocabulary']:,}",
        "width": lambda split: _range(split["sizes"]["width"]),
        "height": lambda split: _range(split["sizes"]["height"]),
        "common sizes": lambda split: _counts(split["sizes"]["common"]),
    }
    table = Table("", *splits, title=f"{summary['folder']} ({summary['source']})", title_justify="left")
    for name, cell in rows.items():
        table.add_row(name, *(cell(split) for split in splits.values()))
    console = Console()
    console.print(table)
    console.print("words in a caption, all splits:")
    for line in _histogram([split["caption_words"] for split in splits.values()]):
        console.print(line, highlight=False)
    for licence in sorted({name for split in splits.values() for name in split["licences"]}):
        console.print(f"licence: {licence or 'not stated'}", soft_wrap=True, highlight=False)
    console.print(f"vocabulary {summary['vocabulary']:,}, of which once {summary['words_seen_once']:,}")
    long = summary["long_captions"]
    console.print(
        f"more than {long['words']} words: {_counts(long['captions'])}; the longest has {long['longest']}"
    )
    if summary["cleaned"]:
        console.print(f"captions changed by cleaning: {_counts(summary['cleaned'])}")
    if summary["sampled"]:
        console.print(f"drawn: {summary['sampled']['kept']:,} of {summary['sampled']['pictures']:,} pictures")
    console.print(f"left out: {_counts(summary['dropped']) or 'nothing'}")
    duplicates = summary["duplicates"]
    console.print(
        f"pairs of equal or nearly equal pictures: {_counts(duplicates['pairs']) or 'none'}; "
        f"{duplicates['across_splits']} across splits"
    )
    console.print(f"fingerprint {summary['fingerprint']}", soft_wrap=True)


def _counts(counts: dict[Any, int]) -> str:
    """Return `5: 1,000` pairs; one value alone without its count."""
    if len(counts) == 1 and not isinstance(next(iter(counts)), str):
        return str(next(iter(counts)))
    return ", ".join(f"{name or 'not stated'}: {count:,}" for name, count in counts.items())


def _range(bounds: list[int]) -> str:
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]} to {bounds[1]}"


def _quartiles(lengths: dict[int, int]) -> str:
    """Return shortest, quartiles and longest of {length: count}."""
    values = [length for length, count in lengths.items() for _ in range(count)]
    if not values:
        return "none"
    last = len(values) - 1
    return " ".join(str(values[round(last * part / 4)]) for part in range(5))


def _histogram(splits: list[dict[int, int]], width: int = 40) -> list[str]:
    """Return a bar for each length that occurs in {length: count}, summed over the splits."""
    lengths: dict[int, int] = {}
    for counts in splits:
        for length, count in counts.items():
            lengths[length] = lengths.get(length, 0) + count
    most = max(lengths.values(), default=1)
    return [
        f"{length:>4} {'█' * round(width * count / most) or '▏'} {count:,}"
        for length, count in sorted(lengths.items())
    ]


def _summary(report: dict[str, Any]) -> None:
    """Say on stderr what is in the data set and what is not."""
    for name, split in report["splits"].items():
        asked = f", {split['questions']:,} questions" if split["questions"] else ""
        counts = f"{split['pictures']:,} pictures, {split['captions']:,} captions{asked}"
        typer.echo(f"{name:>6}: {counts}", err=True)
    for rule, found in (report.get("cleaned") or {}).items():
        typer.echo(f"{rule} changed {found['captions']:,} captions: {found['why']}", err=True)
    if report.get("sampled"):
        typer.echo("drew {kept:,} of {pictures:,} pictures".format(**report["sampled"]), err=True)
    if report.get("long_captions", {}).get("longest"):
        long = report["long_captions"]
        longest = long["longest"][0]
        typer.echo(
            f"{sum(long['captions'].values()):,} captions have more than {long['words']} words; "
            f"the longest, of {longest['key']}, has {longest['words']}",
            err=True,
        )
    for reason, count in report["dropped"]["counts"].items():
        named = [item["key"] for item in report["dropped"]["items"] if item["reason"] == reason]
        more = f" and {count - 3} more" if count > 3 else ""
        typer.echo(f"dropped {count} {reason}: {', '.join(named[:3])}{more}", err=True)
    if report["dropped"]["counts"]:
        typer.echo("report.json names each of them", err=True)
