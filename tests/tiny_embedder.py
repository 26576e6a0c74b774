"""An embedder small enough to be recomputed in numpy: pictures of 4 x 4 pixels, vectors of six numbers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from vistill.runtime.bundle import EMBEDDER, Manifest, write_bundle
from vistill.runtime.image import Preprocess

SIDE, WIDTH, CONTEXT, LOGIT_SCALE = 4, 6, 8, 20.0
WORDS = ("<pad>", "<bos>", "<eos>", "<unk>", "a", "photo", "of", "dog", "cat", "red", "green", "blue")


def tiny_weights() -> dict[str, NDArray[np.float32]]:
    """The numbers of both graphs: project [3 * SIDE * SIDE, WIDTH], table [words, WIDTH]."""
    rng = np.random.default_rng(0)
    shapes = {"project": (3 * SIDE * SIDE, WIDTH), "table": (len(WORDS), WIDTH)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def image_vector(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """pixels [3, SIDE, SIDE] -> [WIDTH], unit norm."""
    out = pixels.reshape(-1) @ tiny_weights()["project"]
    return np.asarray(out / np.linalg.norm(out))


def text_vector(words: str) -> NDArray[np.float32]:
    """The sum of the vectors of the words, their marks included, at most CONTEXT of them, unit norm."""
    ids = [WORDS.index(word) if word in WORDS else 3 for word in words.lower().split()]
    out = tiny_weights()["table"][[1, *ids[: CONTEXT - 2], 2]].sum(axis=0)
    return np.asarray(out / np.linalg.norm(out))


def _save(
    path: Path, steps: Sequence[tuple[str, str, str]], given: str, constants: dict[str, object]
) -> None:
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [helper.make_node(kind, inputs.split(), [output]) for kind, inputs, output in steps]
    shape = ["B", 3, SIDE, SIDE] if given == "pixels" else ["B", "T"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(given, types.FLOAT if given == "pixels" else types.INT64, shape)],
        [helper.make_tensor_value_info("embedding", types.FLOAT, ["B", WIDTH])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def write_tiny_files(folder: Path) -> dict[str, Path]:
    """The three files of the tiny embedder by role."""
    weights = tiny_weights()
    normal = [("ReduceL2", "sum last", "norm"), ("Div", "sum norm", "embedding")]
    last = {"last": np.array([-1])}
    _save(
        folder / "vision.onnx",
        [("Flatten", "pixels", "flat"), ("MatMul", "flat project", "sum"), *normal],
        "pixels",
        {"project": weights["project"]} | last,
    )
    table = weights["table"] * (np.arange(len(WORDS)) != 0)[:, None].astype(np.float32)  # padding is nothing
    _save(
        folder / "text.onnx",
        [
            ("Gather", "table tokens", "words"),  # [B, T, WIDTH]
            ("ReduceSum", "words middle", "kept"),
            ("Squeeze", "kept middle", "sum"),
            *normal,
        ],
        "tokens",
        {"table": table, "middle": np.array([1])} | last,
    )
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(WORDS[:4]))
    tokenizer.save(str(folder / "tokenizer.json"))
    return {
        "vision": folder / "vision.onnx",
        "text": folder / "text.onnx",
        "tokenizer": folder / "tokenizer.json",
    }


def tiny_manifest(name: str = "tiny") -> Manifest:
    """The manifest of the tiny embedder, before its files are known."""
    return Manifest(
        name=name,
        preprocess=Preprocess(size=(SIDE, SIDE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        generation=None,
        special_tokens={"pad": 0, "bos": 1, "eos": 2, "unk": 3},
        context=CONTEXT,
        licence="Apache-2.0",
        kind=EMBEDDER,
        width=WIDTH,
        logit_scale=LOGIT_SCALE,
    )


def write_tiny_embedder(folder: Path, name: str = "tiny") -> Path:
    """Write the tiny embedder as the bundle `folder`; what it was made of lies beside it."""
    parts = folder.with_name(f"{folder.name}-parts")
    parts.mkdir(parents=True)
    write_bundle(folder, tiny_manifest(name), write_tiny_files(parts), card="# tiny\n")
    return folder
