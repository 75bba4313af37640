"""Operators that multiply activations by one another, or by weights that are no module's: what their workloads hold."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from autocompress.graph.calls import arguments

aten = torch.ops.aten

Shapes = Mapping[Any, Any]
"""Node → the shape of its value at batch size 1; of each, where there are several."""

Window = Callable[[Mapping[str, Any], Shapes], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Product:
    """The kernel that an operator becomes, the argument that the input side of its workload is about, and how its
    `window` follows from its arguments (see Workload)."""

    op: str
    operand: str
    window: Window = lambda arguments, shapes: ()


def product_of(node: Node) -> Product | None:
    """How a call multiplies, None for one that doesn't."""
    if node.op != "call_function":
        return None
    if node.target is aten.convolution.default and arguments(node)["transposed"]:
        return Product(f"conv_transpose{len(arguments(node)['stride'])}d", "input", _weight_taps)
    return _PRODUCTS.get(node.target)


def operand(node: Node, product: Product) -> Node | None:
    """The node of the product's operand; the first, where it is a list."""
    found = arguments(node)[product.operand]
    found = found[0] if isinstance(found, (list, tuple)) else found
    return found if isinstance(found, Node) else None


def recurrent_window(module: nn.RNNBase) -> tuple[int, ...]:
    """(layers, directions), then the cells' width where a projection follows."""
    return _recurrent(module.num_layers, module.bidirectional, module.hidden_size if module.proj_size else 0)


def _recurrent(layers: int, bidirectional: bool, projected: int) -> tuple[int, ...]:
    return (layers, 1 + bidirectional, *((projected,) if projected else ()))


def _recurrent_call(a: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
    """A projection shows in the states: an LSTM's two differ in width."""
    states = a["hx"] if isinstance(a["hx"], (list, tuple)) else [a["hx"]]
    widths = [shapes[state][-1] for state in states]
    return _recurrent(a["num_layers"], a["bidirectional"], widths[-1] if len(set(widths)) > 1 else 0)


def _keys(a: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
    return (shapes[a["key"]][-2],)


def _weight_taps(a: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
    return tuple(shapes[a["weight"]][1:])


def _pairs(a: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
    """The first input times the weights, then the result times the second input."""
    _, first, second = shapes[a["weight"]]
    return first + 1, second


def _summed_rows(a: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
    """Rows of the table in a bag."""
    indices = shapes[a["indices"]]
    bags = indices[0] if len(indices) > 1 else shapes[a["offsets"]][0] - bool(a["include_last_offset"])
    return (max(1, math.prod(indices) // max(1, bags)),)


def _contracted(a: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
    """Sizes of the letters of an einsum that its result lacks."""
    reads, _, makes = a["equation"].replace(" ", "").partition("->")
    if "->" not in a["equation"]:
        makes = "".join(letter for letter in reads if reads.count(letter) == 1)
    sizes: dict[str, int] = {}
    for letters, tensor in zip(reads.split(","), a["tensors"], strict=True):
        before, dots, after = letters.partition("...")
        shape = shapes[tensor]
        sizes |= dict(zip(before, shape, strict=False))
        sizes |= dict(zip(reversed(after if dots else ""), reversed(shape), strict=False))
    return tuple(size for letter, size in sizes.items() if letter not in makes)


def _over_batches(a: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
    batches, _, depth = shapes[a["batch1"]]
    return batches, depth


def _shared_axes(a: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
    return tuple(shapes[a["self"]][axis] for axis in a["dims_self"])


def _last_axis(a: Mapping[str, Any], shapes: Shapes) -> tuple[int, ...]:
    return (shapes[a["self"]][-1],)


_PRODUCTS: dict[Any, Product] = {
    aten.matmul.default: Product("matmul", "self"),
    aten.mm.default: Product("matmul", "self"),
    aten.bmm.default: Product("matmul", "self"),
    aten.mv.default: Product("matmul", "self"),
    aten.dot.default: Product("matmul", "self"),
    aten.addmm.default: Product("matmul", "mat1"),
    aten.addmv.default: Product("matmul", "mat"),
    aten.baddbmm.default: Product("matmul", "batch1"),
    aten.linear.default: Product("matmul", "input"),
    aten.addbmm.default: Product("addbmm", "batch1", _over_batches),
    aten.tensordot.default: Product("tensordot", "self", _shared_axes),
    aten.inner.default: Product("inner", "self", _last_axis),
    aten.scaled_dot_product_attention.default: Product("attention", "query", _keys),
    aten.einsum.default: Product("einsum", "tensors", _contracted),
    aten.bilinear.default: Product("bilinear", "input1", _pairs),
    aten.embedding_bag.default: Product("embedding_bag", "indices", _summed_rows),
    aten.embedding_bag.padding_idx: Product("embedding_bag", "indices", _summed_rows),
    aten._embedding_bag.default: Product("embedding_bag", "indices", _summed_rows),
    aten._embedding_bag_forward_only.default: Product("embedding_bag", "indices", _summed_rows),
    aten.convolution.default: Product("convolution", "input", _weight_taps),
    aten.conv_transpose1d.default: Product("conv_transpose1d", "input", _weight_taps),
    aten.conv_transpose2d.input: Product("conv_transpose2d", "input", _weight_taps),
    aten.conv_transpose3d.input: Product("conv_transpose3d", "input", _weight_taps),
    aten.lstm.input: Product("lstm", "input", _recurrent_call),
    aten.gru.input: Product("gru", "input", _recurrent_call),
    aten.rnn_tanh.input: Product("rnn", "input", _recurrent_call),
    aten.rnn_relu.input: Product("rnn", "input", _recurrent_call),
    **{getattr(aten, f"conv{n}d").default: Product(f"conv{n}d", "input", _weight_taps) for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: Product(f"conv{n}d", "input", _weight_taps) for n in (1, 2, 3)},
}
