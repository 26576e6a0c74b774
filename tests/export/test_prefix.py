"""Prefix captioners as bundles: the graphs of any captioner, and the same captions as in torch."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import onnx
import torch
from tests.models.test_prefix import SETTINGS
from tests.tiny import build_data

from vistill.data.dataset import open_split
from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.export.common import ExportConfig
from vistill.export.onnx import export_decoder, export_vision
from vistill.export.parity import logit_error, onnx_start, torch_start
from vistill.export.run import export_checkpoint
from vistill.models.loading import load_model, save_model
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig
from vistill.models.tokens import BOS, EOS
from vistill.models.vision import VisionConfig
from vistill.runtime.decode import GenerationConfig, generate
from vistill.runtime.image import preprocess
from vistill.runtime.pipelines import Captioner
from vistill.runtime.sessions import VisionSession


def captioner(kind: str = "gpt2", vocab: int = 24, blocked: tuple[int, ...] = ()) -> PrefixCaptioner:
    """Random weights that are large enough to decide."""
    torch.manual_seed(0)
    language = LanguageConfig(kind, {**SETTINGS[kind], "tie_word_embeddings": False}, vocab, 20, blocked)
    config = PrefixConfig(VisionConfig(name="test_efficientnet", image_size=64), decoder=language)
    model = PrefixCaptioner(config).eval()
    for parameter in model.decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.mapper.project.weight, std=100.0)  # the tower's features are about 0.004
    return model


@pytest.mark.parametrize("kind", SETTINGS)
def test_graphs_equal_torch_at_every_position(kind: str, tmp_path: Path) -> None:
    model = captioner(kind, blocked=(7, 9))
    vision, decoder = tmp_path / "vision.onnx", tmp_path / "decoder.onnx"
    export_vision(model, vision)
    export_decoder(model, decoder)
    assert model.decoder.language.config._attn_implementation == "sdpa", "put back as it was"
    start = onnx_start(vision, decoder, threads=1)
    for count in (1, 3):
        pixels = torch.randn(count, 3, 64, 64).numpy()
        assert logit_error(start, torch_start(model), pixels, 24, steps=20) < 1e-3
    blind = lambda pixels: start(np.zeros_like(pixels))  # noqa: E731
    assert logit_error(blind, torch_start(model), pixels, 24, steps=20) > 0.1
    cross = VisionSession(vision.read_bytes(), threads=1).run(pixels)
    past = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in onnx.load(decoder).graph.input}  # fmt: skip
    heads, width = past["past_key.0"][2], past["past_key.0"][4]
    assert past["past_key.0"] == ["B", "C", heads, "T", width]
    assert cross["cross_key.1"].shape() == [3, heads, width, 4]
    assert cross["cross_value.1"].shape() == [3, heads, 4, width]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_captions_as_its_checkpoint(precision: str, tmp_path: Path) -> None:
    data = build_data(tmp_path)
    texts = [text for captions in open_split(data, "train")["captions"] for text in captions]
    tokenizer = train_tokenizer(texts, TokenizerConfig(min_count=1))
    model = captioner(vocab=tokenizer.get_vocab_size(), blocked=(5,))
    save_model(tmp_path / "checkpoint", model, tokenizer, {"config": {"name": "prefix-run"}})
    search = GenerationConfig(num_beams=2, max_new_tokens=8)
    config = ExportConfig(
        precision,
        data,
        calibration_pictures=8,
        min_agreement=0.5 if precision == "int8" else 1.0,
        max_cider_drop=1000,
        threads=1,
        num_beams=2,
    )
    checkpoint = tmp_path / "checkpoint"
    config_file = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(
        config_file.replace(
            '"name": "prefix-run"', '"name": "prefix-run", "generation": {"max_new_tokens": 8}'
        )
    )
    manifest = export_checkpoint(checkpoint, tmp_path / "bundle", config)
    assert (manifest.name, manifest.precision) == ("prefix-run", precision)
    rows = open_split(data, "dev")
    written = Captioner(tmp_path / "bundle", threads=1)(list(rows["image"]))
    if precision == "int8":
        assert all(written)
        return
    again, _, spec = load_model(checkpoint)
    pixels = np.stack([preprocess(image, spec) for image in rows["image"]])
    found = generate(torch_start(again)(pixels), len(rows), bos=BOS, eos=EOS, config=search)
    assert written == [tokenizer.decode(list(hypotheses[0].tokens)) for hypotheses in found]
    assert len(set(written)) > 1, "pictures must matter"
