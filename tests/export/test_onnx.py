"""Exported graphs against the torch model."""

import numpy as np
import onnx
import pytest
import torch
from tests.export.conftest import Exported

from vistill.export.parity import logit_error, onnx_start, torch_start
from vistill.models.tokens import NEVER_GENERATED
from vistill.runtime.sessions import VisionSession


def shapes(path: object) -> dict[str, list[object]]:
    graph = onnx.load(path).graph
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }


def test_names_and_shapes_are_those_of_the_format(exported: Exported) -> None:
    assert shapes(exported.vision) == {
        "pixels": ["B", 3, 64, 64],
        "cross_key.0": ["B", 2, 8, 4],
        "cross_value.0": ["B", 2, 4, 8],
        "cross_key.1": ["B", 2, 8, 4],
        "cross_value.1": ["B", 2, 4, 8],
        "tower_mean": ["B", exported.model.tower.width],
    }
    decoder = shapes(exported.decoder)
    assert decoder["tokens"] == ["B", "C"]
    assert decoder["past_key.1"] == ["B", "C", 2, "T", 8]
    assert decoder["cross_key.1"] == ["B", 2, 8, 4]
    vocabulary = exported.model.config.decoder.vocab_size
    assert decoder["logits"] == ["B", "C", vocabulary]
    assert decoder["present_value.1"][3] == "T + 1"


def test_vision_equals_torch_for_any_batch(exported: Exported) -> None:
    vision = VisionSession(exported.vision.read_bytes(), threads=1)
    for count in (1, 2, 5):
        pixels = exported.pixels(count)
        with torch.no_grad():
            features = exported.model.tower(torch.from_numpy(pixels))
            theirs = exported.model.decoder.cross_kv(exported.model.mapper(features))
        found = vision.run(pixels)
        np.testing.assert_allclose(found.pop("tower_mean").numpy(), features.mean(1).numpy(), atol=2e-5)
        assert len(found) == 4
        for name, value in found.items():
            kind, layer = name.split(".")
            expected = theirs[int(layer)][0 if kind == "cross_key" else 1]
            np.testing.assert_allclose(value.numpy(), expected.numpy(), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_steps_equal_torch_from_an_empty_past_on(exported: Exported, batch: int) -> None:
    config = exported.model.config.decoder
    ours = onnx_start(exported.vision, exported.decoder, threads=1)
    theirs = torch_start(exported.model)
    pixels = exported.pixels(batch)
    # the tiny decoder has 12 positions; logit_error walks 20 with a real one
    one, other = ours(pixels), theirs(pixels)
    rng = np.random.default_rng(0)
    tokens = np.full((batch, 1), 1)
    for _ in range(config.context):
        a, b = one.step(tokens), other.step(tokens)
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
        assert (a[..., list(NEVER_GENERATED)] < -1e8).all()
        rows = rng.integers(0, tokens.shape[1], (batch, int(rng.integers(1, 4))))
        one.reorder(rows)
        other.reorder(rows)
        tokens = rng.integers(4, config.vocab_size, rows.shape)


def test_the_embedding_table_is_stored_once(exported: Exported) -> None:
    vocabulary = exported.model.config.decoder.vocab_size
    graph = onnx.load(exported.decoder).graph
    assert sum(len(i.dims) == 2 for i in graph.initializer if vocabulary in i.dims) == 1
    used = {name for node in graph.node for name in node.input}
    assert all(i.name in used for i in graph.initializer)


def test_nothing_of_the_exporting_machine_is_in_the_file(exported: Exported) -> None:
    for path in (exported.vision, exported.decoder):
        assert b"site-packages" not in path.read_bytes()
        assert b".py" not in path.read_bytes()


def test_logit_error_sees_a_wrong_graph(exported: Exported) -> None:
    right = torch_start(exported.model)
    pixels = exported.pixels(2)
    exact = onnx_start(exported.vision, exported.decoder, threads=1)
    vocabulary = exported.model.config.decoder.vocab_size
    assert logit_error(exact, right, pixels, vocabulary, steps=12) < 1e-3
    blind = lambda pixels: exact(np.zeros_like(pixels))  # noqa: E731
    assert logit_error(blind, right, pixels, vocabulary, steps=12) > 0.1


@pytest.mark.slow
def test_a_vision_transformer_exports_too(exported: Exported, tmp_path: object) -> None:
    from tests.tiny import tiny_captioner

    from vistill.export.onnx import export_vision

    torch.manual_seed(1)
    model = tiny_captioner("test_vit")
    path = tmp_path / "vision.onnx"  # type: ignore[operator]
    export_vision(model, path)
    pixels = exported.pixels(3)
    found = VisionSession(path.read_bytes(), threads=1).run(pixels)
    with torch.no_grad():
        key, _ = model.decoder.cross_kv(model.vision(torch.from_numpy(pixels)))[1]
    np.testing.assert_allclose(found["cross_key.1"].numpy(), key.numpy(), atol=1e-4, rtol=1e-3)
