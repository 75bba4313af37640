"""Residual branches: what hangs between a shortcut and the add that closes it, and can be dropped whole."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch.fx import GraphModule, Node

from autocompress.graph.operators import TABLE, Passage
from autocompress.graph.types import Branch, Group, Layer

aten = torch.ops.aten


def find_branches(model: GraphModule, layers: Mapping[str, Layer]) -> dict[str, Branch]:
    """Branches by the name of their add, in execution order. A branch holds at least one layer, nothing outside reads
    from it, and the shortcut has the add's shape and carries values of an input, not only its sizes; of two candidates
    the one with more layers is the branch."""
    ancestors, carrying = _ancestors(model), _carrying(model)
    by_node = {layer.node: layer.name for layer in layers.values()}
    found: dict[str, Branch] = {}
    for add in model.graph.nodes:
        if add.op != "call_function" or add.target is not aten.add.Tensor or len(add.all_input_nodes) != 2:
            continue
        a, b = add.all_input_nodes
        ways = [(shortcut, end) for shortcut, end in ((a, b), (b, a)) if shortcut in carrying]
        sides = [side for way in ways if (side := _branch(add, *way, ancestors, by_node))]
        if sides:
            found[add.name] = max(sides, key=lambda side: len(side.layers))
    return found


def _ancestors(model: GraphModule) -> dict[Node, frozenset[Node]]:
    known: dict[Node, frozenset[Node]] = {}
    for node in model.graph.nodes:
        known[node] = frozenset().union(*(known[i] | {i} for i in node.all_input_nodes))
    return known


def _carrying(model: GraphModule) -> set[Node]:
    """Nodes whose values depend on those of an input: sizes, and what is filled by them, say nothing of it."""
    found: set[Node] = set()
    for node in model.graph.nodes:
        if node.op == "placeholder" or (not _reads_sizes(node) and found.intersection(node.all_input_nodes)):
            found.add(node)
    return found


def _reads_sizes(node: Node) -> bool:
    row = TABLE.get(node.target) if node.op == "call_function" else None
    return row is not None and row.kernel is None and row.passage is not Passage.MOVE


def _branch(
    add: Node, shortcut: Node, end: Node, ancestors: Mapping[Node, frozenset[Node]], by_node: Mapping[str, str]
) -> Branch | None:
    inside = {n for n in (ancestors[end] | {end}) - ancestors[shortcut] - {shortcut} if _is_activation(n)}
    layers = tuple(by_node[n.name] for n in add.graph.nodes if n in inside and n.name in by_node)
    leaks = any(user not in inside and user is not add for n in inside for user in n.users)
    same_shape = shortcut.meta["val"].shape == add.meta["val"].shape
    if not layers or leaks or not same_shape or shortcut.op in ("placeholder", "get_attr"):
        return None
    return Branch(add.name, shortcut.name, frozenset(n.name for n in inside), layers)


def _is_activation(node: Node) -> bool:
    """Batch sizes, inputs and constants are everyone's."""
    return node.op not in ("placeholder", "get_attr") and not isinstance(node.meta["val"], int)


def with_branches(groups: Mapping[str, Group], branches: Mapping[str, Branch], model: GraphModule) -> dict[str, Group]:
    """Gives one free group of each branch the right to go to zero: the first that lies wholly inside it.

    Nested branches: the innermost one that holds the group. A branch with a layer that the task froze is left alone by
    the caller, which passes only droppable branches.
    """
    node_of = {str(n.target): n.name for n in model.graph.nodes if n.op == "call_module"}
    result = dict(groups)
    for branch in sorted(branches.values(), key=lambda b: len(b.nodes)):
        for group in result.values():
            inside = all(node_of.get(m.target) in branch.nodes for m in group.members)
            if inside and group.frozen is None and group.branch is None:
                result[group.id] = replace(group, branch=branch.add)
                break
    return result
