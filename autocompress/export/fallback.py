"""Operators without an emitter: torch's decomposition into ones that have some, or what torch.onnx makes of a module of
that one operator; each checked against torch on values that reach it before it becomes part of the file."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.export.checking import difference
from autocompress.export.emitter import Emitter
from autocompress.export.functions import FUNCTIONS
from autocompress.export.inlining import inline, portable
from autocompress.export.lowering import lower, output_names
from autocompress.export.torch_exporter import export_by_capture, export_by_tracing, quiet
from autocompress.export.types import BATCH_PROBES, SizeType, TensorType
from autocompress.export.writer import OPSET
from autocompress.vocabulary.errors import ExportError, first_line

_ADVICE = "replace it in the model by operators that ONNX has"


class _OneOperator(nn.Module):
    """Calls `target` with its varying tensor arguments taken from forward's, the others as they are."""

    def __init__(self, target: Any, node: Node, varying: list[Node], fixed: dict[Node, Any]) -> None:
        super().__init__()
        self.target, self.node, self.varying = target, node, varying
        self.numbers = {source: value for source, value in fixed.items() if not isinstance(value, Tensor)}
        self.buffer_of = {source: f"fixed_{i}" for i, source in enumerate(fixed) if isinstance(fixed[source], Tensor)}
        for source, name in self.buffer_of.items():
            self.register_buffer(name, fixed[source])

    def forward(self, *values: Tensor) -> Any:
        given: dict[Node, Any] = self.numbers | dict(zip(self.varying, values, strict=True))
        given |= {source: getattr(self, name) for source, name in self.buffer_of.items()}
        args, kwargs = torch.fx.map_arg((self.node.args, self.node.kwargs), lambda n: given[n])
        return self.target(*args, **kwargs)


def emit_with_torch(e: Emitter, node: Node) -> Any:
    """Adds the first way to write one node that agrees with torch for one, two and three samples.

    Raises ExportError, naming the operator, its layer and what became of each way, if none does.
    """
    place = f"operator {node.target} (node {node.name})"
    sources = node.all_input_nodes
    fixed = {source: _fixed(e, source) for source in sources}
    varying = [source for source in sources if fixed[source] is None]
    if not all(isinstance(e.types.get(source), TensorType) for source in varying):
        raise ExportError(f"{place} takes a size that depends on an input's, which has no ONNX emitter here: {_ADVICE}")
    target: Any = e.model.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    module = _OneOperator(target, node, varying, {s: v for s, v in fixed.items() if v is not None}).eval()
    samples = values_of(e, varying)
    kinds = [e.type(source) for source in varying]
    names = [f"input_{i}" for i in range(len(varying))]
    failures = []
    for name, way in _WAYS.items():
        try:
            proto = portable(way(module, samples[1], kinds))
            wrong = difference(proto, module, samples, names)
        except Exception as error:  # whatever an exporter or the runtime trips over, the next way may manage
            failures.append(f"{name}: {first_line(error)}")
            continue
        if wrong is None:
            outputs = inline(e, proto, dict(zip(names, (e.value(source) for source in varying), strict=True)))
            return outputs[0] if isinstance(e.types[node], TensorType) else outputs
        failures.append(f"{name}: {wrong}")
    raise ExportError(f"{place} can't be written as ONNX (opset {OPSET}): {'; '.join(failures)}; {_ADVICE}")


def _fixed(e: Emitter, source: Node) -> Any:
    """The value of an argument that no input changes; None for one that varies."""
    kind = e.types.get(source)
    if isinstance(kind, SizeType):
        return kind.values[0] if kind.fixed else None
    return e.constants.get(source)


def _by_decomposition(module: _OneOperator, inputs: Sequence[Tensor], kinds: Sequence[TensorType]) -> onnx.ModelProto:
    """torch's own decomposition tables applied until only operators remain that have an emitter; the operator itself,
    whose emitter may not write this form of it, is decomposed in any case."""
    table = {op: way for op, way in _decompositions().items() if op not in FUNCTIONS or op is module.target}
    shapes = tuple({axis: torch.export.Dim.AUTO for axis in kind.free} for kind in kinds)
    with quiet():
        program = torch.export.export(module, tuple(inputs), dynamic_shapes=(shapes,))
        program = program.run_decompositions(table)
        lifted: Any = program.module(check_guards=False)
    for i, kind in enumerate(kinds):
        _placeholder(lifted, i).meta["probes"] = kind
        _placeholder(lifted, i).name = f"input_{i}"
    _clean(lifted)
    return lower(lifted, {}, _refuse)


def _decompositions() -> dict[Any, Any]:
    return {**torch._decomp.decomposition_table, **torch.export.default_decompositions()}


def _placeholder(model: GraphModule, index: int) -> Node:
    found: list[Node] = [node for node in model.graph.nodes if node.op == "placeholder"]
    return found[index]


def _clean(model: GraphModule) -> None:
    """Takes out the checks of shapes that torch.export adds."""
    for node in reversed(list(model.graph.nodes)):
        if not node.users and (node.op == "call_module" or "assert" in str(node.target)):
            model.graph.erase_node(node)
    model.graph.eliminate_dead_code()
    model.recompile()


def _refuse(e: Emitter, node: Node) -> Any:
    raise ExportError(f"its part {node.target} has no emitter")


def _by_tracing(module: nn.Module, inputs: Sequence[Tensor], kinds: Sequence[TensorType]) -> onnx.ModelProto:
    return _exported(export_by_tracing, module, inputs, kinds)


def _by_capture(module: nn.Module, inputs: Sequence[Tensor], kinds: Sequence[TensorType]) -> onnx.ModelProto:
    return _exported(export_by_capture, module, inputs, kinds)


def _exported(
    export: Callable[..., onnx.ModelProto], module: nn.Module, inputs: Sequence[Tensor], kinds: Sequence[TensorType]
) -> onnx.ModelProto:
    names = [f"input_{i}" for i in range(len(inputs))]
    free = [{axis: f"{name}_{axis}" for axis in kind.free} for name, kind in zip(names, kinds, strict=True)]
    with torch.no_grad():
        made = module(*inputs)
    outputs = output_names(len(made) if isinstance(made, (tuple, list)) else 1)
    return export(module, inputs, names, outputs, free)


_WAYS = {
    "decomposed by torch": _by_decomposition,
    "by torch.onnx's older exporter": _by_tracing,
    "by torch.onnx's newer exporter": _by_capture,
}


def values_of(e: Emitter, nodes: Sequence[Node]) -> list[list[Tensor]]:
    """What reaches some nodes for random inputs, with one sample, two and three."""
    placeholders = [node for node in e.model.graph.nodes if node.op == "placeholder"]
    found = []
    for probe in range(BATCH_PROBES):
        inputs = random_inputs([e.types[node] for node in placeholders], probe)
        watched = _Watched(e.model, set(nodes))
        with torch.no_grad():
            watched.run(*inputs)
        found.append([watched.seen[node] for node in nodes])
    return found


def random_inputs(types: Iterable[TensorType], probe: int) -> list[Tensor]:
    """Normal numbers; integers that are 0 or 1, as tokens and masks may be."""
    draw = torch.Generator().manual_seed(probe)
    return [_random(kind.shapes[probe], kind.dtype, draw) for kind in types]


def _random(shape: tuple[int, ...], dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(shape, generator=draw).to(dtype)
    return torch.randint(0, 2, shape, generator=draw).to(dtype)


class _Watched(torch.fx.Interpreter):
    def __init__(self, model: GraphModule, nodes: set[Node]) -> None:
        super().__init__(model)
        self.nodes = nodes
        self.seen: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.nodes:
            self.seen[n] = value
        return value
