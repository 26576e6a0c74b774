"""Models in torch -> graphs in fp32 (those of docs/bundle.md).

A captioner becomes vision.onnx and decoder.onnx, a dual encoder vision.onnx and text.onnx.
"""

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript import opset20 as op
from torch import Tensor, nn

from vistill.models.captioner import Captioner
from vistill.models.language import KeyValue
from vistill.models.loading import AnyCaptioner, AnyDual
from vistill.runtime.sessions import TOWER_MEAN, name_pairs

OPSET = 20  # GELU is one operator from here on; onnxruntime knows it from 1.18 on


class VisionGraph(nn.Module):
    """pixels [B, 3, H, W] -> cross-attention key and value of each decoder layer, flat, and the tower's mean.

    Of a prefix captioner those are the keys and values of the prefix in each layer of its language model. The
    mean over patches of the tower's features [B, F] is for a consensus head.
    """

    def __init__(self, model: AnyCaptioner) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> list[Tensor]:
        features = self.model.tower(pixels)
        cross = self.model.decoder.cross_kv(self.model.mapper(features))
        return [*(part for pair in turned(self.model, cross) for part in pair), features.mean(1)]


class DecoderGraph(nn.Module):
    """One decoding step; forbidden tokens are masked, as in `Captioner.step`."""

    def __init__(self, model: AnyCaptioner) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, cross: list[KeyValue], past: list[KeyValue]
    ) -> tuple[Tensor, list[Tensor]]:
        logits, present = self.model.step(tokens, turned(self.model, cross), past)
        return logits, [part for pair in present for part in pair]


def turned(model: AnyCaptioner, cross: list[KeyValue]) -> list[KeyValue]:
    """Keys [B, h, N, d] of a decoder of `transformers` as the format has them, [B, h, d, N], or back."""
    if isinstance(model, Captioner):
        return cross
    return [(key.transpose(2, 3), value) for key, value in cross]


def export_vision(model: AnyCaptioner, path: Path) -> None:
    """Write the vision graph: any number of pictures B, of the size in the model's config."""
    size = model.config.vision.image_size
    example = (torch.zeros(2, 3, size, size),)
    names = [*name_pairs("cross", len(model.decoder.empty_past(1))), TOWER_MEAN]
    batch = torch.export.Dim("B")
    with plain_attention(model):
        write_graph(VisionGraph(model), example, ({0: batch},), ["pixels"], names, path)


def export_decoder(model: AnyCaptioner, path: Path) -> None:
    """Write the decoder step: any number of pictures B, rows C and past positions T, 0 included."""
    empty = model.decoder.empty_past(1)
    layers, (_, _, heads, _, width) = len(empty), empty[0][0].shape
    patches = model.mapper.length
    # Sizes that differ from each other and from 1, so that the exporter takes none of them for fixed.
    b, c, t = 3, 2, 5
    # Each input is a tensor of its own: one that came twice would be taken for one input.
    cross = [
        (torch.zeros(b, heads, width, patches), torch.zeros(b, heads, patches, width)) for _ in range(layers)
    ]
    past = [(torch.zeros(b, c, heads, t, width), torch.zeros(b, c, heads, t, width)) for _ in range(layers)]
    batch, rows, time = (torch.export.Dim(name) for name in "BCT")
    shapes = (
        {0: batch, 1: rows},
        [({0: batch}, {0: batch})] * layers,
        [({0: batch, 1: rows, 3: time}, {0: batch, 1: rows, 3: time})] * layers,
    )
    inputs = ["tokens", *name_pairs("cross", layers), *name_pairs("past", layers)]
    outputs = ["logits", *name_pairs("present", layers)]
    tokens = torch.zeros(b, c, dtype=torch.int64)
    with plain_attention(model):
        write_graph(DecoderGraph(model), (tokens, cross, past), shapes, inputs, outputs, path)


class ImageGraph(nn.Module):
    """pixels [B, 3, H, W] -> embedding [B, E], unit norm."""

    def __init__(self, model: AnyDual) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)


class TextGraph(nn.Module):
    """tokens int64 [B, T] -> embedding [B, E], unit norm."""

    def __init__(self, model: AnyDual) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)


def export_image(model: AnyDual, size: tuple[int, int], path: Path) -> None:
    """Write the picture side: any number of pictures B of size (H, W)."""
    example = (torch.zeros(2, 3, *size),)
    write_graph(ImageGraph(model), example, ({0: torch.export.Dim("B")},), ["pixels"], ["embedding"], path)


def export_text(model: AnyDual, example: Tensor, path: Path) -> None:
    """Write the text side: any number of texts B, of up to the model's context T.

    example: tokens int64 [B, T] of some texts, B and T above 2 and not alike.
    """
    axes = {0: torch.export.Dim("B"), 1: torch.export.Dim("T", min=2, max=model.context)}
    write_graph(TextGraph(model), (example,), (axes,), ["tokens"], ["embedding"], path)


def write_graph(
    module: nn.Module,
    example: tuple[Any, ...],
    shapes: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
    path: Path,
) -> None:
    """Trace a module on `example`, with the axes in `shapes` free, and write it under these names."""
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamic_shapes=shapes,
            input_names=inputs,
            output_names=[f"{name}.out" for name in outputs],
            opset_version=OPSET,
            custom_translation_table=_TRANSLATIONS,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _name_outputs(model.graph, outputs)
    _share_tables(model.graph)
    _clean(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _name_outputs(graph: onnx.GraphProto, outputs: list[str]) -> None:
    """Call the outputs by these names; an inner value that the exporter called so gets another."""
    names = {name: f"{name}.inner" for name in outputs}
    names |= {value.name: name for value, name in zip(graph.output, outputs, strict=True)}
    for node in graph.node:
        for given in (node.input, node.output):
            for i, name in enumerate(given):
                given[i] = names.get(name, name)
    for constant in graph.initializer:
        constant.name = names.get(constant.name, constant.name)
    for value, name in zip(graph.output, outputs, strict=True):
        value.name = name


def _share_tables(graph: onnx.GraphProto) -> None:
    """Where the exporter kept the transpose of a looked-up table as a copy, transpose the table instead."""
    arrays = {i.name: numpy_helper.to_array(i) for i in graph.initializer if len(i.dims) == 2}
    tables = {n.input[0] for n in graph.node if n.op_type == "Gather" and n.input[0] in arrays}
    copies = {
        n.input[1]: table
        for n in graph.node
        for table in tables
        if n.op_type == "MatMul"
        and n.input[1] in arrays
        and np.array_equal(arrays[n.input[1]], arrays[table].T)
    }
    for copy, table in copies.items():
        graph.initializer.remove(next(i for i in graph.initializer if i.name == copy))
        graph.node.insert(0, onnx.helper.make_node("Transpose", [table], [copy], perm=[1, 0]))


def _clean(model: onnx.ModelProto) -> None:
    """Drop what is left over: unused constants, and names of files and classes of the exporting machine."""
    graph = model.graph
    used = {name for node in graph.node for name in node.input}
    kept = [i for i in graph.initializer if i.name in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    model.producer_name = "vistill"


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """scaled_dot_product_attention over any leading axes; the exporter's own knows two."""
    if dropout_p or is_causal or enable_gqa:
        raise NotImplementedError("export: attention with dropout, grouped queries or a mask that is implied")
    rank = len(key.shape)
    order = [*range(rank - 2), rank - 1, rank - 2]
    factor = scale if scale is not None else 1 / math.sqrt(query.shape[-1])
    query = op.Mul(query, op.Constant(value_float=float(factor)))
    scores = op.MatMul(query, op.Transpose(key, perm=order))
    if attn_mask is not None:
        if attn_mask.dtype == onnx.TensorProto.BOOL:
            nothing: Any = op.Constant(value_float=0.0)
            least: Any = op.Constant(value_float=-1e9)
            attn_mask = op.Where(attn_mask, nothing, least)
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention
}


@contextlib.contextmanager
def plain_attention(model: AnyCaptioner) -> Iterator[None]:
    """A language model of `transformers` with its attention written out: the fused one has implied masks."""
    if isinstance(model, Captioner):
        yield
        return
    language = model.decoder.language
    before = language.config._attn_implementation
    language.set_attn_implementation("eager")
    try:
        yield
    finally:
        language.set_attn_implementation(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its own deprecations and every initializer; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
