"""What calibration pictures say about the inputs of each convolution."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

Floats = NDArray[np.float32]

BATCH = 8
PATCHES = 4000  # drawn of each convolution in each batch: a layer of 112 x 112 has 100,000


@dataclass(frozen=True)
class Conv:
    """A convolution with constant weights: names of its node, input and weight, and its geometry."""

    name: str
    input: str
    weight: str
    shape: tuple[int, int, int, int]
    """[N, C / groups, kh, kw]."""
    groups: int
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    """Top, left, bottom, right."""
    dilations: tuple[int, int]

    @property
    def depthwise(self) -> bool:
        """Whether each channel is filtered alone."""
        return self.shape[1] == 1 and self.groups == self.shape[0]


def convolutions(model: onnx.ModelProto) -> list[Conv]:
    """The 2-d convolutions of a graph whose weights are initializers and whose padding is explicit."""
    weights = {i.name: tuple(i.dims) for i in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type != "Conv" or len(weights.get(node.input[1], ())) != 4:
            continue
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if given.get("auto_pad", b"NOTSET") != b"NOTSET":
            continue
        found.append(
            Conv(
                node.name,
                node.input[0],
                node.input[1],
                weights[node.input[1]],
                given.get("group", 1),
                tuple(given.get("strides", (1, 1))),
                tuple(given.get("pads", (0, 0, 0, 0))),
                tuple(given.get("dilations", (1, 1))),
            )
        )
    return found


def batches(pixels: Floats) -> Iterator[dict[str, Floats]]:
    """pixels [N, 3, H, W] as feeds of the vision graph."""
    for start in range(0, len(pixels), BATCH):
        yield {"pixels": pixels[start : start + BATCH]}


def hessians(model: onnx.ModelProto, convs: list[Conv], pixels: Floats) -> dict[str, NDArray[np.float64]]:
    """Sum of x x^T over the patches x that each convolution sees, by the name of its weight.

    K = kh * kw * C inputs in the order (kh, kw, C), which is that of onnxruntime's integer kernels.
    [1, K, K], or [N, K, K] for a depthwise convolution. Other grouped or dilated ones are left out.
    """
    plain = [c for c in convs if c.dilations == (1, 1) and (c.groups == 1 or c.depthwise)]
    session = _session_with(model, {c.input for c in plain} - {"pixels"})
    names = [value.name for value in session.get_outputs()]
    sums: dict[str, NDArray[np.float64]] = {}
    rng = np.random.default_rng(0)
    for feed in batches(pixels):
        seen = dict(zip(names, session.run(names, feed), strict=True)) | feed
        for conv in plain:
            x = _patches(seen[conv.input], conv, rng)
            product = (x.transpose(0, 2, 1) @ x).astype(np.float64)
            sums[conv.weight] = sums.get(conv.weight, 0) + product
    return sums


def _patches(x: Floats, conv: Conv, rng: np.random.Generator) -> Floats:
    """x [B, C, H, W] -> patches drawn at random [1, P, kh * kw * C], or [C, P, kh * kw] if depthwise."""
    top, left, bottom, right = conv.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    views = np.lib.stride_tricks.sliding_window_view(padded, conv.shape[2:], axis=(2, 3))
    views = views[:, :, :: conv.strides[0], :: conv.strides[1]]  # [B, C, h, w, kh, kw]
    places = (len(x), *views.shape[2:4])
    count = int(np.prod(places))
    index = rng.choice(count, PATCHES, replace=False) if count > PATCHES else np.arange(count)
    b, i, j = np.unravel_index(index, places)
    drawn = views[b, :, i, j]  # [P, C, kh, kw]
    if conv.depthwise:
        return drawn.transpose(1, 0, 2, 3).reshape(drawn.shape[1], len(drawn), -1)
    return drawn.transpose(0, 2, 3, 1).reshape(1, len(drawn), -1)


def _session_with(model: onnx.ModelProto, names: set[str]) -> Any:
    """A session of `model` that gives these inner tensors, and nothing else, as outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    for name in sorted(names):
        shown.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    if not names:  # one convolution, of the pixels themselves
        shown.graph.output.append(model.graph.output[0])
    return ort.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])


def weight_of(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    """The values of an initializer."""
    return numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == name))
