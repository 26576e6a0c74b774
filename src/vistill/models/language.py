"""A GPT-2-style decoder with cross-attention, of any size.

The same network as `transformers` GPT2LMHeadModel with `add_cross_attention=True` (a test loads one's weights
and compares), laid out for captioning: the C captions or beams of one picture share its cross-attention keys
and values, which are computed once and never copied, and padding, half of a batch of Flickr8k's captions, is
left out of everything but attention.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistill.errors import ConfigError
from vistill.models.tokens import PAD

KeyValue = tuple[Tensor, Tensor]

NEVER = -1e9  # and not -inf: rows of padding see nothing at all, and must not become nan


@dataclass(frozen=True)
class DecoderConfig:
    """Size of the decoder. DistilGPT-2 is width 768, 6 layers, 12 heads, vocabulary 50257, context 1024."""

    vocab_size: int = 0
    """Entries of the vocabulary; 0 takes the tokenizer's size."""
    width: int = 320
    """Width of the residual stream."""
    layers: int = 3
    """Decoder layers."""
    heads: int = 5
    """Attention heads of each layer."""
    context: int = 40
    """Longest text in tokens, with the begin and end marks."""
    dropout: float = 0.1
    """Dropout on embeddings and on every residual branch."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(
                f"model.decoder.width={self.width} is not a multiple of model.decoder.heads={self.heads}"
            )
        if min(self.width, self.layers, self.heads) < 1 or self.context < 2:
            raise ConfigError("model.decoder: width, layers and heads must be at least 1, context at least 2")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.decoder.dropout={self.dropout}: must be in [0, 1)")


class Decoder(nn.Module):
    """Token ids and a picture's memory to next-token logits; the output projection is the embedding table."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.new_rows = 0  # at the end of the table, if it was enlarged for new words and is to learn them
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        layers = [DecoderLayer(config) for _ in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.width)
        self.apply(_init_gpt2)
        for layer in layers:  # residual branches start smaller, as in GPT-2
            for out in (layer.attention.out, layer.cross.out, layer.feed.out):
                nn.init.normal_(out.weight, std=0.02 / math.sqrt(3 * config.layers))

    @property
    def cross_attention(self) -> list[nn.Module]:
        """What reads the picture, with the norms before it."""
        layers = [cast(DecoderLayer, layer) for layer in self.layers]
        return [module for layer in layers for module in (layer.norm_cross, layer.cross)]

    def cross_kv(self, memory: Tensor) -> list[KeyValue]:
        """memory [B, N, D] -> for each layer (key [B, h, d, N], value [B, h, N, d])."""
        return [cast(DecoderLayer, layer).cross.kv(memory) for layer in self.layers]

    def forward(self, tokens: Tensor, cross: list[KeyValue]) -> Tensor:
        """Teacher forcing: tokens [B, C, T] -> logits [B, C, T, V].

        Padding stands on the right; its logits are 0.
        """
        held = Held(tokens != PAD)
        positions = torch.arange(tokens.shape[-1], device=tokens.device).expand_as(tokens)
        x = self.dropout(self.embed(held.pick(tokens)) + self.position(held.pick(positions)))  # [M, D]
        for layer, kv in zip(self.layers, cross, strict=True):
            x, _ = layer(x, kv, None, held=held)
        return held.spread(F.linear(self.norm(x), self.embed.weight))

    def step(
        self, tokens: Tensor, cross: list[KeyValue], past: list[KeyValue], offset: Tensor | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """One position: tokens [B, C] and past (key, value) [B, C, h, T, d] -> logits [B, C, V], new past.

        offset: int64 [B], how many of the past positions are padding on the left, as `prefill` had it.
        """
        length = past[0][0].shape[3]
        position, mask = torch.full_like(tokens, length), None
        if offset is not None:
            position = position - offset.unsqueeze(1)
            mask = _unseen(offset, length + 1)
        x = (self.embed(tokens) + self.position(position)).unsqueeze(2)  # [B, C, 1, D]
        present = []
        for layer, kv, before in zip(self.layers, cross, past, strict=True):
            x, now = layer(x, kv, before, mask)
            present.append(now)
        return F.linear(self.norm(x.squeeze(2)), self.embed.weight), present

    def prefill(self, tokens: Tensor, cross: list[KeyValue], offset: Tensor) -> list[KeyValue]:
        """The past after the first T tokens of a text: tokens [B, T] -> (key, value) [B, 1, h, T, d].

        Each row begins with offset [B] tokens of padding, which no later step attends to.
        """
        length = tokens.shape[1]
        place = torch.arange(length, device=tokens.device)
        position = (place - offset.unsqueeze(1)).clamp_min(0)  # [B, T]
        later = (place > place.unsqueeze(1)).to(self.embed.weight.dtype) * NEVER  # [T, T]
        mask = later + _unseen(offset, length)  # [B, 1, 1, T, T]
        x = (self.embed(tokens) + self.position(position)).unsqueeze(1)  # [B, 1, T, D]
        past = []
        for layer, kv in zip(self.layers, cross, strict=True):
            x, now = layer(x, kv, None, mask)
            past.append(now)
        return past

    def empty_past(self, batch: int, captions: int = 1) -> list[KeyValue]:
        """The past before the first step: tensors of length T = 0."""
        heads, size = self.config.heads, self.config.width // self.config.heads
        empty = self.embed.weight.new_zeros(batch, captions, heads, 0, size)
        return [(empty, empty) for _ in self.layers]


class Held:
    """The M places of a batch of captions that hold a token: bool mask [B, C, T]."""

    def __init__(self, mask: Tensor) -> None:
        self.shape = mask.shape
        self.rows = mask.flatten().nonzero().squeeze(1)

    def pick(self, x: Tensor) -> Tensor:
        """[B, C, T, ...] -> [M, ...]."""
        return x.flatten(0, 2)[self.rows]

    def spread(self, x: Tensor) -> Tensor:
        """[M, D] -> [B, C, T, D], with 0 in the other places."""
        whole = x.new_zeros(self.shape.numel(), x.shape[-1]).index_copy(0, self.rows, x)
        return whole.view(*self.shape, -1)


class DecoderLayer(nn.Module):
    """Pre-norm causal self-attention, cross-attention and feed-forward.

    x [B, C, T, D], or only the places that are held, [M, D].
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.heads)
        self.norm_cross = nn.LayerNorm(config.width)
        self.cross = CrossAttention(config.width, config.heads)
        self.norm_2 = nn.LayerNorm(config.width)
        self.feed = FeedForward(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        cross: KeyValue,
        past: KeyValue | None,
        mask: Tensor | None = None,
        held: Held | None = None,
    ) -> tuple[Tensor, KeyValue]:
        mixed, present = self.attention(self.norm_1(x), past, mask, held)
        x = x + self.dropout(mixed)
        x = x + self.dropout(self.cross(self.norm_cross(x), cross, held))
        return x + self.dropout(self.feed(self.norm_2(x))), present


class SelfAttention(nn.Module):
    """Causal attention of each caption over its own tokens; x [B, C, T, D], or [M, D] of the held places.

    mask [B, 1, 1, 1 or T, keys], if given, is added to the scores; without a past it has to be causal itself.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, past: KeyValue | None, mask: Tensor | None = None, held: Held | None = None
    ) -> tuple[Tensor, KeyValue]:
        qkv = held.spread(self.qkv(x)) if held else self.qkv(x)
        (b, c, t), d = qkv.shape[:3], x.shape[-1]
        q, k, v = qkv.view(b, c, t, 3, self.heads, d // self.heads).permute(3, 0, 1, 4, 2, 5)
        if past is not None:  # one new position, which may see everything before it
            k, v = torch.cat((past[0], k), dim=3), torch.cat((past[1], v), dim=3)
        implied = past is None and mask is None
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=implied)
        mixed = mixed.transpose(2, 3).reshape(b, c, t, d)
        return self.out(held.pick(mixed) if held else mixed), (k, v)


class CrossAttention(nn.Module):
    """Attention of every token of every caption over the picture's N patches; x as in `SelfAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def kv(self, memory: Tensor) -> KeyValue:
        b, n, d = memory.shape
        k, v = self.key_value(memory).view(b, n, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return k.transpose(2, 3), v

    def forward(self, x: Tensor, cross: KeyValue, held: Held | None = None) -> Tensor:
        key, value = cross
        q = held.spread(self.q(x)) if held else self.q(x)
        b, c, t, d = q.shape
        q = q.view(b, c * t, self.heads, d // self.heads).transpose(1, 2)  # [B, h, C*T, d]
        weights = torch.softmax(q @ key / math.sqrt(d // self.heads), dim=-1)  # [B, h, C*T, N]
        mixed = (weights @ value).transpose(1, 2).reshape(b, c, t, d)
        out: Tensor = self.out(held.pick(mixed) if held else mixed)
        return out


class FeedForward(nn.Module):
    """GPT-2's: four times the width, tanh GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.gelu(self.into(x), approximate="tanh"))
        return out


def _unseen(offset: Tensor, keys: int) -> Tensor:
    """offset [B] -> float [B, 1, 1, 1, keys], to be added to scores: padding on the left is never seen."""
    filled = torch.arange(keys, device=offset.device) < offset.unsqueeze(1)
    return (filled * NEVER)[:, None, None, None]


def _init_gpt2(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def from_gpt2_state(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Weights of a `transformers` GPT2LMHeadModel with cross-attention, under the names of `Decoder`.

    `state` is its `state_dict()`; GPT-2 keeps linear weights transposed (Conv1D). Raises KeyError.
    """
    out = {
        "embed.weight": state["transformer.wte.weight"],
        "position.weight": state["transformer.wpe.weight"],
        "norm.weight": state["transformer.ln_f.weight"],
        "norm.bias": state["transformer.ln_f.bias"],
    }
    norms = {"norm_1": "ln_1", "norm_cross": "ln_cross_attn", "norm_2": "ln_2"}
    linears = {
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "cross.q": "crossattention.q_attn",
        "cross.key_value": "crossattention.c_attn",
        "cross.out": "crossattention.c_proj",
        "feed.into": "mlp.c_fc",
        "feed.out": "mlp.c_proj",
    }
    for i in range(layers):
        for ours, theirs in norms.items():
            for part in ("weight", "bias"):
                out[f"layers.{i}.{ours}.{part}"] = state[f"transformer.h.{i}.{theirs}.{part}"]
        for ours, theirs in linears.items():
            out[f"layers.{i}.{ours}.weight"] = state[f"transformer.h.{i}.{theirs}.weight"].T.contiguous()
            out[f"layers.{i}.{ours}.bias"] = state[f"transformer.h.{i}.{theirs}.bias"]
    return out
