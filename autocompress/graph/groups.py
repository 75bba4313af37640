"""Channel groups: classes that lie on the same axes of the same parameters, one decision each."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from autocompress.graph.labels import Labels
from autocompress.graph.types import Group, Member

Place = tuple[str, str, int, bool]
"""(target, tensor, axis, produces): one axis of one parameter."""


@dataclass(slots=True)
class _Class:
    """Where one class lies: the positions on each axis."""

    positions: dict[Place, list[int]] = field(default_factory=lambda: defaultdict(list))

    @property
    def signature(self) -> frozenset[tuple[Place, int]]:
        return frozenset((place, len(positions)) for place, positions in self.positions.items())


def find_groups(labels: Labels, frozen_layers: Sequence[str]) -> dict[str, Group]:
    """Groups by id, in the order in which the model makes their channels.

    Classes with equal signatures form a group, so that the option-A ResNet's stage-1 channels (tied to the middle of
    stage 2) are one group and the padded rest of stage 2 another. `frozen_layers` are fnmatch patterns.
    """
    families: dict[frozenset[tuple[Place, int]], list[tuple[int, _Class]]] = defaultdict(list)
    for number, found in sorted(_classes(labels).items()):
        if any(place[3] and place[1] for place in found.positions):
            families[found.signature].append((number, found))
    groups: dict[str, Group] = {}
    for family in families.values():
        group = _group(family, labels.frozen, frozen_layers, groups)
        groups[group.id] = group
    return groups


def _classes(labels: Labels) -> dict[int, _Class]:
    classes: dict[int, _Class] = defaultdict(_Class)
    for axis in labels.axes:
        place = (axis.target, axis.tensor, axis.axis, axis.produces)
        for position, number in enumerate(axis.labels.tolist()):
            if number >= 0:
                classes[number].positions[place].append(position)
    for name, array in labels.free_tensors.items():
        for dimension, numbers in axis_classes(array).items():
            for position, number in enumerate(numbers):
                if number >= 0:
                    classes[number].positions[(name, "", dimension, True)].append(position)
    return classes


def axis_classes(array: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Classes along each axis that carries any; the array is constant along its other axes (labels._align)."""
    found = {}
    for axis in range(array.ndim):
        others = tuple(d for d in range(array.ndim) if d != axis)
        line = array.max(axis=others) if others else array
        if line.size > 1 and bool((line != line[0]).any()):
            found[axis] = tuple(int(c) for c in line)
    return found


def _group(
    family: list[tuple[int, _Class]],
    frozen: dict[int, str],
    frozen_layers: Sequence[str],
    taken: Iterable[str],
) -> Group:
    places = list(family[0][1].positions)
    members = tuple(Member(p[0], p[1], p[2], tuple(tuple(c.positions[p]) for _, c in family), p[3]) for p in places)
    numbers = tuple(number for number, _ in family)
    reason = next((frozen[number] for number in numbers if number in frozen), None)
    if reason is None:
        targets = {member.target for member in members}
        pattern = next((f for f in frozen_layers if any(fnmatchcase(t, f) for t in targets)), None)
        reason = f"left alone by the task ({pattern})" if pattern else None
    if reason is None and len(numbers) == 1:
        positions = max(len(member.index[0]) for member in members if member.produces)
        together = f"its {positions} channels depend on one another: they could only go all together"
        reason = "a single channel" if positions == 1 else together
    return Group(_unique_id(members, taken), len(numbers), members, numbers, reason)


def _unique_id(members: tuple[Member, ...], taken: Iterable[str]) -> str:
    """The first producing layer's name, with the part's number if several groups share it."""
    base = next(m.target for m in members if m.produces)
    used = set(taken)
    if base not in used:
        return base
    return next(name for part in range(2, len(used) + 3) if (name := f"{base}:{part}") not in used)
