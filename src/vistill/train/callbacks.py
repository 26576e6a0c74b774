"""Around the steps: scoring the dev split, keeping the best model, exact resume, samples to look at."""

import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from datasets import Dataset as Table
from lightning.pytorch.callbacks import Callback

from vistill.data.collate import Batch
from vistill.files import sync_file
from vistill.runtime.image import Preprocess, read_image, to_array
from vistill.train.freeze import Save
from vistill.train.module import TrainModule
from vistill.train.watch import Sample, show_samples

LAST = "last.ckpt"
SHOWN = 8
"""Dev pictures that are logged with what was said of them."""
BEST = "best"

Score = Callable[[Mapping[str, Any]], dict[str, float]]
"""{key: prediction} of the dev split -> {name: score}."""


class ScoreDev(Callback):
    """Scores the predictions of each validation and keeps the best model in the checkpoint folder `best`.

    The model that a run starts from counts too, where it is validated: `best` is never worse than it.

    Stands before the averaging callback in the list, so that what is scored is what is saved.
    """

    def __init__(
        self,
        folder: Path,
        score: Score,
        save: Save,
        provenance: dict[str, Any],
        per_epoch: int,
        *,
        best_by: str,
        shown: Sequence[str],
    ) -> None:
        """`best_by` names the score that the best model has most of, `shown` those of the printed line."""
        self.folder = folder
        self.score = score
        self.save = save
        self.provenance = provenance
        self.per_epoch = per_epoch
        self.best_by = best_by
        self.shown = shown
        self.best = float("-inf")
        self.scores: dict[str, float] = {}
        self.predictions: dict[str, Any] = {}
        self.started = time.monotonic()

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.predictions = {}

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.predictions.update(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TrainModule)
        scores = self.scores = self.score(self.predictions)
        named = {f"dev/{name}": value for name, value in scores.items()}
        if not trainer.sanity_checking:
            # "step" is Lightning's word for the place on the axis: the steps made, as everywhere here
            pl_module.log_dict({**named, "step": float(trainer.global_step)}, rank_zero_only=True)
        if not trainer.is_global_zero:
            return
        told = "".join(f" {name} {scores[name]:.2f}" for name in self.shown)
        epoch = 0
        if trainer.sanity_checking:  # of the model that training starts from; Lightning logs nothing of it
            for logger in trainer.loggers:
                logger.log_metrics(named, step=0)
            line = f"before training{told}"
        else:
            loss = float(trainer.callback_metrics.get("train/loss", torch.tensor(float("nan"))))
            reward = trainer.callback_metrics.get("train/reward")
            epoch = (trainer.fit_loop.epoch_loop.batch_idx + 1) // self.per_epoch
            line = f"epoch {epoch} step {trainer.global_step} loss {loss:.4f}"
            line += f" reward {float(reward):.4f}" if reward is not None else ""
            line += told
        print(f"{line} ({time.monotonic() - self.started:.0f} s)", file=sys.stderr, flush=True)
        if scores[self.best_by] > self.best and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.best = scores[self.best_by]
            reached = {"epoch": epoch, "step": trainer.global_step, "by": self.best_by, "dev": scores}
            self.save(self.folder / BEST, pl_module.model, {**self.provenance, "reached": reached})

    @property
    def latest(self) -> float:
        """The score that counts, of the last validation."""
        return self.scores[self.best_by]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class LogSamples(Callback):
    """Logs dev pictures with what the model said of them at the first validation and says now."""

    def __init__(
        self,
        table: Table,
        preprocess: Preprocess,
        says: Callable[[], Mapping[str, str]],
        count: int = SHOWN,
        said: Sequence[tuple[str, str]] = (),
    ) -> None:
        """The first `count` rows of `table`; `says` gives {key: text} of the validation that has just ended.

        All rows are captioned, unless `said` tells for each the key of its prediction and the text asked for.
        """
        rows = [table[i] for i in range(min(count, len(table)))]
        told = said or [(row["key"], row["captions"][0]) for row in rows]
        self.rows = [(key, row["image"], text) for row, (key, text) in zip(rows, told, strict=False)]
        self.preprocess = preprocess
        self.says = says
        self.first: dict[str, str] = {}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not trainer.loggers:
            return
        mean, std = (
            np.array(v, np.float32).reshape(3, 1, 1) for v in (self.preprocess.mean, self.preprocess.std)
        )
        samples, says = [], self.says()
        for key, image, reference in self.rows:
            now = says.get(key)
            if now is None:
                continue
            seen = to_array(read_image(image), self.preprocess) * std + mean
            pixels = (255 * seen.clip(0, 1)).round().astype(np.uint8).transpose(1, 2, 0)
            samples.append(Sample(key, pixels, reference, self.first.setdefault(key, now), now))
        show_samples(trainer.loggers, samples, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first = state_dict["first"]


class KeepLast(Callback):
    """Writes `last.ckpt` every so many steps and at the end, whole or not at all.

    Not right before a validation, which a resumed run would have to know to make up for.
    """

    def __init__(self, folder: Path, every: int, validate_every: int) -> None:
        self.path = folder / LAST
        self.every = every
        self.validate_every = validate_every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        due = stepped and trainer.global_step % self.every == 0
        if due and (batch_idx + 1) % self.validate_every:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # what was logged up to here, which a resumed run does not log again
        temporary = self.path.with_suffix(".part")
        trainer.save_checkpoint(temporary, weights_only=False)  # the optimiser too
        if trainer.is_global_zero:
            sync_file(temporary)
            os.replace(temporary, self.path)


class RandomState(Callback):
    """Keeps the random number generators in the checkpoint, so that a resumed run draws the same numbers.

    NumPy's global one is not among them: everything here that draws with NumPy has a generator of its own.

    They are set back at the first step, after the loaders have been made: making those draws numbers too.
    """

    def __init__(self) -> None:
        self.restore: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": random.getstate(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restore = state_dict

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.restore is None:
            return
        state, self.restore = self.restore, None
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        version, inner, gauss = state["python"]
        random.setstate((version, tuple(inner), gauss))
