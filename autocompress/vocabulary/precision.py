"""The precision rule: which kernels and tensors are int8, and where the number format changes.

Price, simulated quantisation and exporter all ask here, so that what is priced is what runs.
"""

from autocompress.vocabulary.workload import WEIGHTED_OPS, DType, Kernel, Kernels, Workload

QUANTISABLE_PASSIVE = frozenset(
    {"add", "mul", "avg_pool", "max_pool", "mean", "concat", "reshape", "transpose", "slice", "split", "pad"}
)
"""Kernels without weights that a runtime can execute on int8 tensors."""

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
    """Whether an int8 kernel computes its activation by saturating, not in float after it."""
    return CLIPPING.issuperset(kernel.workload.fused)


def resolve(kernels: Kernels) -> dict[str, Kernel]:
    """The same kernels, each in the precision it runs in.

    Weighted kernels carry the plan's decision already. A kernel that merely follows is int8 iff it can be, all its
    inputs are quantised, and a neighbour computes in int8: its producer, or a reader that is weighted. For a fixed
    convolution, an int8 kernel at the other side of the add that it feeds counts too.
    """
    wanted, beside = _near_int8(kernels)
    resolved: dict[str, Kernel] = {}
    computed: set[str] = set()
    for name, kernel in kernels.items():
        workload = kernel.workload
        if workload.op in WEIGHTED_OPS and not is_fixed(kernel):
            dtype = workload.dtype
        else:
            dtype = DType.INT8 if _follows(kernel, computed, wanted, beside) else DType.FP32
        resolved[name] = kernel if dtype is workload.dtype else _in_dtype(kernel, dtype)
        if dtype is DType.INT8:
            computed.add(name)
    return resolved


def quantised_tensors(resolved: Kernels) -> frozenset[str]:
    """Kernels and graph inputs whose output exists as int8, given resolved kernels.

    A kernel that can write floats (see `_writes_floats`) does unless an int8 kernel reads them.
    """
    read = {source for kernel in resolved.values() if kernel.workload.dtype is DType.INT8 for source in kernel.inputs}
    produced = {
        name for name, kernel in resolved.items() if kernel.workload.dtype is DType.INT8 and not _writes_floats(kernel)
    }
    return frozenset(read | produced)


def boundaries(resolved: Kernels) -> list[Kernel]:
    """The conversions between number formats that resolved kernels need.

    `X>q` quantises what fp32 kernel (or graph input) X made for int8 readers; `X>dq` gives fp32 readers, or the caller,
    what int8 kernel X made.
    """
    as_int8: dict[str, Kernel] = {}
    as_float: set[str] = set()
    for kernel in resolved.values():
        if kernel.workload.dtype is DType.INT8:
            for source in kernel.inputs:
                as_int8.setdefault(source, kernel)
        else:
            as_float.update(kernel.inputs)
    found = [
        _conversion(source, "quantize", resolved.get(source), reader)
        for source, reader in as_int8.items()
        if source not in resolved or resolved[source].workload.dtype is DType.FP32
    ]
    for name, kernel in resolved.items():
        if kernel.workload.dtype is DType.INT8:
            read_as_int8 = name in as_int8
            wanted_as_float = name in as_float or not read_as_int8
            if wanted_as_float and (read_as_int8 or not _writes_floats(kernel)):
                found.append(_conversion(name, "dequantize", kernel, kernel))
    return found


def lower(kernels: Kernels) -> list[Kernel]:
    """Everything that runs: what a predictor prices and an exporter writes."""
    resolved = resolve(kernels)
    return [*resolved.values(), *boundaries(resolved)]


def _near_int8(kernels: Kernels) -> tuple[set[str], set[str]]:
    """Tensors that an int8 kernel of the plan reads, and those that are added to what one makes."""
    wanted: set[str] = set()
    decided: set[str] = set()
    beside: set[str] = set()
    for name, kernel in kernels.items():
        workload = kernel.workload
        if workload.op in _BINARY:
            if not decided.isdisjoint(kernel.inputs):
                beside.update(kernel.inputs)
        elif workload.dtype is DType.INT8 and workload.op in WEIGHTED_OPS and not is_fixed(kernel):
            decided.add(name)
            wanted.update(kernel.inputs)
    return wanted, beside


def _follows(kernel: Kernel, computed: set[str], wanted: set[str], beside: set[str]) -> bool:
    if not kernel.inputs or not _quantisable(kernel):
        return False
    near_int8 = kernel.name in wanted or (kernel.name in beside and is_fixed(kernel))
    for source in kernel.inputs:
        if source in computed:
            near_int8 = True
        elif source not in wanted:
            return False
    return near_int8


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
    """An int8 matrix product can leave its result in float, and an activation that is computed already has it there."""
    return kernel.workload.op == "linear" or not absorbs_activation(kernel)


def _conversion(producer: str, op: str, made: Kernel | None, shaped: Kernel) -> Kernel:
    """A conversion of what `producer` makes; for a graph input the shape is what its reader reads."""
    w = shaped.workload
    channels, size = (w.in_channels, w.size) if made is None else (made.workload.out_channels, made.workload.out_size)
    name = f"{producer}>{'q' if op == 'quantize' else 'dq'}"
    return Kernel(name, producer, (producer,), Workload(op, channels, channels, size, size, dtype=DType.INT8))


def _in_dtype(kernel: Kernel, dtype: DType) -> Kernel:
    """`kernel` in another number format, spelled out: dataclasses.replace is too slow for a price."""
    w = kernel.workload
    workload = Workload(
        w.op, w.in_channels, w.out_channels, w.size, w.out_size, w.window, w.stride, w.groups, dtype, w.fused
    )  # fmt: skip
    return Kernel(kernel.name, kernel.layer, kernel.inputs, workload)
