"""Public captioners as bundles: the graphs of any captioner, the captions of `transformers` without it."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import onnx
import torch
from onnx import numpy_helper
from tests.models.tiny_pretrained import save_public
from tests.tiny import build_data

from vistill.data.dataset import open_split
from vistill.export.common import ExportConfig
from vistill.export.onnx import export_decoder, export_vision
from vistill.export.parity import logit_error, onnx_start, torch_start
from vistill.export.run import export_checkpoint
from vistill.models.loading import load_model
from vistill.models.tokens import BOS, EOS
from vistill.runtime.decode import GenerationConfig, generate
from vistill.runtime.image import preprocess
from vistill.runtime.pipelines import Captioner
from vistill.runtime.sessions import VisionSession


@pytest.mark.parametrize("kind", ["vit-gpt2", "blip", "swin+roberta"])
def test_graphs_equal_torch_at_every_position(kind: str, tmp_path: Path) -> None:
    model, _, _ = load_model(save_public(tmp_path / "public", kind))
    vision, decoder = tmp_path / "vision.onnx", tmp_path / "decoder.onnx"
    export_vision(model, vision)
    export_decoder(model, decoder)
    size = model.config.decoder
    start = onnx_start(vision, decoder, threads=1)
    for count in (1, 3):
        pixels = torch.randn(count, 3, 32, 32).numpy()
        assert logit_error(start, torch_start(model), pixels, size.vocab_size, size.context) < 1e-3
    blind = lambda pixels: start(np.zeros_like(pixels))  # noqa: E731
    assert logit_error(blind, torch_start(model), pixels, size.vocab_size, size.context) > 0.1
    cross = VisionSession(vision.read_bytes(), threads=1).run(pixels)
    assert cross["cross_key.1"].shape() == [3, 2, 12, model.mapper.length]
    assert cross["cross_value.1"].shape() == [3, 2, model.mapper.length, 12]
    held = {numpy_helper.to_array(i).tobytes() for i in onnx.load(vision).graph.initializer}
    reads = {id(p) for module in model.decoder.cross_attention for p in module.parameters()}
    for layer in model.decoder.layers:
        for p in layer.parameters():
            if p.dim() == 2 and id(p) not in reads:
                weight = p.detach().numpy()
                assert not {weight.tobytes(), weight.T.tobytes()} & held, "a weight of the text's layers"


@pytest.mark.parametrize("kind", ["vit-gpt2", "blip"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_bundle_captions_as_the_public_model(kind: str, precision: str, tmp_path: Path) -> None:
    data = build_data(tmp_path)
    public = save_public(tmp_path / "public", kind)
    config = ExportConfig(
        precision,
        data,
        calibration_pictures=8,
        min_agreement=0.5 if precision == "int8" else 1.0,
        max_cider_drop=1000,
        threads=1,
        num_beams=2,
    )
    manifest = export_checkpoint(public, tmp_path / "bundle", config)
    assert (manifest.name, manifest.precision, manifest.context) == ("public", precision, 24)
    rows = open_split(data, "dev")
    written = Captioner(tmp_path / "bundle", threads=1, max_new_tokens=8)(list(rows["image"]))
    assert len(set(written)) > 1, "pictures must matter"
    if precision == "int8":
        assert sum(f.bytes for f in manifest.files.values()) > 0
        return
    model, tokenizer, spec = load_model(public)
    pixels = np.stack([preprocess(image, spec) for image in rows["image"]])
    search = GenerationConfig(num_beams=2, max_new_tokens=8)
    found = generate(torch_start(model)(pixels), len(rows), bos=BOS, eos=EOS, config=search)
    assert written == [tokenizer.decode(list(hypotheses[0].tokens)) for hypotheses in found]
