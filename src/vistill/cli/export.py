"""`vistill export`: a checkpoint becomes a bundle."""

from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.options import Threads
from vistill.cli.progress import bars


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Checkpoint folder, or folder of a run.")
    ],
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    quantize: Annotated[
        str, typer.Option(help="fp32 or int8 (static for convolutions, dynamic for matrix products).")
    ] = "fp32",
    data: Annotated[
        Path | None,
        typer.Option(help="Built data set: train pictures calibrate int8, SPLIT checks. int8 needs it."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that checkpoint and bundle are compared on.")] = "dev",
    calibration_pictures: Annotated[int, typer.Option(help="Pictures that calibrate int8.")] = 128,
    check_pictures: Annotated[int, typer.Option(help="Pictures to compare on; 0 takes all.")] = 1000,
    min_agreement: Annotated[
        float, typer.Option(help="Refuse a captioner below this share of equal tokens.")
    ] = 0.95,
    max_cider_drop: Annotated[
        float,
        typer.Option("--max-cider-drop", "--tolerance", help="Refuse above this loss of CIDEr, in points."),
    ] = 1.0,
    max_accuracy_drop: Annotated[
        float, typer.Option(help="Refuse an answerer above this loss of accuracy, in points.")
    ] = 1.0,
    min_cosine: Annotated[
        float, typer.Option(help="Refuse a dual encoder below this mean cosine of its embeddings.")
    ] = 0.98,
    max_r10_drop: Annotated[
        float, typer.Option("--max-r10-drop", help="Refuse above this loss of R@10 both ways, in points.")
    ] = 1.0,
    num_beams: Annotated[
        int | None, typer.Option(help="Beams that the bundle searches with; else the checkpoint's.")
    ] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="Its length penalty; else the checkpoint's.")
    ] = None,
    consensus: Annotated[
        str,
        typer.Option(
            metavar="SPLIT",
            help="Fit a head on the captions of this split of the data: it chooses among the captions that a "
            "search finds.",
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the model; else that of the run.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the weights, as Apache-2.0.")] = "unknown",
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there already.")] = False,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
) -> None:
    """Export a captioner, answerer or dual encoder to a bundle that runs without torch, and compare the two.

    Writes nothing and exits with 2, telling the figures, if the bundle falls more than the tolerances below
    the checkpoint.
    """
    import json

    from vistill.export.common import ExportConfig
    from vistill.export.run import export_checkpoint

    config = ExportConfig(
        precision=quantize,
        data=data,
        split=split,
        calibration_pictures=calibration_pictures,
        check_pictures=check_pictures,
        min_agreement=min_agreement,
        max_cider_drop=max_cider_drop,
        max_accuracy_drop=max_accuracy_drop,
        min_cosine=min_cosine,
        max_r10_drop=max_r10_drop,
        threads=threads,
        num_beams=num_beams,
        length_penalty=length_penalty,
        consensus=consensus,
    )
    if threads:
        import torch

        torch.set_num_threads(threads)
    with bars() as progress:
        stages = ("graphs", "int8", "check", "consensus")
        tasks = {stage: progress.add_task(stage, total=None) for stage in stages}
        if quantize == "fp32":
            progress.update(tasks["int8"], visible=False)
        if not consensus:
            progress.update(tasks["consensus"], visible=False)
        manifest = export_checkpoint(
            checkpoint,
            out,
            config,
            name=name,
            licence=licence,
            replace_existing=force,
            report=lambda stage, done, total: progress.update(tasks[stage], completed=done, total=total),
        )
    if as_json:
        typer.echo(json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False))
        return
    size = sum(entry.bytes for entry in manifest.files.values())
    typer.echo(f"{out}  {manifest.precision}, {size / 1e6:.1f} MB")
    for key, value in manifest.scores["export"].items():
        typer.echo(f"{key:18} {value}")
