"""Sequential least squares: layer by layer, a refit to the original's outputs from what now really arrives."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autocompress.compression.matrices import (
    draw_positions,
    following_norm,
    input_patches,
    kept_positions,
    output_rows,
    require_finite,
    second_moments,
    shift_outputs,
    solvable,
    solve,
)
from autocompress.compression.repair.batch_norm import Moments, moments, reestimate
from autocompress.graph.labels import BATCH_NORMS
from autocompress.graph.trace import is_call
from autocompress.graph.types import Graph
from autocompress.task.batches import Batch, as_one

RIDGE = 1e-2
"""Of the mean squared input: ten times that of the Gram matrices, since the rows come from fewer samples."""

UNCHANGED = 1e-6
"""A layer whose outputs are off by less than this share of their size is left alone: rounding, not loss."""


def refit(
    model: GraphModule, graph: Graph, keep: Mapping[str, Sequence[int]], targets: "Targets", ridge: float = RIDGE
) -> tuple[str, ...]:
    """Refits, in place and in execution order, the layers of `targets` that the cut or shortened model still has.

    Where a layer's output goes into a residual add, it is fitted to what the add lacks: the original's sum less what
    the shortcut now brings, so that later branches make up for what earlier ones lost. Of a factorised layer the last
    part is refitted. Batch norms behind anything else (depthwise layers) have their statistics re-estimated in turn.
    `keep` is what the model was cut with. Returns the layers' names; those that nothing before them has changed stay as
    they are.
    """
    layers = {_module_of(model, name): name for name in targets.outputs}
    refitted = []

    def before(flow: "_Flow", node: Node) -> None:
        if node.op != "call_module":
            return
        name = str(node.target)
        if name in layers:
            rows = kept_positions(graph, keep, layers[name], produces=True)
            if _refit(model, flow, node, targets.outputs[layers[name]].of(rows), ridge):
                refitted.append(layers[name])
        elif name in targets.norms:
            channels = kept_positions(graph, keep, name, produces=False, tensor="running_mean")
            now = moments(flow.value(node.all_input_nodes[0]))
            reestimate(model.get_submodule(name), now, targets.norms[name].of(channels))

    _Flow(model, targets.inputs, before).run()
    return tuple(refitted)


def _module_of(model: GraphModule, layer: str) -> str:
    """The module that makes the layer's output: itself, or its last part once it is factorised."""
    parts: tuple[str, ...] = model.meta.get("factorised", {}).get(layer, (layer,))
    return parts[-1]


@dataclass(frozen=True, slots=True)
class Output:
    """The original's rows behind one layer and its norm, at the positions `chosen` (None: all) of every sample.

    `total` are those of the residual add that alone reads them, if one does.
    """

    chosen: Tensor | None
    end: Tensor
    total: Tensor | None

    def of(self, rows: list[int]) -> "Output":
        return Output(self.chosen, self.end[:, rows], None if self.total is None else self.total[:, rows])


@dataclass(frozen=True, slots=True)
class Targets:
    """Inputs, what the original's layers make of them, and the inputs' moments of the norms behind no such layer."""

    inputs: tuple[Tensor, ...]
    outputs: Mapping[str, Output]
    norms: Mapping[str, Moments]


def record(model: GraphModule, layers: Sequence[str], batches: Sequence[Batch], seed: int = 0) -> Targets:
    """What the original makes of the batches, taken as one; `layers` are those that have a Gram matrix."""
    inputs = as_one(batches)
    generator = torch.Generator().manual_seed(seed)
    chosen: dict[str, Tensor | None] = {}
    rows: dict[tuple[str, str], Tensor] = {}
    norms: dict[str, Moments] = {}
    places: dict[Node, list[tuple[str, str]]] = {}
    for node in model.graph.nodes:
        if node.op == "call_module" and node.target in layers:
            end = _end(model, node)
            places.setdefault(end, []).append((str(node.target), "end"))
            if (add := _residual_add(end)) is not None:
                places.setdefault(add, []).append((str(node.target), "total"))

    def before(flow: "_Flow", node: Node) -> None:
        if node.op != "call_module":
            return
        name, module = str(node.target), model.get_submodule(str(node.target))
        if name in layers:
            x = flow.value(node.all_input_nodes[0])
            chosen[name] = draw_positions(module, x, len(x), generator)
        elif isinstance(module, BATCH_NORMS) and node not in places:
            norms[name] = moments(flow.value(node.all_input_nodes[0]))

    def after(node: Node, value: Any) -> None:
        for layer, place in places.get(node, ()):
            rows[layer, place] = output_rows(model.get_submodule(layer), value, chosen[layer])

    _Flow(model, inputs, before, after).run()
    outputs = {name: Output(chosen[name], rows[name, "end"], rows.get((name, "total"))) for name in layers}
    return Targets(inputs, outputs, norms)


def _refit(model: GraphModule, flow: "_Flow", node: Node, wanted: Output, ridge: float) -> bool:
    """Solves one layer's weights; False if its outputs are as wanted already."""
    name = str(node.target)
    module: Any = model.get_submodule(name)
    x = input_patches(module, flow.value(node.all_input_nodes[0]), wanted.chosen)
    weight = module.weight.detach().flatten(1)
    now = x @ weight.T if module.bias is None else torch.addmm(module.bias.detach(), x, weight.T)
    y = _before_norm(model, name, _target(model, flow, node, wanted), now)
    if (now - y).norm() <= UNCHANGED * y.norm():
        return False
    moments = second_moments(torch.cat([x, y], 1)) / len(x)
    inputs = [*range(x.shape[1]), moments.shape[0] - 1]
    outputs = slice(x.shape[1], -1)
    with solvable(name):
        solved, constant = solve(moments[inputs][:, inputs], moments[outputs, :][:, inputs], weight.double(), ridge)
    require_finite(name, (solved, constant))
    with torch.no_grad():
        module.weight.copy_(solved.reshape(module.weight.shape))
    shift_outputs(model, name, constant if module.bias is None else constant - module.bias.detach())
    return True


def _target(model: GraphModule, flow: "_Flow", node: Node, wanted: Output) -> Tensor:
    """Rows that the layer's end should put out."""
    end = _end(model, node)
    add = _residual_add(end)
    if wanted.total is None or add is None:
        return wanted.end
    shortcut = next(operand for operand in add.all_input_nodes if operand is not end)
    if not flow.reachable(shortcut):
        return wanted.end
    return wanted.total - output_rows(model.get_submodule(str(node.target)), flow.value(shortcut), wanted.chosen)


def _before_norm(model: GraphModule, layer: str, rows: Tensor, now: Tensor) -> Tensor:
    """What the layer has to put out so that its norm makes these rows of it.

    Channels that the norm all but silences have no say and stay as they are now.
    """
    norm = following_norm(model, layer)
    if norm is None:
        return rows
    sigma = (norm.running_var + norm.eps).sqrt()
    gamma = torch.ones_like(sigma) if norm.weight is None else norm.weight.detach()
    beta = torch.zeros_like(sigma) if norm.bias is None else norm.bias.detach()
    loud = (gamma / sigma).abs() > 1e-3 * (gamma / sigma).abs().max()
    return torch.where(loud, (rows - beta) * sigma / gamma + norm.running_mean, now)


def _end(model: GraphModule, node: Node) -> Node:
    """The batch norm's node that alone reads the layer, else the layer's own."""
    readers = list(node.users)
    if len(readers) == 1 and readers[0].op == "call_module":
        return readers[0] if isinstance(model.get_submodule(str(readers[0].target)), BATCH_NORMS) else node
    return node


def _residual_add(end: Node) -> Node | None:
    """The add of two activations that alone reads this node."""
    readers = list(end.users)
    if len(readers) != 1 or not is_call(readers[0], torch.ops.aten.add.Tensor) or len(readers[0].all_input_nodes) != 2:
        return None
    return None if readers[0].kwargs else readers[0]


class _Flow:
    """Runs a model node by node in order, any node ahead of its turn on demand; used-up values are dropped."""

    def __init__(
        self,
        model: GraphModule,
        inputs: tuple[Tensor, ...],
        before: "Callable[[_Flow, Node], None]",
        after: Callable[[Node, Any], None] = lambda node, value: None,
    ) -> None:
        self.model, self.before, self.after = model, before, after
        placeholders = [node for node in model.graph.nodes if node.op == "placeholder"]
        self.inputs = dict(zip(placeholders, inputs, strict=True))
        self.values: dict[Node, Any] = {}
        self.unread = Counter({node: len(node.users) for node in model.graph.nodes})

    def run(self) -> None:
        with torch.no_grad():
            for node in self.model.graph.nodes:
                if node.op != "output":
                    self.value(node)

    def value(self, node: Node) -> Any:
        if node not in self.values and self.unread[node]:
            self.before(self, node)
            self.values[node] = self._compute(node)
            self.after(node, self.values[node])
            for source in node.all_input_nodes:
                self.unread[source] -= 1
                if not self.unread[source]:
                    del self.values[source]
        return self.values.get(node)

    def reachable(self, node: Node) -> bool:
        """Whether the node can be computed now without running a module ahead of its turn."""
        if node in self.values:
            return True
        return node.op != "call_module" and all(self.reachable(source) for source in node.all_input_nodes)

    def _compute(self, node: Node) -> Any:
        if node.op == "placeholder":
            return self.inputs[node]
        if node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            return getattr(self.model.get_submodule(owner), leaf)
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.value)
        if node.op == "call_module":
            return self.model.get_submodule(str(node.target))(*args, **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]
