"""Kernels of a lifted model: what a runtime executes after it has fused normalisation and activations."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.graph.labels import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED
from autocompress.graph.operators import TABLE, Passage
from autocompress.graph.trace import is_call
from autocompress.vocabulary.workload import Kernel, Workload

_FUSES_ACTIVATION = ("conv", "conv_transpose", "linear", "add")


@dataclass(frozen=True, slots=True)
class Fused:
    """Kernels by name; `holder[node]` is the kernel (or graph input) that ends up making a node's output, and
    `sources[kernel]` are the nodes that the kernel reads."""

    kernels: dict[str, Kernel]
    holder: dict[str, str]
    sources: dict[str, tuple[str, ...]]


def kernels_of(model: GraphModule, example_inputs: tuple[Tensor, ...]) -> dict[str, Kernel]:
    """Fused kernels in execution order, at batch size 1 (see `fuse`)."""
    return fuse(model, example_inputs).kernels


def fuse(model: GraphModule, example_inputs: tuple[Tensor, ...]) -> Fused:
    """Kernels of a model, and which nodes went into them.

    A kernel is named after its module (a part `fc.1` of a factorised layer `fc`: `fc#2`) or its node. Batch norm and an
    only reader's activation disappear into the kernel before them; modules that only simulate quantisation and
    operators that only rename are transparent.
    """
    shapes = _shapes(model, example_inputs)
    parts = _parts(model)
    holder: dict[Node, str] = {}
    kernels: dict[str, Kernel] = {}
    read: dict[str, tuple[str, ...]] = {}
    for node in model.graph.nodes:
        if node.op == "placeholder":
            holder[node] = node.name
            continue
        if node.op in ("get_attr", "output") or node not in shapes:
            continue
        sources = [i for i in node.all_input_nodes if i in holder]
        if not sources:
            continue
        absorbed = _absorbed(model, node, kernels, holder)
        if absorbed is not None:
            holder[node] = absorbed
            continue
        name, layer = (
            parts.get(str(node.target), (str(node.target),) * 2) if node.op == "call_module" else (node.name,) * 2
        )
        inputs = tuple(dict.fromkeys(holder[i] for i in sources))
        kernels[name] = Kernel(name, layer, inputs, _workload(model, node, sources, shapes))
        read[name] = tuple(i.name for i in sources)
        holder[node] = name
    made = {node.name: name for node, name in holder.items()}
    gone = {old: made[new] for old, new in model.meta.get("replaced", {}).items() if new in made}
    return Fused(kernels, made | gone, read)


def _parts(model: GraphModule) -> dict[str, tuple[str, str]]:
    """Module target of a factorised layer's part → (kernel name, layer)."""
    factorised: dict[str, tuple[str, ...]] = model.meta.get("factorised", {})
    return {t: (f"{layer}#{i}", layer) for layer, targets in factorised.items() for i, t in enumerate(targets, 1)}


class _Shapes(torch.fx.Interpreter):
    def __init__(self, model: GraphModule) -> None:
        super().__init__(model)
        self.shapes: dict[Node, tuple[int, ...]] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        first = value[0] if isinstance(value, (tuple, list)) and value else value
        if isinstance(first, Tensor):
            self.shapes[n] = tuple(first.shape)
        return value


def _shapes(model: GraphModule, example_inputs: tuple[Tensor, ...]) -> dict[Node, tuple[int, ...]]:
    interpreter = _Shapes(model)
    with torch.no_grad():
        interpreter.run(*(t[:1] if t.dim() else t for t in example_inputs))
    return interpreter.shapes


def _absorbed(model: GraphModule, node: Node, kernels: dict[str, Kernel], holder: dict[Node, str]) -> str | None:
    """The kernel that swallows this node, if one does; its `fused` is extended for an activation."""
    source = next(i for i in node.all_input_nodes if i in holder)
    name = holder[source]
    before = kernels.get(name)
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if type(module).__name__ == "FakeQuantize":
            return name
        fusable = before is not None and before.workload.op in ("conv", "conv_transpose") and len(source.users) == 1
        return name if isinstance(module, BATCH_NORMS) and fusable else None
    row = TABLE.get(node.target)
    if row is None or row.kernel is None:
        return name
    if row.activation and before is not None and before.workload.op in _FUSES_ACTIVATION and len(source.users) == 1:
        kernels[name] = before.with_workload(fused=(*before.workload.fused, row.kernel))
        return name
    return None


def _workload(model: GraphModule, node: Node, sources: list[Node], shapes: dict[Node, tuple[int, ...]]) -> Workload:
    source, result = shapes[sources[0]], shapes[node]
    if node.op == "call_module":
        return _module_workload(model.get_submodule(str(node.target)), source, result)
    row = TABLE.get(node.target)
    op = row.kernel if row is not None and row.kernel else str(node.target).split(".")[1]
    channel_in, size_in = _split_shape(source)
    channel_out, size_out = _split_shape(result)
    if op == "concat":
        channel_in = sum(_split_shape(shapes[i])[0] for i in sources)
    window = _window(node) if row is not None and row.passage is Passage.PER_CHANNEL else ()
    return Workload(op, channel_in, channel_out, size_in, size_out, window)


def _window(node: Node) -> tuple[int, ...]:
    if is_call(node, torch.ops.aten.max_pool2d.default, torch.ops.aten.avg_pool2d.default):
        return tuple(int(k) for k in node.args[1])  # type: ignore[union-attr, arg-type]
    return ()


def _split_shape(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """(channels, positions) of a batch-1 shape: (1, C, H, W), (1, T, C) and (1, C)."""
    if len(shape) <= 1:
        return 1, ()
    if len(shape) == 3:
        return shape[2], (shape[1],)
    return shape[1], shape[2:]


def _module_workload(module: nn.Module, source: tuple[int, ...], result: tuple[int, ...]) -> Workload:
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        op = "conv" if isinstance(module, CONVOLUTIONS) else "conv_transpose"
        return Workload(
            op, module.in_channels, module.out_channels, source[2:], result[2:],
            tuple(module.kernel_size), tuple(module.stride), module.groups,
        )  # fmt: skip
    if isinstance(module, nn.Linear):
        return Workload("linear", module.in_features, module.out_features, source[1:-1], result[1:-1])
    names = {nn.LayerNorm: "layer_norm", nn.GroupNorm: "group_norm", nn.Embedding: "embedding"}
    op = next((name for kind, name in names.items() if isinstance(module, kind)), type(module).__name__.lower())
    op = "batch_norm" if isinstance(module, BATCH_NORMS) else op
    channel_in, size_in = _split_shape(source)
    channel_out, size_out = _split_shape(result)
    return Workload(op, channel_in, channel_out, size_in, size_out)
