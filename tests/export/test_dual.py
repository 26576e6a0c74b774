"""A dual encoder exported: the embedder says what the checkpoint says, or nothing is written."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import torch
from onnx import numpy_helper
from tests.tiny import build_data

from vistill.data.dataset import open_split
from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.errors import BundleError
from vistill.export import common
from vistill.export import dual as exporting
from vistill.export.common import ExportConfig
from vistill.export.dual import export_dual, is_dual
from vistill.export.onnx import export_image, export_text
from vistill.export.run import export_checkpoint
from vistill.metrics.retrieval import retrieval_scores
from vistill.models.clip import ClipConfig, ClipDual, save_clip
from vistill.models.clip_bpe import tokenizer_of_merges
from vistill.models.dual import DualConfig, DualEncoder, TextConfig, load_dual, save_dual
from vistill.models.vision import VisionConfig
from vistill.runtime.bundle import validate
from vistill.runtime.embedder import Embedder
from vistill.runtime.image import preprocess
from vistill.runtime.texts import encode_texts


@dataclass(frozen=True)
class Exported:
    """A checkpoint, data for it, and its graphs in fp32."""

    checkpoint: Path
    data: Path
    image: Path
    text: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("dual")
    data = build_data(folder)
    captions = [text for texts in open_split(data, "train")["captions"] for text in texts]
    tokenizer = train_tokenizer(captions, TokenizerConfig(min_count=1))
    torch.manual_seed(0)
    config = DualConfig(
        vision=VisionConfig(name="test_efficientnet", image_size=64),
        text=TextConfig(
            vocab_size=tokenizer.get_vocab_size(), context=12, width=16, layers=2, heads=2, repeat=2
        ),
        width=24,
    )
    model = DualEncoder(config).eval()
    provenance = {"config": {"name": "tiny-dual", "data": "/somewhere/private/shapes"}, "git": "0123456789ab"}
    save_dual(folder / "checkpoint", model, tokenizer, provenance)
    export_image(model, (64, 64), folder / "image.onnx")
    export_text(model, torch.from_numpy(encode_texts(tokenizer, captions[:3], 12)), folder / "text.onnx")
    return Exported(folder / "checkpoint", data, folder / "image.onnx", folder / "text.onnx")


@pytest.fixture
def ready_graphs(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter takes long: hand out the graphs that it made once."""
    copy = shutil.copyfile
    monkeypatch.setattr(exporting, "export_image", lambda model, size, path: copy(exported.image, path))
    monkeypatch.setattr(exporting, "export_text", lambda model, tokens, path: copy(exported.text, path))


@pytest.mark.usefixtures("ready_graphs")
def test_an_embedder_embeds_as_its_checkpoint(exported: Exported, tmp_path: Path) -> None:
    stages = []
    manifest = export_dual(
        exported.checkpoint,
        tmp_path / "bundle",
        ExportConfig(data=exported.data, check_pictures=5, threads=1),
        licence="CC0-1.0",
        report=lambda stage, done, total: stages.append((stage, done, total)),
    )
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert validate(tmp_path / "bundle").manifest == manifest
    assert stages[-1] == ("check", 5, 5)
    model, tokenizer, spec = load_dual(exported.checkpoint)
    rows = open_split(exported.data, "dev")
    texts = ["a red circle", "", "square " * 40, *rows["captions"][0]]
    embedder = Embedder(tmp_path / "bundle", threads=1, batch_size=3)
    pixels = torch.from_numpy(np.stack([preprocess(image, spec) for image in rows["image"]]))
    with torch.inference_mode():
        images = model.encode_image(pixels).numpy()
        alone = [model.encode_text(torch.from_numpy(encode_texts(tokenizer, [t], 12))).numpy() for t in texts]
    np.testing.assert_allclose(embedder.images(rows["image"]), images, atol=1e-4)
    np.testing.assert_allclose(embedder.texts(texts), np.concatenate(alone), atol=1e-4)
    assert embedder.manifest.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)
    found = manifest.scores["export"]
    assert (found["pictures"], found["texts"]) == (5, 10)
    assert found["image_cosine"] == found["text_cosine_least"] == 1.0
    chosen = rows.select(range(5))
    captions = [text for one in chosen["captions"] for text in one]
    scores = retrieval_scores(embedder.images(chosen["image"]), embedder.texts(captions), np.arange(10) // 2)
    assert found["r10_bundle"] == pytest.approx(100 * scores.mean_r10, abs=1e-3)


@pytest.mark.usefixtures("ready_graphs")
def test_the_manifest_and_the_card_tell_where_it_comes_from(exported: Exported, tmp_path: Path) -> None:
    export_checkpoint(exported.checkpoint, tmp_path / "bundle", ExportConfig(threads=1), licence="CC0-1.0")
    text = (tmp_path / "bundle" / "manifest.json").read_text()
    raw = json.loads(text)
    assert (raw["kind"], raw["name"], raw["width"], raw["context"]) == ("embedder", "tiny-dual", 24, 12)
    assert "generation" not in raw
    assert raw["special_tokens"] == {"bos": 1, "eos": 2, "pad": 0, "unk": 3}
    assert raw["provenance"]["git"] == "0123456789ab"
    assert "private" not in text
    assert len(raw["provenance"]["export"]["weights"]) == 64
    assert "r10_bundle" not in raw["scores"]["export"]  # there were no captions to measure it with
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert 'pipeline_tag: "zero-shot-image-classification"\n' in card
    assert "from vistill import Embedder" in card
    assert "| embedding | 24 numbers; texts of at most 12 tokens |" in card


@pytest.mark.usefixtures("ready_graphs")
def test_int8_is_smaller_and_close(exported: Exported, tmp_path: Path) -> None:
    config = ExportConfig(
        "int8", exported.data, calibration_pictures=16, min_cosine=0.9, max_r10_drop=100, threads=1
    )
    manifest = export_dual(exported.checkpoint, tmp_path / "int8", config)
    assert manifest.precision == "int8"
    assert manifest.files["vision"].bytes < exported.image.stat().st_size
    assert manifest.files["text"].bytes < exported.text.stat().st_size
    found = manifest.scores["export"]
    assert 0.9 < found["image_cosine"] < 1
    assert 0.98 < found["text_cosine"] <= 1
    embedder = Embedder(tmp_path / "int8", threads=1)
    images = list(open_split(exported.data, "dev")["image"])
    together = embedder.images(images)
    np.testing.assert_allclose(together[3], embedder.images(images[3:4])[0], atol=1e-4)  # no batch in a scale
    texts = ["a red circle", "there is one blue square on the left"]
    np.testing.assert_allclose(embedder.texts(texts)[0], embedder.texts(texts[:1])[0], atol=1e-4)


def spoil(path: Path, how: float) -> None:
    """Shake the matrices of a graph."""
    model = onnx.load(path)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 2 and values.dtype == np.float32:
            noise = rng.standard_normal(values.shape) * values.std() * how
            tensor.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))
    onnx.save(model, path)


@pytest.mark.usefixtures("ready_graphs")
def test_a_bundle_that_lost_too_much_is_refused_and_not_written(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(source: Path, target: Path) -> None:
        shutil.copyfile(source, target)
        spoil(target, 1.0)

    copy = shutil.copyfile
    monkeypatch.setattr(common, "quantize_text", bad)
    monkeypatch.setattr(common, "quantize_vision", lambda source, target, pixels: copy(source, target))
    config = ExportConfig("int8", exported.data, calibration_pictures=4, threads=1)
    with pytest.raises(BundleError, match=r"on 8 pictures the mean text cosine 0\.\d+ is below 0\.98"):
        export_dual(exported.checkpoint, tmp_path / "bundle", config)
    lenient = replace(config, min_cosine=-1.0, max_r10_drop=-1000.0)
    with pytest.raises(
        BundleError, match=r"R@10 fell by -?[\d.]+ \(checkpoint [\d.]+, bundle [\d.]+\), more"
    ):
        export_dual(exported.checkpoint, tmp_path / "bundle", lenient)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ready_graphs")
def test_a_wrong_fp32_graph_is_refused(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(model: object, tokens: object, path: Path) -> None:
        shutil.copyfile(exported.text, path)
        spoil(path, 0.01)

    monkeypatch.setattr(exporting, "export_text", bad)
    with pytest.raises(BundleError, match="export refused: numbers of the fp32 graphs"):
        export_dual(exported.checkpoint, tmp_path / "bundle", ExportConfig(threads=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ready_graphs")
def test_an_older_bundle_is_kept_unless_asked(exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(BundleError, match="exists already"):
        export_dual(exported.checkpoint, out, ExportConfig(threads=1))
    assert (out / "old").exists()
    (out / "manifest.json").touch()
    export_dual(exported.checkpoint, out, ExportConfig(threads=1), replace_existing=True)
    assert validate(out)
    assert list(tmp_path.iterdir()) == [out]


def test_clip_becomes_an_embedder_too(tmp_path: Path) -> None:
    tokenizer = tokenizer_of_merges([("r", "e"), ("re", "d</w>"), ("d", "o"), ("do", "g</w>")])
    torch.manual_seed(0)
    model = ClipDual(
        ClipConfig(
            image_size=32, patch=16, image_width=32, image_layers=2, image_heads=4, context=10,
            vocab_size=tokenizer.get_vocab_size(), text_width=32, text_layers=2, text_heads=4, width=24,
        )
    ).eval()  # fmt: skip
    save_clip(tmp_path / "clip", model, tokenizer, {})
    assert is_dual(tmp_path / "clip")
    manifest = export_checkpoint(tmp_path / "clip", tmp_path / "bundle", ExportConfig(threads=1))
    assert set(manifest.special_tokens) == {"bos", "eos"}
    texts = ["red dog", "!!", "a long text about a red dog that runs"]
    with torch.inference_mode():
        alone = [model.encode_text(torch.from_numpy(encode_texts(tokenizer, [t], 10))).numpy() for t in texts]
    found = Embedder(tmp_path / "bundle", threads=1).texts(texts)
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-4)


def test_what_is_no_dual_encoder_is_left_to_others(tmp_path: Path) -> None:
    assert not is_dual(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "captioner"}')
    assert not is_dual(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BundleError, match="is not JSON"):
        is_dual(tmp_path)
