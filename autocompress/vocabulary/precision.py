"""The precision rule: which kernels and tensors are quantised, and where the number format changes.

Price, simulated quantisation and exporter all ask here, so that what is priced is what runs.
"""

from autocompress.vocabulary.formats import TRAINED_IN, format_of
from autocompress.vocabulary.workload import WEIGHTED_OPS, Kernel, Kernels, Workload

QUANTISABLE_PASSIVE = frozenset(
    {"add", "mul", "avg_pool", "max_pool", "mean", "concat", "reshape", "transpose", "slice", "split", "pad"}
)
"""Kernels without weights that a runtime can execute on quantised tensors."""

SCALE_KEEPING = frozenset({"max_pool", "reshape", "transpose", "slice", "split", "pad"})
"""Kernels whose output holds only values of their input (or zero): it keeps the input's scale."""

CLIPPING = frozenset({"relu", "clip"})
"""Activations that saturation to the quantised range does for nothing."""

FIXED_SUFFIX = "_as_conv"
"""Ends the name of a convolution that an exact rewrite made: no plan names it, so it follows its neighbours."""

_BINARY = frozenset({"add", "mul"})


def is_fixed(kernel: Kernel) -> bool:
    """Whether no plan decides about this weighted kernel."""
    return kernel.layer.endswith(FIXED_SUFFIX)


def absorbs_activation(kernel: Kernel) -> bool:
    """Whether a quantised kernel computes its activation by saturating, not in float after it."""
    return CLIPPING.issuperset(kernel.workload.fused)


def resolve(kernels: Kernels) -> dict[str, Kernel]:
    """The same kernels, each in the precision it runs in.

    Weighted kernels carry the plan's decision already. A kernel that merely follows is quantised iff it can be, all its
    inputs are, in one static format, and a neighbour computes in that: its producer, or a reader that is weighted. For
    a fixed convolution, a quantised kernel at the other side of the add that it feeds counts too.
    """
    wanted, beside = _near_quantised(kernels)
    resolved: dict[str, Kernel] = {}
    computed: dict[str, str] = {}
    for name, kernel in kernels.items():
        workload = kernel.workload
        if workload.op in WEIGHTED_OPS and not is_fixed(kernel):
            dtype = workload.dtype
        else:
            dtype = _followed(kernel, computed, wanted, beside) or TRAINED_IN
        resolved[name] = kernel if dtype == workload.dtype else _in_dtype(kernel, dtype)
        if format_of(dtype).is_static:
            computed[name] = dtype
    return resolved


def is_quantised(resolved: Kernel) -> bool:
    """Whether a kernel computes on quantised tensors."""
    return format_of(resolved.workload.dtype).is_static


def quantised_tensors(resolved: Kernels) -> frozenset[str]:
    """Kernels and graph inputs whose output exists in a static format, given resolved kernels.

    A kernel that can write floats (see `_writes_floats`) does unless a quantised kernel reads them.
    """
    read = {source for kernel in resolved.values() if is_quantised(kernel) for source in kernel.inputs}
    produced = {name for name, kernel in resolved.items() if is_quantised(kernel) and not _writes_floats(kernel)}
    return frozenset(read | produced)


def boundaries(resolved: Kernels) -> list[Kernel]:
    """The conversions between number formats that resolved kernels need.

    `X>q` quantises what float kernel (or graph input) X made for quantised readers; `X>dq` gives float readers, or the
    caller, what quantised kernel X made. The static formats of one plan are one.
    """
    quantised: dict[str, Kernel] = {}
    as_float: set[str] = set()
    for kernel in resolved.values():
        if is_quantised(kernel):
            for source in kernel.inputs:
                quantised.setdefault(source, kernel)
        else:
            as_float.update(kernel.inputs)
    found = [
        _conversion(source, "quantize", resolved.get(source), reader)
        for source, reader in quantised.items()
        if source not in resolved or not is_quantised(resolved[source])
    ]
    for name, kernel in resolved.items():
        if is_quantised(kernel):
            read_quantised = name in quantised
            wanted_as_float = name in as_float or not read_quantised
            if wanted_as_float and (read_quantised or not _writes_floats(kernel)):
                found.append(_conversion(name, "dequantize", kernel, kernel))
    return found


def lower(kernels: Kernels) -> list[Kernel]:
    """Everything that runs: what a predictor prices and an exporter writes."""
    resolved = resolve(kernels)
    return [*resolved.values(), *boundaries(resolved)]


def _near_quantised(kernels: Kernels) -> tuple[dict[str, str], set[str]]:
    """Tensors that a quantised kernel of the plan reads, with its format, and those added to what one makes."""
    wanted: dict[str, str] = {}
    decided: set[str] = set()
    beside: set[str] = set()
    for name, kernel in kernels.items():
        workload = kernel.workload
        if workload.op in _BINARY:
            if not decided.isdisjoint(kernel.inputs):
                beside.update(kernel.inputs)
        elif workload.op in WEIGHTED_OPS and is_quantised(kernel) and not is_fixed(kernel):
            decided.add(name)
            wanted.update(dict.fromkeys(kernel.inputs, workload.dtype))
    return wanted, beside


def _followed(kernel: Kernel, computed: dict[str, str], wanted: dict[str, str], beside: set[str]) -> str | None:
    """The static format of its neighbours, None where it stays in float."""
    if not kernel.inputs or not _quantisable(kernel):
        return None
    near = kernel.name in wanted or (kernel.name in beside and is_fixed(kernel))
    dtype: str | None = None
    for source in kernel.inputs:
        made = computed.get(source)
        near = near or made is not None
        found = made or wanted.get(source)
        if found is None or dtype not in (None, found):
            return None
        dtype = found
    return dtype if near else None


def _quantisable(kernel: Kernel) -> bool:
    """An add or mul needs two tensors (a constant operand has no scale); a mean is one over an image's positions."""
    workload = kernel.workload
    if workload.op in WEIGHTED_OPS:
        return True
    if workload.op not in QUANTISABLE_PASSIVE or not absorbs_activation(kernel):
        return False
    if workload.op in _BINARY:
        return len(kernel.inputs) == 2
    return workload.op != "mean" or (len(workload.size) == 2 and workload.in_channels == workload.out_channels)


def _writes_floats(kernel: Kernel) -> bool:
    """A quantised matrix product can leave its result in float; an activation that is computed has it there already."""
    return kernel.workload.op == "linear" or not absorbs_activation(kernel)


def _conversion(producer: str, op: str, made: Kernel | None, shaped: Kernel) -> Kernel:
    """A conversion of what `producer` makes; for a graph input the shape is what its reader reads."""
    w = shaped.workload
    channels, size = (w.in_channels, w.size) if made is None else (made.workload.out_channels, made.workload.out_size)
    name = f"{producer}>{'q' if op == 'quantize' else 'dq'}"
    return Kernel(name, producer, (producer,), Workload(op, channels, channels, size, size, dtype=w.dtype))


def _in_dtype(kernel: Kernel, dtype: str) -> Kernel:
    """`kernel` in another number format, spelled out: dataclasses.replace is too slow for a price."""
    w = kernel.workload
    workload = Workload(
        w.op, w.in_channels, w.out_channels, w.size, w.out_size, w.window, w.stride, w.groups, dtype, w.fused
    )  # fmt: skip
    return Kernel(kernel.name, kernel.layer, kernel.inputs, workload)
