"""Tiny answerers as checkpoints; random weights, so that their answers differ."""

from pathlib import Path

import torch
from tests.tiny import tiny_config

from vistill.data.asked import answer_tokenizer
from vistill.data.text import TokenizerConfig
from vistill.models.answerer import AnyAnswerer
from vistill.models.captioner import Captioner
from vistill.models.loading import save_answerer
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig, PrefixMapperConfig
from vistill.models.vision import VisionConfig

QUESTIONS = ("What color is the circle?", "is it on the left", "where is it", "what is there?", "left")
WORDS = "red green blue white circle square left right yes no book , scissor"


def save_tiny_answerer(folder: Path, *, prefix: bool = False) -> Path:
    """A checkpoint folder, of a prefix captioner's kind if `prefix`; the same weights on every call."""
    tokenizer = answer_tokenizer([*QUESTIONS, WORDS], TokenizerConfig(min_count=1))
    torch.manual_seed(11)
    size = tokenizer.get_vocab_size()
    model: AnyAnswerer = _prefix(size) if prefix else Captioner(tiny_config(vocab=size)).eval()
    for name, parameter in model.decoder.named_parameters():
        if "norm" not in name and ".ln_" not in name:
            # layers that outweigh the tokens themselves, or one word is said for ever
            torch.nn.init.normal_(parameter, std=0.3 if "embed" in name or "wte" in name else 1.0)
    provenance = {"config": {"name": "tiny", "generation": {"max_new_tokens": 4, "num_beams": 1}}}
    save_answerer(folder, model, tokenizer, provenance)
    return folder


def _prefix(size: int) -> PrefixCaptioner:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    vision = VisionConfig(name="test_efficientnet", image_size=64)
    language = LanguageConfig(settings=sizes, vocab_size=size, context=12)
    model = PrefixCaptioner(PrefixConfig(vision, PrefixMapperConfig(dropout=0.0), language)).eval()
    torch.nn.init.normal_(model.mapper.project.weight, std=100.0)  # features of this tower are about 0.004
    return model
