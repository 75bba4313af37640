"""The vocabulary shared by the model side and the device side: what runs, where, and how long it takes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any


class DType(StrEnum):
    """Number format a kernel computes in."""

    FP32 = "fp32"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class Workload:
    """What one fused kernel computes at batch size 1: the key under which its time is known.

    `size` and `out_size` are the positions the channels are repeated over: (H, W) of an image, (T,) of a
    sequence, () of a vector. `window` and `stride` are empty where the operation has none. `fused` names what
    the runtime folds in, in order ("relu", "gelu", ...).
    """

    op: str
    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    out_size: tuple[int, ...]
    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    dtype: DType = DType.FP32
    fused: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample; 0 for kernels that only move or combine elements."""
        if self.op not in WEIGHTED_OPS:
            return 0
        positions = math.prod(self.size if self.op == "conv_transpose" else self.out_size)
        return positions * self.weights

    @property
    def weights(self) -> int:
        """Elements of the weight tensor, bias not counted."""
        if self.op not in WEIGHTED_OPS:
            return 0
        return self.in_channels * self.out_channels // self.groups * math.prod(self.window)


WEIGHTED_OPS = frozenset({"conv", "conv_transpose", "linear"})
"""Operations with a weight matrix: these are the layers that methods can change."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """One workload at its place in the model.

    `layer` is the original layer's name for ever: factorising "fc" gives kernels "fc#1" and "fc#2", both of layer
    "fc". `inputs` are names of kernels (or graph inputs) whose outputs it reads, so that neighbours can be seen.
    """

    name: str
    layer: str
    inputs: tuple[str, ...]
    workload: Workload

    def with_workload(self, **changes: Any) -> "Kernel":
        return Kernel(self.name, self.layer, self.inputs, replace(self.workload, **changes))

    def with_inputs(self, inputs: tuple[str, ...]) -> "Kernel":
        return Kernel(self.name, self.layer, inputs, self.workload)


Kernels = Mapping[str, Kernel]
"""Kernels by name, in execution order."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a device can make use of; methods offer only what pays on it.

    `channel_multiple` is the width step below which a cut brings no time, per number format.
    """

    dtypes: frozenset[DType]
    channel_multiple: Mapping[DType, int]
    sparsity: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Measurement:
    """Raw samples of one model, visited in turn with a reference model in one process.

    `times_s[i]` and `reference_times_s[i]` are the medians (seconds) of the i-th round's runs of the model and of the
    reference, next to each other in time. `gated` rounds are those in which the reference ran near its best.
    `estimate` is True where the device models the hardware: then nothing was timed.
    """

    times_s: tuple[float, ...]
    reference_times_s: tuple[float, ...]
    warmup_runs: int
    runs_per_round: int
    gated: tuple[bool, ...]
    environment: Mapping[str, str]
    estimate: bool = False

    def __post_init__(self) -> None:
        if not len(self.times_s) == len(self.reference_times_s) == len(self.gated) or not self.times_s:
            raise ValueError("a measurement needs as many reference rounds and gates as rounds, at least one")
        if not all(math.isfinite(t) and t > 0 for t in (*self.times_s, *self.reference_times_s)):
            raise ValueError("a measured time must be positive and finite")


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds for one sample with an interval; `origin` says how it is known: measured, predicted or estimate.

    "measured, busy host" is what a stopwatch found while other work never left the host alone: its interval is wide.

    `measured_fraction` is the share of the predicted time that stands on kernels measured one to one.
    """

    seconds: float
    low: float
    high: float
    measured_fraction: float
    origin: str = "predicted"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that a runtime can run."""

    path: Path
    sha256: str
    plan_key: str
    opset: int
    size_bytes: int


def total_macs(kernels: Sequence[Kernel]) -> int:
    return sum(kernel.workload.macs for kernel in kernels)
