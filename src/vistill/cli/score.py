"""`vistill score`: score captions of any system from COCO-format files."""

from pathlib import Path
from typing import Annotated

import typer


def score(
    results: Annotated[Path, typer.Option(help='Captions to score: [{"image_id": ..., "caption": ...}].')],
    references: Annotated[Path, typer.Option(help="COCO captions JSON with images and annotations.")],
    task: Annotated[str, typer.Option(help="What is scored: caption.")] = "caption",
    metrics: Annotated[
        str | None,
        typer.Option(help="Comma-separated names. METEOR and SPICE only if named here: they need Java."),
    ] = None,
    per_image: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each picture's scores, one JSON object a line.")
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(min=0, help="Resamples for 95% intervals over pictures; 0: none, 1000 is usual.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the resamples.")] = 0,
    require_all: Annotated[
        bool, typer.Option("--require-all", help="Refuse when a picture of the references has no result.")
    ] = False,
    idf: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="COCO captions JSON whose document frequencies CIDEr-D takes."),
    ] = None,
) -> None:
    """Score captions with BLEU, ROUGE-L and CIDEr as pycocoevalcap does, without Java; JSON on stdout.

    Only pictures with a result are scored; stderr says how many of the references have none.
    """
    import json

    from vistill.errors import ConfigError, DataError
    from vistill.metrics.coco import choose_metrics, read_references, read_results, score_results, write_lines

    if task != "caption":
        raise ConfigError(f"--task: {task!r} is unknown; there is caption")
    names = choose_metrics(metrics)
    found, truth = read_results(results), read_references(references)
    left = [key for key in truth if key not in found]
    if left:
        message = f"{len(left)} of {len(truth)} pictures in {references} have no result, {left[0]} first"
        if require_all:
            raise DataError(f"{message}; without --require-all the others are scored")
        typer.echo(f"note: {message}; the others are scored", err=True)
    more = None if idf is None else read_references(idf)
    try:
        scored = score_results(found, truth, names, bootstrap, seed, more)
    except DataError as error:
        raise DataError(f"{results} against {references}: {error}") from error
    if per_image is not None:
        write_lines(per_image, scored.lines)
    typer.echo(json.dumps(scored.summary, indent=2))
