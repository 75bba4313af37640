"""The task's model, untouched, under every runtime of this machine: whether another runtime beats compression."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autocompress.devices import DEFAULT_DEVICE, Device, list_devices, open_device
from autocompress.devices.measure import measure_across, reference_seconds, to_latency
from autocompress.export.onnx import plain_onnx
from autocompress.task.calling import calling_of, flat_model
from autocompress.task.task import Task
from autocompress.vocabulary.errors import DeviceError
from autocompress.vocabulary.workload import Latency

FIRST = DEFAULT_DEVICE
"""The runtime that the others are timed beside."""


@dataclass(frozen=True, slots=True)
class Running:
    """What the model takes on one device, or why it can't run there. `speedup` is over ONNX Runtime on the CPU."""

    device: str
    runtime: str
    latency: Latency | None
    speedup: float | None
    reason: str = ""


def time_everywhere(task: Task, devices: Sequence[str] | None = None) -> list[Running]:
    """Time the task's model as plainly exported on these devices, by default on all that are usable; fastest first.

    All run in turn in one process, at batch size 1 and on one thread. Raises DeviceError where ONNX Runtime can't run
    it, TaskError for a task that can't be used.
    """
    names = devices if devices is not None else [row.name for row in list_devices() if row.usable]
    calling = calling_of(task)
    sample = calling.one_sample()
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        path = Path(folder) / "original.onnx"
        plain_onnx(flat_model(task.model, calling), calling.examples, path)
        usable: list[Device] = [open_device(FIRST)]
        refused = []
        for name in names:
            try:
                device = open_device(name)
                device.open(path).time(sample, 1)
            except DeviceError as error:
                refused.append(Running(name, "", None, None, str(error)))
                continue
            usable += [device] if name != FIRST else []
        found = measure_across(usable, path, sample)
    reference_s = reference_seconds(found[FIRST])
    timed = [_running(device, to_latency(found[device.name], reference_s), reference_s) for device in usable]
    return [*sorted(timed, key=lambda row: row.latency.seconds if row.latency else 0.0), *refused]


def _running(device: Device, latency: Latency, reference_s: float) -> Running:
    return Running(device.name, device.runtime, latency, reference_s / latency.seconds)
