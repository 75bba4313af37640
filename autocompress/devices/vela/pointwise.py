"""How operators that work element by element, or over axes, are written: arithmetic, activations, means, norms."""

import math
from typing import Any

import numpy as np

from autocompress.devices.vela.lowering import ASSUMED, Handler, Lowering, Order, Value, plain
from autocompress.devices.vela.source import Node, Numbers
from autocompress.devices.vela.tflite import Grid

UNIT = Grid((1 / 256,), -128)
"""Holds 0 to 1: what TensorFlow Lite requires of a sigmoid's and a softmax's result."""

SYMMETRIC_UNIT = Grid((1 / 128,))
"""Holds -1 to 1: what it requires of a hyperbolic tangent's."""

LOGARITHMS = Grid((1 / 16,), 127)
"""Holds -16 to 0: what it requires of a logarithmic softmax's."""

_SQRT_2 = math.sqrt(2)


def unary(code: str, table: str = "", grid: Grid | None = None) -> Handler:
    """One operator of one tensor, which keeps its shape and order; `grid` where the schema prescribes it."""

    def handle(e: Lowering, node: Node) -> None:
        value = e.read(node.inputs[0])
        _bind_like(e, value, code, (value.index,), table, grid)

    return handle


def binary(code: str, table: str) -> Handler:
    """Arithmetic on two tensors, or one and a constant, broadcast against each other."""

    def handle(e: Lowering, node: Node) -> None:
        left, right = _aligned(e, node)
        tensor, activation = e.fused_activation()
        _combined(e, code, left, right, tensor, table=table, FusedActivationFunction=activation)

    return handle


def division(e: Lowering, node: Node) -> None:
    """By a constant it is a multiplication; by the root of 2 it may begin a GELU."""
    divisor = e.source.constant(node.inputs[1])
    if _is_gelu(e, node):
        _gelu(e, node)
    elif divisor is None:
        binary("DIV", "Div")(e, node)
    else:
        value = e.read(node.inputs[0])
        rank = len(value.shape)
        inverse = 1 / divisor.reals.reshape((1,) * (rank - divisor.reals.ndim) + divisor.reals.shape)
        tensor, activation = e.fused_activation()
        factor = e.constant(inverse, value.order)
        _combined(e, "MUL", value, factor, tensor, table="Mul", FusedActivationFunction=activation)


def extreme(code: str) -> Handler:
    """MAXIMUM or MINIMUM of two tensors."""

    def handle(e: Lowering, node: Node) -> None:
        left, right = _aligned(e, node)
        _combined(e, code, left, right, node.outputs[0], table="MaximumMinimum")

    return handle


def _combined(e: Lowering, code: str, left: Value, right: Value, tensor: str, **options: Any) -> None:
    shape = np.broadcast_shapes(left.stored, right.stored)
    made = e.add(code, (left.index, right.index), shape, e.grid(tensor), name=tensor, **options)
    e.bind(tensor, made, left.order)


def _aligned(e: Lowering, node: Node) -> tuple[Value, Value]:
    """Both operands with as many axes, in the order in which the larger one is stored."""
    constants = [e.source.constant(tensor) for tensor in node.inputs]
    rank = len(e.source.shape(node.outputs[0]))
    values = [None if c is not None else e.read(t) for t, c in zip(node.inputs, constants, strict=True)]
    computed = [value for value in values if value is not None]
    largest = max(computed, key=lambda value: math.prod(value.shape))
    order = largest.order if len(largest.shape) == rank else plain(rank)
    aligned = []
    for value, constant in zip(values, constants, strict=True):
        if value is not None:
            aligned.append(e.arrange(_with_rank(e, value, rank), order))
        elif constant is not None:
            reals = constant.reals
            aligned.append(e.constant(reals.reshape((1,) * (rank - reals.ndim) + reals.shape), order))
    return aligned[0], aligned[1]


def _with_rank(e: Lowering, value: Value, rank: int) -> Value:
    missing = rank - len(value.shape)
    if not missing:
        return value
    straight = e.arrange(value, plain(len(value.shape)))
    shape = (1,) * missing + value.shape
    return Value(e.view(straight.index, shape), shape, plain(rank))


def _bind_like(
    e: Lowering, value: Value, code: str, inputs: tuple[int, ...], table: str = "", grid: Grid | None = None,
    **options: Any,
) -> None:  # fmt: skip
    """Adds the operator that makes the node's output from `value`, without changing its shape."""
    tensor = e.node.outputs[0]
    made = e.add(code, inputs, value.stored, grid or e.grid(tensor), name=tensor, table=table, **options)
    e.bind(tensor, made, value.order)


def _is_activation(e: Lowering, node: Node, value: Value) -> bool:
    """Adds the schema's activation that the node is, if it is one; nothing for one that changes nothing."""
    activation = e.activation(node)
    if activation == "NONE":
        e.alias(node.outputs[0], value)
    elif activation is not None:
        _bind_like(e, value, activation, (value.index,))
    return activation is not None


def clipped(e: Lowering, node: Node) -> None:
    """One of the schema's activations, or a maximum and a minimum."""
    value = e.read(node.inputs[0])
    if not _is_activation(e, node, value):
        grid = e.grid_of(value)
        low, high = (e.constant(np.full((1,) * len(value.shape), b), value.order, grid) for b in e.bounds(node))
        held = e.add("MAXIMUM", (value.index, low.index), value.stored, grid, table="MaximumMinimum")
        _bind_like(e, value, "MINIMUM", (held, high.index), "MaximumMinimum", grid)


def leaky_relu(e: Lowering, node: Node) -> None:
    value = e.read(node.inputs[0])
    if not _is_activation(e, node, value):
        _bind_like(e, value, "LEAKY_RELU", (value.index,), "LeakyRelu", Alpha=node.settings.get("alpha", 0.01))


def hard_sigmoid(e: Lowering, node: Node) -> None:
    """relu6(x + 3) / 6, as TensorFlow writes it."""
    alpha, beta = node.settings.get("alpha", 0.2), node.settings.get("beta", 0.5)
    if not math.isclose(alpha, 1 / 6, rel_tol=1e-5) or beta != 0.5:
        raise e.refuse(f"its slope is {alpha:g} and its offset {beta:g}, not 1/6 and 1/2")
    value = e.read(node.inputs[0])
    moved = _with_scalar(e, "ADD", value, 3.0)
    held = e.add("RELU6", (moved.index,), value.stored)
    _bind_like(e, value, "MUL", (held, _scalar(e, 1 / 6, value).index), "Mul", e.source.grid(node.outputs[0]) or UNIT)


def softplus(e: Lowering, node: Node) -> None:
    """log(1 + exp(x))."""
    value = e.read(node.inputs[0])
    grown = Value(e.add("EXP", (value.index,), value.stored, table="Exp"), value.shape, value.order)
    more = _with_scalar(e, "ADD", grown, 1.0)
    _bind_like(e, value, "LOG", (more.index,))


def reciprocal(e: Lowering, node: Node) -> None:
    value = e.read(node.inputs[0])
    _bind_like(e, value, "DIV", (_scalar(e, 1.0, value).index, value.index), "Div")


def power(e: Lowering, node: Node) -> None:
    """A square is a product."""
    value = e.read(node.inputs[0])
    exponent = e.source.constant(node.inputs[1])
    if exponent is not None and exponent.values.size == 1 and float(exponent.reals) == 2.0:
        _bind_like(e, value, "MUL", (value.index, value.index), "Mul")
    else:
        left, right = _aligned(e, node)
        _combined(e, "POW", left, right, node.outputs[0], table="Pow")


def gelu(e: Lowering, node: Node) -> None:
    value = e.read(node.inputs[0])
    approximate = node.settings.get("approximate", b"none") == b"tanh"
    _bind_like(e, value, "GELU", (value.index,), "Gelu", Approximate=approximate)


def _gelu(e: Lowering, node: Node) -> None:
    """The five nodes that compute x/2 (1 + erf(x/sqrt 2)), as one operator."""
    value = e.read(node.inputs[0])
    *between, last = _gelu_nodes(e, node)
    for other in (*between, last):
        e.skip(other)
    tensor = last.outputs[0]
    made = e.add("GELU", (value.index,), value.stored, e.grid(tensor), name=tensor, table="Gelu", Approximate=False)
    e.bind(tensor, made, value.order)


def _is_gelu(e: Lowering, node: Node) -> bool:
    divisor = e.source.constant(node.inputs[1])
    if divisor is None or divisor.values.size != 1 or not math.isclose(float(divisor.reals), _SQRT_2, rel_tol=1e-5):
        return False
    found = _gelu_nodes(e, node)
    return len(found) == 4 and node.inputs[0] in found[2].inputs


def _gelu_nodes(e: Lowering, node: Node) -> list[Node]:
    """The nodes behind the division, as far as they are those of a GELU."""
    found = []
    tensor = node.outputs[0]
    for op in ("Erf", "Add", "Mul", "Mul"):
        readers = e.source.readers(tensor)
        if len(readers) != 1 or readers[0].op != op:
            break
        found.append(readers[0])
        tensor = readers[0].outputs[0]
    return found


def softmax(code: str, table: str) -> Handler:
    def handle(e: Lowering, node: Node) -> None:
        value = e.read(node.inputs[0])
        rank = len(value.shape)
        axis = node.settings.get("axis", -1) % rank
        if value.order[-1] != axis:
            value = e.arrange(value, (*(a for a in range(rank) if a != axis), axis))
        options = {"Beta": 1.0} if code == "SOFTMAX" else {}
        grid = UNIT if code == "SOFTMAX" else LOGARITHMS
        _bind_like(e, value, code, (value.index,), table, grid, **options)

    return handle


def reduction(code: str) -> Handler:
    """MEAN, SUM, REDUCE_MAX or REDUCE_MIN over axes that are attributes or a constant operand."""

    def handle(e: Lowering, node: Node) -> None:
        value = e.read(node.inputs[0])
        axes = _axes(e, node, len(value.shape))
        reduced = _reduced(e, code, value, axes)
        tensor = node.outputs[0]
        if node.settings.get("keepdims", 1):
            e.alias(tensor, reduced)
            return
        kept = [axis for axis in value.order if axis not in axes]
        order = tuple(sorted(kept).index(axis) for axis in kept)
        e.bind(tensor, e.view(reduced.index, tuple(value.shape[axis] for axis in kept)), order)

    return handle


def _axes(e: Lowering, node: Node, rank: int) -> tuple[int, ...]:
    listed = node.settings.get("axes")
    if listed is None and len(node.inputs) > 1:
        constant = e.source.constant(node.inputs[1])
        listed = None if constant is None else constant.values.tolist()
    return tuple(axis % rank for axis in listed) if listed else plain(rank)


def _reduced(e: Lowering, code: str, value: Value, axes: tuple[int, ...]) -> Value:
    """With axes of one where those were."""
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(value.shape))
    stored = tuple(shape[axis] for axis in value.order)
    places = e.integers(sorted(value.order.index(axis) for axis in axes))
    grid = e.grid(e.node.outputs[0])
    made = e.add(code, (value.index, places), stored, grid, table="Reducer", KeepDims=True)
    return Value(made, shape, value.order)


def batch_norm(e: Lowering, node: Node) -> None:
    """A multiplication and an addition per channel: what could be folded into a layer was, before."""
    weight, bias, mean, variance = (e.value_of(tensor) for tensor in node.inputs[1:5])
    scale = weight / np.sqrt(variance + node.settings.get("epsilon", 1e-5))
    value = e.read(node.inputs[0])
    scaled = _with_channels(e, "MUL", value, scale)
    offset = _per_axis(e, bias - mean * scale, value, 1)
    _bind_like(e, value, "ADD", (scaled.index, offset.index), "Add")


def layer_norm(e: Lowering, node: Node) -> None:
    value = e.read(node.inputs[0])
    rank = len(value.shape)
    first = node.settings.get("axis", -1) % rank
    normal = _normalised(e, value, tuple(range(first, rank)), node.settings.get("epsilon", 1e-5))
    affine = [e.value_of(tensor) for tensor in node.inputs[1:3] if tensor]
    shaped = [a.reshape((1,) * (rank - a.ndim) + a.shape) for a in affine]
    if len(shaped) == 1:
        _bind_like(e, value, "MUL", (normal.index, e.constant(shaped[0], value.order).index), "Mul")
        return
    scale, offset = (e.constant(a, value.order).index for a in shaped)
    scaled = e.add("MUL", (normal.index, scale), value.stored, table="Mul")
    _bind_like(e, value, "ADD", (scaled, offset), "Add")


def instance_norm(e: Lowering, node: Node) -> None:
    value = e.read(node.inputs[0])
    rank = len(value.shape)
    normal = _normalised(e, value, tuple(range(2, rank)), node.settings.get("epsilon", 1e-5))
    weight, bias = (e.value_of(tensor) for tensor in node.inputs[1:3])
    scaled = _with_channels(e, "MUL", normal, weight)
    _bind_like(e, value, "ADD", (scaled.index, _per_axis(e, bias, value, 1).index), "Add")


def _normalised(e: Lowering, value: Value, axes: Order, epsilon: float) -> Value:
    """(x - mean) / sqrt(mean of squared differences + epsilon), in the operators that the schema has."""
    mean = _reduced(e, "MEAN", value, axes)
    centred = e.add("SUB", (value.index, mean.index), value.stored, table="Sub")
    squares = e.add("SQUARED_DIFFERENCE", (value.index, mean.index), value.stored, table="SquaredDifference")
    variance = _reduced(e, "MEAN", Value(squares, value.shape, value.order), axes)
    steadied = _with_scalar(e, "ADD", variance, epsilon)
    inverse = e.add("RSQRT", (steadied.index,), steadied.stored)
    return Value(e.add("MUL", (centred, inverse), value.stored, table="Mul"), value.shape, value.order)


def _with_channels(e: Lowering, code: str, value: Value, numbers: Numbers) -> Value:
    constant = _per_axis(e, numbers, value, 1)
    made = e.add(code, (value.index, constant.index), value.stored, table=code.capitalize())
    return Value(made, value.shape, value.order)


def _per_axis(e: Lowering, numbers: Numbers, value: Value, axis: int) -> Value:
    shape = [1] * len(value.shape)
    shape[axis] = -1
    return e.constant(numbers.reshape(shape), value.order)


def _with_scalar(e: Lowering, code: str, value: Value, number: float) -> Value:
    made = e.add(code, (value.index, _scalar(e, number, value).index), value.stored, ASSUMED, table=code.capitalize())
    return Value(made, value.shape, value.order)


def _scalar(e: Lowering, number: float, value: Value) -> Value:
    return e.constant(np.full((1,) * len(value.shape), number, np.float32), value.order)
