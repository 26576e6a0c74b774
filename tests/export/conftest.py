"""A tiny checkpoint with its data and its exported graphs, made once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import numpy as np
import torch
from tests.tiny import build_data, tiny_captioner
from tokenizers import Tokenizer

from vistill.data.dataset import open_split
from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.export.onnx import export_decoder, export_vision
from vistill.models.captioner import Captioner
from vistill.models.checkpoint import load_captioner, save_captioner
from vistill.runtime.image import Preprocess, preprocess

PROVENANCE = {
    "config": {
        "name": "tiny-run",
        "datamodule": {"path": "/somewhere/private/shapes", "batch_size": 4},
        "generation": {"max_new_tokens": 8, "num_beams": 2, "no_repeat_ngram": 1},
    },
    "git": "0123456789ab",
}


@dataclass(frozen=True)
class Exported:
    """A checkpoint and what was made of it."""

    checkpoint: Path
    data: Path
    model: Captioner
    tokenizer: Tokenizer
    preprocess: Preprocess
    vision: Path
    decoder: Path

    def pixels(self, count: int, split: str = "train") -> np.ndarray:
        rows = open_split(self.data, split).select(range(count))
        return np.stack([preprocess(image, self.preprocess) for image in rows["image"]])


def sharpen(model: Captioner) -> Captioner:
    """Make random weights decide: an untrained model's logits are all but equal, which no export keeps."""
    with torch.no_grad():
        for parameter in [*model.decoder.parameters(), *model.mapper.layers.parameters()]:
            parameter.mul_(8 if parameter.dim() > 1 else 1)
        for layer in model.decoder.layers:
            layer.cross.out.weight.mul_(8)  # what the picture says must count
        for module in model.tower.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.8, 1.6)
                module.bias.uniform_(-0.5, 1.0)
    return model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The tiny captioner, saved, loaded, and exported to fp32 graphs."""
    folder = tmp_path_factory.mktemp("export")
    data = build_data(folder)
    texts = [text for captions in open_split(data, "train")["captions"] for text in captions]
    tokenizer = train_tokenizer(texts, TokenizerConfig(min_count=1))
    torch.manual_seed(0)
    model = sharpen(tiny_captioner(vocab=tokenizer.get_vocab_size()))
    save_captioner(folder / "checkpoint", model, tokenizer, PROVENANCE)
    model, tokenizer, _, spec = load_captioner(folder / "checkpoint")
    vision, decoder = folder / "vision.onnx", folder / "decoder.onnx"
    export_vision(model, vision)
    export_decoder(model, decoder)
    return Exported(folder / "checkpoint", data, model, tokenizer, spec, vision, decoder)
