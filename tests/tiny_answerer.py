"""A tiny answerer as a checkpoint and a bundle; random weights, so that its answers differ."""

from pathlib import Path

import torch
from tests.tiny import tiny_config

from vistill.data.asked import answer_tokenizer
from vistill.data.text import TokenizerConfig
from vistill.models.captioner import Captioner
from vistill.models.checkpoint import save_answerer

QUESTIONS = ("What color is the circle?", "is it on the left", "where is it", "what is there?", "left")
WORDS = "red green blue white circle square left right yes no book , scissor"


def save_tiny_answerer(folder: Path) -> Path:
    """A checkpoint folder; the same weights on every call."""
    tokenizer = answer_tokenizer([*QUESTIONS, WORDS], TokenizerConfig(min_count=1))
    torch.manual_seed(11)
    model = Captioner(tiny_config(vocab=tokenizer.get_vocab_size())).eval()
    for name, parameter in model.decoder.named_parameters():
        if "norm" not in name:  # layers that outweigh the tokens themselves, or one word is said for ever
            torch.nn.init.normal_(parameter, std=0.3 if "embed" in name else 1.0)
    provenance = {"config": {"name": "tiny", "generation": {"max_new_tokens": 4, "num_beams": 1}}}
    save_answerer(folder, model, tokenizer, provenance)
    return folder
