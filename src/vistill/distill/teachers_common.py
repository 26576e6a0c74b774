"""What teachers of every kind share: search settings, seeds, the top K of logits, hashes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from vistill.data.text import pad
from vistill.distill.answers import Ask, Text
from vistill.errors import ConfigError
from vistill.runtime.decode import GenerationConfig

MOST_LOGITS = 2**26
"""Logits that a teacher holds at once while it takes their top K; 256 MB in float32."""


def search_for(ask: Ask) -> GenerationConfig:
    """`ask.generation` for `ask.captions` captions; a beam search gets at least that many beams."""
    config, count = ask.generation, max(1, ask.captions)
    return replace(config, num_return=count, num_beams=max(config.num_beams, count))


def picture_seed(seed: int, image: Image.Image) -> int:
    """A seed of 63 bits from (seed, pixels): what is sampled for a picture depends on no other picture."""
    digest = hashlib.sha256(f"{seed} {image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of ids -> int64 [R, T], filled on the right to the longest."""
    return torch.tensor(pad(rows, fill), dtype=torch.int64)


def top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K likeliest of logits [..., V]: ids int64 and log-probabilities float32 [..., K] on the CPU.

    Computed in float32: the logarithm of the sum is subtracted from K logits only, which saves a copy of all.
    """
    logits = logits.float()
    values, ids = logits.topk(k, dim=-1)
    return ids.cpu(), (values - logits.logsumexp(-1, keepdim=True)).cpu()


def check_top_k(ask: Ask, vocab_size: int) -> None:
    """ConfigError if more tokens are asked for than there are."""
    if ask.top_k > vocab_size:
        raise ConfigError(f"ask.top_k={ask.top_k}: the teacher's vocabulary has {vocab_size} entries")


def check_length(ask: Ask, positions: int) -> None:
    """ConfigError if captions may become longer than the decoder can count."""
    longest = ask.generation.max_new_tokens
    if longest > positions:
        raise ConfigError(f"generation.max_new_tokens={longest}: the teacher can write at most {positions}")


def array(values: Tensor) -> NDArray[np.float32]:
    """A tensor as a float32 array of its own."""
    out: NDArray[np.float32] = values.float().cpu().numpy().copy()
    return out


def as_text(ids: Sequence[int], top: tuple[Tensor, Tensor] | None = None) -> Text:
    """A Text of ids [T]; `top` holds ids and log-probabilities [>= T - 1, K], of which T - 1 are copied."""
    array = np.array(ids, np.int64)
    if top is None:
        return Text(array)
    steps = len(ids) - 1
    return Text(array, top[0][:steps].numpy().copy(), top[1][:steps].numpy().copy())


def settings_hash(settings: Mapping[str, Any]) -> str:
    """sha256 (hex) of the canonical JSON of settings."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """sha256 (hex) of what a tokenizer does: its serialized form without padding and truncation.

    Those two are left by whoever called it last and are no part of what it is.
    """
    settings = json.loads(tokenizer.to_str())
    return settings_hash({k: v for k, v in settings.items() if k not in ("padding", "truncation")})
