"""Sites as numbers: what a kernel's time is made of, and how alike two kernels are."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autocompress.devices.roofline import ceil_to
from autocompress.profiles.sites import BLOCK, BLOCKED, DOT_PRODUCT, LAST, PLANAR, Site
from autocompress.vocabulary.formats import TRAINED_IN

Floats = NDArray[np.float64]

_TILE = 64
"""Bytes of a row of the CPU's widest dot product (one AMX tile row, one AVX-512 register)."""


def terms(wanted: Sequence[Site]) -> Floats:
    """[sites, terms]: a launch, multiplications with channels as they are and padded, elements read and written.

    A kernel's time is close to a non-negative combination of these. A matmul's multiplications are left out: profiles
    were fitted before they were counted, and within a model what it reads and writes tells as much.
    """
    return np.array([_terms(site) for site in wanted], dtype=np.float64).reshape(len(wanted), -1)


PHYSICAL = (0, 1, 4, 5, 9)
"""Terms that mean the same for any operation: a launch, multiplications, elements read and written, weights."""


def _terms(site: Site) -> list[float]:
    w = site.workload
    inputs, outputs = w.in_channels, w.out_channels
    window, positions, sources = math.prod(w.window), math.prod(w.out_size), math.prod(w.size)
    read = ceil_to(inputs, BLOCK) if inputs >= BLOCK else inputs
    per_group = window * positions / w.groups
    return [
        1, 0 if w.op == "matmul" else w.macs, read * ceil_to(outputs, BLOCK) * per_group,
        ceil_to(inputs, DOT_PRODUCT) * ceil_to(outputs, DOT_PRODUCT) * per_group,
        inputs * sources * site.arity, outputs * positions, ceil_to(inputs, BLOCK) * sources,
        ceil_to(outputs, BLOCK) * positions, positions, w.weights,
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Places sites in a space where distance means difference, given the operations and formats that were seen."""

    ops: tuple[str, ...]
    formats: tuple[str, ...]
    _placed: dict[Site, list[float]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def of(seen: Iterable[Site]) -> "Coordinates":
        seen = list(seen)
        formats = {site.workload.dtype for site in seen} - {TRAINED_IN}
        return Coordinates(tuple(sorted({site.workload.op for site in seen})), tuple(sorted(formats)))

    def __call__(self, wanted: Sequence[Site]) -> Floats:
        """[sites, coordinates]: another operation or format is 3 to 4 away, twice the channels 1, half the positions
        0.5, another layout or multiple of channels about 1."""
        if not wanted:
            return np.zeros((0, 0))
        placed = self._placed
        for site in wanted:
            if site not in placed:
                placed[site] = self._place(site)
        return np.array([placed[site] for site in wanted], dtype=np.float64)

    def _place(self, site: Site) -> list[float]:
        w = site.workload
        inputs, outputs, positions, window = w.in_channels, w.out_channels, math.prod(w.out_size), math.prod(w.window)
        first, last = (w.window[0], w.window[-1]) if w.window else (0, 0)
        depth = inputs * window // w.groups
        return [
            *(3.0 * (w.op == op) for op in self.ops), *(3.0 * (w.dtype == name) for name in self.formats),
            _log2(inputs) / 1.5, _log2(outputs) / 1.5,
            _log2(ceil_to(inputs, BLOCK)) / 1.5, _log2(ceil_to(outputs, BLOCK)) / 1.5,
            inputs % DOT_PRODUCT == 0, outputs % DOT_PRODUCT == 0, inputs < BLOCK,
            inputs % BLOCK == 0, outputs % BLOCK == 0, inputs % BLOCK / BLOCK, outputs % BLOCK / BLOCK,
            _log2(ceil_to(depth, _TILE)) / 2, depth % _TILE / _TILE,
            _log2(positions) / 2, _log2(math.prod(w.size)) / 2, _log2(w.groups) / 2,
            first / 2, last / 2, window / 5, len(w.fused), 0.7 * (site.arity == 1), 0.7 * (site.arity == 2),
            *(0.7 * (site.layout == layout) for layout in (PLANAR, BLOCKED, LAST)),
            *(0.7 * bool(site.moved & layout) for layout in (PLANAR, BLOCKED, LAST)), 1.5 * site.peculiarity,
        ]  # fmt: skip


def squared_distances(a: Floats, b: Floats) -> Floats:
    """[len(a), len(b)] from rows of coordinates."""
    squares: Floats = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.maximum(squares, 0.0)


def _log2(count: int) -> float:
    return math.log2(max(count, 1))
