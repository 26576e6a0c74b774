"""The mapper: from the vision tower's patch features to the memory that the language model reads."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistill.errors import ConfigError


@dataclass(frozen=True)
class MapperConfig:
    """Size of the mapper; its width and heads are the language model's."""

    layers: int = 1
    """Transformer encoder layers over the patches; 0 keeps the projection alone."""
    dropout: float = 0.1
    """Dropout on features, attention output and feed-forward output."""

    def __post_init__(self) -> None:
        if self.layers < 0:
            raise ConfigError(f"model.mapper.layers={self.layers}: must not be negative")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.mapper.dropout={self.dropout}: must be in [0, 1)")


class Mapper(nn.Module):
    """Projection, learned position of each patch, and pre-norm encoder layers: [B, N, D_in] -> [B, N, D]."""

    def __init__(self, config: MapperConfig, in_width: int, width: int, heads: int, patches: int) -> None:
        super().__init__()
        self.length = patches
        self.width = width
        self.project = nn.Linear(in_width, width)
        self.position = nn.Parameter(torch.randn(patches, width) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        x = self.project(self.dropout(features)) + self.position
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x)
        return out


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward over patches or tokens, [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, N, D]; mask bool, broadcast to [B, h, N, N], True where a place may look."""
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm_1(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(b, n, d)
        x = x + self.dropout(self.out(mixed))
        out: Tensor = x + self.dropout(self.feed(self.norm_2(x)))
        return out
