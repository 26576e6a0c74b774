"""AdamW with a rate of its own for the tower, and warm-up followed by a cosine."""

import math
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from vistill.errors import ConfigError
from vistill.train.freeze import parts_of


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule."""

    lr: float = 4e-4
    """Peak rate of the mapper and the decoder."""
    encoder_lr: float = 4e-5
    """Peak rate of the tower's learning stages."""
    text_lr: float = 0.0
    """Peak rate of the text side of a dual encoder; 0: `lr`."""
    weight_decay: float = 0.05
    """Decoupled decay of matrices; vectors (biases, norms) and embeddings have none."""
    warmup: float = 0.05
    """Share of all steps in which the rate rises from 0."""
    final: float = 0.02
    """Rate at the end, as a share of the peak."""

    def __post_init__(self) -> None:
        for name in ("lr", "encoder_lr", "text_lr", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"optim.{name}={getattr(self, name)}: must not be negative")
        if not 0 <= self.warmup < 1 or not 0 <= self.final <= 1:
            raise ConfigError("optim: warmup must be in [0, 1) and final in [0, 1]")


def build_optimizer(
    model: nn.Module, config: OptimConfig, heads: nn.Module | None = None, *, fused: bool = True
) -> AdamW:
    """AdamW over what learns, in groups `encoder`, `text` (of a dual encoder) and `rest`, each with a
    `-no-decay` one beside it.

    `heads` (projections of the objective) learn at the rate of the rest. `fused` is faster; Lightning cannot
    clip gradients with it in mixed precision.
    """
    groups = []
    parts = parts_of(model)
    rates = {"encoder": config.encoder_lr, "text": config.text_lr or config.lr, "rest": config.lr}
    owner = {id(p): "encoder" for p in parts["tower"].parameters()} if "tower" in parts else {}
    owner |= {id(p): "text" for p in parts["text"].parameters()} if "text" in parts else {}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    if "mapper" in parts:
        embeddings |= {id(p) for p in parts["mapper"].parameters(recurse=False)}  # positions, queries
    for part, rate in rates.items():
        for suffix, decay in (("", config.weight_decay), ("-no-decay", 0.0)):
            members = [
                p
                for p in (*model.parameters(), *(heads.parameters() if heads is not None else ()))
                if p.requires_grad
                and owner.get(id(p), "rest") == part
                and (p.dim() < 2 or id(p) in embeddings) == (decay == 0.0 and suffix != "")
            ]
            if members:
                groups.append({"params": members, "lr": rate, "weight_decay": decay, "name": part + suffix})
    return AdamW(groups, betas=(0.9, 0.98), fused=fused)


def build_schedule(optimizer: AdamW, config: OptimConfig, steps: int) -> LambdaLR:
    """Linear warm-up, then a cosine down to `final`, over `steps` optimiser steps."""
    warmup = max(1, round(config.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
