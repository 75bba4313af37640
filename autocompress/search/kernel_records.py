"""What every scored plan of a run executes, kept so that a further device is priced without the task or the model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.vocabulary.errors import RunError
from autocompress.vocabulary.formats import format_of
from autocompress.vocabulary.workload import Kernel, Kernels, Workload

FILE = "kernels.json"


def encode(plans: Mapping[str, Kernels]) -> str:
    """JSON: every different kernel once, and each plan as their positions, in execution order."""
    known: dict[Kernel, int] = {}
    rows = {
        key: [known.setdefault(kernel, len(known)) for kernel in kernels.values()] for key, kernels in plans.items()
    }
    return json.dumps({"kernels": [_row(kernel) for kernel in known], "plans": rows}, separators=(",", ":"))


def read(run: Path) -> dict[str, Kernels] | None:
    """Plan key → its kernels; None where the run has no such file. Raises RunError for a damaged one."""
    path = run / FILE
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        kernels = [_kernel(row) for row in document["kernels"]]
        return {key: {kernels[i].name: kernels[i] for i in row} for key, row in document["plans"].items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}; remove it and give --task") from error


def _row(kernel: Kernel) -> list[Any]:
    w = kernel.workload
    work = [w.op, w.in_channels, w.out_channels, w.size, w.out_size, w.window, w.stride, w.groups, w.dtype, w.fused]
    return [kernel.name, kernel.layer, kernel.inputs, work]


def _kernel(row: list[Any]) -> Kernel:
    name, layer, inputs, work = row
    op, in_channels, out_channels, size, out_size, window, stride, groups, dtype, fused = work
    workload = Workload(
        op, in_channels, out_channels, tuple(size), tuple(out_size), tuple(window), tuple(stride), groups,
        format_of(dtype).name, tuple(fused),
    )  # fmt: skip
    return Kernel(name, layer, tuple(inputs), workload)
