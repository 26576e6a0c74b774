"""What a run shows while it learns: its loggers, gradient norms, histograms of weights, samples then and now.

Every logger but `none` leaves what `vistill report train` reads: TensorBoard its events, the others files
beside `metrics.csv` in RUN/logs.
"""

import csv
import importlib
import io
import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from vistill.errors import ConfigError
from vistill.files import write_text
from vistill.train.freeze import parts_of

LOGGERS = ("tensorboard", "csv", "wandb", "trackio", "none")
PROJECT = "vistill"
"""Of wandb and trackio."""
BINS = 64
VALUES = 1 << 16
"""Weights of a tensor that its histogram counts, evenly drawn: a table of words has millions."""
COLUMNS, SIDE, MARGIN, LINE = 4, 224, 8, 16  # of the grid of samples, in pixels
INK = {"before": "#8a5a00", "now": "#0b4fb3", "": "#555555"}


@dataclass(frozen=True)
class Sample:
    """A dev picture as the model sees it, with what it said of it first and now."""

    key: str
    pixels: NDArray[np.uint8]
    """[H, W, 3]."""
    reference: str
    first: str
    now: str

    def lines(self) -> list[tuple[str, str]]:
        """(`before`, `now` or "" for the reference, text)."""
        before = [("before", self.first)] if self.first != self.now else []
        return [*before, ("now", self.now), ("", self.reference)]


def build_loggers(kind: str, folder: Path, name: str, settings: dict[str, Any]) -> list[Logger]:
    """The loggers of a run named `name` in `folder`; `settings` are shown where a logger shows any.

    wandb and trackio log to metrics.csv as well. Raises ConfigError if their package is missing.
    """
    if kind == "none":
        return []
    if kind == "tensorboard":
        return [TensorBoardLogger(save_dir=str(folder), name="logs", version="")]
    table = WholeCsvLogger(str(folder), "logs", _next_part(folder / "logs"), flush_logs_every_n_steps=10)
    if kind == "csv":
        return [table]
    try:
        package = importlib.import_module(kind)
    except ImportError as error:
        raise ConfigError(
            f"logger={kind}: the package {kind} is not there ({error}); pip install 'vistill[{kind}]', or "
            "use logger=tensorboard or csv"
        ) from error
    told = _without_folders(settings)
    if kind == "trackio":
        return [TrackioLogger(package, name, told), table]
    quiet = package.Settings(x_disable_meta=True)  # the words of the command line hold folders
    wandb = WandbLogger(
        name, folder, id=_kept_id(folder), project=PROJECT, config=told, log_model=False, settings=quiet
    )
    return [wandb, table]


def _without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the last part of each path alone: they may go to somebody's server."""
    return {
        name: _without_folders(value)
        if isinstance(value, dict)
        else Path(value).name
        if isinstance(value, str)
        else value
        for name, value in settings.items()
    }


def _next_part(logs: Path) -> str:
    """Where metrics.csv goes: Lightning's logger would delete the one of before the run was resumed."""
    parts = len(list(logs.glob("**/metrics.csv")))
    return f"resumed-{parts}" if parts else ""


def _kept_id(folder: Path) -> str:
    """An id by which a resumed run goes on in wandb where it stopped."""
    path = folder / "wandb-id"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(uuid.uuid4().hex)
    return path.read_text()


class WholeCsvLogger(CSVLogger):
    """Lightning's, but the file is replaced whole: a run killed while a column is added would lose it all."""

    @rank_zero_only
    def save(self) -> None:
        rows = self.experiment.metrics  # all of this process: nothing here takes them away
        if rows:
            out = io.StringIO(newline="")
            table = csv.DictWriter(out, sorted({key for row in rows for key in row}))
            table.writeheader()
            table.writerows(rows)
            write_text(Path(self.experiment.metrics_file_path), out.getvalue())


class TrackioLogger(Logger):
    """To trackio, in which a run of the same name goes on."""

    def __init__(self, package: Any, name: str, settings: dict[str, Any]) -> None:
        super().__init__()
        self.package = package
        self._name = name
        self.settings = settings
        self.run: Any = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The settings were given when the run was made."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self.run is None:
            self.run = self.package.init(
                project=PROJECT, name=self._name, config=self.settings, resume="allow"
            )
        self.run.log(metrics, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.run is not None:
            self.run.finish()
            self.run = None


class Watch(Callback):
    """Logs norms of the gradient before clipping, and at each validation histograms of what learns.

    `grad_norm/total` is over everything, heads of the objective too, `grad_norm/PART` over a part of the
    model. `weights/PART` counts the learning weights of a part, `weights/PART/NAME` those of one tensor.
    """

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            groups: dict[str, nn.Module] = {"total": pl_module, **parts_of(pl_module.model)}
            norms = {name: gradient_norm(part.parameters()) for name, part in groups.items()}
            pl_module.log_dict({f"grad_norm/{n}": norm for n, norm in norms.items() if norm is not None})

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        found: dict[str, NDArray[np.float32]] = {}
        for name, part in parts_of(pl_module.model).items():
            learning = {
                f"weights/{name}/{inner}": drawn(p) for inner, p in part.named_parameters() if p.requires_grad
            }
            if learning:
                found |= {f"weights/{name}": np.concatenate(list(learning.values())), **learning}
        kept = {name: values[np.isfinite(values)] for name, values in found.items()}
        show_histograms(trainer.loggers, {n: v for n, v in kept.items() if v.size}, trainer.global_step)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """The L2 norm over all gradients that are there; None if there is none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return get_total_norm(gradients) if gradients else None


def drawn(parameter: Tensor) -> NDArray[np.float32]:
    """At most `VALUES` of a tensor's values, evenly spaced."""
    flat = parameter.detach().flatten()
    return flat[:: max(1, -(-len(flat) // VALUES))].float().cpu().numpy()


def show_histograms(loggers: Sequence[Any], found: dict[str, NDArray[np.float32]], step: int) -> None:
    """Histograms of {name: values}, as each logger can: metrics.csv has a file beside it, of whole parts."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, values in found.items():
                logger.experiment.add_histogram(name, values, step, bins=BINS)
        elif isinstance(logger, WandbLogger | TrackioLogger):
            package = importlib.import_module("wandb") if isinstance(logger, WandbLogger) else logger.package
            counted = {n: package.Histogram(np_histogram=np.histogram(v, BINS)) for n, v in found.items()}
            logger.log_metrics(counted, step)
        elif isinstance(logger, CSVLogger):
            parts = {name: np.histogram(v, BINS) for name, v in found.items() if name.count("/") == 1}
            lines = [
                {"step": step, "name": name, "counts": counts.tolist(), "edges": edges.tolist()}
                for name, (counts, edges) in parts.items()
            ]
            _append(Path(logger.log_dir) / "histograms.jsonl", lines)


def show_samples(loggers: Sequence[Any], samples: Sequence[Sample], step: int) -> None:
    """Pictures with their captions: one by one and, in TensorBoard, side by side too."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            board = logger.experiment
            for one in samples:
                board.add_image(f"dev/{one.key}", one.pixels, step, dataformats="HWC")
                board.add_text(f"dev/{one.key}", f"{one.now}\n\n*{one.reference}*", step)
            board.add_image("samples", sample_grid(samples), step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            texts = ["\n".join(f"{said or 'reference'}: {t}" for said, t in one.lines()) for one in samples]
            logger.log_image("samples", [one.pixels for one in samples], step, caption=texts)
        elif isinstance(logger, TrackioLogger):
            logger.log_metrics({"samples": logger.package.Image(sample_grid(samples))}, step)
        elif isinstance(logger, CSVLogger):
            _write_samples(Path(logger.log_dir), samples, step)


def _write_samples(logs: Path, samples: Sequence[Sample], step: int) -> None:
    (logs / "pictures").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, one in enumerate(samples):
        name = f"pictures/{number}.jpg"
        Image.fromarray(one.pixels).save(logs / name, quality=85)
        line = {"step": step, "key": one.key, "caption": one.now, "reference": one.reference}
        lines.append({**line, "picture": name})
    _append(logs / "samples.jsonl", lines)


def _append(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def sample_grid(samples: Sequence[Sample]) -> NDArray[np.uint8]:
    """Pictures side by side, what was said under each: before (if it differs), now, a reference -> [H, W, 3].

    The font that comes with Pillow has Latin letters; others are shown as boxes, the texts themselves are
    logged too.
    """
    font = ImageFont.load_default(13)
    told = [
        [(said, row) for said, text in one.lines() for row in wrapped(text, SIDE, font)] for one in samples
    ]
    height = SIDE + 2 * MARGIN + LINE * max((len(rows) for rows in told), default=0)
    columns = min(COLUMNS, max(len(samples), 1))
    size = (columns * (SIDE + MARGIN) + MARGIN, max(-(-len(samples) // columns), 1) * (height + MARGIN))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for place, (one, rows) in enumerate(zip(samples, told, strict=True)):
        left = MARGIN + place % columns * (SIDE + MARGIN)
        top = MARGIN + place // columns * (height + MARGIN)
        picture = Image.fromarray(one.pixels)
        picture.thumbnail((SIDE, SIDE))
        sheet.paste(picture, (left, top))
        for number, (said, row) in enumerate(rows):
            pen.text((left, top + SIDE + MARGIN + LINE * number), row, INK[said], font)
    return np.asarray(sheet)


def wrapped(text: str, width: int, font: Any) -> list[str]:
    """Lines of whole words that are at most `width` pixels wide, if a word is not wider by itself."""
    rows: list[str] = []
    for word in text.split():
        longer = f"{rows[-1]} {word}" if rows else word
        if rows and font.getlength(longer) <= width:
            rows[-1] = longer
        else:
            rows.append(word)
    return rows or [""]
