"""The one LightningModule: tasks differ by objective, batch and what they predict at validation."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from vistill.data.collate import Batch
from vistill.train.optim import OptimConfig, build_optimizer, build_schedule

Predict = Callable[[Any, Batch], dict[str, Any]]
"""(model, batch) -> {key: what the model says of it}, as captions or embeddings."""


class Objective(Protocol):
    """What a step asks of the model, as named losses; `total` adds those up that have a weight."""

    @property
    def heads(self) -> nn.ModuleDict: ...

    def __call__(self, model: Any, batch: Batch) -> dict[str, Tensor]: ...

    def total(self, losses: Mapping[str, Tensor]) -> Tensor: ...


class TrainModule(L.LightningModule):
    """Trains a model by its objective; validation predicts, nothing else."""

    def __init__(
        self, model: nn.Module, objective: Objective, optim: OptimConfig, steps: int, predict: Predict
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.heads = objective.heads  # learn with the model, are never part of its checkpoint
        self.optim = optim
        self.steps = steps  # Lightning's own estimate makes the loader before its state can be restored
        self.predict = predict

    def training_step(self, batch: Batch, index: int) -> Tensor:
        losses = self.objective(self.model, batch)
        total = self.objective.total(losses)
        size = len(batch.keys)
        self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()}, batch_size=size)
        # of all processes: the curve does not depend on how many there are
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=size, sync_dist=True)
        return total

    @torch.inference_mode()
    def validation_step(self, batch: Batch, index: int) -> dict[str, Any]:
        """{key: prediction} of the batch."""
        return self.predict(self.model, batch)

    def configure_optimizers(self) -> Any:
        fused = "mixed" not in str(self.trainer.precision)
        optimizer = build_optimizer(self.model, self.optim, self.heads, fused=fused)
        schedule = build_schedule(optimizer, self.optim, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
