"""fp32 graphs -> int8 graphs (weights int8, activations uint8).

- Convolutions, with their Clip/Relu and residual additions: static, one scale a channel, ranges from
  calibration pictures, weights rounded with error feedback (`rounding.py`). They are the larger part of the
  work, and the activations of ReLU6 networks keep to fixed ranges.
- Matrix products with constant weights: dynamic, one scale a column of weights and **one scale a row of
  activations**. onnxruntime's own dynamic quantisation takes one scale for the whole batch; then a picture's
  caption would depend on the pictures beside it.
- The embedding table is stored once, in int8 with one scale a word, for the input and, in a decoder, the
  output.

Everything else (normalisation, softmax, attention products) stays in fp32.
"""

import contextlib
import logging
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from vistill.export.calibrate import Conv, batches, convolutions, hessians, weight_of
from vistill.export.rounding import LARGEST, round_rows, row_scales

LARGE_TABLE = 2**16  # numbers of a table that is only looked up; a smaller one, as of positions, stays fp32


def quantize_vision(source: Path, target: Path, pixels: NDArray[np.float32]) -> None:
    """The vision graph in int8; pixels [N, 3, H, W] are calibration pictures."""
    model = onnx.load(source)
    convs = convolutions(model)
    if convs:
        overrides = _round_convolutions(model, convs, pixels)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch, _quiet():
            rounded, static = Path(scratch) / "rounded.onnx", Path(scratch) / "static.onnx"
            onnx.save(model, rounded)
            quantize_static(
                rounded,
                static,
                _Reader(pixels),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=_convolutional(model),
                extra_options={"TensorQuantOverrides": overrides, "CalibMovingAverage": True},
            )
            model = onnx.load(static)
    quantize_products(model)
    onnx.checker.check_model(model)
    onnx.save(model, target)


def quantize_text(source: Path, target: Path) -> None:
    """A decoder step or a text tower in int8."""
    model = onnx.load(source)
    quantize_products(model)
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _round_convolutions(
    model: onnx.ModelProto, convs: list[Conv], pixels: NDArray[np.float32]
) -> dict[str, list[dict[str, Any]]]:
    """Replace the weights of convolutions by rounded ones; return their scales as quantiser overrides."""
    sums = hessians(model, convs, pixels)
    stored = {i.name: i for i in model.graph.initializer}
    overrides = {}
    for conv in convs:
        weight = numpy_helper.to_array(stored[conv.weight]).transpose(0, 2, 3, 1)  # [N, kh, kw, C]
        rows = weight.reshape(len(weight), -1)
        # A depthwise product is summed in 32 bits from the start.
        scale = row_scales(rows, pairs=not conv.depthwise).astype(np.float32)
        ints = round_rows(rows, scale, pairs=not conv.depthwise, hessian=sums.get(conv.weight))
        values = (ints * scale[:, None]).reshape(weight.shape).transpose(0, 3, 1, 2)
        stored[conv.weight].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), conv.weight))
        zero = np.array(0, np.int8)
        overrides[conv.weight] = [
            {"quant_type": QuantType.QInt8, "axis": 0, "scale": np.array(s), "zero_point": zero}
            for s in scale
        ]
    return overrides


def _convolutional(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions and of what stands between them: clips, and sums of their outputs."""
    inside = {"pixels"}
    names = []
    for node in model.graph.node:  # in topological order
        given = [name for name in node.input if name]
        data = given if node.op_type == "Add" else given[:1]
        if node.op_type in ("Conv", "Clip", "Relu", "Add") and all(name in inside for name in data):
            inside.update(node.output)
            names.append(node.name)
    return names


def quantize_products(model: onnx.ModelProto) -> None:
    """Turn every MatMul with constant weights [K, N] of a graph into an int8 product, in place.

    A table that is looked up by Gather and, transposed, multiplied with is kept once. One that is only looked
    up is kept in int8 if it is large.
    """
    graph = model.graph
    _split_gemms(graph)
    weights = {i.name for i in graph.initializer if len(i.dims) == 2}
    large = {i.name for i in graph.initializer if i.name in weights and math.prod(i.dims) >= LARGE_TABLE}
    turned = {
        n.output[0]: n.input[0] for n in graph.node if n.op_type == "Transpose" and n.input[0] in weights
    }
    products = {n.input[1] for n in graph.node if n.op_type == "MatMul"}
    tables = {turned[name] for name in products & set(turned)}
    tables |= {n.input[0] for n in graph.node if n.op_type == "Gather" and n.input[0] in large and _by_row(n)}
    writer = _Writer(model)
    for node in list(graph.node):
        if node.op_type == "MatMul" and node.input[1] in turned:
            writer.product(node, writer.table(turned[node.input[1]]), transposed=True)
        elif node.op_type == "MatMul" and node.input[1] in weights:
            writer.product(node, writer.matrix(node.input[1]), transposed=False)
        elif node.op_type == "Gather" and node.input[0] in tables:
            writer.lookup(node, writer.table(node.input[0]))
        elif not (node.op_type == "Transpose" and node.output[0] in turned):
            writer.nodes.append(node)
    writer.finish()


def _by_row(node: onnx.NodeProto) -> bool:
    """Whether a Gather takes whole rows."""
    return all(a.name != "axis" or a.i == 0 for a in node.attribute)


def _split_gemms(graph: onnx.GraphProto) -> None:
    """Write a Gemm with constant weights, a dense layer, as MatMul and Add."""
    weights = {i.name: i for i in graph.initializer if len(i.dims) == 2}
    nodes = []
    for node in graph.node:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)
        if node.op_type != "Gemm" or not plain or node.input[1] not in weights:
            nodes.append(node)
            continue
        name, out = node.input[1], node.output[0]
        if given.get("transB", 0):  # its own copy: others may use the weights as they are
            turned = np.ascontiguousarray(numpy_helper.to_array(weights[name]).T)
            name = f"{out}.turned"
            graph.initializer.append(numpy_helper.from_array(turned, name))
        bias = list(node.input[2:])
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [f"{out}.bare" if bias else out]))
        if bias:
            nodes.append(helper.make_node("Add", [f"{out}.bare", *bias], [out]))
    del graph.node[:]
    graph.node.extend(nodes)


class _Writer:
    """The new nodes and initializers of a graph whose products are being replaced."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {
            "int8.step": np.array(1 / LARGEST, np.float32),
            "int8.middle": np.array(128, np.uint8),
            "int8.last_axis": np.array([-1]),
            "int8.tiny": np.array(1e-12, np.float32),
        }
        self.rows: dict[
            str, tuple[str, str]
        ] = {}  # activation -> (its largest, itself in int8 steps of that)

    def add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{output}.{kind}", **attributes))
        return output

    def matrix(self, name: str) -> str:
        """Store weights [K, N] in int8 with one scale a column."""
        return self._store(name, weight_of(self.model, name).T, transposed=True)

    def table(self, name: str) -> str:
        """Store a table [V, D] in int8 with one scale a row."""
        return self._store(name, weight_of(self.model, name), transposed=False)

    def _store(self, name: str, rows: NDArray[Any], *, transposed: bool) -> str:
        if f"{name}.int8" not in self.constants:
            scale = row_scales(rows, pairs=True).astype(np.float32)
            ints = round_rows(rows, scale, pairs=True)
            self.constants[f"{name}.int8"] = np.ascontiguousarray(ints.T if transposed else ints)
            self.constants[f"{name}.scale"] = scale
        return name

    def product(self, node: onnx.NodeProto, weight: str, *, transposed: bool) -> None:
        """node.input[0] @ weight, both in int8; onnxruntime runs the middle as one MatMulIntegerToFloat."""
        out = node.output[0]
        largest, steps = self._row(node.input[0])
        ints = f"{weight}.int8"
        if transposed:
            ints = self.add("Transpose", [ints], f"{out}.turned", perm=[1, 0])
        real = self.add("DequantizeLinear", [ints, f"{weight}.scale"], f"{out}.weight", axis=1)
        self.add("MatMul", [steps, real], f"{out}.product")
        self.add("Mul", [f"{out}.product", largest], out)

    def _row(self, x: str) -> tuple[str, str]:
        if x not in self.rows:
            size = self.add("Abs", [x], f"{x}.abs")
            largest = self.add("ReduceMax", [size, "int8.last_axis"], f"{x}.max", keepdims=1)
            largest = self.add("Max", [largest, "int8.tiny"], f"{x}.largest")
            part = self.add("Div", [x, largest], f"{x}.part")  # -1..1
            ints = self.add("QuantizeLinear", [part, "int8.step", "int8.middle"], f"{x}.uint8")
            steps = self.add("DequantizeLinear", [ints, "int8.step", "int8.middle"], f"{x}.steps")
            self.rows[x] = largest, steps
        return self.rows[x]

    def lookup(self, node: onnx.NodeProto, table: str) -> None:
        """Rows of a table by id."""
        ids, out = node.input[1], node.output[0]
        self.constants[f"{table}.scale_column"] = self.constants[f"{table}.scale"][:, None]
        ints = self.add("Gather", [f"{table}.int8", ids], f"{out}.int8", axis=0)
        real = self.add("Cast", [ints], f"{out}.float", to=onnx.TensorProto.FLOAT)
        scale = self.add("Gather", [f"{table}.scale_column", ids], f"{out}.scale", axis=0)
        self.add("Mul", [real, scale], out)

    def finish(self) -> None:
        graph = self.model.graph
        used = {name for node in self.nodes for name in node.input}
        kept = [i for i in graph.initializer if i.name in used]
        added = [numpy_helper.from_array(v, k) for k, v in self.constants.items() if k in used]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend([*kept, *added])


class _Reader(CalibrationDataReader):
    """Calibration pictures in batches, for onnxruntime."""

    def __init__(self, pixels: NDArray[np.float32]) -> None:
        self.feeds = batches(pixels)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self.feeds, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime's quantiser advises on the root logger to run a pre-processing that these graphs had."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
