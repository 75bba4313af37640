"""Sites: a workload with what its time owes to its neighbours, the key under which a kernel is priced."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autocompress.precision import lower
from autocompress.workload import DType, Kernel, Kernels, Workload

Floats = NDArray[np.float64]

NO_NEIGHBOUR = "-"

_LABELS = {0: NO_NEIGHBOUR, 1: "fp32", 2: "int8", 3: "fp32+int8"}
_BLOCK = 16
_DOT_PRODUCT = 4


class Site(NamedTuple):
    """A workload, how many tensors it reads, and the number formats of what makes and what reads them.

    `sources` and `readers` are sets of formats as bits: 1 for fp32, 2 for int8; a graph input counts as none.
    """

    workload: Workload
    arity: int
    sources: int
    readers: int


def sites(kernels: Kernels | Sequence[Kernel]) -> dict[str, Site]:
    """Kernel name → site, for a plan's kernels (a mapping, lowered here) or for lowered ones (a sequence)."""
    lowered = kernels if isinstance(kernels, Sequence) else lower(kernels)
    bits = {kernel.name: 2 if kernel.workload.dtype is DType.INT8 else 1 for kernel in lowered}
    readers = dict.fromkeys(bits, 0)
    for kernel in lowered:
        bit = bits[kernel.name]
        for source in kernel.inputs:
            if source in readers:
                readers[source] |= bit
    found = {}
    for kernel in lowered:
        sources = 0
        for source in kernel.inputs:
            sources |= bits.get(source, 0)
        found[kernel.name] = Site(kernel.workload, len(kernel.inputs), sources, readers[kernel.name])
    return found


def label(neighbours: int) -> str:
    """Neighbours' formats in words, as profiles store them."""
    return _LABELS[neighbours]


def parse_label(text: str) -> int:
    """Inverse of `label`; raises ValueError for another word."""
    for bits, word in _LABELS.items():
        if word == text:
            return bits
    raise ValueError(f"{text!r} is not one of {', '.join(_LABELS.values())}")


@dataclass(frozen=True, slots=True)
class Encoder:
    """Sites as numbers, given the operations that were seen while fitting."""

    ops: tuple[str, ...]

    @staticmethod
    def of(seen: Iterable[Site]) -> "Encoder":
        return Encoder(tuple(sorted({site.workload.op for site in seen})))

    def for_trees(self, seen: Sequence[Site]) -> Floats:
        """One row per site: raw and padded channels, work, traffic, neighbours; trees need no scaling."""
        return np.array([self._raw(site) for site in seen], dtype=np.float64).reshape(len(seen), -1)

    def for_distances(self, seen: Sequence[Site]) -> Floats:
        """One row per site, scaled so that a distance of about 3 means another kind of kernel.

        Channels and positions enter as logarithms (a factor of two is 0.7 and 0.5), facts as 0 or 1.5.
        """
        return np.array([self._scaled(site) for site in seen], dtype=np.float64).reshape(len(seen), -1)

    def _raw(self, site: Site) -> list[float]:
        w = site.workload
        positions, window = math.prod(w.out_size), math.prod(w.window)
        padded_in, padded_out = _ceil(w.in_channels, _BLOCK), _ceil(w.out_channels, _BLOCK)
        op = self.ops.index(w.op) if w.op in self.ops else -1
        traffic = w.in_channels * math.prod(w.size) * site.arity + w.out_channels * positions
        return [
            op, w.dtype is DType.INT8, w.in_channels, w.out_channels, padded_in, padded_out,
            _ceil(w.in_channels, _DOT_PRODUCT), _ceil(w.out_channels, _DOT_PRODUCT), *_multiples(w), positions,
            math.prod(w.size), window, math.prod(w.stride), w.groups, w.macs, w.weights,
            padded_in * padded_out * window * positions / w.groups, traffic, len(w.fused), *_neighbours(site),
            site.arity,
        ]  # fmt: skip

    def _scaled(self, site: Site) -> list[float]:
        w = site.workload
        return [
            *(3.0 * (w.op == op) for op in self.ops), 3.0 * (w.dtype is DType.INT8),
            math.log2(w.in_channels) / 1.5, math.log2(w.out_channels) / 1.5, *(1.5 * fact for fact in _multiples(w)),
            math.log2(math.prod(w.out_size)) / 2, math.log2(w.groups) / 2, math.prod(w.window) / 5, 2.0 * len(w.fused),
            *(1.5 * fact for fact in _neighbours(site)),
        ]  # fmt: skip


def _multiples(workload: Workload) -> tuple[bool, ...]:
    """What decides the runtime's layout and its vector loops: multiples of 4 and 16, and less than one block."""
    i, o = workload.in_channels, workload.out_channels
    return i % _DOT_PRODUCT == 0, o % _DOT_PRODUCT == 0, i % _BLOCK == 0, o % _BLOCK == 0, i < _BLOCK


def _neighbours(site: Site) -> tuple[bool, ...]:
    return bool(site.sources & 1), bool(site.sources & 2), bool(site.readers & 1), bool(site.readers & 2)


def _ceil(channels: int, multiple: int) -> int:
    return -(-channels // multiple) * multiple
