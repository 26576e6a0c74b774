"""The objective of a dual encoder: named losses of each tower against its teacher, and of both together.

As in objective.py the total is `sum(weight[name] * scale[name] * loss)`. A tower that does not learn takes
part in the losses of both with what it gives; its vectors of texts are computed once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather

from vistill.data.collate import Batch, Item
from vistill.data.pairs import NO_TEXT
from vistill.distill.losses import (
    embedding_regression,
    hidden_mse,
    kl_divergence,
    soft_cross_entropy,
    weighted_total,
)
from vistill.distill.losses_dual import (
    contrastive_relational,
    feature_distillation,
    interactive_contrastive,
    similarities,
    similarity_preserving,
    soft_contrastive,
    soft_targets,
)
from vistill.distill.objective import on_one_grid
from vistill.errors import ConfigError
from vistill.models.clip import ClipDual
from vistill.models.loading import AnyDual

TOWERS = ("image", "text", "both")
TOWER_LOSSES = ("l1", "cross_entropy", "kl", "cosine", "mse", "similarity", "hidden_mse")
PAIR_LOSSES = ("contrastive", "interactive", "relational", "feature")
WHERE = {"hidden": "datamodule.teacher", "image": "datamodule.teacher or texts", "text": "texts"}
"""The setting that brings what a loss needs of a teacher."""


@dataclass(frozen=True)
class TowerLosses:
    """Weights of the losses of one tower against its teacher's vectors; 0 leaves one out."""

    l1: float = 0.0
    """Mean absolute difference."""
    cross_entropy: float = 0.0
    """Cross-entropy of the two vectors, taken for logits."""
    kl: float = 0.0
    """KL divergence of the two vectors, taken for logits."""
    cosine: float = 0.0
    """1 - cosine."""
    mse: float = 0.0
    """Mean squared difference of the unit vectors."""
    similarity: float = 0.0
    """Mean squared difference of the cosines within a batch."""
    hidden_mse: float = 0.0
    """Squared distance of the patches, projected, to the teacher's hidden states; pictures alone."""

    def weights(self) -> dict[str, float]:
        """{name: weight} of the losses with a weight."""
        return {name: float(getattr(self, name)) for name in TOWER_LOSSES if getattr(self, name)}


@dataclass(frozen=True)
class DualObjectiveConfig:
    """Weights of the losses (0 leaves one out) and their settings."""

    image: TowerLosses = field(default_factory=TowerLosses)
    """Of the picture tower against the teacher."""
    text: TowerLosses = field(default_factory=TowerLosses)
    """Of the text tower against the teacher."""
    contrastive: float = 0.0
    """Weight of InfoNCE within the batch; further captions of a picture are right ones too."""
    interactive: float = 0.0
    """Weight of InfoNCE between the student's vectors and the teacher's of the other side."""
    relational: float = 0.0
    """Weight of the KL of the similarities within the batch to the teacher's."""
    feature: float = 0.0
    """Weight of the squared distance of both sides to the teacher's (CLIP-KD's feature distillation)."""
    scales: dict[str, float] = field(default_factory=dict)
    """{name of a loss, as image_l1: factor} that brings losses to one size; 1 if not named."""
    temperature: float = 0.1
    """l1, cross_entropy and kl compare unit vectors over this: 0.1 gives the length that CLIP's own have."""
    teacher_temperature: float = 0.01
    """Inverse of the teacher's logit scale, for `relational`."""

    def __post_init__(self) -> None:
        weights = self.weights()
        if not weights:
            raise ConfigError("objective: every weight is 0, so there is nothing to learn")
        if min(weights.values()) < 0:
            raise ConfigError("objective: weights must not be negative")
        if self.text.hidden_mse:
            raise ConfigError("objective.text.hidden_mse: caches hold no hidden states of texts")
        known = [f"{side}_{name}" for side in ("image", "text") for name in TOWER_LOSSES] + [*PAIR_LOSSES]
        if unknown := sorted(self.scales.keys() - set(known)):
            raise ConfigError(f"objective.scales: {', '.join(unknown)}: the losses are {', '.join(known)}")
        for name in ("temperature", "teacher_temperature"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"objective.{name}={getattr(self, name)}: must be above 0")

    def weights(self) -> dict[str, float]:
        """{name of the loss: weight} of those with a weight."""
        image = {f"image_{name}": weight for name, weight in self.image.weights().items()}
        text = {f"text_{name}": weight for name, weight in self.text.weights().items()}
        both = {name: float(getattr(self, name)) for name in PAIR_LOSSES if getattr(self, name)}
        return image | text | both

    def pairs(self) -> bool:
        """Whether a loss needs pictures and texts at once."""
        return any(getattr(self, name) for name in PAIR_LOSSES)

    def needs(self) -> frozenset[str]:
        """What of a teacher these losses need: of image, text, hidden."""
        found = set()
        taught = self.interactive or self.relational or self.feature
        if taught or any(name != "hidden_mse" for name in self.image.weights()):
            found.add("image")
        if taught or self.text.weights():
            found.add("text")
        if self.image.hidden_mse:
            found.add("hidden")
        return frozenset(found)


@dataclass(frozen=True)
class Known:
    """What is known of rows and texts without the student; vectors have unit length.

    numbers: items -> text numbers [B, C]. image, hidden: items -> a teacher's [B, E], [B, N, D]. text: a
    teacher's vector of each number [n, E]. own_text: that of the student's text tower, if it does not learn.
    """

    numbers: Callable[[Sequence[Item]], NDArray[np.int64]]
    image: Callable[[Sequence[Item]], Tensor] | None = None
    hidden: Callable[[Sequence[Item]], Tensor] | None = None
    text: Tensor | None = None
    own_text: Tensor | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    """Widths of the teacher's image, text, hidden."""


class DualObjective:
    """The losses of a dual encoder on one batch; `towers` says which side learns."""

    def __init__(
        self, config: DualObjectiveConfig, towers: str, known: Known, *, width: int, hidden_width: int
    ) -> None:
        self.config = config
        self.towers = towers
        self.known = known
        idle = {"image": config.text, "text": config.image}.get(towers)
        if idle is not None and idle.weights():
            side = "text" if towers == "image" else "image"
            raise ConfigError(f"objective.{side}: this tower does not learn (towers={towers})")
        for what in sorted(config.needs()):
            if getattr(known, what) is None:
                raise ConfigError(f"objective: a loss needs a teacher's {what} vectors: set {WHERE[what]}")
        self.heads = nn.ModuleDict()
        """Projections into the teacher's widths, which learn with the student and are thrown away."""
        for what in ("image", "text"):
            if what in config.needs() and known.widths[what] != width:
                self.heads[what] = nn.Linear(width, known.widths[what])
        if "hidden" in config.needs():
            self.heads["hidden"] = nn.Linear(hidden_width, known.widths["hidden"])

    def __call__(self, model: AnyDual, batch: Batch) -> dict[str, Tensor]:
        """{name: unweighted loss} for the losses with a weight."""
        config = self.config
        out: dict[str, Tensor] = {}
        numbers = torch.from_numpy(self.known.numbers(batch.items)).to(batch.tokens.device)  # [B, C]
        image = text = None
        if self.towers != "text" or config.pairs():
            with torch.set_grad_enabled(self.towers != "text"):
                image, states = self._see(model, batch)
            if self.towers != "text":
                out |= self._of_image(batch.items, image, states)
        if self.towers != "image" or config.pairs():
            text = self._read(model, batch.tokens, numbers)  # [B * C, E], rows of NO_TEXT mean nothing
            if self.towers != "image":
                out |= self._of_text(text, numbers.flatten())
        if config.pairs():
            assert image is not None
            assert text is not None
            out |= self._of_pairs(image, text, numbers, batch.items, model.scale())
        return out

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """sum(weight * scale * loss) over the named losses."""
        weights = self.config.weights()
        scales = {name: scale for name, scale in self.config.scales.items() if name in weights}
        return weighted_total(losses, weights, scales)

    def _see(self, model: AnyDual, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Vectors [B, E] of the pictures and, if a loss needs them, the states [B, N, D] of their patches."""
        if not self.config.image.hidden_mse:
            return model.encode_image(batch.pixels, batch.start), None
        if isinstance(model, ClipDual):
            return model.encode_image(batch.pixels), model.image_states(batch.pixels)
        tower = model.image.tower
        last = len(tower.stages)
        states = tower.trunk(batch.pixels, last, batch.start)
        return model.encode_image(states, last), tower(states, last)

    def _read(self, model: AnyDual, tokens: Tensor, numbers: Tensor) -> Tensor:
        """Vectors [B * C, E] of the texts tokens [B, C, T]."""
        if self.towers != "image":
            return model.encode_text(tokens.flatten(0, 1))
        assert self.known.own_text is not None
        return self.known.own_text[numbers.flatten().cpu()].to(tokens.device).float()

    def _of_image(self, items: Sequence[Item], image: Tensor, states: Tensor | None) -> dict[str, Tensor]:
        weights, out = self.config.image, {}
        if any(name != "hidden_mse" for name in weights.weights()):
            assert self.known.image is not None
            teacher = self.known.image(items).to(image.device)
            out = self._of_tower("image", weights, self._projected("image", image), teacher)
        if states is not None:
            assert self.known.hidden is not None
            student, teacher = self.heads["hidden"](states), self.known.hidden(items).to(image.device)
            out["image_hidden_mse"] = hidden_mse(*on_one_grid(student, teacher))
        return out

    def _of_text(self, text: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        if not self.config.text.weights():
            return {}
        told = numbers != NO_TEXT
        student = self._projected("text", text[told])
        return self._of_tower("text", self.config.text, student, self._teacher_text(numbers[told]))

    def _of_tower(
        self, side: str, weights: TowerLosses, student: Tensor, teacher: Tensor
    ) -> dict[str, Tensor]:
        """Losses of unit vectors student and teacher [B, E]."""
        T = self.config.temperature
        losses: dict[str, Callable[[], Tensor]] = {
            "l1": lambda: embedding_regression(student / T, teacher / T, "l1"),
            "cross_entropy": lambda: soft_cross_entropy(student / T, teacher / T),
            "kl": lambda: kl_divergence(student / T, teacher / T),
            "cosine": lambda: embedding_regression(student, teacher, "cosine"),
            "mse": lambda: embedding_regression(student, teacher, "mse"),
            "similarity": lambda: similarity_preserving(student, teacher),
        }
        return {f"{side}_{name}": losses[name]() for name in weights.weights() if name in losses}

    def _of_pairs(
        self, image: Tensor, text: Tensor, numbers: Tensor, items: Sequence[Item], scale: Tensor
    ) -> dict[str, Tensor]:
        """Losses of pictures [B, E] and their texts [B * C, E], over the batches of all devices."""
        config, out = self.config, {}
        if config.contrastive:
            rows = torch.tensor([item.row for item in items], device=image.device)
            owner = torch.where(numbers == NO_TEXT, NO_TEXT, rows.unsqueeze(1)).flatten()
            everywhere = [gather(x) for x in (image, text, rows, owner, numbers.flatten())]
            out["contrastive"] = _contrastive(*everywhere, temperature=1 / scale)
        if not (config.interactive or config.relational or config.feature):
            return out
        told = numbers[:, 0] != NO_TEXT  # pictures with a text; a pair is a picture with its first one
        assert self.known.image is not None
        own_image, own_text = image, text.view(*numbers.shape, -1)[:, 0]
        of_image = self.known.image(items).to(image.device)
        of_text = self._teacher_text(numbers[:, 0].clamp(min=0))
        own_image, own_text, of_image, of_text, told = map(
            gather, (own_image, own_text, of_image, of_text, told)
        )
        own_image, own_text, of_image, of_text = (x[told] for x in (own_image, own_text, of_image, of_text))
        in_theirs = self._projected("image", own_image), self._projected("text", own_text)
        if config.interactive:
            out["interactive"] = interactive_contrastive(*in_theirs, of_image, of_text, 1 / scale)
        if config.relational:
            out["relational"] = contrastive_relational(
                own_image, own_text, of_image, of_text, 1 / scale, config.teacher_temperature
            )
        if config.feature:
            out["feature"] = feature_distillation(*in_theirs, of_image, of_text)
        return out

    def _projected(self, side: str, vectors: Tensor) -> Tensor:
        """Vectors in the teacher's width, unit length."""
        if side not in self.heads:
            return vectors
        return F.normalize(self.heads[side](vectors), dim=-1)

    def _teacher_text(self, numbers: Tensor) -> Tensor:
        assert self.known.text is not None
        return self.known.text[numbers.cpu()].to(numbers.device).float()


def _contrastive(
    image: Tensor, text: Tensor, rows: Tensor, owner: Tensor, numbers: Tensor, *, temperature: Tensor
) -> Tensor:
    """InfoNCE with every right text of a picture -> scalar.

    image [B, E] of rows [B]; text [M, E], each with the row of its picture, owner [M], and its number [M].
    Right are the captions of the picture, and the same text shown with another. Texts without an owner and
    pictures without a text take no part.
    """
    kept = owner != NO_TEXT
    text, owner, numbers = text[kept], owner[kept], numbers[kept]
    own = (rows[:, None] == owner[None, :]).float()
    positives = (own @ (numbers[:, None] == numbers[None, :]).float()) > 0  # [B, M]
    told = positives.any(1)
    logits, positives = similarities(image[told], text, temperature), positives[told]
    to_text = soft_contrastive(logits, soft_targets(logits, 0.0, positives))
    return (to_text + soft_contrastive(logits.T, soft_targets(logits.T, 0.0, positives.T))) / 2


def gather(values: Tensor) -> Tensor:
    """Rows of all devices, in their order, with gradient; the same where there is one device.

    With the mean of gradients over devices, a loss on these rows has the gradient of one device with all.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    if values.requires_grad:
        return torch.cat(all_gather(values))
    out: list[Any] = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(out, values.contiguous())
    return torch.cat(out)
