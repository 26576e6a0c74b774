"""A bundle small enough to be recomputed in numpy: one decoder layer of width 8, pictures of 4 x 4 pixels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vistill.runtime.bundle import Manifest, write_bundle
from vistill.runtime.consensus import ConsensusHead
from vistill.runtime.decode import GenerationConfig
from vistill.runtime.image import Preprocess

SIDE, PATCHES, WIDTH, HEADS, HEAD_WIDTH, VOCABULARY, CONTEXT = 4, 3, 8, 2, 4, 12, 10
WORDS = ("<pad>", "<bos>", "<eos>", "<unk>", "a", "dog", "cat", "runs", "sits", "on", "the", "grass")
Arrays = dict[str, NDArray[np.float32]]


def tiny_weights() -> Arrays:
    """The numbers of the tiny model."""
    rng = np.random.default_rng(0)
    shapes = {
        "project": (SIDE * SIDE, WIDTH),
        "embed": (VOCABULARY, WIDTH),
        "position": (CONTEXT, WIDTH),
    } | dict.fromkeys(("q", "k", "v"), (WIDTH, WIDTH))
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _write_graph(
    path: Path, nodes: list[object], inputs: dict[str, list[object]], outputs: list[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    weights = tiny_weights() | {"empty": np.zeros(0, np.float32)}
    constants = {
        "heads": np.array([0, 0, HEADS, HEAD_WIDTH]),
        "rows": np.array([0, 0, HEADS, 1, HEAD_WIDTH]),
        "flat": np.array([0, 0, WIDTH]),
        "pixels_flat": np.array([0, 3, SIDE * SIDE]),
        "third": np.array(3),
    }
    used = {name for node in nodes for name in node.input}  # type: ignore[attr-defined]
    kinds = {"tokens": onnx.TensorProto.INT64}
    graph = onnx.helper.make_graph(
        nodes,
        "tiny",
        [
            onnx.helper.make_tensor_value_info(name, kinds.get(name, onnx.TensorProto.FLOAT), shape)
            for name, shape in inputs.items()
        ],
        [
            onnx.helper.make_tensor_value_info(
                name, onnx.TensorProto.FLOAT, ["B", "C", VOCABULARY] if name == "logits" else None
            )
            for name in outputs
        ],
        [onnx.numpy_helper.from_array(v, k) for k, v in (weights | constants).items() if k in used],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


def write_tiny_graphs(folder: Path) -> dict[str, Path]:
    """vision.onnx and decoder.onnx of the tiny model, as the bundle format wants them."""
    onnx = pytest.importorskip("onnx")

    def node(kind: str, inputs: str, output: str, **attributes: object) -> object:
        return onnx.helper.make_node(kind, inputs.split(), [output], **attributes)

    vision = [
        node("Reshape", "pixels pixels_flat", "grey"),  # [B, N = 3, 16]
        node("MatMul", "grey project", "memory"),  # [B, N, D]
        node("Reshape", "memory heads", "split"),  # [B, N, h, d]
        node("Transpose", "split", "cross_key.0", perm=[0, 2, 3, 1]),
        node("Transpose", "split", "cross_value.0", perm=[0, 2, 1, 3]),
        node("ReduceMean", "memory", "tower_mean", axes=[1], keepdims=0),
    ]
    outputs = ["cross_key.0", "cross_value.0", "tower_mean"]
    _write_graph(folder / "vision.onnx", vision, {"pixels": ["B", 3, SIDE, SIDE]}, outputs)
    decoder = [
        node("Shape", "past_key.0", "shape"),
        node("Gather", "shape third", "time"),
        node("Gather", "position time", "here"),
        node("Gather", "embed tokens", "word"),
        node("Add", "word here", "x"),  # [B, C, D]
        *(
            step
            for name in "qkv"
            for step in (
                node("MatMul", f"x {name}", f"{name}_flat"),
                node("Reshape", f"{name}_flat rows", f"{name}_new"),
            )
        ),  # [B, C, h, 1, d]
        node("Concat", "past_key.0 k_new", "present_key.0", axis=3),
        node("Concat", "past_value.0 v_new", "present_value.0", axis=3),
        node("Transpose", "present_key.0", "keys", perm=[0, 1, 2, 4, 3]),
        node("MatMul", "q_new keys", "self_scores"),
        node("Softmax", "self_scores", "self_weights", axis=-1),
        node("MatMul", "self_weights present_value.0", "self_mixed"),
        node("Reshape", "self_mixed flat", "self_out"),
        node("Reshape", "q_flat heads", "q_heads"),  # [B, C, h, d]
        node("Transpose", "q_heads", "q_cross", perm=[0, 2, 1, 3]),
        node("MatMul", "q_cross cross_key.0", "cross_scores"),  # [B, h, C, N]
        node("Softmax", "cross_scores", "cross_weights", axis=-1),
        node("MatMul", "cross_weights cross_value.0", "cross_mixed"),
        node("Transpose", "cross_mixed", "cross_back", perm=[0, 2, 1, 3]),
        node("Reshape", "cross_back flat", "cross_out"),
        node("Add", "x self_out", "y"),
        node("Add", "y cross_out", "z"),
        node("Transpose", "embed", "unembed", perm=[1, 0]),
        node("MatMul", "z unembed", "logits"),
    ]
    past = ["B", "C", HEADS, "T", HEAD_WIDTH]
    inputs: dict[str, list[object]] = {
        "tokens": ["B", "C"],
        "cross_key.0": ["B", HEADS, HEAD_WIDTH, "N"],
        "cross_value.0": ["B", HEADS, "N", HEAD_WIDTH],
        "past_key.0": [*past],
        "past_value.0": [*past],
    }
    _write_graph(folder / "decoder.onnx", decoder, inputs, ["logits", "present_key.0", "present_value.0"])
    return {"vision": folder / "vision.onnx", "decoder": folder / "decoder.onnx"}


def tiny_logits(pixels: NDArray[np.float32], text: list[int]) -> NDArray[np.float64]:
    """Logits after `text` (begin mark first) for one picture [3, H, W]: the tiny model in numpy, no cache."""
    w = {name: value.astype(np.float64) for name, value in tiny_weights().items()}

    def attend(query: NDArray[np.float64], keys: NDArray[np.float64], values: NDArray[np.float64]) -> object:
        out = []
        for head in range(HEADS):
            part = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
            scores = keys[:, part] @ query[part]
            weights = np.exp(scores - scores.max())
            out.append(weights / weights.sum() @ values[:, part])
        return np.concatenate(out)

    memory = pixels.reshape(3, -1).astype(np.float64) @ w["project"]
    x = w["embed"][text] + w["position"][: len(text)]
    q, k, v = (x @ w[name] for name in "qkv")
    y = x[-1] + attend(q[-1], k, v) + attend(q[-1], memory, memory)
    return np.asarray(w["embed"] @ y)


def random_head(seed: int = 0, **changes: NDArray[np.generic]) -> ConsensusHead:
    """A consensus head for the tiny bundle; `changes` are arrays in place of its own."""
    features, kept, random, reduced, rows, table = HEADS * HEAD_WIDTH, 3, 16, 5, 64, 128
    rng = np.random.default_rng(seed)
    arrays = {
        "mean": rng.standard_normal(features).astype("f4"),
        "projection": rng.uniform(-1, 1, (features, kept)).astype("f2"),
        "frequencies": rng.standard_normal((kept, random)).astype("f2"),
        "phases": rng.uniform(0, 6, random).astype("f4"),
        "weights": rng.integers(-127, 128, (random + 1, reduced)).astype("i1"),
        "weight_scale": rng.uniform(0.01, 0.02, reduced).astype("f4"),
        "grams": rng.integers(-127, 128, (rows, reduced)).astype("i1"),
        "gram_scale": rng.uniform(0.01, 0.02, reduced).astype("f4"),
        "idf": rng.integers(1, 255, table).astype("u1"),
        "most_idf": np.array([3.0], "f4"),
    }
    return ConsensusHead(**{**arrays, **changes})  # type: ignore[arg-type]


def tiny_manifest() -> Manifest:
    """The manifest of the tiny bundle, before its files are known."""
    return Manifest(
        name="tiny",
        preprocess=Preprocess(size=(SIDE, SIDE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        generation=GenerationConfig(max_new_tokens=6, num_beams=3),
        special_tokens={"pad": 0, "bos": 1, "eos": 2, "unk": 3},
        context=CONTEXT,
        licence="Apache-2.0",
    )


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The three files of the tiny bundle by role."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny")
    files = write_tiny_graphs(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(WORDS[:4]))
    tokenizer.save(str(folder / "tokenizer.json"))
    return files | {"tokenizer": folder / "tokenizer.json"}


@pytest.fixture(scope="session")
def tiny_bundle(tiny_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny bundle."""
    folder = tmp_path_factory.mktemp("bundle") / "captioner"
    write_bundle(folder, tiny_manifest(), tiny_files, card="# tiny\n")
    return folder


@pytest.fixture(scope="session")
def tiny_reference() -> Callable[[NDArray[np.float32], list[int]], NDArray[np.float64]]:
    """`tiny_logits`."""
    return tiny_logits
