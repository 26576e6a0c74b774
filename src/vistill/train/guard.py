"""Guard rails: loss and gradient are finite and fall, memory is told, a run without progress stops."""

import math
import statistics
import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from vistill.errors import ConfigError
from vistill.train.callbacks import ScoreDev
from vistill.train.watch import gradient_norm

REPETITION, DISTINCT = "repetition", "distinct-2"
"""Scores in hundredths: captions that repeat a word or a pair of words; different pairs among all pairs."""
MUCH_REPETITION = 10.0
"""Of the captions of people 6% do, of those of the captioner in the package 8% (Flickr8k dev)."""
FIRST, LATER, RISE = 5, 50, 1.5
"""The mean loss of FIRST steps may not be RISE times that of the first ones during the first LATER steps."""


class CheckLoss(Callback):
    """Stops at a loss or gradient that is no finite number, warns once where the first losses rise far.

    Both say what to change. Nothing of the step is kept: `last.ckpt` and `best` are of before it. Gradients
    of 16-mixed are left to its scaler, which looks for a scale by trying.
    """

    def __init__(self, rate: float) -> None:
        """`rate` is `optim.lr`."""
        self.rate = rate
        self.losses: list[float] = []

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if not math.isfinite(value := float(loss.detach())):
            raise ConfigError(self._lost(trainer, f"the loss is {value}"))
        if len(self.losses) < LATER:
            self.losses.append(value)
            self._compare(trainer.global_step)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        norm = gradient_norm(pl_module.parameters())
        if norm is not None and not torch.isfinite(norm) and trainer.precision != "16-mixed":
            raise ConfigError(self._lost(trainer, f"the norm of the gradient is {float(norm)}"))

    def _lost(self, trainer: L.Trainer, what: str) -> str:
        return (
            f"{what} in step {trainer.global_step + 1}: training stopped, nothing of this step is kept. "
            f"optim.lr={self.rate:g} is likely too high: try {self.rate / 10:g} under another name=, or a "
            "longer optim.warmup"
        )

    def _compare(self, step: int) -> None:
        if len(self.losses) < 2 * FIRST:
            return
        start, now = statistics.fmean(self.losses[:FIRST]), statistics.fmean(self.losses[-FIRST:])
        if now - start > max((RISE - 1) * abs(start), 0.5):
            warn(
                f"the loss rises: {start:.2f} in the first {FIRST} steps, {now:.2f} up to step {step + 1}; "
                f"optim.lr={self.rate:g} may be too high"
            )
            self.losses += [math.nan] * LATER  # said once

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = list(state_dict["losses"])


class Patience(Callback):
    """Stops after `patience` validations in a row without a better score. Stands behind `score`."""

    def __init__(self, score: ScoreDev, patience: int) -> None:
        self.score = score
        self.patience = patience
        self.best = float("-inf")
        self.waited = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.waited >= self.patience  # of a run that was resumed

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:  # what the run starts from has to be surpassed
            self.best = self.score.latest
            return
        self.waited = 0 if self.score.latest > self.best else self.waited + 1
        self.best = max(self.best, self.score.latest)
        stop = trainer.strategy.reduce_boolean_decision(self.waited >= self.patience, all=False)
        if stop and not trainer.should_stop:
            trainer.should_stop = True
            if trainer.is_global_zero:
                warn(
                    f"stopped after step {trainer.global_step}: {self.waited} validations without a better "
                    f"{self.score.best_by} than {self.best:.2f} (trainer.patience)"
                )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]


class WarnOfRepetition(Callback):
    """Says so when the captions of a validation repeat themselves. Stands behind `score`."""

    def __init__(self, score: ScoreDev) -> None:
        self.score = score

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        share = self.score.scores.get(REPETITION, 0.0)
        if share > MUCH_REPETITION and trainer.is_global_zero:
            warn(
                f"{share:.0f}% of the captions repeat a word or a pair of words (more than "
                f"{MUCH_REPETITION:.0f}%): fewer epochs, a lower optim.lr or another trainer.freeze may help"
            )


class TellMemory(Callback):
    """Says in the first step, before its gradients, what the run needs.

    Parameters, gradients and moments are counted; activations are measured: all that the forward pass of the
    batch keeps for the backward pass. What a framework or a device takes for itself comes on top.
    """

    def __init__(self, *, averaged: bool) -> None:
        self.averaged = averaged
        self.kept: dict[int, int] = {}
        self.hooks: saved_tensors_hooks | None = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.kept:
            return
        own = {p.untyped_storage().data_ptr() for p in pl_module.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                self.kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        self.hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
        self.hooks.__enter__()

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if self.hooks is None:
            return
        self._close()
        if trainer.is_global_zero:
            sizes = {
                **counted(pl_module, averaged=self.averaged),
                "activations of a batch (measured)": sum(self.kept.values()),
            }
            parts = " + ".join(f"{name} {size / 1e6:.0f}" for name, size in sizes.items())
            told = f"memory in MB: {parts} = {sum(sizes.values()) / 1e6:.0f}"
            print(told, file=sys.stderr, flush=True)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self.hooks is not None:
            self.hooks.__exit__()
            self.hooks = None


def counted(model: nn.Module, *, averaged: bool) -> dict[str, int]:
    """{what: bytes} of a model that learns with AdamW; `averaged`: a mean of its weights is kept too."""
    everything = sum(p.numel() * p.element_size() for p in model.parameters())
    learning = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    sizes = {"parameters": everything, "gradients": learning, "moments": 2 * learning}
    return {**sizes, **({"averaged": everything} if averaged else {})}


def warn(text: str) -> None:
    """A line on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
