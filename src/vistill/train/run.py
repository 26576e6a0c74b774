"""One training run, from its settings to its folder."""

import dataclasses
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from rich.console import Console
from rich.table import Table as RichTable
from tokenizers import Tokenizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vistill.data.dataset import read_report
from vistill.distill.join import kept_answers, open_cache
from vistill.distill.objective import CaptionObjective, ObjectiveConfig, Teaching
from vistill.errors import ConfigError
from vistill.files import write_json
from vistill.models.adopt import load_language
from vistill.models.captioner import Captioner, CaptionerConfig
from vistill.models.language import DecoderConfig
from vistill.models.loading import AnyCaptioner, load_model
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig
from vistill.models.vision import tower_preprocess
from vistill.provenance import environment, git_revision
from vistill.runtime.decode import GenerationConfig
from vistill.runtime.image import Preprocess
from vistill.train.callbacks import LAST, KeepLast, LogSamples, RandomState, ScoreDev
from vistill.train.datamodule import CaptionData, DataConfig
from vistill.train.freeze import FreezePolicy, freeze, parameter_table
from vistill.train.module import CaptionModule
from vistill.train.optim import OptimConfig
from vistill.train.thaw import Thaw, ThawConfig


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
    encoder: str = "frozen"
    """Which stages of the tower learn: frozen, last-N, full."""
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
    checkpoint_every: int = 100
    """Steps from one resume point to the next."""
    seed: int = 0
    """Seed of everything drawn."""
    fast_dev_run: bool = False
    """One train and one validation batch, nothing kept."""

    def __post_init__(self) -> None:
        FreezePolicy(self.encoder)
        for name in ("max_epochs", "devices", "nodes", "accumulate", "validate_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"trainer.ema={self.ema}: must be in [0, 1)")
        if self.max_epochs % self.validate_every:
            every = f"trainer.validate_every={self.validate_every}"
            raise ConfigError(
                f"trainer.max_epochs={self.max_epochs} is no multiple of {every}: the end would go unscored"
            )


@dataclass(frozen=True)
class LoggerConfig:
    """Where the curves go."""

    name: str = "tensorboard"
    """tensorboard, csv or none."""

    def __post_init__(self) -> None:
        if self.name not in ("tensorboard", "csv", "none"):
            raise ConfigError(f"logger.name={self.name!r}: use tensorboard, csv or none")


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on."""

    name: str = "captioner"
    """Name of the run."""
    out: str = "runs"
    """Folder of all runs; this one is written to OUT/NAME."""
    init_from: str = ""
    """Checkpoint folder to start from, with its model and tokenizer; empty starts anew."""
    datamodule: DataConfig = field(default_factory=DataConfig)
    model: CaptionerConfig = field(default_factory=CaptionerConfig)
    prefix: PrefixConfig | None = None
    """A prefix captioner, to be trained instead of `model`."""
    language: str = ""
    """Folder or hub name of the language model a prefix captioner starts from; empty: random weights."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Run it; returns the run's folder with `best/` (a checkpoint folder), `last.ckpt` and `config.json`.

    Raises ConfigError if the folder holds another run, or nothing to resume.
    """
    folder = Path(config.out) / config.name
    last = folder / LAST
    _check_folder(folder, config, resume)
    L.seed_everything(config.trainer.seed, verbose=False)
    data = CaptionData(config.datamodule, config.trainer.seed, config.trainer.max_epochs)
    model, tokenizer, preprocess = _start_model(config, data)
    model.tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU
    model.train()  # Lightning leaves the mode as it is, and a loaded checkpoint is in evaluation mode
    frozen = freeze(model, FreezePolicy(config.trainer.encoder))
    _print_parameters(model)
    context = model.config.decoder.context
    data.prepare(tokenizer, model.tower, preprocess, frozen=frozen, longest=context)
    objective = CaptionObjective(
        config.objective,
        tokenizer,
        data.references(data.train_table),
        _open_teaching(config, tokenizer, context),
        model.decoder.embed.embedding_dim,
    )
    per_epoch = data.batches_per_epoch(config.trainer.devices * config.trainer.nodes)
    steps = -(-config.trainer.max_epochs * per_epoch // config.trainer.accumulate)
    module = CaptionModule(model, objective, config.optim, config.generation, steps)
    score = ScoreDev(
        folder, data.references(data.dev_table), tokenizer, provenance(config, model.config), per_epoch
    )
    samples = LogSamples(data.dev_table, preprocess, score)
    with _quiet_lightning():
        trainer = _build_trainer(config, folder, per_epoch, [score, samples])
        trainer.fit(module, datamodule=data, ckpt_path=str(last) if resume else None, weights_only=True)
    return folder


def provenance(config: TrainConfig, model: CaptionerConfig | PrefixConfig) -> dict[str, Any]:
    """Where a model of this run comes from; folders go by their names alone, so no paths are published."""
    data = config.datamodule
    start = Path(config.init_from)
    named = dataclasses.replace(
        config,
        # what `init_from` or `language` brought, whatever the settings say
        **({"prefix": model} if isinstance(model, PrefixConfig) else {"model": model, "prefix": None}),
        language=Path(config.language).name,
        out=Path(config.out).name,
        init_from=f"{start.parent.name}/{start.name}" if config.init_from else "",
        datamodule=dataclasses.replace(
            data,
            path=Path(data.path).name,
            cache=Path(data.cache).name,
            teacher=Path(data.teacher).name,
        ),
    )
    fingerprints = {
        name: split["fingerprint"] for name, split in read_report(Path(data.path))["splits"].items()
    }
    return {
        "config": dataclasses.asdict(named),
        "data": {"name": Path(data.path).name, "fingerprints": fingerprints},
        "git": git_revision(),
        "environment": environment(),
    }


def _check_folder(folder: Path, config: TrainConfig, resume: bool) -> None:
    last = folder / LAST
    if resume and not last.is_file():
        raise ConfigError(f"--resume: there is no {last}; start the run without --resume")
    if not resume and last.is_file():
        raise ConfigError(f"{folder} holds a run already: add --resume to go on, or choose another name=...")
    if not config.trainer.fast_dev_run:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", dataclasses.asdict(config))


def _start_model(config: TrainConfig, data: CaptionData) -> tuple[AnyCaptioner, Tokenizer, Preprocess]:
    if config.init_from:
        return load_model(config.init_from)
    if config.prefix is not None and config.language:
        language, tokenizer, blocked = load_language(config.language)
        decoder = dataclasses.replace(config.prefix.decoder, blocked=blocked)
        start = dataclasses.replace(config.prefix, decoder=decoder)
        prefixed = PrefixCaptioner(start, pretrained=True, language=language)
        return prefixed, tokenizer, tower_preprocess(start.vision)
    tokenizer = data.train_tokenizer()
    if config.prefix is not None:
        start = dataclasses.replace(config.prefix, decoder=_sized(config.prefix.decoder, tokenizer))
        return PrefixCaptioner(start, pretrained=True), tokenizer, tower_preprocess(start.vision)
    plain = dataclasses.replace(config.model, decoder=_sized(config.model.decoder, tokenizer))
    return Captioner(plain, pretrained=True), tokenizer, tower_preprocess(plain.vision)


Sized = TypeVar("Sized", DecoderConfig, LanguageConfig)


def _sized(decoder: Sized, tokenizer: Tokenizer) -> Sized:
    """`decoder` with the tokenizer's vocabulary, unless it names a larger one. Raises ConfigError."""
    size = decoder.vocab_size or tokenizer.get_vocab_size()
    if size < tokenizer.get_vocab_size():
        raise ConfigError(
            f"model.decoder.vocab_size={size}: the tokenizer has {tokenizer.get_vocab_size()} entries"
        )
    return dataclasses.replace(decoder, vocab_size=size)


def _open_teaching(config: TrainConfig, tokenizer: Tokenizer, longest: int) -> Teaching | None:
    """The teacher's cache, if a loss needs it. Raises DataError with the reason if it does not fit."""
    wants, data = config.objective.wants(), config.datamodule
    splits = data.train_splits()
    if not wants or not data.teacher:
        return None
    cache = open_cache(
        Path(data.teacher),
        Path(data.path),
        splits,
        wants=wants,
        tokenizer=tokenizer,
        longest=longest,
        views=data.views,
        seed=config.trainer.seed,
        augment=data.augment,
    )
    first = cache.read(splits[0], 0)
    return Teaching(
        kept_answers(cache, splits),
        longest,
        hidden_width=0 if first.hidden is None else first.hidden.shape[-1],
        embedding_width=0 if first.embedding is None else first.embedding.shape[-1],
    )


def _build_trainer(config: TrainConfig, folder: Path, per_epoch: int, scoring: list[L.Callback]) -> L.Trainer:
    settings = config.trainer
    callbacks: list[L.Callback] = list(scoring)
    if settings.ema:
        # Interpolating keeps what does not change as it is; Lightning's own EMA lets frozen weights drift.
        averaging = get_ema_multi_avg_fn(settings.ema)
        callbacks.append(WeightAveraging(use_buffers=False, multi_avg_fn=averaging))
    if settings.thaw != ThawConfig():
        callbacks.append(Thaw(settings.thaw))
    callbacks.append(RandomState())
    if not settings.fast_dev_run:
        callbacks.append(KeepLast(folder, settings.checkpoint_every, per_epoch * settings.validate_every))
    logger = _build_logger(config.logger, folder)
    if logger is not False and not settings.fast_dev_run:
        callbacks.append(LearningRateMonitor("step"))
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
        logger=logger,
        default_root_dir=str(folder),
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        use_distributed_sampler=False,
        fast_dev_run=settings.fast_dev_run,
    )


def _build_logger(config: LoggerConfig, folder: Path) -> Logger | bool:
    if config.name == "none":
        return False
    kind = TensorBoardLogger if config.name == "tensorboard" else CSVLogger
    return kind(save_dir=str(folder), name="logs", version="")


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


def _print_parameters(model: AnyCaptioner) -> None:
    table = RichTable("part", "parameters", "learning", title="parameters")
    for name, total, learning in parameter_table(model):
        table.add_row(name, f"{total:,}", f"{learning:,}")
    Console(stderr=True).print(table)
