"""The operator table: for every ATen operator, how channels pass it and which kernel it becomes.

Coupling, cutting and pricing are generic code over this table. An operator that is not here freezes the channels that
reach it, with its name as the reason; it is never guessed.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch

from autocompress.graph.trace import getitem

aten = torch.ops.aten


class Passage(Enum):
    """How channels pass an operator."""

    MOVE = auto()
    """Elements change place only: the operator itself, run on labels, says where they go."""
    ELEMENTWISE = auto()
    """Every output element depends on the inputs' elements at its own place, which are tied."""
    PER_CHANNEL = auto()
    """Axis 1 carries channels, each handled alone over the positions after it (pooling, resizing)."""
    REDUCE = auto()
    """Some axes are averaged or summed away; channels along them would mix."""
    NORMALISE = auto()
    """Elements along one axis are normalised together; channels along it would mix."""
    CONTRACT = auto()
    """Activation times activation (attention): whole heads stay together."""
    PAD = auto()
    """Constants are added around; a zero that stands for a channel can be cut like one."""
    SIZE = auto()
    """Yields numbers, not a tensor."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A row of the table.

    `kernel` is the kernel it becomes (None: free); `activation` says that a runtime fuses it into the kernel before it;
    `sized` names the arguments that change when channels are cut.
    """

    passage: Passage
    kernel: str | None = None
    activation: bool = False
    sized: str | None = None


def _activation(name: str) -> Operator:
    return Operator(Passage.ELEMENTWISE, name, activation=True)


TABLE: dict[Any, Operator] = {
    aten.relu.default: _activation("relu"),
    aten.relu6.default: _activation("clip"),
    aten.hardtanh.default: _activation("clip"),
    aten.clamp.default: _activation("clip"),
    aten.clamp_min.default: _activation("clip"),
    aten.leaky_relu.default: _activation("leaky_relu"),
    aten.elu.default: _activation("elu"),
    aten.gelu.default: _activation("gelu"),
    aten.silu.default: _activation("silu"),
    aten.mish.default: _activation("mish"),
    aten.softplus.default: _activation("softplus"),
    aten.hardswish.default: _activation("hardswish"),
    aten.hardsigmoid.default: _activation("hardsigmoid"),
    aten.sigmoid.default: _activation("sigmoid"),
    aten.tanh.default: _activation("tanh"),
    aten.exp.default: _activation("exp"),
    aten.erf.default: _activation("erf"),
    aten.neg.default: _activation("neg"),
    aten.abs.default: _activation("abs"),
    aten.sqrt.default: _activation("sqrt"),
    aten.rsqrt.default: _activation("rsqrt"),
    aten.pow.Tensor_Scalar: _activation("pow"),
    aten.add.Scalar: Operator(Passage.ELEMENTWISE, "add"),
    aten.mul.Scalar: Operator(Passage.ELEMENTWISE, "mul"),
    aten.div.Scalar: Operator(Passage.ELEMENTWISE, "mul"),
    aten.sub.Scalar: Operator(Passage.ELEMENTWISE, "add"),
    aten.add.Tensor: Operator(Passage.ELEMENTWISE, "add"),
    aten.sub.Tensor: Operator(Passage.ELEMENTWISE, "add"),
    aten.mul.Tensor: Operator(Passage.ELEMENTWISE, "mul"),
    aten.div.Tensor: Operator(Passage.ELEMENTWISE, "mul"),
    aten.maximum.default: Operator(Passage.ELEMENTWISE, "max"),
    aten.minimum.default: Operator(Passage.ELEMENTWISE, "min"),
    aten.max_pool1d.default: Operator(Passage.PER_CHANNEL, "max_pool"),
    aten.max_pool2d.default: Operator(Passage.PER_CHANNEL, "max_pool"),
    aten.avg_pool1d.default: Operator(Passage.PER_CHANNEL, "avg_pool"),
    aten.avg_pool2d.default: Operator(Passage.PER_CHANNEL, "avg_pool"),
    aten.adaptive_avg_pool1d.default: Operator(Passage.PER_CHANNEL, "avg_pool"),
    aten.adaptive_avg_pool2d.default: Operator(Passage.PER_CHANNEL, "avg_pool"),
    aten.upsample_nearest2d.vec: Operator(Passage.PER_CHANNEL, "resize"),
    aten.upsample_bilinear2d.vec: Operator(Passage.PER_CHANNEL, "resize"),
    aten.upsample_nearest2d.default: Operator(Passage.PER_CHANNEL, "resize"),
    aten.upsample_bilinear2d.default: Operator(Passage.PER_CHANNEL, "resize"),
    aten.mean.dim: Operator(Passage.REDUCE, "mean"),
    aten.sum.dim_IntList: Operator(Passage.REDUCE, "mean"),
    aten.amax.default: Operator(Passage.REDUCE, "mean"),
    aten.softmax.int: Operator(Passage.NORMALISE, "softmax"),
    aten._softmax.default: Operator(Passage.NORMALISE, "softmax"),
    aten.log_softmax.int: Operator(Passage.NORMALISE, "softmax"),
    aten._log_softmax.default: Operator(Passage.NORMALISE, "softmax"),
    aten.matmul.default: Operator(Passage.CONTRACT, "matmul"),
    aten.bmm.default: Operator(Passage.CONTRACT, "matmul"),
    aten.scaled_dot_product_attention.default: Operator(Passage.CONTRACT, "attention"),
    aten.constant_pad_nd.default: Operator(Passage.PAD, "pad", sized="pad"),
    aten.pad.default: Operator(Passage.PAD, "pad", sized="pad"),
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
