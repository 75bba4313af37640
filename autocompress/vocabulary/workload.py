"""The vocabulary shared by the model side and the device side: what runs, where, and how long it takes."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.vocabulary.formats import TRAINED_IN


@dataclass(frozen=True, slots=True)
class Workload:
    """What one fused kernel computes at batch size 1: the key under which its time is known.

    `size` and `out_size` are the positions the channels are repeated over: (H, W) of an image, (T,) of a
    sequence, () of a vector; whatever is folded into the batch axis (windows, frames) comes first. `window` and
    `stride` are empty where the operation has none. `dtype` names a row of formats.py. `fused` names what the runtime
    folds in, in order ("relu", ...).

    A "matmul" of (heads, M, K) and (heads, K, N) has heads as channels, (M, K) and (M, N) as positions; without heads
    K and N are its channels. An "attention" has its queries and results there, and in `window` how many keys each
    query meets. An "lstm", "gru" or "rnn" has its steps as positions, and as `window` (layers, directions), then the
    cell's width where a projection follows. What sums products of activations in another way has in `window` how many
    of them each element of its output sums.
    """

    op: str
    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    out_size: tuple[int, ...]
    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    dtype: str = TRAINED_IN
    fused: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample; 0 for kernels that only move or combine elements."""
        count = _MACS.get(self.op)
        return count(self) if count is not None else 0

    @property
    def weights(self) -> int:
        """Elements of the weight matrices, biases not counted."""
        if self.op in GATES:
            return _recurrent_weights(self)
        if self.op not in WEIGHTED_OPS:
            return 0
        return self.in_channels * self.out_channels // self.groups * math.prod(self.window)

    @property
    def elements(self) -> int:
        """Elements of one input, the output and the weights."""
        return self.in_channels * math.prod(self.size) + self.out_channels * math.prod(self.out_size) + self.weights


WEIGHTED_OPS = frozenset({"conv", "conv_transpose", "linear"})
"""Operations with a weight matrix: these are the layers that methods can change. Others multiply too: see `macs`."""

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
"""Recurrent operations, and how many matrices each cell multiplies its input by."""


def _weighted_macs(w: Workload) -> int:
    return math.prod(w.out_size) * w.weights


def _transposed_macs(w: Workload) -> int:
    return math.prod(w.size) * w.weights


def _recurrent_macs(w: Workload) -> int:
    return math.prod(w.size) * _recurrent_weights(w)


def _recurrent_weights(w: Workload) -> int:
    """Every cell reads its layer's input and its own state; a projection makes the state of what the cell made."""
    layers, directions, *projected = w.window
    state = w.out_channels // directions
    cell = projected[0] if projected else state
    read = w.in_channels + (layers - 1) * w.out_channels + layers * state
    return directions * (GATES[w.op] * cell * read + (layers * cell * state if projected else 0))


def _matmul_macs(w: Workload) -> int:
    return w.out_channels * math.prod(w.out_size) * _width(w.in_channels, w.size)


def _attention_macs(w: Workload) -> int:
    """Queries times keys, then probabilities times values."""
    depth, width = _width(w.in_channels, w.size), _width(w.out_channels, w.out_size)
    queries = w.out_channels * math.prod(w.out_size) // width
    return queries * math.prod(w.window) * (depth + width)


def _width(channels: int, size: tuple[int, ...]) -> int:
    """The last axis of a tensor: with heads it is a position, without the channels."""
    return size[-1] if len(size) > 1 else channels


def _summed_macs(w: Workload) -> int:
    return w.out_channels * math.prod(w.out_size) * math.prod(w.window)


def _scattered_macs(w: Workload) -> int:
    return w.in_channels * math.prod(w.size) * math.prod(w.window)


SUMMING_OPS = frozenset({
    "addbmm", "bilinear", "conv1d", "conv2d", "conv3d", "convolution", "einsum", "embedding_bag", "inner", "tensordot",
})  # fmt: skip
"""Operations, by ATen's names, whose `window` holds how many products each element of the output sums."""

SCATTERING_OPS = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
"""Operations, by ATen's names, whose `window` holds how many products each element of the input is in."""

_MACS: dict[str, Callable[[Workload], int]] = {
    "conv": _weighted_macs,
    "conv_transpose": _transposed_macs,
    "linear": _weighted_macs,
    "matmul": _matmul_macs,
    "attention": _attention_macs,
    **dict.fromkeys(GATES, _recurrent_macs),
    **dict.fromkeys(SUMMING_OPS, _summed_macs),
    **dict.fromkeys(SCATTERING_OPS, _scattered_macs),
}


_CALL = re.compile(r"@\d+$")


def layer_of(call: str) -> str:
    """The layer that a call is of: the second call of "conv" is "conv@2"."""
    return _CALL.sub("", call)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One workload at its place in the model.

    `layer` is the original layer's name for ever: factorising "fc" gives kernels "fc#1" and "fc#2", both of layer
    "fc"; a second call of "fc" is kernel "fc@2" of layer "fc". `inputs` are names of kernels (or graph inputs) whose
    outputs it reads, so that neighbours can be seen.
    """

    name: str
    layer: str
    inputs: tuple[str, ...]
    workload: Workload

    @property
    def weights_of(self) -> str:
        """A name that all kernels with these very weights share: calls of a layer do, parts of it don't."""
        call, part, number = self.name.partition("#")
        return layer_of(call) + part + number

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

    dtypes: frozenset[str]
    channel_multiple: Mapping[str, int]
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


def total_macs(kernels: Iterable[Kernel]) -> int:
    return sum(kernel.workload.macs for kernel in kernels)


def distinct_weights(kernels: Iterable[Kernel]) -> dict[str, Kernel]:
    """The first kernel with each set of weights, by the kernel's name: shared ones are stored once."""
    first: dict[str, Kernel] = {}
    for kernel in kernels:
        if kernel.workload.weights:
            first.setdefault(kernel.weights_of, kernel)
    return {kernel.name: kernel for kernel in first.values()}
