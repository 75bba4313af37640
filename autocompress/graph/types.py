"""What a traced model is known to be: its layers, kernels, channel groups and residual branches."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule

from autocompress.vocabulary.workload import Kernel


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of one parameter along which a group's channels lie.

    `target` is a module's dotted name or, for a free parameter (get_attr), the parameter's; `tensor` is the name
    inside the module ("weight", "bias", "running_mean", "" for a free parameter). `index[c]` are the positions of
    channel c along `axis` (more than one after a flatten, or per head). `produces` tells the side that makes the
    channel (its rows) from the side that reads it (its columns).
    """

    target: str
    tensor: str
    axis: int
    index: tuple[tuple[int, ...], ...]
    produces: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that are cut together: one decision. `frozen` is the reason why it may not be cut, if any.

    `classes[c]` is the id of channel c among all the graph's channel classes. `branch` names the residual add whose
    branch vanishes when every channel of the group goes; without it at least one channel has to stay.
    """

    id: str
    channels: int
    members: tuple[Member, ...]
    classes: tuple[int, ...]
    frozen: str | None = None
    branch: str | None = None

    @property
    def producers(self) -> tuple[str, ...]:
        """Whatever makes the channels: layers, norms and free parameters."""
        return tuple(dict.fromkeys(m.target for m in self.members if m.produces))

    @property
    def consumers(self) -> tuple[str, ...]:
        """Layers whose weight reads the group's channels."""
        return tuple(dict.fromkeys(m.target for m in self.members if m.tensor == "weight" and not m.produces))


@dataclass(frozen=True, slots=True)
class Layer:
    """A module with a weight matrix; `name` is its dotted name in the user's model, and its first node's target.

    `calls` are the modules of all its calls, `name` first. `shared` layers have a weight that another module holds too:
    what fits one of them to its inputs would change the other.
    """

    name: str
    kind: str
    node: str
    weight_shape: tuple[int, ...]
    frozen: str | None = None
    calls: tuple[str, ...] = ()
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Branch:
    """A residual branch: dropping it replaces the node `add` by its operand `shortcut`."""

    add: str
    shortcut: str
    nodes: frozenset[str]
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """How often each channel of a group lies on a kernel's input and output channel axis, and in its `groups`.

    `size` and `out_size` say so for the other axes (attention's heads lie there); empty where no axis carries any. A
    fraction where only some of the group's channels do, as in one part of a split: which, only importance tells.
    """

    inputs: float
    outputs: float
    groups: float
    size: tuple[float, ...] = ()
    out_size: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """A traced model. `model` is the lifted original (see trace.py) and is never edited: methods work on copies.

    `kernels` are those of the original after the exact rewrites, at batch size 1. `shares[group][kernel]` says which
    kernels a group's channels pass. `classes[node][axis]` are the channel classes along an axis of a node's output
    (-1: none), for the axes that carry any.

    `branch_kernels[add]` are the kernels that go when a branch is dropped, the add itself last, and
    `branch_shortcuts[add]` is the kernel that then takes its place.

    `students[width]` is the narrower model that the task itself brings for a student of this width, if it brings any.
    """

    fingerprint: str
    model: GraphModule
    example_inputs: tuple[torch.Tensor, ...]
    groups: Mapping[str, Group]
    layers: Mapping[str, Layer]
    kernels: Mapping[str, Kernel]
    branches: Mapping[str, Branch] = field(default_factory=dict)
    shares: Mapping[str, Mapping[str, Share]] = field(default_factory=dict)
    classes: Mapping[str, Mapping[int, tuple[int, ...]]] = field(default_factory=dict)
    branch_kernels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    branch_shortcuts: Mapping[str, str] = field(default_factory=dict)
    students: Mapping[float, "Graph"] = field(default_factory=dict)

    @property
    def free_groups(self) -> dict[str, Group]:
        return {name: group for name, group in self.groups.items() if group.frozen is None}
