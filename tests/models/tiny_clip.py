"""A tiny CLIP of a few thousand parameters with a byte-level tokenizer, and its folder."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from vistill.models.clip import ClipConfig, ClipDual, save_clip
from vistill.models.clip_bpe import tokenizer_of_merges

MERGES = [("d", "o"), ("do", "g</w>"), ("r", "u"), ("ru", "n"), ("run", "s</w>"), ("c", "a"), ("ca", "t</w>")]
TEXTS = ["a dog runs", "A cat!", "", "two cats and a dog, far away"]


def tiny_tokenizer() -> Tokenizer:
    """512 bytes, seven merges, two marks."""
    return tokenizer_of_merges(MERGES)


def tiny_clip(seed: int = 0, **settings: Any) -> ClipDual:
    """Random weights that are large enough for words and patches to count."""
    sizes: dict[str, Any] = {
        "image_size": 32, "patch": 8, "image_width": 24, "image_layers": 2, "image_heads": 4,
        "context": 32, "vocab_size": tiny_tokenizer().get_vocab_size(), "text_width": 16, "text_layers": 2,
        "text_heads": 2, "width": 12,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = ClipDual(ClipConfig(**sizes | settings)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def save_tiny_clip(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """The folder of `tiny_clip`."""
    save_clip(folder, tiny_clip(seed, **settings), tiny_tokenizer(), {"note": "tiny"})
    return folder
