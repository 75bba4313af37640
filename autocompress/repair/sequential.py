"""Sequential least squares: each layer in turn is refitted to the original's outputs from what now really reaches it."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autocompress.batches import Batch, as_one
from autocompress.graph.labels import BATCH_NORMS
from autocompress.graph.trace import is_call
from autocompress.graph.types import Graph
from autocompress.matrices import (
    draw_positions, following_norm, input_patches, kept_positions, output_rows, second_moments, shift_outputs,
)  # fmt: skip
from autocompress.repair.least_squares import solve

UNCHANGED = 1e-6
"""A layer whose outputs are off by less than this share of their size is left alone: rounding, not loss."""


def refit(
    model: GraphModule, graph: Graph, keep: Mapping[str, Sequence[int]], layers: Sequence[str], batches: Sequence[Batch],
    seed: int = 0,
) -> tuple[str, ...]:  # fmt: skip
    """Refits, in place and in execution order, those of the layers that the cut or shortened model still has.

    Where a layer's output goes into a residual add, its target is what the add lacks: the original's sum less what the
    shortcut now brings, so that later branches make up for what earlier ones lost. `keep` is what the model was cut with;
    `layers` are those that have a Gram matrix (Statistics.grams). Takes the batches as one: a few hundred samples do.
    Returns the refitted layers' names; layers that nothing before them has changed are left alone.
    """
    inputs = as_one(batches)
    nodes = {str(node.target): node for node in model.graph.nodes if node.op == "call_module" and node.target in layers}
    wanted = _record(graph.model, tuple(nodes), inputs, torch.Generator().manual_seed(seed))
    refitted = []

    def before(flow: "_Flow", node: Node) -> None:
        name = str(node.target)
        if nodes.get(name) is node:
            rows = kept_positions(graph, keep, name, produces=True)
            if _refit(model, flow, node, wanted[name].of(rows)):
                refitted.append(name)

    _Flow(model, inputs, before).run()
    return tuple(refitted)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The original's rows at the end of one layer (behind its norm), and those of the residual add that alone reads it."""

    chosen: Tensor | None
    end: Tensor
    total: Tensor | None

    def of(self, rows: list[int]) -> "_Wanted":
        return _Wanted(self.chosen, self.end[:, rows], None if self.total is None else self.total[:, rows])


def _record(
    model: GraphModule, layers: Sequence[str], inputs: tuple[Tensor, ...], generator: torch.Generator
) -> dict[str, _Wanted]:
    chosen: dict[str, Tensor | None] = {}
    rows: dict[tuple[str, str], Tensor] = {}
    places: dict[Node, list[tuple[str, str]]] = {}
    for node in model.graph.nodes:
        if node.op == "call_module" and node.target in layers:
            end = _end(model, node)
            places.setdefault(end, []).append((str(node.target), "end"))
            if (add := _residual_add(end)) is not None:
                places.setdefault(add, []).append((str(node.target), "total"))

    def before(flow: "_Flow", node: Node) -> None:
        if node.op == "call_module" and node.target in layers:
            x = flow.value(node.all_input_nodes[0])
            chosen[str(node.target)] = draw_positions(model.get_submodule(str(node.target)), x, len(x), generator)

    def after(node: Node, value: Any) -> None:
        for layer, place in places.get(node, ()):
            rows[layer, place] = output_rows(model.get_submodule(layer), value, chosen[layer])

    _Flow(model, inputs, before, after).run()
    return {layer: _Wanted(chosen[layer], rows[layer, "end"], rows.get((layer, "total"))) for layer in layers}


def _refit(model: GraphModule, flow: "_Flow", node: Node, wanted: _Wanted) -> bool:
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
    solved, constant = solve(moments[inputs][:, inputs], moments[outputs, :][:, inputs], weight.double())
    with torch.no_grad():
        module.weight.copy_(solved.reshape(module.weight.shape))
    shift_outputs(model, name, constant if module.bias is None else constant - module.bias.detach())
    return True


def _target(model: GraphModule, flow: "_Flow", node: Node, wanted: _Wanted) -> Tensor:
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
