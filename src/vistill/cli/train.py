"""`vistill train`: train a captioner, an answerer or a dual encoder."""

from typing import Annotated

import typer


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="Settings, as experiment=flickr8k-captioner trainer.max_epochs=3 model=tiny."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in OUT/NAME where it stopped.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the composed settings as YAML and stop.")
    ] = False,
) -> None:
    """Train a model by an experiment and overrides; prints the folder of the best checkpoint."""
    from vistill.cli.compose import compose_train

    config = compose_train(words or [])
    if show:
        from omegaconf import OmegaConf

        typer.echo(OmegaConf.to_yaml(OmegaConf.structured(config)))
        return
    from vistill.train import answer, caption, dual
    from vistill.train.callbacks import BEST

    if isinstance(config, dual.DualTrainConfig):
        folder = dual.train(config, resume=resume)
    elif isinstance(config, answer.AnswerTrainConfig):
        folder = answer.train(config, resume=resume)
    else:
        folder = caption.train(config, resume=resume)
    if not config.trainer.fast_dev_run:
        typer.echo(folder / BEST)
