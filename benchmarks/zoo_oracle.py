"""The joint oracle: all groups cut at once, against the user's own module in which the same channels are silent."""

import copy
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from architectures import call
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves, tree_map_only

from autocompress.graph.cut import cut, silence
from autocompress.graph.types import Graph, Member


def joint_difference(
    model: nn.Module, graph: Graph, inputs: Any, flat: tuple[Tensor, ...], draw: random.Random
) -> tuple[None, dict[str, Any]]:
    """Largest relative difference in float64, random channels of every free group gone. `inputs` are as the user gives
    them, `flat` the same as the lifted model takes them.

    `against` says with what: the user's module, its parameters found by name (or, renamed, by value); or the project's
    own silenced copy, where a parameter was made of several, or a norm must be taken over the kept channels alone.
    """
    kept = {
        group.id: sorted(draw.sample(range(group.channels), max(1, group.channels // 2)))
        for group in graph.free_groups.values()
    }
    if not kept:
        return None, {"difference": 0.0, "against": "nothing to cut"}
    inputs, flat = (tree_map_only(Tensor, _double, given) for given in (inputs, flat))
    shorter = copy.deepcopy(graph.model).double()
    cut(shorter, graph, kept)
    silenced, why = _silenced_user(model, graph, kept)
    with torch.no_grad():
        found = _tensors(shorter(*flat))
        if silenced is None:
            own = copy.deepcopy(graph.model).double()
            for name, channels in kept.items():
                gone = [c for c in range(graph.groups[name].channels) if c not in set(channels)]
                silence(own, graph.groups[name], gone)
            expected = _tensors(own(*flat))
        else:
            expected = _tensors(call(silenced, inputs))
    said = {"difference": _difference(expected, found), "against": "own" if silenced is None else "user"}
    return None, said | ({"why": why} if why else {})


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


def _silenced_user(
    model: nn.Module, graph: Graph, kept: Mapping[str, Sequence[int]]
) -> tuple[nn.Module | None, str | None]:
    """The user's module in float64 with the channels' parameters zeroed, or the reason why that can't be done."""
    members = [(member, kept[name]) for name in kept for member in graph.groups[name].members]
    norm = next((m.target for m, _ in members if _reduces(graph, m)), None)
    if norm is not None:
        return None, f"{norm} is taken over the kept channels alone"
    silenced = copy.deepcopy(model).double()
    _fold_parametrizations(silenced)
    lifted = {**dict(graph.model.named_parameters(remove_duplicate=False)), **dict(graph.model.named_buffers())}
    own = dict(_named(silenced))
    for member, channels in members:
        if not member.produces:
            continue
        name = f"{member.target}.{member.tensor}".rstrip(".")
        tensor = _counterpart(name, lifted.get(name), own)
        if tensor is None:
            return None, f"{name} is no parameter of the user's module"
        gone = [p for c, positions in enumerate(member.index) if c not in set(channels) for p in positions]
        with torch.no_grad():
            tensor.index_fill_(member.axis, torch.tensor(gone, dtype=torch.long), 0.0)
    return silenced, None


def _reduces(graph: Graph, member: Member) -> bool:
    """Whether a member belongs to a norm that mixes the channels which are cut."""
    modules = dict(graph.model.named_modules())
    kinds = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
    return isinstance(modules.get(member.target), kinds)


def _named(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _fold_parametrizations(model: nn.Module) -> None:
    """Weight and spectral norm become the weights that they make, by torch's own hand."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)


def _counterpart(name: str, lifted: Tensor | None, own: Mapping[str, Tensor]) -> Tensor | None:
    """A view of the user's tensor: by name, else the only one of equal values, perhaps transposed."""
    found = own.get(name)
    if lifted is None or (found is not None and found.shape == lifted.shape):
        return found
    wanted = lifted.detach().double()
    same = {t.data_ptr(): t for t in own.values() if t.shape == wanted.shape and torch.equal(t.detach(), wanted)}
    if len(same) == 1:
        return next(iter(same.values()))
    turned = {
        t.data_ptr(): t.T
        for t in own.values()
        if t.dim() == 2 and t.T.shape == wanted.shape and torch.equal(t.detach().T, wanted)
    }
    return next(iter(turned.values())) if len(turned) == 1 else None
