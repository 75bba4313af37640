"""Expansions that only broadcast: a mask spread over heads before it is added says nothing that the add does not."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from autocompress.graph.calls import calls
from autocompress.graph.operators import TABLE, Passage

aten = torch.ops.aten


def sink_expansions(model: GraphModule) -> None:
    """Lets operators read what an expand spreads, in place, where they broadcast it themselves.

    Expansions move down past operators of one tensor until they meet one that broadcasts, or one that does not: then
    they stay. One pass in the order of execution.
    """
    for node in list(model.graph.nodes):
        if calls(node, aten.expand.default) and isinstance(node.args[0], Node):
            _sink(model, node)


def _sink(model: GraphModule, expand: Node) -> None:
    waiting = [expand]
    while waiting:
        spread = waiting.pop()
        for user in list(spread.users):
            if not _elementwise(user) or spread.meta["val"].dim() > user.meta["val"].dim():
                continue
            if len(user.all_input_nodes) == 1 and user.all_input_nodes[0] is spread:
                waiting.append(_moved_past(model, spread, user))
            elif all(_fills_without(user, spread, key) for key in ("val", "one")):
                user.replace_input_with(spread, spread.args[0])  # type: ignore[arg-type]
        if not spread.users:
            model.graph.erase_node(spread)


def _elementwise(node: Node) -> bool:
    if node.op != "call_function":
        return False
    row = TABLE.get(node.target)
    return row is not None and row.passage is Passage.ELEMENTWISE


def _moved_past(model: GraphModule, spread: Node, user: Node) -> Node:
    """op(expand(x)) becomes expand(op(x)); returns the new expand."""
    source: Any = spread.args[0]
    with model.graph.inserting_after(user):
        later = model.graph.call_function(aten.expand.default, (user, *spread.args[1:]), dict(spread.kwargs))
    later.meta = {key: value for key, value in user.meta.items() if key in ("val", "one", "source")}
    user.replace_all_uses_with(later, delete_user_cb=lambda reader: reader is not later)
    user.replace_input_with(spread, source)
    for key in ("val", "one"):
        user.meta[key] = torch.empty(source.meta[key].shape, dtype=user.meta[key].dtype, device="meta")
    return later


def _fills_without(user: Node, spread: Node, key: str) -> bool:
    """Whether the user's result has its shape even if it reads what was spread instead."""
    shapes = [
        (spread.args[0] if operand is spread else operand).meta[key].shape  # type: ignore[union-attr]
        for operand in user.all_input_nodes
        if isinstance(operand.meta[key], Tensor)
    ]
    return _broadcast(shapes) == tuple(user.meta[key].shape)


def _broadcast(shapes: Sequence[Any]) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(*shapes))
