"""One small ONNX file for every operator and form that is translated, of older and newer operator sets."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_draw = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return _draw.normal(size=shape).astype(np.float32)


def whole(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """The first input is the model's, its axis 0 free where `free`; the others are constants, None is left out."""

    op: str
    inputs: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    domain: str = ""
    free: bool = True
    outputs: int = 1

    def write(self, path: Path) -> Path:
        x = self.inputs[0]
        names = ["x", *(f"c{i}" if value is not None else "" for i, value in enumerate(self.inputs[1:]))]
        constants = [numpy_helper.from_array(v, n) for n, v in zip(names[1:], self.inputs[1:], strict=True) if n]
        results = ["y", "y1", "y2"][: self.outputs]
        node = helper.make_node(self.op, names, results, name="n", domain=self.domain, **self.attributes)
        kind = helper.np_dtype_to_tensor_dtype(x.dtype)
        shape = ["batch", *x.shape[1:]] if self.free and x.ndim else x.shape
        graph = helper.make_graph(
            [node], "g", [helper.make_tensor_value_info("x", kind, shape)],
            [onnx.ValueInfoProto(name=name) for name in results], constants,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
        return path


MAP = floats(2, 4, 6, 6)
POSITIVE, BETWEEN, ROWS = np.abs(MAP) + 0.1, np.tanh(MAP), floats(2, 5, 8)
NORM = [floats(4), floats(4), floats(4), np.abs(floats(4)) + 0.5]
GRID = np.tanh(floats(2, 5, 5, 2))
X = floats(5, 2, 3)
"""(steps, samples, features)"""


def _recurrent(gates: int, hidden: int, directions: int, inputs: int = 3) -> list[Any]:
    rows = gates * hidden
    return [X, floats(directions, rows, inputs), floats(directions, rows, hidden), floats(directions, 2 * rows)]


def _resize(mode: str, place: str, factors: list[float], opset: int = 17, **more: Any) -> Case:
    settings = {"mode": mode, "coordinate_transformation_mode": place, **more}
    return Case("Resize", [MAP, None, np.array(factors, np.float32)], settings, opset)


CASES: dict[str, Case] = {
    **{
        op: Case(op, [MAP])
        for op in (
            "Relu",
            "Sigmoid",
            "Tanh",
            "Exp",
            "Erf",
            "Neg",
            "Abs",
            "Reciprocal",
            "Floor",
            "Ceil",
            "Round",
            "Sin",
            "Cos",
            "Sign",
            "Softplus",
            "HardSwish",
            "HardSigmoid",
            "LeakyRelu",
            "Elu",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Softmax",
            "LogSoftmax",
            "Identity",
            "Flatten",
            "Transpose",
            "Tan",
            "Atan",
            "Sinh",
            "Cosh",
            "Asinh",
            "Softsign",
            "Celu",
            "Selu",
            "ThresholdedRelu",
            "Shrink",
            "Hardmax",
            "LpNormalization",
            "GlobalLpPool",
            "MeanVarianceNormalization",
            "Dropout",
            "Sum",
            "Mean",
            "Max",
        )
    },
    **{op: Case(op, [POSITIVE]) for op in ("Log", "Sqrt")},
    **{op: Case(op, [BETWEEN]) for op in ("Asin", "Acos", "Atanh")},
    **{op: Case(op, [MAP, floats(4, 1, 1)]) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")},
    **{f"{op} by a number": Case(op, [MAP, np.float32(0.7)]) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
    "Acosh": Case("Acosh", [POSITIVE + 1]),
    "Mish": Case("Mish", [MAP], opset=18),
    "three largest": Case("Max", [MAP, floats(4, 1, 1), floats(6)]),
    "old relu": Case("Relu", [MAP], opset=7),
    "old dropout": Case("Dropout", [MAP], {"ratio": 0.3}, 7),
    "whole division": Case("Div", [whole(7, -7, 5), whole(2, 2, -3)], free=False),
    "shift": Case(
        "BitShift", [np.array([1, 2, 3], np.uint8), np.array([1, 2, 3], np.uint8)], {"direction": "LEFT"}, free=False
    ),
    "remainder of integers": Case("Mod", [whole(7, -7, 5), whole(3, 3, -3)], free=False),
    "hard sigmoid of torch": Case("HardSigmoid", [MAP], {"alpha": 1 / 6, "beta": 0.5}),
    "leaky": Case("LeakyRelu", [MAP], {"alpha": 0.3}),
    "odd selu": Case("Selu", [MAP], {"alpha": 1.5}),
    "prelu": Case("PRelu", [MAP, floats(4, 1, 1)]),
    "prelu of one": Case("PRelu", [MAP, floats(1)]),
    "prelu of positions": Case("PRelu", [MAP, floats(4, 6, 6)]),
    "gelu": Case("Gelu", [MAP], {}, 20),
    "gelu by tanh": Case("Gelu", [MAP], {"approximate": "tanh"}, 20),
    "power": Case("Pow", [POSITIVE, np.float32(1.5)]),
    "square": Case("Pow", [MAP, np.float32(2)]),
    "power of a tensor": Case("Pow", [POSITIVE, floats(6)]),
    "whole power": Case("Pow", [MAP, np.array([2, 3] * 3)]),
    "clip": Case("Clip", [MAP, np.float32(-0.5), np.float32(1)]),
    "clip below": Case("Clip", [MAP, np.float32(0)]),
    "clip above": Case("Clip", [MAP, None, np.float32(0)]),
    "relu6": Case("Clip", [MAP, np.float32(0), np.float32(6)]),
    "old clip": Case("Clip", [MAP], {"min": -0.5, "max": 0.5}, 10),
    "unbounded": Case("Clip", [MAP]),
    "where": Case("Where", [MAP > 0, floats(6), np.float32(-1)]),
    "where else": Case("Where", [MAP > 0, np.float32(0), floats(4, 6, 6)]),
    "equal": Case("Equal", [whole(1, 2, 3), whole(1, 5, 3)], free=False),
    "less": Case("Less", [MAP, np.float32(0)]),
    "xor": Case("Xor", [MAP > 0, np.array([True, False] * 3)]),
    "not": Case("Not", [MAP > 0]),
    "infinite": Case("IsInf", [np.array([1, np.inf, -np.inf], np.float32)], {"detect_negative": 0}),
    "not a number": Case("IsNaN", [np.array([1, np.nan], np.float32)]),
    "cast": Case("Cast", [whole(1, 2)], {"to": TensorProto.FLOAT}),
    "cast like": Case("CastLike", [whole(1, 2), np.float32(1)], {}, 15),
    "matrices": Case("MatMul", [floats(2, 3, 4), floats(4, 5)]),
    "matrices of matrices": Case("MatMul", [floats(2, 3, 4), floats(2, 4, 5)], free=False),
    "gemm": Case("Gemm", [floats(3, 4), floats(4, 5), floats(5)]),
    "gemm alone": Case("Gemm", [floats(3, 4), floats(4, 5)]),
    "gemm with one bias": Case("Gemm", [floats(3, 4), floats(4, 5), floats(1)], {"transB": 0}),
    "scaled gemm": Case("Gemm", [floats(3, 4), floats(4, 5), floats(5)], {"alpha": 0.5, "beta": 2.0}),
    "linear": Case("Gemm", [floats(3, 4), floats(5, 4), floats(5)], {"transB": 1}),
    "transposed gemm": Case("Gemm", [floats(4, 3), floats(5, 4), floats(5)], {"transB": 1, "transA": 1}, free=False),
    "gemm with a bias of rows": Case("Gemm", [floats(3, 4), floats(4, 5), floats(3, 5)], free=False),
    "products": Case("Einsum", [floats(2, 3, 4), floats(2, 4, 5)], {"equation": "bij,bjk->bik"}, free=False),
    "determinant": Case("Det", [floats(2, 3, 3)]),
    "convolution": Case("Conv", [MAP, floats(6, 4, 3, 3), floats(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "grouped": Case("Conv", [MAP, floats(8, 2, 3, 3)], {"group": 2, "dilations": [2, 2]}, 7),
    "lopsided": Case("Conv", [MAP, floats(6, 4, 2, 3), floats(6)], {"pads": [0, 1, 1, 1]}),
    "same": Case("Conv", [MAP, floats(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": Case("Conv", [MAP, floats(6, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}),
    "valid": Case("Conv", [MAP, floats(6, 4, 2, 2)], {"auto_pad": "VALID"}),
    "one-dimensional": Case("Conv", [floats(2, 4, 9), floats(6, 4, 3)], {"pads": [1, 1]}),
    "three-dimensional": Case("Conv", [floats(2, 2, 4, 5, 6), floats(3, 2, 3, 3, 3), floats(3)]),
    "transposed": Case(
        "ConvTranspose",
        [MAP, floats(4, 3, 3, 3), floats(3)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    "transposed and grouped": Case("ConvTranspose", [MAP, floats(4, 3, 3, 3)], {"group": 2, "strides": [2, 2]}),
    "transposed to a shape": Case(
        "ConvTranspose", [MAP, floats(4, 3, 3, 3)], {"strides": [2, 2], "output_shape": [12, 12]}
    ),
    "transposed, lopsided": Case("ConvTranspose", [MAP, floats(4, 3, 3, 3)], {"strides": [2, 2], "pads": [0, 1, 1, 0]}),
    "transposed, same": Case("ConvTranspose", [MAP, floats(4, 3, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "batch norm": Case("BatchNormalization", [MAP, *NORM]),
    "old batch norm": Case("BatchNormalization", [MAP, *NORM], {}, 7),
    "batch norm of rows": Case("BatchNormalization", [floats(3, 4), *NORM], {"epsilon": 1e-3}),
    "layer norm": Case("LayerNormalization", [MAP, floats(6, 6), floats(6, 6)], {"axis": -2, "epsilon": 1e-3}),
    "layer norm without bias": Case("LayerNormalization", [MAP, floats(6)]),
    "instance norm": Case("InstanceNormalization", [MAP, floats(4), floats(4)]),
    "group norm": Case("GroupNormalization", [MAP, floats(4), floats(4)], {"num_groups": 2}, 21),
    "local response": Case("LRN", [MAP], {"size": 3, "alpha": 0.3}),
    "max pool": Case("MaxPool", [MAP], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "max pool beyond": Case("MaxPool", [MAP], {"kernel_shape": [4, 4], "strides": [3, 3], "ceil_mode": 1}),
    "lopsided max pool": Case("MaxPool", [MAP], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    "same max pool": Case("MaxPool", [MAP], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, 7),
    "dilated max pool": Case("MaxPool", [MAP], {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    "average pool": Case("AveragePool", [MAP], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "counted": Case("AveragePool", [MAP], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    "lopsided average": Case("AveragePool", [MAP], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}),
    "lopsided, counted": Case(
        "AveragePool", [MAP], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}
    ),
    "same average": Case("AveragePool", [MAP], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "lp pool": Case("LpPool", [MAP], {"kernel_shape": [2, 2], "strides": [2, 2], "p": 3}),
    "mean": Case("ReduceMean", [MAP], {"axes": [2, -1], "keepdims": 0}),
    "mean of all": Case("ReduceMean", [MAP]),
    "mean over an operand": Case("ReduceMean", [MAP, whole(1, 2)], {}, 18),
    "no axes": Case("ReduceSum", [MAP], {"noop_with_empty_axes": 1}),
    "sum": Case("ReduceSum", [MAP, whole(1)], {"keepdims": 0}),
    "old sum": Case("ReduceSum", [MAP], {"axes": [1]}, 11),
    **{
        op: Case(op, [MAP], {"axes": [1, 3]})
        for op in (
            "ReduceMax",
            "ReduceMin",
            "ReduceProd",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
        )
    },
    "log of a sum": Case("ReduceLogSum", [POSITIVE], {"axes": [1], "keepdims": 0}),
    "argmax": Case("ArgMax", [MAP], {"axis": 1}),
    "argmin": Case("ArgMin", [MAP], {"axis": -1, "keepdims": 0}),
    "last argmax": Case(
        "ArgMax", [np.array([[1, 3, 3, 0], [2, 1, 0, 2]], np.float32)], {"axis": 1, "select_last_index": 1}
    ),
    "running sum": Case("CumSum", [MAP, np.int64(1)]),
    "running sum from behind": Case("CumSum", [MAP, np.int64(1)], {"exclusive": 1, "reverse": 1}),
    "largest three": Case("TopK", [ROWS, whole(3)], outputs=2),
    "old largest": Case("TopK", [ROWS], {"k": 2}, 9, outputs=2),
    "smallest": Case("TopK", [ROWS, whole(2)], {"axis": 1, "largest": 0}, outputs=2),
    "softmax of channels": Case("Softmax", [MAP], {"axis": 1}),
    "old softmax": Case("Softmax", [MAP], {}, 9),
    "old softmax at the end": Case("LogSoftmax", [MAP], {"axis": 3}, 11),
    "old hardmax": Case("Hardmax", [MAP], {}, 11),
    "reshape": Case("Reshape", [MAP, whole(0, -1, 3)]),
    "reshape all": Case("Reshape", [MAP, whole(-1, 4, 36)]),
    "flatten": Case("Flatten", [MAP], {"axis": 2}),
    "flatten from the batch": Case("Flatten", [MAP], {"axis": 0}),
    "transpose": Case("Transpose", [MAP], {"perm": [0, 2, 3, 1]}),
    "squeeze": Case("Squeeze", [floats(2, 1, 3, 1), whole(1)]),
    "squeeze all": Case("Squeeze", [floats(2, 1, 3, 1)], free=False),
    "old squeeze": Case("Squeeze", [floats(2, 1, 3, 1)], {"axes": [1, 3]}, 9),
    "unsqueeze": Case("Unsqueeze", [floats(2, 3), whole(1, -1)]),
    "unsqueeze one": Case("Unsqueeze", [floats(2, 3), whole(0)]),
    "old unsqueeze": Case("Unsqueeze", [floats(2, 3)], {"axes": [1]}, 9),
    "concat": Case("Concat", [MAP, floats(2, 3, 6, 6)], {"axis": 1}, free=False),
    "split": Case("Split", [MAP, whole(1, 3)], {"axis": 1}, outputs=2),
    "old split": Case("Split", [MAP], {"axis": 1, "split": [3, 1]}, 11, outputs=2),
    "split evenly": Case("Split", [MAP], {"axis": 2, "num_outputs": 2}, 18, outputs=2),
    "slice": Case("Slice", [MAP, whole(0, 1), whole(2**62, -1), whole(1, -1), whole(2, 2)]),
    "slice from the end": Case("Slice", [MAP, whole(-3), whole(-1), whole(2)]),
    "old slice": Case("Slice", [MAP], {"starts": [1], "ends": [3], "axes": [1]}, 9),
    "backwards": Case("Slice", [MAP, whole(-1, 4), whole(-(2**62), 0), whole(2, 3), whole(-1, -2)]),
    "select": Case("Gather", [MAP, np.int64(-2)], {"axis": 1}),
    "choose": Case("Gather", [MAP, whole(2, 0)], {"axis": 1}),
    "gather": Case("Gather", [MAP, np.array([[0, 3], [-1, 1]])], {"axis": 1}),
    "gather elements": Case("GatherElements", [floats(2, 3), np.array([[0, -1], [2, 0]])], {"axis": 1}, free=False),
    "gather entries": Case("GatherND", [floats(3, 4, 5), np.array([[0, 1], [2, 3]])], free=False),
    "gather entries of samples": Case(
        "GatherND", [floats(2, 3, 5), np.array([[[1]], [[2]]])], {"batch_dims": 1}, free=False
    ),
    "scatter": Case("ScatterElements", [floats(2, 3), np.array([[0, -1]]), floats(1, 2)], {"axis": 1}, free=False),
    "scatter and add": Case(
        "ScatterElements",
        [floats(2, 3), np.array([[0, 0]]), floats(1, 2)],
        {"axis": 1, "reduction": "add"},
        16,
        free=False,
    ),
    "scatter entries": Case("ScatterND", [floats(4, 3), np.array([[1], [2]]), floats(2, 3)], free=False),
    "expand": Case("Expand", [floats(4, 1, 6), whole(2, 1, 3, 1)]),
    "expand nothing": Case("Expand", [MAP, whole(1)]),
    "tile": Case("Tile", [floats(2, 3), whole(2, 3)]),
    "pad": Case("Pad", [MAP, whole(0, 1, 0, 2, 0, 1, 3, 0), np.float32(7)]),
    "old pad": Case("Pad", [MAP], {"pads": [0, 0, 1, 1] * 2}, 9),
    "pad two axes": Case("Pad", [MAP, whole(1, 2, 3, 0), np.float32(0), whole(2, -1)], {}, 18),
    "reflect": Case("Pad", [MAP, whole(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
    "reflect channels": Case("Pad", [MAP, whole(0, 2, 0, 0, 0, 1, 0, 0)], {"mode": "reflect"}),
    "edge": Case("Pad", [MAP, whole(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "edge"}),
    "edge of rows": Case("Pad", [floats(2, 5), whole(0, 2, 0, 1)], {"mode": "edge"}),
    "wrap": Case("Pad", [MAP, whole(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "wrap"}, 19),
    "columns first": Case("DepthToSpace", [MAP], {"blocksize": 2, "mode": "CRD"}),
    "depth first": Case("DepthToSpace", [MAP], {"blocksize": 2}),
    "to depth": Case("SpaceToDepth", [MAP], {"blocksize": 2}),
    "fold": Case("Col2Im", [floats(2, 12, 4), whole(4, 4), whole(2, 2)], {"strides": [2, 2]}, 18),
    "upper triangle": Case("Trilu", [ROWS, np.int64(1)]),
    "lower triangle": Case("Trilu", [ROWS], {"upper": 0}),
    "diagonal": Case("EyeLike", [floats(3, 4)], {"k": 1}, free=False),
    "one of many": Case("OneHot", [whole(1, 0, -1), np.int64(4), np.array([0, 2], np.float32)]),
    "one of many first": Case("OneHot", [whole(1, 0), np.int64(3), np.array([0, 1], np.float32)], {"axis": 0}, 9),
    "reversed": Case("ReverseSequence", [floats(4, 2, 3), whole(2, 4)], free=False),
    "centre": Case("CenterCropPad", [MAP, whole(9, 3)], {"axes": [2, 3]}, 18),
    "sampled": Case("GridSample", [MAP, GRID], {}, 16, free=False),
    "sampled at corners": Case("GridSample", [MAP, GRID], {"mode": "nearest", "align_corners": 1}, 16, free=False),
    "smoothly enlarged": Case("Resize", [MAP, None, None, whole(2, 4, 9, 8)], {"mode": "linear"}, free=False),
    "enlarged": _resize("nearest", "asymmetric", [1, 1, 2, 2], nearest_mode="floor"),
    "enlarged by default": _resize("nearest", "half_pixel", [1, 1, 3, 2]),
    "shrunk": _resize("nearest", "half_pixel", [1, 1, 0.5, 0.5]),
    "by a half more": _resize("nearest", "asymmetric", [1, 1, 1.5, 1.5]),
    "linearly enlarged": _resize("linear", "half_pixel", [1, 1, 2, 2]),
    "linear, odd": _resize("linear", "half_pixel", [1, 1, 1.3, 0.7]),
    "linear at corners": _resize("linear", "align_corners", [1, 1, 2, 2]),
    "linear, asymmetric": _resize("linear", "asymmetric", [1, 1, 2, 2]),
    "linear of torch": _resize("linear", "pytorch_half_pixel", [1, 1, 2, 2]),
    "cubic": _resize("cubic", "half_pixel", [1, 1, 2, 2]),
    "cubic at corners": _resize("cubic", "align_corners", [1, 1, 2, 2]),
    "channels last": Case("Resize", [floats(2, 6, 6, 4), None, np.array([1, 2, 2, 1], np.float32)], {"mode": "linear"}),
    "resize of 10": Case("Resize", [MAP, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, 10),
    "upsample": Case("Upsample", [MAP, np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}, 9),
    "old upsample": Case("Upsample", [MAP], {"mode": "linear", "scales": [1.0, 1.0, 2.0, 2.0]}, 7),
    "three axes": Case("Resize", [MAP, None, np.array([2, 2], np.float32)], {"mode": "linear", "axes": [2, 3]}, 18),
    "remainder": Case("Mod", [MAP, np.float32(0.7)], {"fmod": 1}),
    "lstm": Case("LSTM", _recurrent(4, 4, 1), {"hidden_size": 4}, 14, outputs=3, free=False),
    "lstm both ways": Case(
        "LSTM", _recurrent(4, 4, 2), {"hidden_size": 4, "direction": "bidirectional"}, 7, outputs=3, free=False
    ),
    "lstm backwards": Case(
        "LSTM", _recurrent(4, 4, 1), {"hidden_size": 4, "direction": "reverse"}, outputs=3, free=False
    ),
    "lstm from a state": Case(
        "LSTM",
        [*_recurrent(4, 4, 1), None, floats(1, 2, 4), floats(1, 2, 4)],
        {"hidden_size": 4},
        outputs=3,
        free=False,
    ),
    "gru": Case("GRU", _recurrent(3, 4, 1), {"hidden_size": 4, "linear_before_reset": 1}, outputs=2, free=False),
    "gru both ways": Case(
        "GRU",
        _recurrent(3, 4, 2),
        {"hidden_size": 4, "linear_before_reset": 1, "direction": "bidirectional"},
        outputs=2,
        free=False,
    ),
    "rnn": Case("RNN", _recurrent(1, 4, 1), {"hidden_size": 4}, outputs=2, free=False),
    "rnn of relus": Case(
        "RNN", _recurrent(1, 4, 1), {"hidden_size": 4, "activations": ["Relu"]}, outputs=2, free=False
    ),
    **{f"ms {op}": Case(op, [ROWS], domain="com.microsoft") for op in ("Gelu", "QuickGelu", "FastGelu")},
    "ms FastGelu with bias": Case("FastGelu", [ROWS, floats(8)], domain="com.microsoft"),
    "ms BiasGelu": Case("BiasGelu", [ROWS, floats(8)], domain="com.microsoft"),
    "ms FusedMatMul": Case("FusedMatMul", [ROWS, floats(6, 8)], {"transB": 1, "alpha": 0.5}, domain="com.microsoft"),
    "ms SkipLayerNormalization": Case(
        "SkipLayerNormalization",
        [ROWS, ROWS[::-1].copy(), floats(8), floats(8), floats(8)],
        {"epsilon": 1e-5},
        domain="com.microsoft",
        free=False,
    ),
    "ms SkipSimplifiedLayerNormalization": Case(
        "SkipSimplifiedLayerNormalization",
        [ROWS, ROWS[::-1].copy(), floats(8)],
        {"epsilon": 1e-5},
        domain="com.microsoft",
        free=False,
    ),
    "ms SimplifiedLayerNormalization": Case("SimplifiedLayerNormalization", [ROWS, floats(8)], {"axis": -1}),
    "ms Attention": Case("Attention", [ROWS, floats(8, 24), floats(24)], {"num_heads": 2}, domain="com.microsoft"),
    "ms Attention, causal": Case(
        "Attention", [ROWS, floats(8, 24), floats(24)], {"num_heads": 2, "unidirectional": 1}, domain="com.microsoft"
    ),
    "ms Attention with a mask": Case(
        "Attention",
        [ROWS, floats(8, 24), floats(24), np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)],
        {"num_heads": 2},
        domain="com.microsoft",
        free=False,
    ),
}
