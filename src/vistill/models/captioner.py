"""The captioner: vision tower + mapper + decoder with cross-attention."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vistill.models.language import Decoder, DecoderConfig, KeyValue
from vistill.models.mapper import Mapper, MapperConfig
from vistill.models.tokens import NEVER_GENERATED
from vistill.models.vision import VisionConfig, VisionTower


@dataclass(frozen=True)
class CaptionerConfig:
    """The three parts of a captioner."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    mapper: MapperConfig = field(default_factory=MapperConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


class Captioner(nn.Module):
    """Pictures to captions. `start` counts the stages of the tower that the input has been through."""

    def __init__(self, config: CaptionerConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        self.tower = VisionTower(config.vision, pretrained=pretrained)
        size = config.vision.image_size
        with torch.no_grad():
            patches = self.tower.eval()(torch.zeros(1, 3, size, size)).shape[1]
        self.tower.train()
        width, heads = config.decoder.width, config.decoder.heads
        self.mapper = Mapper(config.mapper, self.tower.width, width, heads, patches)
        self.decoder = Decoder(config.decoder)
        self.word_bias = nn.Parameter(torch.full((config.decoder.vocab_size,), -5.0))  # of the bag of words

    def vision(self, pixels: Tensor, start: int = 0) -> Tensor:
        """pixels [B, 3, H, W] (or the output of `tower.trunk(pixels, start)`) -> memory [B, N, D]."""
        memory: Tensor = self.mapper(self.tower(pixels, start))
        return memory

    def forward(self, pixels: Tensor, tokens: Tensor, start: int = 0) -> Tensor:
        """pixels as for `vision`, tokens [B, C, T] -> logits [B, C, T, V] of the token after each."""
        logits: Tensor = self.decoder(tokens, self.decoder.cross_kv(self.vision(pixels, start)))
        return logits

    def step(
        self, tokens: Tensor, cross: list[KeyValue], past: list[KeyValue], offset: Tensor | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """One decoding step, `Decoder.step` with the tokens masked that a caption never holds."""
        logits, present = self.decoder.step(tokens, cross, past, offset)
        forbidden = torch.zeros(logits.shape[-1], device=logits.device)
        forbidden[list(NEVER_GENERATED)] = -1e9
        return logits + forbidden, present


class Steps(Protocol):
    """What a stepper needs of a captioner of any kind."""

    decoder: Any

    def step(
        self, tokens: Tensor, cross: list[KeyValue], past: list[KeyValue]
    ) -> tuple[Tensor, list[KeyValue]]:
        """One decoding step, as `Captioner.step`."""
        ...


class TorchStepper:
    """`vistill.runtime.decode.Stepper` over a captioner in torch; holds the caches of B pictures x C rows."""

    def __init__(self, model: Steps, memory: Tensor) -> None:
        self.model = model
        self.cross = model.decoder.cross_kv(memory)
        self.past = model.decoder.empty_past(memory.shape[0])

    @torch.inference_mode()
    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """tokens [B, C] -> logits [B, C, V] of the next position."""
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.cross[0][0].device)
        logits, self.past = self.model.step(ids, self.cross, self.past)
        out: NDArray[np.float32] = logits.float().cpu().numpy()
        return out

    @torch.inference_mode()
    def reorder(self, rows: NDArray[np.int64]) -> None:
        """New row (b, c) continues old row (b, rows[b, c]); rows [B, C2]."""
        index = torch.from_numpy(np.ascontiguousarray(rows)).to(self.cross[0][0].device)
        batch = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
        self.past = [(key[batch, index], value[batch, index]) for key, value in self.past]


def parameter_count(modules: Iterable[nn.Module]) -> int:
    """Parameters of some modules, shared ones counted once."""
    return sum(p.numel() for p in {id(p): p for m in modules for p in m.parameters()}.values())
