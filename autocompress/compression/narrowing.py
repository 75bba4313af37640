"""Narrowing by shapes alone: what kernels become when groups keep fewer channels, or a residual branch goes."""

from collections import defaultdict
from collections.abc import Mapping

from autocompress.graph.types import Graph, Share
from autocompress.vocabulary.workload import Kernel, Workload

_KEEPS_SIGN = frozenset({"pad", "slice", "max_pool", "avg_pool", "mean", "reshape", "transpose", "concat"})


def narrow_kernels(kernels: dict[str, Kernel], graph: Graph, widths: Mapping[str, int]) -> None:
    """Rewrites the shapes of all kernels that the groups' channels pass, in place; width 0 drops the branch."""
    dropped = [add for group, width in widths.items() if width == 0 and (add := graph.groups[group].branch)]
    cuts: dict[str, list[tuple[int, Share]]] = defaultdict(list)
    for name, width in widths.items():
        gone = graph.groups[name].channels - width
        for kernel, share in graph.shares[name].items() if gone and width else ():
            cuts[kernel].append((gone, share))
    for name, shares in cuts.items():
        if name in kernels:
            kernels[name] = _narrowed(kernels[name], shares)
    if dropped:
        _drop(kernels, graph, dropped)


def _narrowed(kernel: Kernel, cuts: list[tuple[int, Share]]) -> Kernel:
    w = kernel.workload
    inputs, outputs, groups, size, out_size = w.in_channels, w.out_channels, w.groups, w.size, w.out_size
    for gone, share in cuts:
        inputs -= round(gone * share.inputs)
        outputs -= round(gone * share.outputs)
        groups -= round(gone * share.groups)
        if share.size:
            size = tuple(n - round(gone * times) for n, times in zip(size, share.size, strict=True))
        if share.out_size:
            out_size = tuple(n - round(gone * times) for n, times in zip(out_size, share.out_size, strict=True))
    workload = Workload(w.op, inputs, outputs, size, out_size, w.window, w.stride, groups, w.dtype, w.fused)
    return Kernel(kernel.name, kernel.layer, kernel.inputs, workload)


def _drop(kernels: dict[str, Kernel], graph: Graph, adds: list[str]) -> None:
    instead: dict[str, str] = {}
    for add in adds:
        *inside, closing = graph.branch_kernels[add]
        if closing not in kernels:
            continue
        shortcut = _resolve(graph.branch_shortcuts[add], instead)
        activation = kernels[closing].workload.fused
        for name in inside:
            kernels.pop(name, None)
        needed = activation and not _non_negative(kernels, shortcut)
        if needed and not _absorb(kernels, shortcut, activation):
            _stand_alone(kernels, closing, shortcut, activation)
            continue
        del kernels[closing]
        instead[closing] = shortcut
    for name, kernel in kernels.items():
        if any(i in instead for i in kernel.inputs):
            inputs = tuple(dict.fromkeys(_resolve(i, instead) for i in kernel.inputs))
            kernels[name] = kernel.with_inputs(inputs)


def _resolve(name: str, instead: Mapping[str, str]) -> str:
    while name in instead:
        name = instead[name]
    return name


def _non_negative(kernels: Mapping[str, Kernel], name: str) -> bool:
    """Whether a kernel's output can't be negative, so that a relu after it does nothing."""
    kernel = kernels.get(name)
    if kernel is None:
        return False
    if kernel.workload.fused:
        return kernel.workload.fused[-1] == "relu"
    return kernel.workload.op in _KEEPS_SIGN and all(_non_negative(kernels, i) for i in kernel.inputs)


def _absorb(kernels: dict[str, Kernel], name: str, activation: tuple[str, ...]) -> bool:
    """Fuses the activation that the add had into the shortcut's kernel, if a runtime could."""
    kernel = kernels.get(name)
    readers = sum(name in k.inputs for k in kernels.values())
    if kernel is None or kernel.workload.fused or readers != 1 or kernel.workload.op not in ("conv", "linear", "add"):
        return False
    kernels[name] = kernel.with_workload(fused=activation)
    return True


def _stand_alone(kernels: dict[str, Kernel], closing: str, shortcut: str, activation: tuple[str, ...]) -> None:
    kernel = kernels[closing]
    kernels[closing] = kernel.with_inputs((shortcut,)).with_workload(op=activation[0], fused=activation[1:])
