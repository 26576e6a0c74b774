"""ONNX Runtime sessions of a bundle.

A captioner has a vision graph and a decoder step with its key/value cache, an answerer also a graph that
fills the cache with a question; an embedder has two graphs that each give a vector.
"""

import os
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from vistill.errors import BundleError

# What onnxruntime raises for a file that is no graph, or a graph that it cannot run.
_LOAD_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

Cross = dict[str, ort.OrtValue]

TOWER_MEAN = "tower_mean"
"""Output of a vision graph for a consensus head, not for the decoder; it may be missing."""


def name_pairs(kind: str, layers: int) -> list[str]:
    """Names of the keys and values of all layers, as past_key.0, past_value.0, past_key.1, ..."""
    return [f"{kind}_{part}.{i}" for i in range(layers) for part in ("key", "value")]


class VisionSession:
    """pixels [B, 3, H, W] -> cross-attention keys and values, which every caption of a picture shares."""

    def __init__(self, model: bytes, threads: int | None = None, name: str = "vision graph") -> None:
        self.session = open_session(model, threads, name)
        _expect_names(name, self.session.get_inputs(), {"pixels"})
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.layers = sum(name.startswith("cross_value.") for name in self.outputs)
        cross = set(name_pairs("cross", self.layers))
        _expect_names(name, self.session.get_outputs(), cross | (set(self.outputs) & {TOWER_MEAN}))
        self.size = tuple(self.session.get_inputs()[0].shape[2:])  # (H, W)
        shapes = {value.name: value.shape for value in self.session.get_outputs()}
        self.tower_width = (shapes.get(TOWER_MEAN) or [None])[-1]

    def run(self, pixels: NDArray[np.float32]) -> Cross:
        """float32 [B, 3, H, W] -> `cross_key.{l}` [B, h, d, N], `cross_value.{l}` [B, h, N, d] and, if the
        graph has it, `tower_mean` [B, F], the tower's features.
        """
        values = self.session.run_with_ort_values(self.outputs, {"pixels": _ort_value(pixels)})
        return dict(zip(self.outputs, values, strict=True))


class DecoderSession:
    """The decoder graph. It holds no text: each call of `start` gives a stepper with a state of its own."""

    def __init__(self, model: bytes, threads: int | None = None, name: str = "decoder graph") -> None:
        self.session = open_session(model, threads, name)
        inputs = {value.name: value for value in self.session.get_inputs()}
        self.layers = sum(name.startswith("past_key.") for name in inputs)
        if self.layers == 0:
            raise BundleError(f"{name}: it has no input past_key.0")
        self.cross = name_pairs("cross", self.layers)
        self.past = name_pairs("past", self.layers)
        self.prompted = "offset" in inputs
        """Whether texts begin with a prompt of their own, filled on the left."""
        given = {"tokens", "offset"} if self.prompted else {"tokens"}
        _expect_names(name, inputs.values(), given | {*self.cross, *self.past})
        _, _, self.heads, _, self.head_width = inputs["past_key.0"].shape  # [B, C, h, T, d]
        self.outputs = ["logits", *name_pairs("present", self.layers)]
        outputs = {value.name: value for value in self.session.get_outputs()}
        _expect_names(name, outputs.values(), set(self.outputs))
        self.vocabulary = outputs["logits"].shape[-1] if outputs["logits"].shape else None  # may be unknown

    def start(self, cross: Cross, prompt: "Prompt | None" = None) -> "OnnxStepper":
        """A stepper for the pictures of `cross`, which is what `VisionSession.run` returned.

        prompt: what has been read of each text; needed if `prompted`.
        """
        return OnnxStepper(self, cross, prompt)


@dataclass(frozen=True)
class Prompt:
    """B prompts that were read: past keys and values by name, [B, 1, h, T, d], and offset int64 [B]."""

    past: Cross
    offset: ort.OrtValue


class PromptSession:
    """The prompt graph: the decoder over all tokens of B prompts at once."""

    def __init__(self, model: bytes, threads: int | None = None, name: str = "prompt graph") -> None:
        self.session = open_session(model, threads, name)
        names = {value.name for value in self.session.get_inputs()}
        self.layers = sum(name.startswith("cross_value.") for name in names)
        self.cross = name_pairs("cross", self.layers)
        _expect_names(name, self.session.get_inputs(), {"tokens", "offset", *self.cross})
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, tokens: NDArray[np.int64], offset: NDArray[np.int64], cross: Cross) -> Prompt:
        """tokens [B, T], the first offset [B] of each row padding; cross of B rows."""
        padding = _ort_value(offset)
        feeds = {name: cross[name] for name in self.cross} | {"tokens": _ort_value(tokens), "offset": padding}
        values = self.session.run_with_ort_values(self.outputs, feeds)
        return Prompt(dict(zip(self.outputs, values, strict=True)), padding)


def of_pictures(cross: Cross, owner: NDArray[np.int64]) -> Cross:
    """cross of P pictures -> of B texts; text b is about picture owner[b]."""
    pictures = next(iter(cross.values())).shape()[0]
    if len(owner) == pictures and (owner == np.arange(pictures)).all():
        return cross
    return {name: _ort_value(value.numpy()[owner]) for name, value in cross.items()}


class EmbeddingSession:
    """A graph from `pixels` float32 [B, 3, H, W] or `tokens` int64 [B, T] to `embedding` float32 [B, E]."""

    def __init__(self, model: bytes, given: str, threads: int | None = None, name: str = "graph") -> None:
        self.session = open_session(model, threads, name)
        _expect_names(name, self.session.get_inputs(), {given})
        _expect_names(name, self.session.get_outputs(), {"embedding"})
        self.given = given
        self.shape = tuple(self.session.get_inputs()[0].shape)
        self.width = self.session.get_outputs()[0].shape[-1]

    def run(self, rows: NDArray[np.generic]) -> NDArray[np.float32]:
        """[B, ...] -> [B, E], unit norm."""
        out: NDArray[np.float32] = self.session.run(["embedding"], {self.given: rows})[0]
        return out


class OnnxStepper:
    """`vistill.runtime.decode.Stepper` over a DecoderSession.

    The caches stay where ONNX Runtime wrote them; the new order of rows is kept in mind until the next step,
    so that a row which stays in place is not moved.
    """

    def __init__(self, decoder: DecoderSession, cross: Cross, prompt: Prompt | None = None) -> None:
        self.decoder = decoder
        self.cross = {name: cross[name] for name in decoder.cross}
        if prompt is not None:
            self.cross["offset"] = prompt.offset
            self.past = [prompt.past[name] for name in decoder.past]
            return
        batch = cross["cross_key.0"].shape()[0]
        empty = np.zeros((batch, 1, decoder.heads, 0, decoder.head_width), np.float32)
        self.past = [_ort_value(empty)] * len(decoder.past)

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """tokens [B, C] -> logits [B, C, V] of the next position."""
        feeds = self.cross | dict(zip(self.decoder.past, self.past, strict=True))
        feeds["tokens"] = _ort_value(tokens)
        logits, *self.past = self.decoder.session.run_with_ort_values(self.decoder.outputs, feeds)
        out: NDArray[np.float32] = logits.numpy()
        return out

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """rows [B, C2]: new row (b, c) continues old row (b, rows[b, c])."""
        captions = self.past[0].shape()[1]
        if rows.shape[1] == captions and (rows == np.arange(captions)).all():
            return
        batch = np.arange(rows.shape[0])[:, None]
        self.past = [_ort_value(value.numpy()[batch, rows]) for value in self.past]

    def keep(self, pictures: NDArray[np.int64]) -> None:
        """Forget all but these pictures."""
        self.cross = {name: _ort_value(value.numpy()[pictures]) for name, value in self.cross.items()}
        self.past = [_ort_value(value.numpy()[pictures]) for value in self.past]


def open_session(model: bytes, threads: int | None, name: str) -> ort.InferenceSession:
    """A CPU session for the bytes of an ONNX file. Raises BundleError if onnxruntime cannot run them."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only: warnings there are about graph optimisation
    # Threads that spin after each of the many small calls of a decoder step take the cores of everybody else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except _LOAD_ERRORS as error:
        raise BundleError(f"{name}: onnxruntime {ort.__version__} cannot run it: {error}") from error


def available_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _ort_value(array: NDArray[np.generic]) -> ort.OrtValue:
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _expect_names(graph: str, values: object, expected: set[str]) -> None:
    found = {value.name for value in values}  # type: ignore[attr-defined]
    if found != expected:
        odd = ", ".join(sorted(found ^ expected)[:8])
        raise BundleError(
            f"{graph}: inputs or outputs are not those of a vistill bundle; they differ in {odd}"
        )
