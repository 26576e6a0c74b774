"""Calibration sums against torch's unfold."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from vistill.export.calibrate import convolutions, hessians


def conv_model(kernel: int, stride: int, pads: list[int], groups: int, channels: int = 3) -> onnx.ModelProto:
    """One convolution of `pixels`, then an identity."""
    outputs = channels if groups > 1 else 5
    weight = np.random.default_rng(0).standard_normal((outputs, channels // groups, kernel, kernel))
    node = helper.make_node(
        "Conv",
        ["pixels", "w"],
        ["y"],
        name="c",
        kernel_shape=[kernel] * 2,
        strides=[stride] * 2,
        pads=pads,
        group=groups,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("pixels", 1, ["B", channels, 9, 8])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "groups"),
    [
        (1, 1, [0] * 4, 1),
        (3, 1, [1] * 4, 1),
        (3, 2, [0, 0, 1, 1], 1),
        (3, 1, [1] * 4, 3),
        (5, 2, [1, 2, 2, 2], 3),
    ],
)
def test_sums_equal_unfold(kernel: int, stride: int, pads: list[int], groups: int) -> None:
    model = conv_model(kernel, stride, pads, groups)
    pixels = np.random.default_rng(1).standard_normal((10, 3, 9, 8)).astype(np.float32)
    found = hessians(model, convolutions(model), pixels)["w"]
    padded = torch.nn.functional.pad(torch.from_numpy(pixels), (pads[1], pads[3], pads[0], pads[2]))
    patches = torch.nn.functional.unfold(padded, kernel, stride=stride).numpy()  # [B, C * k * k, L]
    x = patches.reshape(10, 3, kernel * kernel, -1)
    if groups == 1:
        rows = x.transpose(0, 3, 2, 1).reshape(-1, kernel * kernel * 3)  # (kh, kw, C)
        expected = (rows.T @ rows)[None]
    else:
        rows = x.transpose(1, 0, 3, 2).reshape(3, -1, kernel * kernel)
        expected = rows.transpose(0, 2, 1) @ rows
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


def test_other_convolutions_are_left_out() -> None:
    grouped = conv_model(3, 1, [1] * 4, 2, channels=4)
    found = convolutions(grouped)
    assert [conv.depthwise for conv in found] == [False]
    assert hessians(grouped, found, np.zeros((1, 4, 9, 8), np.float32)) == {}
    grouped.graph.node[0].attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))
    assert convolutions(grouped) == []
