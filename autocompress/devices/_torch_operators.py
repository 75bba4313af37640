"""Each ONNX operator as one call of torch, its attributes and constant operands settled beforehand."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Unsupported(Exception):
    """A form of an operator that has no translation; says which."""


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A value of the graph: as it is for the example inputs, and the node that makes it, None for a constant."""

    example: Tensor
    node: Any = None

    @property
    def rank(self) -> int:
        return self.example.dim()

    def known(self) -> Tensor:
        """Its value if no input changes it. Raises Unsupported."""
        if self.node is not None:
            raise Unsupported("with a shape or an index that depends on the data")
        return self.example

    def integers(self) -> list[int]:
        return [int(n) for n in self.known().reshape(-1).tolist()]


@dataclass(frozen=True, slots=True)
class Call:
    """What to call; arguments are operands, lists of them, or plain values."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


Attributes = Mapping[str, Any]
Translate = Callable[..., Call]
"""(attributes, operand or None, ...) → call."""

_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""By the number that onnx.proto gives an element type."""


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


def scaled_gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float) -> Tensor:
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product if c is None else product + (c if beta == 1 else beta * c)


def padded_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, pads: list[int], settings: list[Any]) -> Tensor:
    return torch.convolution(F.pad(x, pads), weight, bias, *settings)


def padded_max_pool(x: Tensor, pads: list[int], window: list[int], stride: list[int], ceil_mode: bool) -> Tensor:
    return _MAX_POOLS[len(window)](F.pad(x, pads, value=-math.inf), window, stride, ceil_mode=ceil_mode)


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


def sliced(x: Tensor, index: tuple[slice, ...], flipped: list[int]) -> Tensor:
    return x.flip(flipped)[index] if flipped else x[index]


def looked_up(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """One slice of x along the axis for each index, the indices' shape in the axis's place."""
    chosen = x.index_select(axis, indices.reshape(-1))
    return chosen.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


def depth_first_to_space(x: Tensor, block: int) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // block**2, h * block, w * block)


_MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: Mapping[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _of(target: Callable[..., Any], **renamed: tuple[str, Any]) -> Translate:
    """torch's function of all operands; `renamed` maps its keyword to an attribute and that one's default."""

    def translate(a: Attributes, *operands: Operand) -> Call:
        return Call(target, operands, {key: a.get(name, default) for key, (name, default) in renamed.items()})

    return translate


def _folded(target: Callable[..., Any]) -> Translate:
    def translate(a: Attributes, first: Operand, *others: Operand) -> Call:
        if len(others) != 1:
            raise Unsupported(f"of {len(others) + 1} operands")
        return Call(target, (first, others[0]))

    return translate


def _division(a: Attributes, x: Operand, y: Operand) -> Call:
    return Call(torch.div, (x, y), {} if x.example.is_floating_point() else {"rounding_mode": "trunc"})


def _clip(a: Attributes, x: Operand, low: Operand | None = None, high: Operand | None = None) -> Call:
    bounds = [None if bound is None else bound.known().item() for bound in (low, high)]
    return Call(torch.clamp, (x, *bounds))


def _cast(a: Attributes, x: Operand) -> Call:
    if a["to"] not in _DTYPES:
        raise Unsupported(f"to element type {a['to']}")
    return Call(cast, (x, _DTYPES[a["to"]]))


def _gemm(a: Attributes, x: Operand, w: Operand, c: Operand | None = None) -> Call:
    plain = a.get("alpha", 1) == 1 and a.get("beta", 1) == 1 and not a.get("transA", 0)
    if plain and a.get("transB", 0) and (c is None or c.rank == 1):
        return Call(F.linear, (x, w, c))
    if a.get("transA", 0) or a.get("transB", 0):
        raise Unsupported("with transposed operands that make it no linear layer")
    return Call(scaled_gemm, (x, w, c, a.get("alpha", 1.0), a.get("beta", 1.0)))


def _two_sided(pads: Sequence[int]) -> list[int]:
    """ONNX lists all befores, then all afters; torch (before, after) from the last axis on."""
    half = len(pads) // 2
    return [n for axis in reversed(range(half)) for n in (pads[axis], pads[axis + half])]


def _window(a: Attributes, rank: int) -> tuple[list[int], list[int], list[int]]:
    """(strides, dilations, pads) with their defaults. Raises Unsupported for padding that depends on the input."""
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Unsupported(f"with auto_pad {a['auto_pad'].decode()}")
    ones = [1] * rank
    return list(a.get("strides", ones)), list(a.get("dilations", ones)), list(a.get("pads", [0] * 2 * rank))


def _convolution(a: Attributes, x: Operand, w: Operand, b: Operand | None = None) -> Call:
    rank = w.rank - 2
    strides, dilations, pads = _window(a, rank)
    tail = [False, [0] * rank, a.get("group", 1)]
    if pads[:rank] == pads[rank:]:
        return Call(torch.convolution, (x, w, b, strides, pads[:rank], dilations, *tail))
    return Call(padded_convolution, (x, w, b, _two_sided(pads), [strides, [0] * rank, dilations, *tail]))


def _transposed_convolution(a: Attributes, x: Operand, w: Operand, b: Operand | None = None) -> Call:
    rank = w.rank - 2
    strides, dilations, pads = _window(a, rank)
    if pads[:rank] != pads[rank:] or "output_shape" in a:
        raise Unsupported("with padding that differs from side to side")
    more = list(a.get("output_padding", [0] * rank))
    return Call(torch.convolution, (x, w, b, strides, pads[:rank], dilations, True, more, a.get("group", 1)))


def _batch_norm(a: Attributes, x: Operand, scale: Operand, bias: Operand, mean: Operand, variance: Operand) -> Call:
    return Call(F.batch_norm, (x, mean, variance, scale, bias), {"eps": a.get("epsilon", 1e-5)})


def _layer_norm(a: Attributes, x: Operand, scale: Operand, bias: Operand | None = None) -> Call:
    shape = list(x.example.shape[a.get("axis", -1) :])
    return Call(F.layer_norm, (x, shape, scale, bias), {"eps": a.get("epsilon", 1e-5)})


def _instance_norm(a: Attributes, x: Operand, scale: Operand, bias: Operand) -> Call:
    return Call(F.instance_norm, (x, None, None, scale, bias), {"eps": a.get("epsilon", 1e-5)})


def _max_pool(a: Attributes, x: Operand) -> Call:
    window = list(a["kernel_shape"])
    rank = len(window)
    strides, dilations, pads = _window(a, rank)
    ceil_mode = bool(a.get("ceil_mode", 0))
    if pads[:rank] == pads[rank:] and all(2 * p <= k for p, k in zip(pads, window, strict=False)):
        return Call(_MAX_POOLS[rank], (x, window, strides, pads[:rank], dilations, ceil_mode))
    if dilations != [1] * rank:
        raise Unsupported("with dilation and padding that differs from side to side")
    return Call(padded_max_pool, (x, _two_sided(pads), window, strides, ceil_mode))


def _average_pool(a: Attributes, x: Operand) -> Call:
    window = list(a["kernel_shape"])
    rank = len(window)
    strides, dilations, pads = _window(a, rank)
    counted, ceil_mode = bool(a.get("count_include_pad", 0)), bool(a.get("ceil_mode", 0))
    if pads[:rank] != pads[rank:] or dilations != [1] * rank or (ceil_mode and any(pads)):
        raise Unsupported("with dilation, or padding that differs from side to side or meets ceil_mode")
    return Call(_AVERAGE_POOLS[rank], (x, window, strides, pads[:rank], ceil_mode, counted))


def _over_positions(target: Callable[..., Any]) -> Translate:
    return lambda a, x: Call(target, (x, list(range(2, x.rank)), True))


def _reduction(target: Callable[..., Any]) -> Translate:
    """The axes are an attribute or, since opset 18 (13 for the sum), an operand; none at all are all."""

    def translate(a: Attributes, x: Operand, axes: Operand | None = None) -> Call:
        given = axes.integers() if axes is not None else list(a.get("axes", ()))
        if not given and a.get("noop_with_empty_axes", 0):
            return Call(torch.clone, (x,))
        return Call(target, (x, given or list(range(x.rank)), bool(a.get("keepdims", 1))))

    return translate


def _reshape(a: Attributes, x: Operand, shape: Operand) -> Call:
    sizes = [x.example.shape[i] if n == 0 and not a.get("allowzero", 0) else n for i, n in enumerate(shape.integers())]
    return Call(torch.reshape, (x, sizes))


def _flatten(a: Attributes, x: Operand) -> Call:
    axis = a.get("axis", 1) % (x.rank + 1)
    return Call(torch.reshape, (x, [math.prod(x.example.shape[:axis]), math.prod(x.example.shape[axis:])]))


def _transpose(a: Attributes, x: Operand) -> Call:
    return Call(torch.permute, (x, list(a.get("perm", reversed(range(x.rank))))))


def _squeeze(a: Attributes, x: Operand, axes: Operand | None = None) -> Call:
    ones = [i for i, n in enumerate(x.example.shape) if n == 1]
    given = axes.integers() if axes is not None else list(a.get("axes", ones))
    return Call(torch.squeeze, (x, given))


def _unsqueeze(a: Attributes, x: Operand, axes: Operand | None = None) -> Call:
    given = axes.integers() if axes is not None else list(a["axes"])
    sizes = list(x.example.shape)
    for axis in sorted(axis % (x.rank + len(given)) for axis in given):
        sizes.insert(axis, 1)
    return Call(torch.reshape, (x, sizes))


def _concat(a: Attributes, *parts: Operand) -> Call:
    return Call(torch.cat, (list(parts), a["axis"]))


def _split(a: Attributes, x: Operand, sizes: Operand | None = None) -> Call:
    axis = a.get("axis", 0)
    if sizes is not None or "split" in a:
        return Call(torch.split, (x, sizes.integers() if sizes is not None else list(a["split"]), axis))
    return Call(torch.chunk, (x, a["num_outputs"], axis))


def _slice(
    a: Attributes, x: Operand, starts: Operand, ends: Operand, axes: Operand | None = None, steps: Operand | None = None
) -> Call:
    firsts, lasts = starts.integers(), ends.integers()
    where = axes.integers() if axes is not None else list(range(len(firsts)))
    strides = steps.integers() if steps is not None else [1] * len(firsts)
    index, flipped = [slice(None)] * x.rank, []
    for axis, first, last, stride in zip(where, firsts, lasts, strides, strict=True):
        positions = range(x.example.shape[axis])[first:last:stride]
        if stride < 0:
            flipped.append(axis % x.rank)
            size = x.example.shape[axis]
            positions = range(size)[size - 1 - positions.start : size - positions.stop - 1 : -stride]
        index[axis] = slice(positions.start, positions.stop, positions.step)
    return Call(sliced, (x, tuple(index), flipped))


def _gather(a: Attributes, x: Operand, indices: Operand) -> Call:
    axis = a.get("axis", 0) % x.rank
    if indices.node is None and indices.rank == 0:
        return Call(torch.select, (x, axis, int(indices.example)))
    if x.node is None and x.rank == 2 and axis == 0:
        return Call(F.embedding, (indices, x))
    return Call(looked_up, (x, indices, axis))


def _expand(a: Attributes, x: Operand, shape: Operand) -> Call:
    return Call(torch.broadcast_to, (x, list(torch.broadcast_shapes(x.example.shape, tuple(shape.integers())))))


def _pad(a: Attributes, x: Operand, pads: Operand, value: Operand | None = None, axes: Operand | None = None) -> Call:
    modes = {b"constant": "constant", b"reflect": "reflect", b"edge": "replicate"}
    mode = modes.get(a.get("mode", b"constant"))
    if mode is None or axes is not None:
        raise Unsupported("on chosen axes" if mode else f"in mode {a['mode'].decode()}")
    amounts = _two_sided(pads.integers())
    if mode == "constant":
        return Call(F.pad, (x, amounts, mode, 0 if value is None else value.known().item()))
    while amounts[-2:] == [0, 0]:
        amounts = amounts[:-2]
    return Call(F.pad, (x, amounts, mode))


def _depth_to_space(a: Attributes, x: Operand) -> Call:
    columns_first = a.get("mode", b"DCR") == b"CRD"
    return Call(F.pixel_shuffle if columns_first else depth_first_to_space, (x, a["blocksize"]))


def _upsampling(a: Attributes, x: Operand, *bounds: Operand | None) -> Call:
    """Nearest by a whole factor, and linear between pixel centres; other ways to resize differ in detail."""
    _, scales, sizes = (*bounds, None, None, None)[:3]
    target = sizes.integers() if sizes is not None else []
    if not target and scales is not None:
        target = [int(n * s) for n, s in zip(x.example.shape, scales.known().tolist(), strict=True)]
    mode, place = a.get("mode", b"nearest"), a.get("coordinate_transformation_mode", b"half_pixel")
    whole = all(t % n == 0 for t, n in zip(target, x.example.shape, strict=True))
    if mode == b"nearest" and whole:
        return Call(F.interpolate, (x, target[2:]), {"mode": "nearest"})
    if mode == b"linear" and x.rank == 4 and place in (b"half_pixel", b"pytorch_half_pixel"):
        return Call(F.interpolate, (x, target[2:]), {"mode": "bilinear", "align_corners": False})
    raise Unsupported(f"in mode {mode.decode()} with {place.decode()}")


def _filled(a: Attributes, shape: Operand) -> Call:
    value = a.get("value", torch.zeros(1))
    return Call(torch.full, (shape.integers(), value.item()), {"dtype": value.dtype})


OPERATORS: Mapping[str, Translate] = {
    "Relu": _of(torch.relu), "Sigmoid": _of(torch.sigmoid), "Tanh": _of(torch.tanh), "Exp": _of(torch.exp),
    "Log": _of(torch.log), "Erf": _of(torch.erf), "Neg": _of(torch.neg), "Abs": _of(torch.abs),
    "Sqrt": _of(torch.sqrt), "Reciprocal": _of(torch.reciprocal), "Floor": _of(torch.floor), "Ceil": _of(torch.ceil),
    "Round": _of(torch.round), "Sign": _of(torch.sign), "Sin": _of(torch.sin), "Cos": _of(torch.cos),
    "Not": _of(torch.logical_not), "Softplus": _of(F.softplus), "HardSwish": _of(F.hardswish), "Mish": _of(F.mish),
    "HardSigmoid": _of(hard_sigmoid, alpha=("alpha", 0.2), beta=("beta", 0.5)),
    "LeakyRelu": _of(F.leaky_relu, negative_slope=("alpha", 0.01)), "Elu": _of(F.elu, alpha=("alpha", 1.0)),
    "Gelu": lambda a, x: Call(F.gelu, (x,), {"approximate": a.get("approximate", b"none").decode()}),
    "Add": _of(torch.add), "Sub": _of(torch.sub), "Mul": _of(torch.mul), "Div": _division, "Pow": _of(torch.pow),
    "Mod": lambda a, x, y: Call(torch.fmod if a.get("fmod", 0) else torch.remainder, (x, y)),
    "Einsum": lambda a, *operands: Call(torch.einsum, (a["equation"].decode(), *operands)),
    "Max": _folded(torch.maximum), "Min": _folded(torch.minimum), "And": _of(torch.logical_and),
    "Or": _of(torch.logical_or), "Equal": _of(torch.eq), "Less": _of(torch.lt), "LessOrEqual": _of(torch.le),
    "Greater": _of(torch.gt), "GreaterOrEqual": _of(torch.ge), "Where": _of(torch.where), "Clip": _clip,
    "Cast": _cast, "MatMul": _of(torch.matmul), "Gemm": _gemm, "Conv": _convolution,
    "ConvTranspose": _transposed_convolution, "BatchNormalization": _batch_norm, "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm, "MaxPool": _max_pool, "AveragePool": _average_pool,
    "GlobalAveragePool": _over_positions(torch.mean), "GlobalMaxPool": _over_positions(torch.amax),
    "ReduceMean": _reduction(torch.mean), "ReduceSum": _reduction(torch.sum), "ReduceMax": _reduction(torch.amax),
    "ReduceMin": _reduction(torch.amin), "Softmax": _of(torch.softmax, dim=("axis", -1)),
    "LogSoftmax": _of(torch.log_softmax, dim=("axis", -1)), "Reshape": _reshape, "Flatten": _flatten,
    "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Concat": _concat, "Split": _split,
    "Slice": _slice, "Gather": _gather, "Expand": _expand, "Tile": lambda a, x, n: Call(torch.tile, (x, n.integers())),
    "Pad": _pad, "DepthToSpace": _depth_to_space, "Resize": _upsampling, "ConstantOfShape": _filled,
    "Range": lambda a, *bounds: Call(torch.arange, tuple(bound.known().item() for bound in bounds)),
}  # fmt: skip

MOVES = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "MaxPool"})
"""Operators whose results are elements of their input: what they do to a tensor's codes they do to its values."""
