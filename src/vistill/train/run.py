"""What every training run shares, whatever its task: settings, folder, trainer, provenance."""

import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar, WeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table as RichTable
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vistill.data.dataset import read_report
from vistill.errors import ConfigError
from vistill.files import write_json
from vistill.models.lora import LoraConfig
from vistill.provenance import environment, git_revision
from vistill.train.callbacks import LAST, KeepLast, RandomState, ScoreDev
from vistill.train.datamodule import DataConfig
from vistill.train.freeze import FreezePolicy, parameter_table, policy_of
from vistill.train.guard import CheckLoss, Patience, TellMemory, WarnOfRepetition, warn
from vistill.train.module import Objective, Predict, TrainModule
from vistill.train.optim import OptimConfig
from vistill.train.thaw import Thaw, ThawConfig
from vistill.train.watch import LOGGERS, Watch, build_loggers


@dataclass(frozen=True)
class TrainerConfig:
    """How long, on what, and how carefully."""

    max_epochs: int = 10
    """Passes over the train pictures; the schedule spans them."""
    accelerator: str = "cpu"
    """Lightning's accelerator: cpu, gpu, auto."""
    devices: int = 1
    """Devices a machine; more than one trains with DDP."""
    nodes: int = 1
    """Machines."""
    precision: str = "32-true"
    """Lightning's precision: 32-true, bf16-mixed, 16-mixed."""
    freeze: str = ""
    """What learns, by name: last-layer, last-N, cross-attention, lora, all; else encoder and decoder say."""
    encoder: str = ""
    """What of the tower learns: frozen (if empty), last-N (stages), layers-N, full."""
    decoder: str = ""
    """What of the decoder learns: full (if empty), frozen, last-N (layers), cross-attention, lora."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Size of what learns with decoder=lora; merged into the weights of the best checkpoint."""
    thaw: ThawConfig = field(default_factory=ThawConfig)
    """Steps from which the tower and the decoder learn; frozen before."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    accumulate: int = 1
    """Batches whose gradients are added up before a step."""
    ema: float = 0.0
    """Decay of the averaged weights that are scored and kept; 0 keeps the plain ones."""
    validate_every: int = 1
    """Epochs from one validation to the next."""
    validate_first: bool = True
    """Validate what `init_from` brings before the first step."""
    patience: int = 0
    """Stop after so many validations in a row without a better score; 0 never does."""
    checkpoint_every: int = 100
    """Steps from one resume point to the next."""
    seed: int = 0
    """Seed of everything drawn."""
    fast_dev_run: bool = False
    """One train and one validation batch, nothing kept."""

    def __post_init__(self) -> None:
        self.policy()
        for name in ("max_epochs", "devices", "nodes", "accumulate", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name}={getattr(self, name)}: must be at least 1")
        if self.patience < 0:
            raise ConfigError(f"trainer.patience={self.patience}: must not be negative")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"trainer.ema={self.ema}: must be in [0, 1)")
        if self.max_epochs % self.validate_every:
            every = f"trainer.validate_every={self.validate_every}"
            raise ConfigError(
                f"trainer.max_epochs={self.max_epochs} is no multiple of {every}: the end would go unscored"
            )

    def policy(self) -> FreezePolicy:
        """What learns. Raises ConfigError for unknown or contradicting names."""
        return policy_of(self.freeze, self.encoder, self.decoder, self.lora)


@dataclass(frozen=True)
class LoggerConfig:
    """Where the curves go."""

    name: str = "tensorboard"
    """tensorboard, csv, wandb, trackio or none."""

    def __post_init__(self) -> None:
        if self.name not in LOGGERS:
            raise ConfigError(f"logger.name={self.name!r}: use {', '.join(LOGGERS)}")


class RunConfig(Protocol):
    """What the settings of every task hold."""

    @property
    def name(self) -> str: ...
    @property
    def out(self) -> str: ...
    @property
    def init_from(self) -> str: ...
    @property
    def datamodule(self) -> DataConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def trainer(self) -> TrainerConfig: ...
    @property
    def logger(self) -> LoggerConfig: ...


@dataclass(frozen=True)
class Task:
    """What differs from task to task."""

    model: nn.Module
    objective: Objective
    predict: Predict
    data: L.LightningDataModule
    batches_per_epoch: int
    callbacks: list[L.Callback]
    """Scoring first: it stands before the averaging callback."""


def open_folder(config: RunConfig, resume: bool) -> Path:
    """OUT/NAME, with the settings in `config.json`; seeds everything.

    Settings that differ from those that a resumed run began with are told: it does not end as one run would.
    Raises ConfigError if the folder holds another run, or nothing to resume.
    """
    folder = Path(config.out) / config.name
    last = folder / LAST
    if resume and not last.is_file():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"--resume: there is no {last}; start the run without --resume")
        print(f"{folder}: was stopped before its first {LAST}; it begins again", file=sys.stderr)
    if not resume and last.is_file():
        raise ConfigError(f"{folder} holds a run already: add --resume to go on, or choose another name=...")
    if not config.trainer.fast_dev_run:
        folder.mkdir(parents=True, exist_ok=True)
        if getattr(rank_zero_only, "rank", 0) == 0:  # torchrun starts all processes at once
            settings, now = folder / "config.json", json.loads(json.dumps(_plain(config)))
            for change in changed(json.loads(settings.read_text()), now) if resume else ():
                warn(f"this run goes on with other settings than it began with: {change}")
            write_json(settings, now)
    L.seed_everything(config.trainer.seed, verbose=False)
    return folder


def changed(before: Mapping[str, Any], after: Mapping[str, Any], place: str = "") -> list[str]:
    """The settings that differ, as `optim.lr: 0.001 -> 0.002`."""
    out = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            out += changed(old, new, f"{place}{key}.")
        elif old != new:
            out.append(f"{place}{key}: {old} -> {new}")
    return out


def fit(config: RunConfig, task: Task, folder: Path, *, resume: bool) -> None:
    """Train, to the end or on from `last.ckpt`, if a run that is resumed came as far as that."""
    resume = resume and (folder / LAST).is_file()
    steps = -(-config.trainer.max_epochs * task.batches_per_epoch // config.trainer.accumulate)
    module = TrainModule(task.model, task.objective, config.optim, steps, task.predict)
    with _quiet_lightning():
        before = bool(config.init_from) and config.trainer.validate_first and not resume
        trainer = _build_trainer(config, folder, task.batches_per_epoch, task.callbacks, before=before)
        last = str(folder / LAST) if resume else None
        trainer.fit(module, datamodule=task.data, ckpt_path=last, weights_only=True)


def provenance(config: RunConfig, **reached: Any) -> dict[str, Any]:
    """Where a model of this run comes from; folders go by their names alone, so no paths are published.

    `reached`: settings as they turned out to be, such as the model that `init_from` brought.
    """
    data = config.datamodule
    named: Any = dataclasses.replace(
        config,  # type: ignore[type-var]
        out=Path(config.out).name,
        init_from=short_name(config.init_from),
        datamodule=dataclasses.replace(
            data,
            path="+".join(folder.name for folder in data.folders()),
            cache=Path(data.cache).name,
            teacher=Path(data.teacher).name,
        ),
        **reached,
    )
    fingerprints = {}
    for folder in data.folders():
        before = f"{folder.name}/" if len(data.folders()) > 1 else ""
        for name, split in read_report(folder)["splits"].items():
            fingerprints[before + name] = split["fingerprint"]
    return {
        "config": _plain(named),
        "data": {"name": named.datamodule.path, "fingerprints": fingerprints},
        "git": git_revision(),
        "environment": environment(),
    }


def short_name(folder: str) -> str:
    """A checkpoint's folder by its last two names, as RUN/best; empty stays empty."""
    return "/".join(Path(folder).parts[-2:])


def print_parameters(model: nn.Module) -> None:
    """Show on stderr how large the parts are and how much of them learns."""
    table = RichTable("part", "parameters", "learning", "share", title="parameters")
    for name, total, learning in parameter_table(model):
        share = f"{100 * learning / total:.1f}%" if total else ""
        table.add_row(name, f"{total:,}", f"{learning:,}", share)
    Console(stderr=True).print(table)


def _plain(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def _build_trainer(
    config: RunConfig, folder: Path, per_epoch: int, scoring: list[L.Callback], *, before: bool
) -> L.Trainer:
    """`before`: the model is validated once before the first step."""
    settings = config.trainer
    callbacks: list[L.Callback] = list(scoring)
    if settings.ema:
        # Interpolating keeps what does not change as it is; Lightning's own EMA lets frozen weights drift.
        averaging = get_ema_multi_avg_fn(settings.ema)
        callbacks.append(WeightAveraging(use_buffers=False, multi_avg_fn=averaging))
    if settings.thaw != ThawConfig():
        callbacks.append(Thaw(settings.thaw))
    score = next(one for one in scoring if isinstance(one, ScoreDev))
    callbacks += [
        CheckLoss(config.optim.lr),
        TellMemory(averaged=bool(settings.ema)),
        WarnOfRepetition(score),
    ]
    if settings.patience:
        callbacks.append(Patience(score, settings.patience))
    callbacks.append(RandomState())
    if not settings.fast_dev_run:
        callbacks.append(KeepLast(folder, settings.checkpoint_every, per_epoch * settings.validate_every))
    kind = "none" if settings.fast_dev_run else config.logger.name
    loggers = build_loggers(kind, folder, config.name, _plain(config))
    if loggers:
        callbacks += [LearningRateMonitor("step"), Watch()]
    if sys.stderr.isatty():
        callbacks.append(RichProgressBar(console_kwargs={"stderr": True}))
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy="ddp_find_unused_parameters_true" if settings.devices * settings.nodes > 1 else "auto",
        precision=settings.precision,  # type: ignore[arg-type]
        max_epochs=1,  # the loader holds every epoch of the run, see ResumableLoader
        gradient_clip_val=settings.gradient_clip or None,
        accumulate_grad_batches=settings.accumulate,
        val_check_interval=per_epoch * settings.validate_every,
        callbacks=callbacks,
        logger=loggers,
        default_root_dir=str(folder),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        num_sanity_val_steps=-1 if before else 0,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        fast_dev_run=settings.fast_dev_run,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without its advertisement, and without its warning that frozen stages are in evaluation mode."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.* is deprecated")
        yield
    log.setLevel(level)
