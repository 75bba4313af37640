"""Low rank: a layer becomes two or three thinner ones whose product is close to it on the inputs it really sees."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autocompress.compression.factorise import factorise, ranks
from autocompress.compression.matrices import columns, kept_positions, window_of
from autocompress.compression.methods.method import Approach, Label, Method, Scope
from autocompress.compression.workspace import Workspace
from autocompress.graph.types import Graph, Layer
from autocompress.vocabulary.workload import Capabilities, Kernel, Workload

FRACTIONS = (0.75, 0.5, 0.375, 0.25, 0.125)
"""Ranks on offer, as fractions of the full rank, before they are snapped to what the device steps in."""


WHOLE = "whole"
"""The value of a layer that is left alone."""


@dataclass(frozen=True, slots=True, order=True)
class LowRank:
    """A layer becomes two (svd, spatial) or three (tucker2) thinner ones of the given rank."""

    kind: str
    rank: int

    def __post_init__(self) -> None:
        if self.kind not in ("svd", "spatial", "tucker2"):
            raise ValueError(f"low-rank kind {self.kind!r} is not one of svd, spatial, tucker2")
        if self.rank < 1:
            raise ValueError(f"rank {self.rank} is below 1")


class LowRankMethod(Method):
    """Options of a layer: ranks with fewer multiply-accumulates than the layer itself, most first.

    Parts that cost more time than they save (small layers, more conversions) are not left out: the price tells.
    """

    name = "low_rank"
    config = LowRank
    stage = 200
    scope = Scope.LAYER
    approach = Approach.REPLACEMENT

    def targets(self, graph: Graph) -> tuple[str, ...]:
        return tuple(name for name, layer in graph.layers.items() if _divisible(layer, graph))

    def options(self, target: str, graph: Graph, capabilities: Capabilities) -> Sequence[LowRank | None]:
        workload = graph.kernels[target].workload
        step = max(1, min(capabilities.channel_multiple.values(), default=1))
        found = {
            config: macs
            for kind in kinds(workload)
            for config in _ranks(kind, workload, step)
            if (macs := sum(part.macs for part in parts(workload, config))) < workload.macs
        }
        return (None, *sorted(found, key=lambda config: (-found[config], config)))

    def value(self, target: str, config: LowRank | None, graph: Graph) -> str:
        return WHOLE if config is None else f"{config.kind}:{config.rank}"

    def label(self, config: LowRank) -> Label:
        return Label(f"{config.kind} {config.rank}", "low rank", "#e5989b")

    def rewrite(self, kernels: dict[str, Kernel], target: str, config: LowRank, graph: Graph) -> None:
        """Kernel "x" becomes "x#1", "x#2" (, "x#3") in its place, and so does every other call of the layer; the last
        part keeps the fused activations."""
        everything = list(kernels.values())
        kernels.clear()
        last: dict[str, str] = {}
        for kernel in everything:
            if not last.keys().isdisjoint(kernel.inputs):
                kernel = kernel.with_inputs(tuple(last.get(name, name) for name in kernel.inputs))
            for part in _part_kernels(kernel, config) if kernel.layer == target else (kernel,):
                kernels[part.name] = part
            if kernel.layer == target:
                last[kernel.name] = part.name

    def apply(self, work: Workspace, target: str, config: LowRank) -> None:
        gram = work.statistics.gram(target) if work.statistics is not None else None
        if gram is not None:
            inputs = kept_positions(work.graph, work.kept, target, produces=False)
            places = [*columns(inputs, window_of(work.graph.model.get_submodule(target))), gram.shape[0] - 1]
            gram = gram[places][:, places]
        factorise(work.model, target, config.kind, config.rank, gram)
        work.changed = True


def kinds(workload: Workload) -> tuple[str, ...]:
    """Ways to factorise a layer: svd for a single tap, spatial for a window of two axes, tucker2 for any window."""
    taps = [size for size in workload.window if size > 1]
    if not taps:
        return ("svd",)
    return ("spatial", "tucker2") if len(workload.window) == 2 and len(taps) == 2 else ("tucker2",)


def _divisible(layer: Layer, graph: Graph) -> bool:
    kernel = graph.kernels.get(layer.name)
    alone = layer.frozen is None and not layer.shared and layer.kind in ("conv", "linear")
    return alone and kernel is not None and kernel.workload.groups == 1


def _ranks(kind: str, workload: Workload, step: int) -> list[LowRank]:
    full = _full_rank(kind, workload)
    snapped = {max(step, int(full * fraction) // step * step) for fraction in FRACTIONS}
    return [LowRank(kind, rank) for rank in snapped if rank < full]


def _full_rank(kind: str, workload: Workload) -> int:
    return ranks(kind, sys.maxsize, workload.in_channels, workload.out_channels, workload.window)[-1]


def parts(workload: Workload, config: LowRank) -> tuple[Workload, ...]:
    """Workloads of the parts; a rank above the full one (the layer was narrowed since) counts as the full one."""
    w = workload
    return _PARTS[config.kind](w, *ranks(config.kind, config.rank, w.in_channels, w.out_channels, w.window))


def _svd(w: Workload, rank: int) -> tuple[Workload, ...]:
    first = _part(w, w.in_channels, rank, w.size, w.out_size, w.window, w.stride)
    ones = tuple(1 for _ in w.window)
    return first, _part(w, rank, w.out_channels, w.out_size, w.out_size, ones, ones, w.fused)


def _spatial(w: Workload, rank: int) -> tuple[Workload, ...]:
    between = (w.out_size[0], w.size[1])
    first = _part(w, w.in_channels, rank, w.size, between, (w.window[0], 1), (w.stride[0], 1))
    return first, _part(w, rank, w.out_channels, between, w.out_size, (1, w.window[1]), (1, w.stride[1]), w.fused)


def _tucker2(w: Workload, inner: int, rank: int) -> tuple[Workload, ...]:
    ones = tuple(1 for _ in w.window)
    return (
        _part(w, w.in_channels, inner, w.size, w.size, ones, ones),
        _part(w, inner, rank, w.size, w.out_size, w.window, w.stride),
        _part(w, rank, w.out_channels, w.out_size, w.out_size, ones, ones, w.fused),
    )


_PARTS: dict[str, Callable[..., tuple[Workload, ...]]] = {"svd": _svd, "spatial": _spatial, "tucker2": _tucker2}


def _part(
    whole: Workload, inputs: int, outputs: int, size: tuple[int, ...], out_size: tuple[int, ...],
    window: tuple[int, ...], stride: tuple[int, ...], fused: tuple[str, ...] = (),
) -> Workload:  # fmt: skip
    return Workload(whole.op, inputs, outputs, size, out_size, window, stride, 1, whole.dtype, fused)


def _part_kernels(kernel: Kernel, config: LowRank) -> list[Kernel]:
    found = []
    inputs = kernel.inputs
    for number, workload in enumerate(parts(kernel.workload, config), 1):
        name = f"{kernel.name}#{number}"
        found.append(Kernel(name, kernel.layer, inputs, workload))
        inputs = (name,)
    return found
