"""ONNX files made by hand: a small convolutional net, in float or with conversions to int8 and back."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 20
CLASSES = 5


def write_net(path: Path, *, int8: bool = False, pooled: bool = False) -> Path:
    """(batch, 3, 8, 8) → conv, relu, global average, linear → (batch, CLASSES); `pooled`: the averages too, first."""
    draw = np.random.default_rng(0)
    weights = {
        "conv.weight": draw.normal(size=(CHANNELS, 3, 3, 3)).astype(np.float32),
        "conv.bias": draw.normal(size=CHANNELS).astype(np.float32),
        "linear.weight": draw.normal(size=(CLASSES, CHANNELS)).astype(np.float32),
        "linear.bias": np.zeros(CLASSES, np.float32),
    }
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "conv.weight", "conv.bias"], ["c"], name="conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make("Relu", ["c"], ["r"], name="conv/Relu"),
        make("GlobalAveragePool", ["r"], ["p"], name="pool"),
        make("Flatten", ["p"], ["f"], name="flatten"),
        make("Gemm", ["f", "linear.weight", "linear.bias"], ["y"], name="linear", transB=1),
    ]
    if int8:
        nodes = _quantised_conv(nodes, constants)
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [
            *([helper.make_tensor_value_info("f", TensorProto.FLOAT, ["batch", CHANNELS])] if pooled else []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CLASSES]),
        ],
        constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def _quantised_conv(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    """The convolution between conversions: uint8 in and out, int8 weights."""
    make, conv = helper.make_node, nodes[0]
    constants += [
        numpy_helper.from_array(np.float32(0.05), "scale"),
        numpy_helper.from_array(np.uint8(0), "zero"),
        numpy_helper.from_array(np.int8(0), "weight.zero"),
        numpy_helper.from_array(np.ones((CHANNELS, 3, 3, 3), np.int8), "weight.int8"),
        numpy_helper.from_array(np.ones(CHANNELS, np.int32), "bias.int32"),
        numpy_helper.from_array(np.float32(0.0025), "bias.scale"),
    ]
    del conv.input[:]
    conv.input.extend(["x.dq", "weight.dq", "bias.dq"])
    nodes[1].input[0] = "c.dq"
    before = [
        make("QuantizeLinear", ["x", "scale", "zero"], ["x.q"], name="x>q"),
        make("DequantizeLinear", ["x.q", "scale", "zero"], ["x.dq"], name="x>q/dequantize"),
        make("DequantizeLinear", ["weight.int8", "scale", "weight.zero"], ["weight.dq"], name="conv/weight"),
        make("DequantizeLinear", ["bias.int32", "bias.scale"], ["bias.dq"], name="conv/bias"),
    ]
    after = [
        make("QuantizeLinear", ["c", "scale", "zero"], ["c.q"], name="conv/quantize"),
        make("DequantizeLinear", ["c.q", "scale", "zero"], ["c.dq"], name="conv>dq"),
    ]
    return [*before, conv, *after, *nodes[1:]]
