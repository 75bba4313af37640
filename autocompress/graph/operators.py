"""The operator table: for every ATen operator, how channels pass it and which kernel it becomes.

Coupling, cutting and pricing are generic code over this table. Operators that are not here are decomposed by torch when
a model is captured; what torch can't decompose freezes the channels that reach it, with its name as the reason.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch

from autocompress.graph.calls import getitem

aten = torch.ops.aten


class Passage(Enum):
    """How channels pass an operator."""

    MOVE = auto()
    """Elements change place only: the operator itself, run on labels, says where they go."""
    ELEMENTWISE = auto()
    """Every output element depends on the inputs' elements at its own place, which are tied."""
    PER_CHANNEL = auto()
    """The axis before the last `spatial` ones carries channels, each handled alone (pooling, resizing)."""
    WINDOWS = auto()
    """The axis before the last `spatial` ones carries channels, whose windows are laid out one channel after the other
    (im2col), or are added up again (col2im)."""
    REDUCE = auto()
    """Some axes are averaged or summed away; channels along them are what is averaged: fewer, once some are cut."""
    ALONG = auto()
    """Elements along some axes depend on one another; channels along them would mix."""
    CONTRACT = auto()
    """Matrix product of two activations: what is summed over is tied, heads stay whole."""
    ATTENTION = auto()
    """softmax(q k^T + mask) v: heads stay whole."""
    PAD = auto()
    """Constants are added around; a zero that stands for a channel can be cut like one."""
    CREATE = auto()
    """A constant of some size: what it is combined with says what its elements stand for."""
    INDEX = auto()
    """Elements are picked by numbers: where these are constant, elements change place only."""
    WRITE = auto()
    """Elements are written where numbers say: along the other axes what is written meets what was there."""
    SIZE = auto()
    """Yields numbers, not a tensor."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A row of the table.

    `kernel` is the kernel it becomes (None: free); `activation` says that a runtime fuses it into the kernel before it;
    `sized` names the arguments that change when channels are cut; `axes` the argument that holds the axes along which
    elements meet; `spatial` counts the axes behind the channels.
    """

    passage: Passage
    kernel: str | None = None
    activation: bool = False
    sized: str | None = None
    axes: str = "dim"
    spatial: int = 0


def _activation(name: str) -> Operator:
    return Operator(Passage.ELEMENTWISE, name, activation=True)


def _overloads(rows: dict[str, Operator]) -> dict[Any, Operator]:
    """Every functional overload of these operators."""
    found = {}
    for name, row in rows.items():
        packet = getattr(aten, name)
        for overload in packet.overloads():
            if "out" not in overload.split("_") and not overload.endswith("out"):
                found[getattr(packet, overload)] = row
    return found


def _rows(passage: Passage, names: str, **settings: Any) -> dict[str, Operator]:
    """Rows of operators that become kernels of their own names."""
    return {name: Operator(passage, name, **settings) for name in names.split()}


_POINTWISE = _overloads(
    _rows(Passage.ELEMENTWISE, """
        acos acosh asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil cos cosh eq erfc
        expm1 floor floor_divide fmod ge gt isinf isnan le log log10 log1p log2 logical_and logical_not logical_or
        logical_xor lt ne reciprocal remainder round sign sin sinh square tan trunc where masked_fill clamp_max
        nan_to_num
    """)
    | {name: Operator(Passage.ELEMENTWISE, kernel) for name, kernel in (
        ("add", "add"), ("sub", "add"), ("rsub", "add"), ("mul", "mul"), ("div", "mul"),
        ("maximum", "max"), ("minimum", "min"),
    )}
    | {name: _activation(kernel) for name, kernel in (
        ("relu", "relu"), ("relu6", "clip"), ("hardtanh", "clip"), ("clamp", "clip"), ("clamp_min", "clip"),
        ("leaky_relu", "leaky_relu"), ("elu", "elu"), ("gelu", "gelu"), ("silu", "silu"), ("mish", "mish"),
        ("softplus", "softplus"), ("hardswish", "hardswish"), ("hardsigmoid", "hardsigmoid"), ("sigmoid", "sigmoid"),
        ("tanh", "tanh"), ("exp", "exp"), ("erf", "erf"), ("neg", "neg"), ("abs", "abs"), ("sqrt", "sqrt"),
        ("rsqrt", "rsqrt"), ("pow", "pow"),
    )}
    | {"_to_copy": Operator(Passage.ELEMENTWISE, "cast")}
)  # fmt: skip
_PER_CHANNEL = _overloads({
    name.format(rank): Operator(Passage.PER_CHANNEL, kernel, spatial=rank)
    for rank in (1, 2, 3)
    for name, kernel in (
        ("max_pool{}d", "max_pool"), ("avg_pool{}d", "avg_pool"), ("adaptive_avg_pool{}d", "avg_pool"),
        ("adaptive_max_pool{}d", "max_pool"), ("reflection_pad{}d", "pad"), ("replication_pad{}d", "pad"),
        ("upsample_nearest{}d", "resize"), ("_upsample_nearest_exact{}d", "resize"),
    )
} | {
    "max_pool2d_with_indices": Operator(Passage.PER_CHANNEL, "max_pool", spatial=2),
    "max_pool3d_with_indices": Operator(Passage.PER_CHANNEL, "max_pool", spatial=3),
    "_adaptive_avg_pool2d": Operator(Passage.PER_CHANNEL, "avg_pool", spatial=2),
    "_adaptive_avg_pool3d": Operator(Passage.PER_CHANNEL, "avg_pool", spatial=3),
    "upsample_linear1d": Operator(Passage.PER_CHANNEL, "resize", spatial=1),
    "upsample_bilinear2d": Operator(Passage.PER_CHANNEL, "resize", spatial=2),
    "upsample_bicubic2d": Operator(Passage.PER_CHANNEL, "resize", spatial=2),
    "upsample_trilinear3d": Operator(Passage.PER_CHANNEL, "resize", spatial=3),
    "grid_sampler_2d": Operator(Passage.PER_CHANNEL, "grid_sample", spatial=2),
    "grid_sampler_3d": Operator(Passage.PER_CHANNEL, "grid_sample", spatial=3),
    "grid_sampler": Operator(Passage.PER_CHANNEL, "grid_sample", spatial=2),
})  # fmt: skip
_REDUCE = _overloads(
    {name: Operator(Passage.REDUCE, "mean") for name in ("mean", "sum", "amax")}
    | _rows(Passage.REDUCE, "amin var std prod any all linalg_vector_norm logsumexp argmax argmin")
    | {"max": Operator(Passage.REDUCE, "amax"), "min": Operator(Passage.REDUCE, "amin")}
)  # fmt: skip
_ALONG = _overloads(
    {name: Operator(Passage.ALONG, "softmax") for name in ("softmax", "_softmax", "log_softmax", "_log_softmax")}
    | _rows(Passage.ALONG, "cumsum cumprod sort topk", axes="dim")
    | _rows(Passage.ALONG, "roll", axes="dims")
    | {"unfold": Operator(Passage.ALONG, "unfold", axes="dimension")}
)

TABLE: dict[Any, Operator] = {
    **_POINTWISE,
    **_PER_CHANNEL,
    **_REDUCE,
    **_ALONG,
    aten.max.other: Operator(Passage.ELEMENTWISE, "max"),
    aten.min.other: Operator(Passage.ELEMENTWISE, "min"),
    aten.flip.default: Operator(Passage.MOVE, "flip"),
    aten.im2col.default: Operator(Passage.WINDOWS, "unfold", spatial=2),
    aten.col2im.default: Operator(Passage.WINDOWS, "fold", spatial=1),
    aten.matmul.default: Operator(Passage.CONTRACT, "matmul"),
    aten.bmm.default: Operator(Passage.CONTRACT, "matmul"),
    aten.mm.default: Operator(Passage.CONTRACT, "matmul"),
    aten.scaled_dot_product_attention.default: Operator(Passage.ATTENTION, "attention"),
    aten.constant_pad_nd.default: Operator(Passage.PAD, "pad", sized="pad"),
    aten.pad.default: Operator(Passage.PAD, "pad", sized="pad"),
    aten.zeros.default: Operator(Passage.CREATE, None, sized="shape"),
    aten.ones.default: Operator(Passage.CREATE, None, sized="shape"),
    aten.full.default: Operator(Passage.CREATE, None, sized="shape"),
    aten.new_zeros.default: Operator(Passage.CREATE, None, sized="shape"),
    aten.new_ones.default: Operator(Passage.CREATE, None, sized="shape"),
    aten.new_full.default: Operator(Passage.CREATE, None, sized="shape"),
    aten.zeros_like.default: Operator(Passage.ELEMENTWISE, None),
    aten.ones_like.default: Operator(Passage.ELEMENTWISE, None),
    aten.full_like.default: Operator(Passage.ELEMENTWISE, None),
    aten.arange.start_step: Operator(Passage.MOVE, None),
    aten.arange.default: Operator(Passage.MOVE, None),
    aten.arange.start: Operator(Passage.MOVE, None),
    aten.index.Tensor: Operator(Passage.INDEX, "gather", sized="index"),
    aten.index_select.default: Operator(Passage.INDEX, "gather", sized="index"),
    aten.gather.default: Operator(Passage.INDEX, "gather"),
    aten.index_put.default: Operator(Passage.WRITE, "scatter"),
    aten.scatter.src: Operator(Passage.WRITE, "scatter"),
    aten.scatter.value: Operator(Passage.WRITE, "scatter"),
    aten.scatter_add.default: Operator(Passage.WRITE, "scatter"),
    aten.scatter_reduce.two: Operator(Passage.WRITE, "scatter"),
    aten.reshape.default: Operator(Passage.MOVE, "reshape", sized="shape"),
    aten.expand.default: Operator(Passage.MOVE, "expand", sized="shape"),
    aten.flatten.using_ints: Operator(Passage.MOVE, "reshape"),
    aten.unsqueeze.default: Operator(Passage.MOVE, "reshape"),
    aten.squeeze.dim: Operator(Passage.MOVE, "reshape"),
    aten.squeeze.dims: Operator(Passage.MOVE, "reshape"),
    aten.permute.default: Operator(Passage.MOVE, "transpose"),
    aten.transpose.int: Operator(Passage.MOVE, "transpose"),
    aten.t.default: Operator(Passage.MOVE, "transpose"),
    aten.slice.Tensor: Operator(Passage.MOVE, "slice", sized="slice"),
    aten.slice_scatter.default: Operator(Passage.MOVE, "slice_scatter", sized="slice_scatter"),
    aten.select.int: Operator(Passage.MOVE, "slice", sized="select"),
    aten.split.Tensor: Operator(Passage.MOVE, "split", sized="split"),
    aten.split_with_sizes.default: Operator(Passage.MOVE, "split", sized="split"),
    aten.chunk.default: Operator(Passage.MOVE, "split", sized="split"),
    aten.unbind.int: Operator(Passage.MOVE, "split"),
    aten.cat.default: Operator(Passage.MOVE, "concat"),
    aten.stack.default: Operator(Passage.MOVE, "concat"),
    aten.repeat.default: Operator(Passage.MOVE, "expand"),
    aten.pixel_shuffle.default: Operator(Passage.MOVE, "transpose"),
    aten.pixel_unshuffle.default: Operator(Passage.MOVE, "transpose"),
    getitem: Operator(Passage.MOVE),
    aten.sym_size.int: Operator(Passage.SIZE),
}
