"""How looking up rows of a table is written in ONNX."""

from typing import Any

import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter, cast
from autocompress.graph.calls import arguments

aten = torch.ops.aten
_SUM, _MEAN, _MAX = range(3)


def _embedding(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return e.add("Gather", e.value(a["weight"]), e.value(a["indices"]), axis=0)


def _one_hot(e: Emitter, node: Node) -> str | None:
    a = arguments(node)
    if not isinstance(a["num_classes"], int) or a["num_classes"] < 1:
        return None
    depth = e.constant(a["num_classes"], "int64")
    return e.add("OneHot", e.value(a["self"]), depth, e.constant([0, 1], "int64"), axis=-1)


def _bags(e: Emitter, node: Node) -> tuple[str, ...]:
    """Rows reduced bag by bag. Which row belongs to which bag is a matrix (bags, rows), so sums are its product."""
    a = arguments(node)
    mode, dtype = a["mode"], e.types[node][0].dtype
    rows = e.add("Gather", e.value(a["weight"]), e.value(a["indices"]), axis=0)
    if a["per_sample_weights"] is not None:
        rows = e.add("Mul", rows, e.add("Unsqueeze", e.value(a["per_sample_weights"]), e.integers(1)))
    member = _membership(e, a)
    if mode == _MAX:
        inside = e.add("Unsqueeze", member, e.integers(2))
        most = e.add("ReduceMax", e.add("Where", inside, rows, e.value(-torch.inf, dtype)), axes=[1], keepdims=0)
        empty = e.add("Equal", most, e.value(-torch.inf, dtype))
        return e.add("Where", empty, e.value(0, dtype), most), "", "", ""
    weights = cast(e, member, dtype)
    total = e.add("MatMul", weights, rows)
    if mode == _MEAN:
        count = e.add("ReduceSum", weights, e.integers(1), keepdims=1)
        total = e.add("Div", total, e.add("Max", count, e.value(1, dtype)))
    return total, "", "", ""


def _membership(e: Emitter, a: dict[str, Any]) -> str:
    """Whether a bag has begun at a row, and the next one has not."""
    offsets = e.cast_to(a["offsets"], torch.int64)
    count = e.add_size("Reshape", e.add_size("Size", e.value(a["indices"])), e.integers(1))
    last = offsets if a.get("include_last_offset") else e.add("Concat", offsets, count, axis=0)
    starts = e.add("Slice", last, e.integers(0), e.integers(-1), e.integers(0))
    ends = e.add("Slice", last, e.integers(1), e.integers(2**62), e.integers(0))
    number = e.add_size("Reshape", count, e.constant([], "int64"))
    place = e.add("Range", e.constant(0, "int64"), number, e.constant(1, "int64"))
    begun = e.add("LessOrEqual", e.add("Unsqueeze", starts, e.integers(1)), place)
    member = e.add("And", begun, e.add("Less", place, e.add("Unsqueeze", ends, e.integers(1))))
    padding = a.get("padding_idx")
    if padding is None or padding == -1:
        return member
    index = e.cast_to(a["indices"], torch.int64)
    return e.add("And", member, e.add("Not", e.add("Equal", index, e.constant(padding, "int64"))))


_BAGS = (aten.embedding_bag.default, aten.embedding_bag.padding_idx, aten._embedding_bag.default,
         aten._embedding_bag_forward_only.default)  # fmt: skip

EMBEDDING: dict[Any, Emit] = {
    aten.embedding.default: _embedding,
    aten.one_hot.default: _one_hot,
    **dict.fromkeys(_BAGS, _bags),
}
