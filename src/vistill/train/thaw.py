"""When frozen parts begin to learn: the encoder and the decoder stay as they are for the first steps.

A new projection between two trained networks sends them large, wrong gradients at first; that is why systems
of a pretrained encoder and a pretrained decoder start with both frozen and let them go later.
"""

from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn

from vistill.errors import ConfigError

PARTS = {"encoder": "tower", "decoder": "decoder"}
"""Part of the schedule -> attribute of the model."""


@dataclass(frozen=True)
class ThawConfig:
    """The optimiser step from which a part learns: 0 from the start, -1 never.

    `trainer.freeze`, or `trainer.encoder` and `trainer.decoder`, says what of a part learns once it does.
    """

    encoder: int = 0
    """Step from which the tower learns."""
    decoder: int = 0
    """Step from which the decoder learns."""

    def __post_init__(self) -> None:
        for name in PARTS:
            if getattr(self, name) < -1:
                raise ConfigError(f"trainer.thaw.{name}={getattr(self, name)}: use a step, 0 or -1 (never)")

    def frozen(self, step: int) -> frozenset[str]:
        """The parts that do not learn in optimiser step `step`, counted from 0."""
        starts = {name: getattr(self, name) for name in PARTS}
        return frozenset(name for name, start in starts.items() if start < 0 or step < start)


class Thaw(Callback):
    """Holds parts of `pl_module.model` frozen as `ThawConfig` says.

    What a step freezes follows from its number alone, so a resumed run is exact. Parameters that were frozen
    before training stay so. The optimiser is built before anything is frozen here and thus knows every
    parameter that ever learns; AdamW passes over those without a gradient, their moments begin when they
    thaw. DistributedDataParallel, too, is built before: it needs `find_unused_parameters`.
    Raises ConfigError at the start if nothing at all would learn, or for a part that the model does not have.
    """

    def __init__(self, config: ThawConfig) -> None:
        self.config = config
        self.learning: dict[str, list[nn.Parameter]] = {}
        self.now: frozenset[str] | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        model: Any = pl_module.model
        self.learning = {}
        for part, attribute in PARTS.items():
            start = getattr(self.config, part)
            if hasattr(model, attribute):
                self.learning[part] = [p for p in getattr(model, attribute).parameters() if p.requires_grad]
            elif start:
                raise ConfigError(f"trainer.thaw.{part}={start}: this model has no {part}")
            if start > 0 and not self.learning[part]:
                raise ConfigError(f"trainer.thaw.{part}={start}: nothing of the {part} is to learn")
        self.now = None
        held = {id(p) for part in self.config.frozen(0) for p in self.learning.get(part, ())}
        if all(id(p) in held for p in model.parameters() if p.requires_grad):
            raise ConfigError(f"trainer.thaw: {self.config} leaves nothing that learns in the first step")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        frozen = self.config.frozen(trainer.global_step)
        if frozen == self.now:
            return
        self.now = frozen
        for part, parameters in self.learning.items():
            for parameter in parameters:
                parameter.requires_grad_(part not in frozen)
                if part in frozen:
                    parameter.grad = None  # nothing is left over from before

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for parameters in self.learning.values():
            for parameter in parameters:
                parameter.requires_grad_(True)
