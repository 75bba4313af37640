"""How products of matrices and convolutions of two activations are written in ONNX; attention too."""

import math
from typing import Any

import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter
from autocompress.graph.calls import arguments

aten = torch.ops.aten


def _matmul(e: Emitter, node: Node) -> str:
    left, right = node.args[:2]
    return e.add("MatMul", e.value(left), e.value(right))


def transposed(e: Emitter, x: Any, first: int = -2, second: int = -1) -> str:
    """Two axes of a node swapped; the value itself where it has fewer."""
    rank = e.rank(x)
    order = list(range(rank))
    if rank < 2:
        return e.value(x)
    order[first], order[second] = order[second], order[first]
    return e.add("Transpose", e.value(x), perm=order)


def _added_product(left: str, right: str) -> Emit:
    """beta * self + alpha * (left @ right)."""

    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        product = e.add("MatMul", e.value(a[left]), e.value(a[right]))
        if a["alpha"] != 1:
            product = e.add("Mul", product, e.like(node, a["alpha"]))
        if a["beta"] == 0:
            return product
        added = e.value(a["self"]) if a["beta"] == 1 else e.add("Mul", e.value(a["self"]), e.like(node, a["beta"]))
        return e.add("Add", product, added)

    return emit


def _summed_product(e: Emitter, node: Node) -> str:
    a = arguments(node)
    product = e.add("MatMul", e.value(a["batch1"]), e.value(a["batch2"]))
    product = e.add("ReduceSum", product, e.integers(0), keepdims=0)
    scaled = product if a["alpha"] == 1 else e.add("Mul", product, e.like(node, a["alpha"]))
    return e.add("Add", scaled, e.add("Mul", e.value(a["self"]), e.like(node, a["beta"])))


def _outer(e: Emitter, node: Node) -> str:
    a = arguments(node)
    left = e.add("Unsqueeze", e.value(a["self"]), e.integers(1))
    return e.add("Mul", left, e.add("Unsqueeze", e.value(a["vec2"]), e.integers(0)))


def _einsum(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return e.add("Einsum", *(e.value(x) for x in a["tensors"]), equation=a["equation"].replace(" ", ""))


def _linear(e: Emitter, node: Node) -> str:
    """A linear layer whose weight is computed."""
    a = arguments(node)
    made = e.add("MatMul", e.value(a["input"]), transposed(e, a["weight"]))
    return made if a["bias"] is None else e.add("Add", made, e.value(a["bias"]))


def spread(values: Any, rank: int) -> list[int]:
    """One number for every axis, where torch takes one for all too."""
    listed = [int(v) for v in values] if isinstance(values, (list, tuple)) else [int(values)]
    return listed * rank if len(listed) == 1 else listed


def _convolution(rank: int | None, turned: bool = False) -> Emit:
    """A convolution whose weight is computed or a constant; an image without a batch axis gets one meanwhile."""

    def emit(e: Emitter, node: Node) -> str | None:
        a = arguments(node)
        axes = e.rank(a["weight"]) - 2 if rank is None else rank
        transposes = bool(a.get("transposed", turned))
        unbatched = e.rank(a["input"]) == axes + 1
        attributes: dict[str, Any] = {
            "kernel_shape": list(e.type(a["weight"]).one[2:]),
            "strides": spread(a["stride"], axes),
            "dilations": spread(a["dilation"], axes),
            "group": int(a["groups"]),
        }
        if isinstance(a["padding"], str):
            attributes["auto_pad"] = {"same": "SAME_UPPER", "valid": "VALID"}[a["padding"]]
        else:
            attributes["pads"] = spread(a["padding"], axes) * 2
        if transposes:
            attributes["output_padding"] = spread(a["output_padding"], axes)
        x = e.add("Unsqueeze", e.value(a["input"]), e.integers(0)) if unbatched else e.value(a["input"])
        operands = [x, e.value(a["weight"]), *([] if a["bias"] is None else [e.value(a["bias"])])]
        made = e.add("ConvTranspose" if transposes else "Conv", *operands, **attributes)
        return e.add("Squeeze", made, e.integers(0)) if unbatched else made

    return emit


def _attention(e: Emitter, node: Node) -> str | None:
    """softmax(q k^T / sqrt d + mask) v, the mask a constant or a tensor that is added or, if Boolean, chooses."""
    a = arguments(node)
    query, key, value = a["query"], a["key"], a["value"]
    if a["dropout_p"]:
        return None
    scale = a.get("scale") or 1 / math.sqrt(e.type(query).one[-1])
    turned, read = transposed(e, key), e.value(value)
    if a.get("enable_gqa"):
        turned, read = _repeated_heads(e, query, key, turned), _repeated_heads(e, query, value, read)
    scores = e.add("MatMul", e.add("Mul", e.value(query), e.like(query, scale)), turned)
    scores = _masked(e, a, scores)
    weights = e.add("Softmax", scores, axis=-1)
    if a["attn_mask"] is not None and e.dtype(a["attn_mask"]) is torch.bool:
        weights = _without_empty_rows(e, a, weights)
    return e.add("MatMul", weights, read)


def _masked(e: Emitter, a: dict[str, Any], scores: str) -> str:
    query, mask = a["query"], a["attn_mask"]
    if a["is_causal"]:
        return e.add("Add", scores, _causal_mask(e, query, a["key"]))
    if mask is None:
        return scores
    if e.dtype(mask) is torch.bool:
        return e.add("Add", scores, e.add("Where", e.value(mask), e.like(query, 0), e.like(query, -math.inf)))
    return e.add("Add", scores, e.cast_to(mask, e.dtype(query)))


def _causal_mask(e: Emitter, query: Any, key: Any) -> str:
    """Zero up to the diagonal, minus infinity beyond it."""
    rows, columns = e.dims(query)[-2], e.dims(key)[-2]
    if isinstance(rows, int) and isinstance(columns, int):
        return e.constant(torch.full((rows, columns), -math.inf, dtype=e.dtype(query)).triu(1).numpy())
    full = e.add("Expand", e.like(query, -math.inf), e.vector([rows, columns]))
    return e.add("Trilu", full, e.constant(1, "int64"), upper=1)


def _without_empty_rows(e: Emitter, a: dict[str, Any], weights: str) -> str:
    """A query that may look at nothing gets zeros from torch, where softmax makes NaN; known masks have none."""
    mask = e.constant_value(a["attn_mask"])
    if mask is not None and bool(mask.any(-1).all()):
        return weights
    return e.add("Where", e.value(a["attn_mask"]), weights, e.like(a["query"], 0))


def _repeated_heads(e: Emitter, query: Any, source: Any, made: str) -> str:
    """Every head of keys or values as often as query heads share it, side by side."""
    heads, shared = e.type(query).one[-3], e.type(source).one[-3]
    if heads == shared:
        return made
    places = torch.arange(shared).repeat_interleave(heads // shared)
    return e.add("Gather", made, e.constant(places.numpy()), axis=e.rank(source) - 3)


def _distances(e: Emitter, node: Node) -> str | None:
    """Euclidean or Manhattan distances of every row of one matrix to every row of another."""
    a = arguments(node)
    order = {1.0: "ReduceL1", 2.0: "ReduceL2"}.get(float(a["p"]))
    if order is None:
        return None
    x1, x2 = a["x1"], a["x2"]
    left = e.add("Unsqueeze", e.value(x1), e.integers(e.rank(x1) - 1))
    right = e.add("Unsqueeze", e.value(x2), e.integers(e.rank(x2) - 2))
    return e.add(order, e.add("Sub", left, right), axes=[-1], keepdims=0)


PRODUCTS: dict[Any, Emit] = {
    **dict.fromkeys(
        [aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default], _matmul
    ),
    aten.addmm.default: _added_product("mat1", "mat2"),
    aten.addmv.default: _added_product("mat", "vec"),
    aten.baddbmm.default: _added_product("batch1", "batch2"),
    aten.addbmm.default: _summed_product,
    aten.outer.default: _outer,
    aten.einsum.default: _einsum,
    aten.linear.default: _linear,
    aten.convolution.default: _convolution(None),
    aten._convolution.default: _convolution(None),
    **{getattr(aten, f"conv{n}d").default: _convolution(n) for n in (1, 2, 3)},
    **{getattr(aten, f"conv{n}d").padding: _convolution(n) for n in (1, 2, 3)},
    aten.conv_transpose1d.default: _convolution(1, turned=True),
    aten.conv_transpose2d.input: _convolution(2, turned=True),
    aten.conv_transpose3d.input: _convolution(3, turned=True),
    aten.scaled_dot_product_attention.default: _attention,
    aten._cdist_forward.default: _distances,
    aten.cdist.default: _distances,
}
