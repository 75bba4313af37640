"""Operators that write into their operand, replaced by those that return a new tensor where nobody sees the difference.

torch can do so for any program, by tracing it twice more. What most models write into is the fresh result of the layer
before, which nothing else reads: `nn.ReLU(inplace=True)`, `out += shortcut`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

aten = torch.ops.aten

_FRESH = frozenset({
    *(getattr(aten, f"conv{rank}d").default for rank in (1, 2, 3)), aten.linear.default, aten.batch_norm.default,
    aten.layer_norm.default, aten.group_norm.default,
})  # fmt: skip
"""Composite operators that always return a tensor of their own."""


def unseen_writes(graph: Graph) -> dict[Node, Any] | None:
    """Node → the operator that returns what the node writes; None if some write can be seen by another reader."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    found = {node: _unseen(node, places) for node in graph.nodes if is_write(node)}
    return None if None in found.values() else found


def replace_writes(graph: Graph, writes: Mapping[Node, Any]) -> None:
    """Replaces, in place, what `unseen_writes` found: whoever reads an operand later, reads the new tensor."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    for node, target in writes.items():
        written = node.args[0]
        with graph.inserting_before(node):
            made = graph.call_function(target, node.args, node.kwargs)
        made.meta = node.meta
        places[made] = places[node]
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        for reader in _later(written, places[made], places):  # type: ignore[arg-type]
            reader.replace_input_with(written, made)  # type: ignore[arg-type]


def is_write(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _unseen(node: Node, places: Mapping[Node, int]) -> Any:
    target, written = _returning(node), node.args[0] if node.args else None
    if target is None or not isinstance(written, Node):
        return None
    for shared in _sharing(written, places[node], places):
        if shared.op != "call_function" or (shared is not written and any(_later(shared, places[node], places))):
            return None
    return target


def _returning(node: Node) -> Any:
    """`relu` for `relu_`: the operator that returns what this one writes into its first operand and nowhere else."""
    target: Any = node.target
    first, *others = target._schema.arguments
    name = target.overloadpacket.__name__
    plain = getattr(aten, name.removesuffix("_"), None)
    overload = getattr(plain, target._overloadname, None) if name.endswith("_") and target.namespace == "aten" else None
    if first.alias_info is None or any(argument.alias_info is not None for argument in others):
        return None
    types = {value.dtype for operand in node.all_input_nodes if isinstance(value := operand.meta.get("val"), Tensor)}
    return overload if len(types) == 1 else None


def _sharing(written: Node, place: int, places: Mapping[Node, int]) -> set[Node]:
    """The nodes before `place` whose memory may be that of `written`."""
    found, waiting = {written}, [written]
    while waiting:
        node = waiting.pop()
        readers = [user for user in node.users if places[user] < place and _may_share(user)]
        sources = node.all_input_nodes if _may_share(node) else []
        new = [other for other in (*readers, *sources) if other not in found]
        found.update(new)
        waiting += new
    return found


def _may_share(node: Node) -> bool:
    """Whether a result may lie in the memory of an operand."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return node.op == "call_function"
    if any(result.alias_info is not None for result in target._schema.returns):
        return True
    composite = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return bool(composite) and target not in _FRESH


def _later(node: Node, place: int, places: Mapping[Node, int]) -> Iterator[Node]:
    """The readers of a node behind a place."""
    return (user for user in list(node.users) if places[user] > place)
