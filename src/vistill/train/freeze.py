"""Which parts of the vision tower learn."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from vistill.errors import ConfigError
from vistill.models.clip import ClipDual
from vistill.models.dual import DualEncoder
from vistill.models.vision import VisionTower


@dataclass(frozen=True)
class FreezePolicy:
    """`frozen`, `last-N` (the last N stages of the tower) or `full`."""

    encoder: str = "frozen"

    def __post_init__(self) -> None:
        last = self.encoder.removeprefix("last-")
        if self.encoder not in ("frozen", "full") and not (
            self.encoder.startswith("last-") and last.isdecimal()
        ):
            raise ConfigError(f"trainer.encoder={self.encoder!r}: use frozen, last-N (as last-3) or full")

    def frozen_stages(self, stages: int) -> int:
        """How many of a tower's `stages` stay frozen. Raises ConfigError if N is larger than the tower."""
        if self.encoder in ("frozen", "full"):
            return stages if self.encoder == "frozen" else 0
        last = int(self.encoder.removeprefix("last-"))
        if last > stages:
            raise ConfigError(f"trainer.encoder={self.encoder}: the tower has only {stages} stages")
        return stages - last


class HasTower(Protocol):
    """A captioner, or the picture side of a dual encoder."""

    tower: VisionTower


def freeze(model: HasTower, policy: FreezePolicy) -> int:
    """Set `requires_grad` of the tower's parameters; returns the number of frozen stages.

    Parameters outside every stage (a position table, a class token) go with the first stage.
    """
    stages = model.tower.stages
    frozen = policy.frozen_stages(len(stages))
    learning: set[int] = {id(p) for stage in stages[frozen:] for m in stage.modules for p in m.parameters()}
    for parameter in model.tower.parameters():
        parameter.requires_grad_(frozen == 0 or id(parameter) in learning)
    return frozen


def parts_of(model: Any) -> dict[str, nn.Module]:
    """{name: part} of a model, for its table of parameters and for rates of their own.

    `tower` is a tower of stages, `text` the text side of a dual encoder.
    """
    if isinstance(model, DualEncoder):
        head = nn.ModuleList([model.image.norm, model.image.project])
        return {"tower": model.image.tower, "projection": head, "text": nn.ModuleList(model.text_side)}
    if isinstance(model, ClipDual):
        return {"image": nn.ModuleList(model.image_side), "text": nn.ModuleList(model.text_side)}
    return {name: getattr(model, name) for name in ("tower", "mapper", "decoder")}


def parameter_table(model: nn.Module) -> list[tuple[str, int, int]]:
    """(part, parameters, trainable parameters) of the parts and of the whole, `all`."""
    return [
        (
            name,
            sum(p.numel() for p in part.parameters()),
            sum(p.numel() for p in part.parameters() if p.requires_grad),
        )
        for name, part in {**parts_of(model), "all": model}.items()
    ]
