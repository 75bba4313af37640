"""What is known of every value of a lifted model: shapes under several sizes of its free axes, element types."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autocompress.graph.calls import calls, getitem

ELEMENT_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.int16: onnx.TensorProto.INT16,
    torch.int8: onnx.TensorProto.INT8,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.bool: onnx.TensorProto.BOOL,
}
BATCH = "batch"
BATCH_PROBES = 3


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's shapes with one, two and three samples, then with each other free axis resized; its element type."""

    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @property
    def one(self) -> tuple[int, ...]:
        """The shape with one sample."""
        return self.shapes[0]

    @property
    def two(self) -> tuple[int, ...]:
        """The shape with two samples."""
        return self.shapes[1]

    @property
    def free(self) -> list[int]:
        """The axes whose size depends on the sizes of the inputs."""
        return [axis for axis, sizes in enumerate(zip(*self.shapes, strict=True)) if len(set(sizes)) > 1]

    def of_batch(self, axis: int) -> bool:
        """Whether an axis is a multiple of the batch, and depends on nothing else."""
        sizes = [shape[axis] for shape in self.shapes]
        proportional = all(size == (i + 1) * sizes[0] for i, size in enumerate(sizes[:BATCH_PROBES]))
        return proportional and all(size == sizes[0] for size in sizes[BATCH_PROBES:])


@dataclass(frozen=True, slots=True)
class SizeType:
    """A number that is computed from sizes: its value in every probe."""

    values: tuple[Any, ...]

    @property
    def fixed(self) -> bool:
        return all(value == self.values[0] for value in self.values)


def is_size(kind: Any) -> bool:
    return isinstance(kind, SizeType)


def inputs_of(model: GraphModule) -> list[Node]:
    """The nodes that stand for a model's inputs."""
    return [node for node in model.graph.nodes if node.op == "placeholder"]


def axes_of(model: GraphModule) -> dict[Node, dict[int, str]]:
    """The free axes of every input with their names. Axes other than the batch that had one size when the model was
    traced (`meta["free_axes"]`) have one name, as they may have to be equal."""
    placeholders = inputs_of(model)
    known = model.meta.get("free_axes", [None] * len(placeholders))
    names: dict[int, str] = {}
    found = {}
    for node, axes in zip(placeholders, known, strict=True):
        sizes = node.meta["val"].shape if "val" in node.meta else ()
        if "axes" in node.meta:
            found[node] = node.meta["axes"]
        elif "probes" in node.meta:
            found[node] = {}
        elif axes is None:
            found[node] = _batch_axes(node)
        else:
            found[node] = {a: names.setdefault(sizes[a], _length(len(names))) if a else BATCH for a in sorted(axes)}
    return found


def _length(count: int) -> str:
    return f"length_{count}" if count else "length"


def _batch_axes(node: Node) -> dict[int, str]:
    """The axes that differ between one sample (`meta["one"]`) and what was traced, the first if that isn't known."""
    two, one = node.meta["val"], node.meta.get("one")
    if one is None:
        return {0: BATCH} if two.dim() else {}
    return {axis: BATCH for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b}


def input_types(model: GraphModule, grown: Callable[[int], int] = lambda size: size + 1) -> dict[Node, TensorType]:
    """Every input's shapes in every probe: one, two and three samples, then each other free axis `grown`."""
    placeholders = inputs_of(model)
    if placeholders and all("probes" in node.meta for node in placeholders):
        return {node: node.meta["probes"] for node in placeholders}
    axes = axes_of(model)
    others = sorted({name for named in axes.values() for name in named.values()} - {BATCH})
    found = {}
    for node in placeholders:
        shapes = [_resized(node, axes[node], batch, "", grown) for batch in range(1, BATCH_PROBES + 1)]
        shapes += [_resized(node, axes[node], 1, name, grown) for name in others]
        found[node] = TensorType(tuple(shapes), node.meta["val"].dtype)
    return found


def _resized(node: Node, axes: dict[int, str], batch: int, other: str, grown: Callable[[int], int]) -> tuple[int, ...]:
    """What the trace saw (`meta["val"]`) stays right, as inputs are never cut."""
    one = node.meta.get("one")
    shape = []
    for axis, size in enumerate(map(int, node.meta["val"].shape)):
        name = axes.get(axis, "")
        if name == BATCH:
            size = batch * (1 if one is None else int(one.shape[axis]))
        shape.append(grown(size) if name and name == other else size)
    return tuple(shape)


def zeros_of(types: Iterable[TensorType], probe: int) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(kind.shapes[probe], dtype=kind.dtype) for kind in types)


class _Typist(torch.fx.Interpreter):
    """Runs a model and keeps the type of every value, and the values that no input changes."""

    def __init__(self, model: GraphModule, constant: set[Node]) -> None:
        super().__init__(model)
        self.constant = constant
        self.kinds: dict[Node, Any] = {}
        self.constants: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.kinds[n] = _described(value)
        if n in self.constant and isinstance(value, Tensor):
            self.constants[n] = value
        return value


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.dtype)
    if isinstance(value, (tuple, list)):
        return [_described(part) for part in value]
    return value


def types_of(model: GraphModule) -> tuple[dict[Node, Any], dict[Node, Tensor]]:
    """The type of every node's value (a tuple where there are several), and the values that no input changes.

    A length is made one longer, or doubled where the model can't run on that. Three samples are run only where sizes
    are computed from sizes: (n + 1) // 2 is the same for one and two.
    """
    try:
        return _types_of(model, input_types(model))
    except RuntimeError:
        if all(set(axes.values()) <= {BATCH} for axes in axes_of(model).values()):
            raise
        return _types_of(model, input_types(model, lambda size: 2 * size))


def _types_of(model: GraphModule, inputs: dict[Node, TensorType]) -> tuple[dict[Node, Any], dict[Node, Tensor]]:
    probes = len(next(iter(inputs.values())).shapes) if inputs else BATCH_PROBES
    untouched, computed = _untouched(model, set()), _computes_sizes(model)
    runs: list[_Typist | None] = []
    for probe in range(probes):
        runs.append(None if probe == 2 and not computed else _run(model, untouched, inputs, probe))
    first = runs[0]
    assert first is not None
    types = {node: _merged([run and run.kinds[node] for run in runs]) for node in first.kinds if node.op != "output"}
    fixed = {node for node, kind in types.items() if isinstance(kind, SizeType) and kind.fixed}
    more = _untouched(model, fixed) - untouched - fixed
    return types, first.constants | (_run(model, more, inputs, 0).constants if more else {})


def _run(model: GraphModule, constant: set[Node], inputs: dict[Node, TensorType], probe: int) -> _Typist:
    """Zeros are within any range of indices; where they are divided by, ones do."""
    typist, zeros = _Typist(model, constant), zeros_of(inputs.values(), probe)
    try:
        typist.run(*zeros)
    except RuntimeError as error:
        if "ZeroDivisionError" not in str(error):
            raise
        typist.run(*(torch.ones_like(tensor) for tensor in zeros))
    return typist


def _computes_sizes(model: GraphModule) -> bool:
    return any(
        node.op == "call_function"
        and not isinstance(node.target, torch._ops.OpOverload)
        and not calls(node, getitem, operator.add, operator.sub)
        for node in model.graph.nodes
    )


def _untouched(model: GraphModule, fixed: set[Node]) -> set[Node]:
    """Nodes that depend on no input, but for sizes that are the same for all inputs."""
    varying: set[Node] = set()
    for node in model.graph.nodes:
        if node in fixed:
            continue
        if node.op == "placeholder" or not varying.isdisjoint(node.all_input_nodes):
            varying.add(node)
    return {node for node in model.graph.nodes if node not in varying and node.op != "output"}


def _merged(described: list[Any]) -> Any:
    """One type from what was seen in every probe; None stands for three samples, where sizes are linear."""
    first = described[0]
    if isinstance(first, list):
        parts = [[None] * len(first) if seen is None else seen for seen in described]
        return tuple(_merged(list(part)) for part in zip(*parts, strict=True))
    if isinstance(first, tuple):
        if described[2] is None:
            described[2] = (tuple(2 * b - a for a, b in zip(first[0], described[1][0], strict=True)), first[1])
        return TensorType(tuple(shape for shape, _ in described), first[1])
    if described[2] is None and isinstance(first, int):
        described[2] = 2 * described[1] - first
    return SizeType(tuple(described))
