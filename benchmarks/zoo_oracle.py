"""The joint oracle: all groups cut at once, against the user's own module in which the same channels are dead."""

import copy
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from architectures import call
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves, tree_map_only

from autocompress.graph.cut import cut
from autocompress.graph.double import in_double
from autocompress.graph.labels import reduced_axes
from autocompress.graph.operators import TABLE, Passage
from autocompress.graph.silence import silence
from autocompress.graph.types import Graph, Member

TOLERANCE = 1e-6
"""Of the largest output, in float64; constants that a model makes in float32 differ by 1e-8."""
Keep = Mapping[str, Sequence[int]]


def joint_difference(
    model: nn.Module, graph: Graph, inputs: Any, flat: tuple[Tensor, ...], draw: random.Random
) -> tuple[None, dict[str, Any]]:
    """Largest relative difference in float64, random channels of every free group gone. `inputs` are as the user gives
    them, `flat` the same as the lifted model takes them.

    In the user's module what makes these channels, and what layers read of them, is zeroed by the parameter's name (or,
    renamed, by its value), and its norms are taken over the other channels alone. Where that can't be done from outside
    (a mean over channels in its forward, say), the project's own silenced copy is what is compared with: `against`.
    """
    keep = {
        group.id: sorted(draw.sample(range(group.channels), max(1, group.channels // 2)))
        for group in graph.free_groups.values()
    }
    if not keep:
        return None, {"difference": 0.0, "against": "nothing to cut"}
    inputs, flat = (tree_map_only(Tensor, _double, given) for given in (inputs, flat))
    double = in_double(graph.model)
    shorter = copy.deepcopy(double)
    cut(shorter, graph, keep)
    with torch.no_grad():
        found = _tensors(shorter(*flat))
    user, why = _against_user(model, graph, keep, inputs, found)
    why = why or _reduces_inside(graph, keep)
    if why is None or user <= TOLERANCE:
        return None, {"difference": user, "against": "user"}
    silence(double, graph, keep)
    with torch.no_grad():
        own = _difference(_tensors(double(*flat)), found)
    return None, {"difference": own, "against": "own", "why": why}


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(expected, found, strict=True) if a.numel()]
    worst = max(float((a - b).abs().max()) / max(float(a.abs().max()), 1e-12) for a, b in pairs)
    return worst if worst == worst else float("inf")


def _against_user(
    model: nn.Module, graph: Graph, keep: Keep, inputs: Any, found: Sequence[Tensor]
) -> tuple[float, str | None]:
    """The difference from the user's module, or the reason why that can't be silenced."""
    dead = copy.deepcopy(model).double()
    _fold_parametrizations(dead)
    why = _zero(dead, graph, keep)
    if why is not None:
        return float("inf"), why
    _normalise_the_rest(dead, graph, keep)
    try:
        return _difference(_tensors(call(dead, inputs)), found), None
    except RuntimeError as error:  # a tensor that forward makes in float32 meets float64
        return float("inf"), f"the user's module does not run in float64: {str(error).splitlines()[0][:120]}"


def _gone(graph: Graph, keep: Keep) -> Iterator[tuple[Member, list[int]]]:
    """Each member of a cut group, with the positions of its axis that go."""
    for name, channels in keep.items():
        kept = set(channels)
        for member in graph.groups[name].members:
            yield member, [p for c, positions in enumerate(member.index) if c not in kept for p in positions]


def _zero(dead: nn.Module, graph: Graph, keep: Keep) -> str | None:
    lifted = {**dict(graph.model.named_parameters(remove_duplicate=False)), **dict(graph.model.named_buffers())}
    own = dict(_named(dead))
    places: list[tuple[Tensor, int, list[int]]] = []
    for member, positions in _gone(graph, keep):
        if not member.produces and not member.tensor.startswith("weight"):
            continue
        name = f"{member.target}.{member.tensor}".rstrip(".")
        tensor = _counterpart(re.sub(r"@\d+", "", name), lifted.get(name), own)
        if tensor is None:
            return f"{name} is no parameter of the user's module"
        places.append((tensor, member.axis, positions))
    with torch.no_grad():
        for tensor, axis, positions in places:  # only now: until here they are told by their values
            tensor.index_fill_(axis, torch.tensor(positions, dtype=torch.long), 0.0)
    return None


def _named(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _fold_parametrizations(model: nn.Module) -> None:
    """Weight and spectral norm become the weights that they make, by torch's own hand."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            own = type(module)  # made by torch for the original; removal takes attributes off it
            module.__class__ = type(own.__name__, own.__bases__, dict(own.__dict__))
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)


def _counterpart(name: str, lifted: Tensor | None, own: Mapping[str, Tensor]) -> Tensor | None:
    """A view of the user's tensor: by name, else the only one of equal values (see _views); None for what forward makes
    of it, as standardised weights."""
    found = own.get(name)
    if lifted is None:
        return found
    wanted = lifted.detach().double()
    if found is not None and found.shape == wanted.shape and torch.equal(found, wanted):
        return found
    views = [view for tensor in own.values() for view in _views(tensor, wanted.shape)]
    same = {view.data_ptr(): view for view in views if torch.equal(view, wanted)}
    return next(iter(same.values())) if len(same) == 1 else None


def _views(tensor: Tensor, shape: torch.Size) -> Iterator[Tensor]:
    """A tensor reshaped, transposed, or its first rows (of an embedding of positions)."""
    if tensor.is_contiguous() and tensor.numel() == shape.numel():
        yield tensor.view(shape)
    if tensor.dim() != 2 or not shape:
        return
    if tensor.T.shape == shape:
        yield tensor.T
    rows = shape.numel() // max(1, shape[-1])
    if tensor.shape[1] == shape[-1] and tensor.is_contiguous() and rows < len(tensor):
        yield tensor[:rows].view(shape)


def _take_the_rest(norm: Any, rest: Tensor) -> None:
    """Makes a norm of the user's work over some positions of an axis alone, the others zero; what else is read of it
    (its weight's type, its sizes) stays as it is."""
    axis = 1 if isinstance(norm, nn.GroupNorm) or "2d" in type(norm).__name__ else -1
    shorter = copy.deepcopy(norm)
    for name, value in list(shorter.named_parameters(recurse=False)):
        setattr(shorter, name, nn.Parameter(value.detach()[rest]))
    if isinstance(shorter, nn.GroupNorm):
        shorter.num_channels = len(rest)
    else:
        shorter.normalized_shape = (len(rest),)

    def forward(x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_copy(axis, rest, shorter(x.index_select(axis, rest)))

    norm.forward = forward


def _normalise_the_rest(dead: nn.Module, graph: Graph, keep: Keep) -> None:
    gone: dict[str, set[int]] = defaultdict(set)
    modules: dict[str, Any] = dict(dead.named_modules())
    for member, positions in _gone(graph, keep):
        owner = member.target if member.tensor else member.target.rpartition(".")[0]
        gone[re.sub(r"@\d+", "", owner)].update(positions)
    for path, positions in gone.items():
        norm = modules.get(path)
        if norm is not None and _mixes(norm):
            _take_the_rest(norm, torch.tensor([p for p in range(len(norm.weight)) if p not in positions]))


def _mixes(norm: nn.Module) -> bool:
    """Whether a norm's channels are normalised together; whole groups of a group norm go or stay."""
    named = isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) or "RMSNorm" in type(norm).__name__
    return (named or "LayerNorm" in type(norm).__name__) or getattr(norm, "num_groups", 0) == 1


def _reduces_inside(graph: Graph, keep: Keep) -> str | None:
    """The first operator of forward that works along channels which are cut: a zero is not gone."""
    removed = {
        graph.groups[name].classes[c]
        for name, kept in keep.items()
        for c in set(range(graph.groups[name].channels)) - set(kept)
    }
    for node in graph.model.graph.nodes:
        if any(not removed.isdisjoint(classes) for classes in _along(graph, node)):
            return f"{node.name} works along the cut channels"
    return None


def _along(graph: Graph, node: Node) -> Iterator[Sequence[int]]:
    """Classes of the channels along which a norm or a reducing operator works."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    classes = graph.classes.get(source.name, {}) if source is not None else {}
    if node.op == "call_function" and (row := TABLE.get(node.target)) and row.passage is Passage.REDUCE:
        axes = reduced_axes(node, source.meta["one"].dim())
        yield from (classes.get(axis, ()) for axis in axes)
    elif node.op == "call_module" and _mixes(graph.model.get_submodule(str(node.target))):
        yield from classes.values()
