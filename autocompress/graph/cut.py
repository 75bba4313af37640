"""Cutting channels out of a lifted model: parameters are sliced, and every size argument that follows is rewritten."""

import operator
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from autocompress.graph.calls import arguments
from autocompress.graph.labels import BATCH_NORMS, CONVOLUTIONS, INSTANCE_NORMS, TRANSPOSED
from autocompress.graph.lift import sweep
from autocompress.graph.operators import TABLE
from autocompress.graph.recurrent import RECURRENT
from autocompress.graph.types import Branch, Graph, Group, Member
from autocompress.vocabulary.errors import BuildError

aten = torch.ops.aten
Keep = Mapping[str, Sequence[int]]
"""Group id → channels that stay, ascending."""


def cut(model: GraphModule, graph: Graph, keep: Keep) -> None:
    """Removes from a copy of `graph.model`, in place, every channel that `keep` does not name.

    Groups that `keep` leaves out stay whole. Layers of dropped branches may be gone already. Raises BuildError where a
    size can't follow.
    """
    removed: set[int] = set()
    for name, channels in keep.items():
        group = graph.groups[name]
        kept = set(channels)
        removed |= {number for channel, number in enumerate(group.classes) if channel not in kept}
        _cut_parameters(model, group, channels)
    if removed:
        _rewrite_sizes(model, graph, removed)
        _match_modules(model)
        _match_plain_norms(model, graph, removed)
        model.recompile()


def drop_branch(model: GraphModule, branch: Branch) -> None:
    """Replaces the residual add by its shortcut, in place; what only fed the branch is deleted."""
    nodes = {node.name: node for node in model.graph.nodes}
    if branch.add not in nodes:
        return
    add = nodes[branch.add]
    shortcut = next(i for i in add.all_input_nodes if i.name not in branch.nodes)
    add.replace_all_uses_with(shortcut)
    model.graph.erase_node(add)
    sweep(model)


def _cut_parameters(model: GraphModule, group: Group, channels: Sequence[int]) -> None:
    present = {name for name, _ in model.named_modules()}
    removed = set(range(group.channels)).difference(channels)
    for member in group.members:
        owner_path, tensor = _location(member)
        if owner_path not in present:
            continue
        owner = model.get_submodule(owner_path)
        value = getattr(owner, tensor, None)
        if value is None:
            continue
        marks = _marks(owner, tensor, member.axis, value.shape[member.axis])
        marks.difference_update(position for channel in removed for position in member.index[channel])


def _location(member: Member) -> tuple[str, str]:
    """The owning module's path and the tensor's name in it; a free tensor's path holds both."""
    if member.tensor:
        return member.target, member.tensor
    parent, _, leaf = member.target.rpartition(".")
    return parent, leaf


def _marks(owner: nn.Module, tensor: str, axis: int, size: int) -> set[int]:
    """Positions of an axis that stay; several groups may cut one axis, so slicing waits for all of them."""
    pending: dict[tuple[str, int], set[int]] = owner.__dict__.setdefault("_positions_kept", {})
    return pending.setdefault((tensor, axis), set(range(size)))


def _match_modules(model: GraphModule) -> None:
    """Slices every marked tensor once and sets the modules' channel counts to what their tensors now hold.

    Layers that share a parameter share what is left of it.
    """
    sliced: dict[Any, Any] = {}
    for module in list(model.modules()):
        pending = module.__dict__.pop("_positions_kept", {})
        axes: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
        for (tensor, axis), kept in sorted(pending.items()):
            axes.setdefault(tensor, []).append((axis, tuple(sorted(kept))))
        for tensor, kept_along in axes.items():
            value = getattr(module, tensor)
            key = (id(value), tuple(kept_along))
            if key not in sliced:
                sliced[key] = value, _sliced(module, tensor, value, kept_along)
            setattr(module, tensor, sliced[key][1])
        if pending:
            _set_sizes(module)


def _sliced(module: nn.Module, tensor: str, value: Tensor, kept_along: list[tuple[int, tuple[int, ...]]]) -> Tensor:
    data = value.detach()
    for axis, kept in kept_along:
        if not kept:
            raise BuildError(f"a cut would leave nothing of {type(module).__name__}.{tensor}")
        data = data.index_select(axis, torch.tensor(kept))
    return nn.Parameter(data, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else data


def _set_sizes(module: Any) -> None:
    if isinstance(module, CONVOLUTIONS):
        if module.groups == module.in_channels > 1:
            module.groups = module.weight.shape[0] * module.groups // module.out_channels
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, TRANSPOSED):
        module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, (*BATCH_NORMS, *INSTANCE_NORMS)):
        known: list[Any] = [t for t in (module.running_mean, module.weight) if t is not None]
        module.num_features = len(known[0])
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_groups = max(1, module.num_groups * len(module.weight) // module.num_channels)
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, RECURRENT):
        weights: Any = module
        module.hidden_size, module.input_size = weights.weight_hh_l0.shape[1], weights.weight_ih_l0.shape[1]


def _match_plain_norms(model: GraphModule, graph: Graph, removed: set[int]) -> None:
    """Norms without parameters of their own have nothing that tells how many channels are left."""
    for node in model.graph.nodes:
        module: Any = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if getattr(module, "weight", 0) is not None:
            continue
        source = node.all_input_nodes[0]
        axis = source.meta["one"].dim() - 1 if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) else 1
        classes = _axes(graph, source).get(axis)
        if classes is None or not removed.intersection(classes):
            continue
        kept = _kept(classes, removed)
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            module.normalized_shape = (kept,)
        elif isinstance(module, nn.GroupNorm):
            module.num_groups = max(1, module.num_groups * kept // module.num_channels)
            module.num_channels = kept
        elif isinstance(module, INSTANCE_NORMS):
            module.num_features = kept


def _rewrite_sizes(model: GraphModule, graph: Graph, removed: set[int]) -> None:
    for node in model.graph.nodes:
        row = TABLE.get(node.target) if node.op == "call_function" else None
        if row is not None and row.sized:
            _RESIZE[row.sized](node, graph, removed)


def _kept(classes: Sequence[int], removed: set[int], upto: int | None = None) -> int:
    return sum(number not in removed for number in classes[:upto])


def _axes(graph: Graph, node: Any) -> Mapping[int, tuple[int, ...]]:
    return graph.classes.get(node.name, {})


def _resize_shape(node: Node, graph: Graph, removed: set[int]) -> None:
    """The argument that holds a size for every axis of the result."""
    place = 0 if node.target in _MADE else 1
    shape = list(_given(node)[place])
    for axis, classes in _axes(graph, node).items():
        kept = _kept(classes, removed)
        if kept == len(classes):
            continue
        if isinstance(shape[axis], Node):
            shape[axis] = _resized_product(shape[axis], len(classes), kept)
        elif shape[axis] > 0:
            shape[axis] = kept
    node.update_arg(place, shape)


def _resized_product(size: Node, before: int, after: int) -> Node:
    """batch * heads, with fewer heads."""
    with size.graph.inserting_after(size):
        if size.target is operator.mul and before in size.args:
            factors = tuple(after if factor == before else factor for factor in size.args)
            return size.graph.call_function(operator.mul, factors)
        product = size.graph.call_function(operator.mul, (size, after))
    with size.graph.inserting_after(product):
        return size.graph.call_function(operator.floordiv, (product, before))


def _given(node: Node) -> tuple[Any, ...]:
    """A call's operands and options, whose types its operator's schema says."""
    return node.args


def _resize_pad(node: Node, graph: Graph, removed: set[int]) -> None:
    source, pads = _given(node)[0], list(_given(node)[1])
    rank = len(source.meta["val"].shape)
    for axis, classes in _axes(graph, node).items():
        low = 2 * (rank - 1 - axis)
        if low >= len(pads) or (pads[low] <= 0 and pads[low + 1] <= 0):
            continue
        before, after = pads[low], pads[low + 1]
        pads[low] = _kept(classes, removed, before)
        pads[low + 1] = _kept(classes[len(classes) - after :], removed) if after else 0
    node.update_arg(1, pads)


def _resize_slice(node: Node, graph: Graph, removed: set[int]) -> None:
    given = [*_given(node), *(0, None, None, 1)[len(node.args) - 1 :]]
    source, axis, start, end, step = given
    rank = len(source.meta["val"].shape)
    classes = _axes(graph, source).get(axis % rank)
    if classes is None or not removed.intersection(classes):
        return
    if step != 1:
        _pick(node, source, axis % rank, classes, removed)
        return
    bounds = slice(start, end).indices(len(classes))
    node.args = (source, axis, _kept(classes, removed, bounds[0]), _kept(classes, removed, bounds[1]), 1)


def _pick(node: Node, source: Node, axis: int, classes: Sequence[int], removed: set[int]) -> None:
    """Every second channel of what is left is another one: those that stay are named."""
    a = arguments(node)
    places = torch.arange(len(classes))[slice(a["start"], a["end"], a["step"])]
    name = f"{node.name}_numbers"
    node.graph.owning_module.register_buffer(name, _renumbered(places, classes, removed))  # type: ignore[union-attr]
    with node.graph.inserting_before(node):
        numbers = node.graph.get_attr(name)
    node.target, node.args = aten.index_select.default, (source, axis, numbers)


def _resize_select(node: Node, graph: Graph, removed: set[int]) -> None:
    source, axis, index = _given(node)
    rank = len(source.meta["val"].shape)
    classes = _axes(graph, source).get(axis % rank)
    if classes is not None:
        node.args = (source, axis, _kept(classes, removed, index % len(classes)))


def _resize_split(node: Node, graph: Graph, removed: set[int]) -> None:
    source, axis = _given(node)[0], _given(node)[2] if len(node.args) > 2 else 0
    rank = len(source.meta["val"].shape)
    classes = _axes(graph, source).get(axis % rank)
    if classes is None or not removed.intersection(classes):
        return
    original = [part.shape[axis] for part in node.meta["val"]]
    edges = [sum(original[:i]) for i in range(len(original) + 1)]
    kept = [_kept(classes[a:b], removed) for a, b in pairwise(edges)]
    node.target = aten.split_with_sizes.default
    node.args = (source, kept, axis)


def _resize_index(node: Node, graph: Graph, removed: set[int]) -> None:
    """Numbers that pick channels: those of channels that are gone go, the others are counted anew."""
    source = _given(node)[0]
    for axis, index in _constant_indices(node).items():
        classes = _axes(graph, source).get(axis)
        if classes is None or not removed.intersection(classes):
            continue
        owner_path, _, leaf = str(index.target).rpartition(".")
        numbers = getattr(node.graph.owning_module.get_submodule(owner_path), leaf)  # type: ignore[union-attr]
        if numbers.dim() != 1 or len(_constant_indices(node)) != 1:
            raise BuildError(f"{node.name} picks channels along several axes; a cut can't follow that")
        _replace_numbers(node, index, _renumbered(numbers, classes, removed))


def _constant_indices(node: Node) -> dict[int, Node]:
    given = _given(node)
    rank = given[0].meta["one"].dim()
    if node.target is aten.index.Tensor:
        return {axis: index for axis, index in enumerate(given[1]) if index is not None and index.op == "get_attr"}
    return {given[1] % rank: given[2]} if given[2].op == "get_attr" else {}


def _renumbered(numbers: Tensor, classes: Sequence[int], removed: set[int]) -> Tensor:
    kept = [place for place in numbers.tolist() if classes[place] not in removed]
    return torch.tensor([_kept(classes, removed, place % len(classes)) for place in kept], dtype=torch.long)


def _replace_numbers(node: Node, index: Node, numbers: Tensor) -> None:
    name = f"{node.name}_numbers"
    node.graph.owning_module.register_buffer(name, numbers)  # type: ignore[union-attr]
    with node.graph.inserting_before(node):
        node.replace_input_with(index, node.graph.get_attr(name))


_MADE = frozenset({aten.zeros.default, aten.ones.default, aten.full.default})


def _resize_slice_scatter(node: Node, graph: Graph, removed: set[int]) -> None:
    a = arguments(node)
    axis = a["dim"] % a["self"].meta["one"].dim()
    into, written = _axes(graph, a["self"]).get(axis), _axes(graph, a["src"]).get(axis)
    if not any(classes and removed.intersection(classes) for classes in (into, written)):
        return
    if a["step"] != 1 or into is None or written is None:
        raise BuildError(f"{node.name} writes into some of the channels in a way that a cut can't follow")
    start = _kept(into, removed, slice(a["start"], a["end"]).indices(len(into))[0])
    node.args = (a["self"], a["src"], axis, start, start + _kept(written, removed), 1)
    node.kwargs = {}


_RESIZE = {
    "slice_scatter": _resize_slice_scatter,
    "index": _resize_index,
    "shape": _resize_shape,
    "pad": _resize_pad,
    "slice": _resize_slice,
    "select": _resize_select,
    "split": _resize_split,
}


def silence(model: GraphModule, group: Group, channels: Sequence[int]) -> None:
    """Zeroes, in place, whatever produces these channels: the uncut model in which they are dead."""
    for member in group.members:
        if not member.produces:
            continue
        path, tensor = _location(member)
        value: Tensor = getattr(model.get_submodule(path), tensor)
        positions = [p for c in channels for p in member.index[c]]
        with torch.no_grad():
            value.index_fill_(member.axis, torch.tensor(positions, dtype=torch.long), 0.0)
