"""How sums, means, extremes and orders over axes are written in ONNX."""

from typing import Any

import torch
from torch.fx import Node

from autocompress.export.emitter import Emit, Emitter, cast
from autocompress.export.functions.arithmetic import computed_in
from autocompress.graph.calls import arguments

aten = torch.ops.aten


def axes_in(a: dict[str, Any], rank: int) -> list[int]:
    """The axes that an operator reduces: all where it names none."""
    dims = a.get("dim")
    listed = list(dims) if isinstance(dims, (list, tuple)) else ([] if dims is None else [dims])
    return sorted(d % rank for d in listed) if rank and listed else list(range(rank))


def reduced(e: Emitter, op: str, x: str, axes: list[int], keepdims: bool) -> str:
    """A reduction of one ONNX tensor; of a number (no axes) it is the number."""
    if not axes:
        return e.add("Identity", x)
    if op == "ReduceSum":
        return e.add(op, x, e.integers(*axes), keepdims=int(keepdims))
    return e.add(op, x, axes=axes, keepdims=int(keepdims))


def _reduce(op: str) -> Emit:
    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        dtype = computed_in(e.dtype(node))
        x = e.cast_to(a["self"], dtype)
        made = reduced(e, op, x, axes_in(a, e.rank(a["self"])), bool(a.get("keepdim")))
        return made if dtype is e.dtype(node) else cast(e, made, e.dtype(node))

    return emit


def _mean(e: Emitter, node: Node) -> str:
    """A mean over an image's positions is a global pooling, which runtimes have in int8 too."""
    a = arguments(node)
    rank, keep = e.rank(a["self"]), bool(a.get("keepdim"))
    axes, x = axes_in(a, rank), e.cast_to(a["self"], e.dtype(node))
    if rank < 4 or axes != list(range(2, rank)):
        return reduced(e, "ReduceMean", x, axes, keep)
    pooled = e.add("GlobalAveragePool", x)
    return pooled if keep else e.add("Reshape", pooled, e.shape_of(node))


def _extreme_of(op: str, place: str) -> Emit:
    """(values, indices) along one axis; the first of equal ones."""

    def emit(e: Emitter, node: Node) -> tuple[str, ...]:
        a = arguments(node)
        source = e.value(a["self"])
        if not e.rank(a["self"]):
            return e.add("Identity", source), e.constant(0, "int64")
        axis, keep = int(a["dim"]), int(a["keepdim"])
        return reduced(e, op, source, [axis], bool(keep)), e.add(place, source, axis=axis, keepdims=keep)

    return emit


def _place(op: str) -> Emit:
    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        source = e.cast_to(a["self"], computed_in(e.dtype(a["self"])))
        if a["dim"] is not None:
            return e.add(op, source, axis=int(a["dim"]), keepdims=int(a["keepdim"]))
        flat = e.add("Reshape", source, e.integers(-1))
        place = e.add(op, flat, axis=0, keepdims=0)
        return e.add("Reshape", place, e.integers(*[1] * e.rank(node)))

    return emit


def _any(inverted: bool) -> Emit:
    """Whether any element is true; all are if none is false."""

    def emit(e: Emitter, node: Node) -> str:
        a = arguments(node)
        true = e.cast_to(a["self"], torch.bool)
        if inverted:
            true = e.add("Not", true)
        counted = cast(e, true, torch.int32)
        most = reduced(e, "ReduceMax", counted, axes_in(a, e.rank(a["self"])), bool(a.get("keepdim")))
        made = cast(e, most, torch.bool)
        made = e.add("Not", made) if inverted else made
        return made if e.dtype(node) is torch.bool else cast(e, made, e.dtype(node))

    return emit


def variance(e: Emitter, x: Any, axes: list[int], correction: float, keep: bool) -> tuple[str, str]:
    """(variance, mean) of a node over axes whose sizes are fixed or not."""
    source = e.value(x)
    mean = reduced(e, "ReduceMean", source, axes, True)
    centred = e.add("Sub", source, mean)
    squares = reduced(e, "ReduceMean", e.add("Mul", centred, centred), axes, keep)
    if correction:
        count = _count(e, x, axes)
        squares = e.add("Mul", squares, e.add("Div", count, e.add("Sub", count, e.like(x, correction))))
    return squares, mean if keep else reduced(e, "ReduceMean", source, axes, False)


def _count(e: Emitter, x: Any, axes: list[int]) -> str:
    """How many elements lie along some axes, in the element type of `x`."""
    dims = e.dims(x)
    total, changing = 1, [dims[axis] for axis in axes if isinstance(dims[axis], str)]
    for axis in axes:
        size = dims[axis]
        total *= size if isinstance(size, int) else 1
    if not changing:
        return e.like(x, total)
    product = e.integers(total)
    for size in changing:
        product = e.add_size("Mul", product, str(size))
    return e.add("Reshape", cast(e, product, e.dtype(x)), e.constant([], "int64"))


def _variance(*, root: bool, with_mean: bool) -> Emit:
    def emit(e: Emitter, node: Node) -> Any:
        a = arguments(node)
        correction = a.get("correction", 1 if a.get("unbiased", True) else 0)
        correction = 1 if correction is None else correction
        axes = axes_in(a, e.rank(a["self"]))
        spread, mean = variance(e, a["self"], axes, correction, bool(a.get("keepdim")))
        spread = e.add("Sqrt", spread) if root else spread
        return (spread, mean) if with_mean else spread

    return emit


def _norm(e: Emitter, node: Node) -> str:
    """The p-norm of the elements along some axes, by ONNX's own operator for 1 and 2."""
    a = arguments(node)
    order = a.get("p", a.get("ord", 2))
    order = 2.0 if order is None else float(order)
    axes, keep = axes_in(a, e.rank(a["self"])), bool(a.get("keepdim"))
    x, dtype = e.cast_to(a["self"], e.dtype(node)), e.dtype(node)
    if order in (1.0, 2.0):
        return reduced(e, f"ReduceL{int(order)}", x, axes, keep)
    size = e.add("Abs", x)
    if order in (float("inf"), float("-inf")):
        return reduced(e, "ReduceMax" if order > 0 else "ReduceMin", size, axes, keep)
    if order == 0:
        counted = cast(e, cast(e, x, torch.bool), dtype)
        return reduced(e, "ReduceSum", counted, axes, keep)
    total = reduced(e, "ReduceSum", e.add("Pow", size, e.value(order, dtype)), axes, keep)
    return e.add("Pow", total, e.value(1 / order, dtype))


def _log_sum_exp(e: Emitter, node: Node) -> str:
    a = arguments(node)
    x = e.cast_to(a["self"], e.dtype(node))
    return reduced(e, "ReduceLogSumExp", x, axes_in(a, e.rank(a["self"])), bool(a["keepdim"]))


def _cumulative_sum(e: Emitter, node: Node) -> str:
    a = arguments(node)
    return e.add("CumSum", e.cast_to(a["self"], e.dtype(node)), e.constant(int(a["dim"]) % e.rank(node), "int64"))


def _cumulative_product(e: Emitter, node: Node) -> str | None:
    """Every element of a fixed axis as the product of those up to it, the others taken as 1."""
    a = arguments(node)
    axis = a["dim"] % max(1, e.rank(node))
    if not e.rank(node) or axis in e.type(node).free:
        return None
    size, dtype = e.type(node).one[axis], e.dtype(node)
    upto = torch.ones(size, size).tril().bool().reshape(size, size, *[1] * (e.rank(node) - axis - 1))
    spread = e.add("Unsqueeze", e.cast_to(a["self"], dtype), e.integers(axis))
    kept = e.add("Where", e.constant(upto.numpy()), spread, e.value(1, dtype))
    return reduced(e, "ReduceProd", kept, [axis + 1], False)


def _count_nonzero(e: Emitter, node: Node) -> str:
    a = arguments(node)
    counted = cast(e, e.cast_to(a["self"], torch.bool), torch.int64)
    return reduced(e, "ReduceSum", counted, axes_in(a, e.rank(a["self"])), False)


def _largest(e: Emitter, node: Node) -> tuple[str, ...]:
    a = arguments(node)
    count = e.vector([e.size(a["k"])])
    return e.add_many(
        "TopK", 2, e.value(a["self"]), count, axis=int(a["dim"]), largest=int(a["largest"]), sorted=int(a["sorted"])
    )


def _sorted(only_places: bool) -> Emit:
    """All of an axis as its largest or smallest; equal ones keep their order."""

    def emit(e: Emitter, node: Node) -> Any:
        a = arguments(node)
        source, axis = a["self"], a["dim"] % max(1, e.rank(a["self"]))
        count = e.vector([e.dims(source)[axis]])
        found = e.add_many("TopK", 2, e.value(source), count, axis=axis, largest=int(a["descending"]), sorted=1)
        return found[1] if only_places else found

    return emit


def _extremes(e: Emitter, node: Node) -> tuple[str, ...]:
    a = arguments(node)
    axes, keep = axes_in(a, e.rank(a["self"])), bool(a["keepdim"])
    return tuple(reduced(e, op, e.value(a["self"]), axes, keep) for op in ("ReduceMin", "ReduceMax"))


_ANY = [aten.any.default, aten.any.dim, aten.any.dims]
_ALL = [aten.all.default, aten.all.dim, aten.all.dims]
_SPREADS = ("default", "dim", "correction")

REDUCING: dict[Any, Emit] = {
    aten.mean.dim: _mean,
    aten.mean.default: _mean,
    aten.sum.dim_IntList: _reduce("ReduceSum"),
    aten.sum.default: _reduce("ReduceSum"),
    aten.prod.default: _reduce("ReduceProd"),
    aten.prod.dim_int: _reduce("ReduceProd"),
    aten.amax.default: _reduce("ReduceMax"),
    aten.amin.default: _reduce("ReduceMin"),
    aten.max.default: _reduce("ReduceMax"),
    aten.min.default: _reduce("ReduceMin"),
    aten.max.dim: _extreme_of("ReduceMax", "ArgMax"),
    aten.min.dim: _extreme_of("ReduceMin", "ArgMin"),
    aten.aminmax.default: _extremes,
    aten.argmax.default: _place("ArgMax"),
    aten.argmin.default: _place("ArgMin"),
    **dict.fromkeys(_ANY, _any(inverted=False)),
    **dict.fromkeys(_ALL, _any(inverted=True)),
    **{getattr(aten.var, name): _variance(root=False, with_mean=False) for name in _SPREADS},
    **{getattr(aten.std, name): _variance(root=True, with_mean=False) for name in _SPREADS},
    **{getattr(aten.var_mean, name): _variance(root=False, with_mean=True) for name in _SPREADS},
    **{getattr(aten.std_mean, name): _variance(root=True, with_mean=True) for name in _SPREADS},
    aten.norm.Scalar: _norm,
    aten.norm.ScalarOpt_dim: _norm,
    aten.norm.ScalarOpt_dim_dtype: _norm,
    aten.linalg_vector_norm.default: _norm,
    aten.logsumexp.default: _log_sum_exp,
    aten.cumsum.default: _cumulative_sum,
    aten.cumprod.default: _cumulative_product,
    aten.count_nonzero.default: _count_nonzero,
    aten.count_nonzero.dim_IntList: _count_nonzero,
    aten.topk.default: _largest,
    aten.sort.default: _sorted(only_places=False),
    aten.sort.stable: _sorted(only_places=False),
    aten.argsort.default: _sorted(only_places=True),
    aten.argsort.stable: _sorted(only_places=True),
}
