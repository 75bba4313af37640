"""Ethos-U accelerators as devices: models run in ONNX Runtime, their times are the vendor compiler's estimate."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from autocompress.devices.base import Array, NodeTime, Results, Session
from autocompress.devices.ort import OrtDevice
from autocompress.devices.vela.compiler import PACKAGE, REQUIRED, Cycles, Report, compiled
from autocompress.devices.vela.host import host_cycles
from autocompress.devices.vela.lowering import lowered
from autocompress.devices.vela.operators import HANDLERS
from autocompress.devices.vela.platforms import Platform
from autocompress.devices.vela.tflite import Model, Operator, to_bytes
from autocompress.vocabulary.errors import DeviceError
from autocompress.vocabulary.formats import INT8
from autocompress.vocabulary.workload import Capabilities

ON_NPU = "Ethos-U"
ON_HOST = "host CPU"

_REMEMBERED = 64
"""Models whose estimates are kept: a measurement opens each of its models many times."""


@dataclass(frozen=True, slots=True)
class VelaDevice:
    """One accelerator in a system. It takes int8: a file without quantisation stands for its conversion to int8, and
    in a file with some, what is float runs on the host CPU."""

    platform: Platform
    estimate: bool = True

    @property
    def name(self) -> str:
        return f"vela:{self.platform.accelerator}"

    @property
    def runtime(self) -> str:
        return f"{PACKAGE} {REQUIRED}"

    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset({INT8}), {INT8: self.platform.channel_multiple})

    def environment(self) -> dict[str, str]:
        platform = self.platform
        return {
            "device": self.name,
            "runtime": self.runtime,
            "processor": platform.accelerator,
            "estimate": "of the vendor's compiler, not measured",
            "clock": f"{platform.clock_hz / 1e6:g} MHz",
            "system_config": f"{platform.system_config} (Arm/vela.ini of {self.runtime})",
            "memory_mode": platform.memory_mode,
            "host": f"{platform.host.name} at the same clock and its peak rates",
        }

    def open(self, path: Path, threads: int = 1) -> "VelaSession":
        return VelaSession(self, path, threads, self.nodes(path))

    def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        return list(self.nodes(path))

    def nodes(self, path: Path) -> tuple[NodeTime, ...]:
        """Every operator that Vela leaves, with its estimated time. Raises DeviceError."""
        try:
            found = path.stat()
        except OSError as error:
            raise DeviceError(f"{self.name} can't read {path}: {error.strerror}") from error
        return _nodes(path, found.st_mtime_ns, found.st_size, self.platform)


@dataclass(frozen=True)
class VelaSession:
    """One model: computed by ONNX Runtime on this host, timed by the estimate, which is the same at every run."""

    device: VelaDevice
    path: Path
    threads: int
    nodes: tuple[NodeTime, ...]

    def run(self, *inputs: Array) -> Results:
        return self._executor.run(*inputs)

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        return [sum(node.seconds for node in self.nodes)] * runs

    def providers(self) -> dict[str, str]:
        return {node.name: node.provider for node in self.nodes}

    @cached_property
    def _executor(self) -> Session:
        return OrtDevice().open(self.path, self.threads)


@lru_cache(maxsize=_REMEMBERED)
def _nodes(path: Path, modified_ns: int, size: int, platform: Platform) -> tuple[NodeTime, ...]:
    """`modified_ns` and `size` tell one file of this name from another."""
    try:
        model = lowered(path, HANDLERS)
        report = compiled(to_bytes(model), platform)
    except DeviceError as error:
        raise DeviceError(f"vela:{platform.accelerator} can't take {path}: {error}") from error
    return _node_times(model, report, platform)


def _node_times(model: Model, report: Report, platform: Platform) -> tuple[NodeTime, ...]:
    named: set[str] = set()
    times = []
    for row in report.operators:
        operator = model.operators[row.operator]
        name = _unique(operator, named)
        seconds = _cycles(row, operator, model, platform) / platform.clock_hz
        tensors = (tuple(model.tensors[i].name for i in ids) for ids in (operator.inputs, operator.outputs))
        provider = ON_HOST if row.on_host else ON_NPU
        times.append(NodeTime(name, operator.source, operator.code, provider, seconds, *tensors))
    return tuple(times)


def _cycles(row: Cycles, operator: Operator, model: Model, platform: Platform) -> float:
    return host_cycles(operator, model, platform.host) if row.on_host else row.cycles


def _unique(operator: Operator, named: set[str]) -> str:
    """The node's name; what else its node became carries the operator's, such as "conv1/PAD"."""
    name = operator.source
    count = 1
    while name in named:
        name = f"{operator.source}/{operator.code}" + (f"_{count}" if count > 1 else "")
        count += 1
    named.add(name)
    return name
