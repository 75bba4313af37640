"""The ledger of labels: which were handed out, which are tied, which parameters have them, and what froze them."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(slots=True)
class Axis:
    """Labels along one axis of one parameter; `produces` as in Member."""

    target: str
    tensor: str
    axis: int
    labels: Tensor
    produces: bool


@dataclass(slots=True)
class Mix:
    """Channels that can't be told apart where they vary along some axes."""

    labels: Tensor
    axes: tuple[int, ...]
    reason: str


@dataclass(slots=True)
class Ledger:
    """Collects ties and reasons while labels flow; label 0 stands for 'no channel'."""

    count: int = 1
    ties: list[np.ndarray] = field(default_factory=list)
    axes: list[Axis] = field(default_factory=list)
    freezes: list[tuple[Tensor, str]] = field(default_factory=list)
    mixes: list[Mix] = field(default_factory=list)
    owned: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _soft: Tensor = field(default_factory=lambda: torch.ones(1, dtype=torch.bool))

    def fresh(self, *shape: int, soft: bool = False) -> Tensor:
        size = int(np.prod(shape))
        labels = torch.arange(self.count, self.count + size).reshape(shape)
        self.count += size
        if self.count > len(self._soft):
            grown = torch.zeros(2 * self.count, dtype=torch.bool)
            grown[: len(self._soft)] = self._soft
            self._soft = grown
        self._soft[self.count - size : self.count] = soft
        return labels

    def is_soft(self, labels: Tensor) -> Tensor:
        """Where labels are not those of a layer's channels."""
        return self._soft[compact(labels)].expand(labels.shape)

    def tie(self, a: Tensor, b: Tensor, reason: str = "") -> Tensor:
        """Labels that meet element by element become one; where one side has none, the other's stands.

        What is spread over the other side's channels says nothing of them: one map for all, angles for every head.
        Where one side varies along axes along which the other does not and the other way round, they do not meet: soft
        labels give way, and of two sides' channels the fewer may not be cut, for that `reason`: to the others they are
        positions.
        """
        a, b = (x.reshape((1,) * (max(a.dim(), b.dim()) - x.dim()) + x.shape) for x in (a, b))
        shape = torch.broadcast_shapes(a.shape, b.shape)
        along_a, along_b = varying_axes(a), varying_axes(b)
        if along_a and along_b and along_a.isdisjoint(along_b):
            return self._apart(a, b, reason).expand(shape)
        for few, many, along in ((a, b, along_b), (b, a, along_a)):
            spread = any(few.shape[axis] == 1 < many.shape[axis] for axis in along)
            if spread and (not varying_axes(few) or bool(self.is_soft(few).all())):
                return many.expand(shape)
        a, b = torch.broadcast_tensors(compact(a), compact(b))
        meet = (a > 0) & (b > 0) & (a != b)
        if meet.any():
            pairs = torch.stack([a[meet], b[meet]], 1).unique(dim=0)
            self.ties.append(pairs.numpy())
        prefers_b = (a == 0) | ((b > 0) & self.is_soft(a))
        return torch.where(prefers_b, b, a).expand(shape)

    def _apart(self, a: Tensor, b: Tensor, reason: str) -> Tensor:
        if bool(self.is_soft(a).all()):
            return b
        if bool(self.is_soft(b).all()):
            return a
        fewer, more = (a, b) if len(compact(a).unique()) < len(compact(b).unique()) else (b, a)
        self.freeze(fewer, reason)
        return more

    def tie_all(self, labels: Tensor, dims: tuple[int, ...]) -> Tensor:
        """Ties everything along `dims`, which are kept with size 1; elements without a label take the others'."""
        labels = compact(labels, dims)
        if all(labels.shape[d] == 1 for d in dims):
            return labels
        kept = [d for d in range(labels.dim()) if d not in dims]
        flat = labels.permute(*kept, *dims).reshape(*[labels.shape[d] for d in kept], -1)
        hard = torch.where(self.is_soft(flat), torch.zeros_like(flat), flat).max(-1, keepdim=True).values
        first = torch.where(hard > 0, hard, flat.max(-1, keepdim=True).values)
        meet = (flat > 0) & (flat != first)
        if meet.any():
            self.ties.append(torch.stack([first.expand_as(flat)[meet], flat[meet]], 1).unique(dim=0).numpy())
        result = first.squeeze(-1)
        for d in sorted(dims):
            result = result.unsqueeze(d)
        return result

    def freeze(self, labels: Tensor, reason: str) -> None:
        self.freezes.append((compact(labels).unique(), reason))

    def own(self, name: str, tensor: str, axis: int, labels: Tensor, produces: bool, parameter: Tensor) -> None:
        """Labels along an axis of a layer's parameter; every layer that shares the parameter shares them."""
        labels = labels.flatten()
        key = (id(parameter), axis)
        if key in self.owned:
            self.tie(self.owned[key], labels)
        self.owned.setdefault(key, labels)
        self.axes.append(Axis(name, tensor, axis, labels, produces))


def compact(labels: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """The same labels with size 1 along axes (of `dims`, if given) that were only expanded."""
    strides = labels.stride()
    for d in range(labels.dim()) if dims is None else dims:
        if strides[d] == 0 and labels.shape[d] > 1:
            labels = labels.narrow(d, 0, 1)
    return labels


def varying_axes(labels: Tensor) -> set[int]:
    """Axes along which labels differ."""
    small = compact(labels)
    return {d for d in range(small.dim()) if small.shape[d] > 1 and bool((small != small.narrow(d, 0, 1)).any())}
