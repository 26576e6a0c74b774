"""LoRA (Hu et al., arXiv 2106.09685): frozen dense layers, each with a learnt product of two thin matrices.

    y = W x + (alpha / rank) * up(down(x)),   down [rank, in], up [out, rank], up starts at zero

Works on `nn.Linear`, GPT-2's `Conv1D` and the 8- and 4-bit layers of bitsandbytes, which it does not look
into. `merge_lora` adds the products to the weights: a plain model again, of the same outputs.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vistill.errors import ConfigError


@dataclass(frozen=True)
class LoraConfig:
    """Size of what is learnt."""

    rank: int = 8
    """Width of the thin matrices."""
    alpha: float = 16.0
    """The product counts alpha / rank times."""
    dropout: float = 0.0
    """Dropout on what goes into the product."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora.rank={self.rank}: must be at least 1")
        if self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ConfigError("lora: alpha must be above 0, dropout in [0, 1)")


class Lora(nn.Module):
    """A frozen dense layer and the product beside it: [..., in] -> [..., out]."""

    def __init__(self, base: nn.Module, config: LoraConfig) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        inputs, outputs = _shape(base)
        device = next(base.parameters()).device
        self.down = nn.Linear(inputs, config.rank, bias=False, device=device)
        self.up = nn.Linear(config.rank, outputs, bias=False, device=device)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.up.weight)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.alpha / config.rank

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.up(self.down(self.dropout(x.to(self.down.weight.dtype))))
        out: Tensor = self.base(x)
        return out + self.scale * product.to(out.dtype)

    def merged(self) -> nn.Module:
        """The dense layer with the product added to its weights. ConfigError if those are quantised."""
        weight: Any = self.base.weight
        if not weight.is_floating_point():
            raise ConfigError("LoRA: 8- and 4-bit weights cannot take the product in; load the model in full")
        product = self.scale * (self.up.weight @ self.down.weight)  # [out, in]
        with torch.no_grad():
            weight += product.T if _turned(self.base) else product
        return self.base


def add_lora(module: nn.Module, config: LoraConfig, *, but: nn.Module | None = None) -> None:
    """Freeze a module and put a `Lora` in place of every dense layer inside it but `but`, in place."""
    module.requires_grad_(False)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child is not but and _is_dense(child):
                setattr(parent, name, Lora(child, config))


def merge_lora(module: nn.Module) -> None:
    """Put the merged dense layers back, in place; nothing happens where there is no LoRA."""
    for parent, name, lora in _loras(module):
        setattr(parent, name, lora.merged())


@contextmanager
def merged(module: nn.Module) -> Iterator[None]:
    """Inside the block the module is a plain one, its LoRA merged into copies; after it, it is as before."""
    found = _loras(module)
    try:
        for parent, name, lora in found:
            setattr(parent, name, copy.deepcopy(lora).merged())
        yield
    finally:
        for parent, name, lora in found:
            setattr(parent, name, lora)


def _loras(module: nn.Module) -> list[tuple[nn.Module, str, Lora]]:
    """(parent, name, LoRA) of all inside a module."""
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, Lora)
    ]


def _is_dense(module: nn.Module) -> bool:
    # bitsandbytes' layers are subclasses of nn.Linear; Conv1D is transformers' turned Linear
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _turned(module: nn.Module) -> bool:
    """Whether the weights stand as [in, out]."""
    return not isinstance(module, nn.Linear)


def _shape(module: Any) -> tuple[int, int]:
    """(in, out) of a dense layer."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    inputs, outputs = module.weight.shape
    return int(inputs), int(outputs)
