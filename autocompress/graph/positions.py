"""Widths between linear layers over positions: a Mixer's hidden tokens, which lie beside channels on another axis."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from autocompress.graph.ledger import Ledger
from autocompress.graph.operators import TABLE, Passage


def between_linears(model: GraphModule, layers: Sequence[Node], ledger: Ledger) -> dict[str, Tensor]:
    """Labels along the last axis of what these layers make, by node, followed through operators that work element by
    element up to other such layers, which read them. Whatever else reads them freezes them: its other operands have as
    many positions, and keep them."""
    widths: dict[Node, Tensor] = {}
    mixing = set(layers)
    for node in model.graph.nodes:
        read = [widths[source] for source in node.all_input_nodes if source in widths]
        if node in mixing:
            widths[node] = _made(model, node, read, ledger)
        elif read and _works_on_each(node, widths):
            for other in read[1:]:
                ledger.tie(read[0], other)
            widths[node] = read[0]
        else:
            for labels in read:
                ledger.freeze(labels, f"positions to {node.name}: the input says how many")
    return {node.name: labels for node, labels in widths.items()}


def _made(model: GraphModule, node: Node, read: Sequence[Tensor], ledger: Ledger) -> Tensor:
    name, module = str(node.target), _module(model, node)
    for labels in read:
        ledger.own(name, "weight", 1, labels, False, module.weight)
    made = ledger.fresh(module.out_features)
    ledger.own(name, "weight", 0, made, True, module.weight)
    if module.bias is not None:
        ledger.own(name, "bias", 0, made, True, module.bias)
    return made


def _module(model: GraphModule, node: Node) -> Any:
    return model.get_submodule(str(node.target))


def _works_on_each(node: Node, widths: dict[Node, Tensor]) -> bool:
    """Whether an operator combines such widths only with one another and with numbers."""
    row = TABLE.get(node.target) if node.op == "call_function" else None
    others = [source for source in node.all_input_nodes if source not in widths]
    numbers = all(isinstance(one := source.meta["one"], Tensor) and one.numel() == 1 for source in others)
    return row is not None and row.passage is Passage.ELEMENTWISE and numbers
