"""Random chains of kernels, and a device that takes their roofline's time: calibration without building a model."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from autocompress.devices.base import Array, NodeTime
from autocompress.devices.roofline import Rates, roofline
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.precision import lower
from autocompress.vocabulary.workload import Capabilities, Kernel, Workload


def random_net(draw: random.Random, depth: int = 6) -> dict[str, Kernel]:
    """A chain of convolutions with residual adds, pooled and classified; widths and formats at random."""
    int8, kernels = draw.choice([0.0, 0.5, 0.9, 1.0]), dict[str, Kernel]()
    source, channels, size = "x", 3, 32

    def put(name: str, inputs: tuple[str, ...], workload: Workload) -> str:
        kernels[name] = Kernel(name, name, inputs, workload)
        return name

    for i in range(draw.randint(2, depth)):
        stride, width = draw.choice([1, 1, 2]), draw.choice([8, 12, 16, 24, 28, 32])
        dtype = INT8 if draw.random() < int8 else FP32
        out = max(size // stride, 4)
        conv = Workload("conv", channels, width, (size,) * 2, (out,) * 2, (3, 3), (size // out,) * 2, 1, dtype)
        trunk = put(f"conv{i}", (source,), conv)
        branch = put(f"branch{i}", (trunk,), Workload("conv", width, width, (out,) * 2, (out,) * 2, (1, 1), (1, 1)))
        source = put(f"add{i}", (branch, trunk), Workload("add", width, width, (out,) * 2, (out,) * 2))
        channels, size = width, out
    pooled = put("mean", (source,), Workload("mean", channels, channels, (size,) * 2, ()))
    put("linear", (pooled,), Workload("linear", channels, 10, (), ()))
    return kernels


@dataclass
class KernelDevice:
    """Times kernels by a roofline; `artifacts` says which kernels a path stands for.

    A whole model takes longer than its kernels (`dispatch_s` each, and all the more the more there are: to the power
    of `growth`), and profiling adds `profiler_s` to each. With `throttle`, int8 convolutions take that share longer
    (unless their outputs come in sixteens) where a float one of 8 or 12 input channels is in the same model.
    """

    artifacts: Mapping[Path, Sequence[Kernel]]
    rates: Rates = field(default_factory=Rates)
    dispatch_s: float = 0.0
    profiler_s: float = 0.0
    growth: float = 0.0
    throttle: float = 0.0
    measured: list[Path] = field(default_factory=list)
    name: str = "ort:cpu"
    runtime: str = "kernels 1"
    estimate: bool = False

    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset({FP32, INT8}), self.rates.channel_multiple)

    def environment(self) -> dict[str, str]:
        return {"device": self.name, "runtime": self.runtime, "processor": "none"}

    def open(self, path: Path, threads: int = 1) -> "KernelSession":
        self.measured.append(path)
        seconds = sum(seconds + self.dispatch_s for _, seconds in self._seconds(path))
        return KernelSession(seconds * len(self.artifacts[path]) ** self.growth)

    def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        return [
            NodeTime(k.name, k.name, k.workload.op, "none", seconds + self.profiler_s, k.inputs, (k.name,))
            for k, seconds in self._seconds(path)
        ]

    def _seconds(self, path: Path) -> list[tuple[Kernel, float]]:
        kernels = self.artifacts[path]
        floats = [k.workload for k in kernels if k.workload.op == "conv" and k.workload.dtype == FP32]
        lowered = any(w.in_channels in (8, 12) and w.out_size[0] >= 16 for w in floats)

        def seconds(w: Workload) -> float:
            slowed = lowered and w.op == "conv" and w.dtype == INT8 and w.out_channels % 16 > 0
            return roofline(w, self.rates) * (1 + self.throttle * slowed)

        return [(kernel, seconds(kernel.workload)) for kernel in kernels]


@dataclass
class KernelSession:
    seconds: float

    def run(self, *inputs: Array) -> Array:
        return np.zeros(1)

    def providers(self) -> dict[str, str]:
        return {}

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        return [self.seconds] * runs


REFERENCE = Path("reference")


def plans_for(count: int, seed: int = 0) -> list[tuple[str, dict[str, Kernel], Path]]:
    draw = random.Random(seed)
    return [(f"p{i}", random_net(draw), Path(f"p{i}")) for i in range(count)]


def device_for(plans: Sequence[tuple[str, dict[str, Kernel], Path]], **settings: float) -> KernelDevice:
    artifacts: dict[Path, Sequence[Kernel]] = {path: lower(kernels) for _, kernels, path in plans}
    artifacts[REFERENCE] = lower(random_net(random.Random(99), depth=6))
    return KernelDevice(artifacts, **settings)  # type: ignore[arg-type]
