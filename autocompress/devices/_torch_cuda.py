"""What torch does differently on a GPU: events instead of a clock, a captured graph, and how floats are multiplied.

Never run on hardware: tested with stand-ins for torch.cuda.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

WARMUP = 3
"""Runs before a graph is captured or a clock started: libraries choose and load their kernels in the first."""


def event_times(run: Callable[[], object], runs: int) -> list[float]:
    """Seconds of each of `runs` consecutive calls on the GPU, between events recorded before and after each."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    torch.cuda.synchronize()
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) * 1e-3 for before, after in pairwise(marks)]


class Captured:
    """A module's kernels recorded once and launched together; inputs are copied to where they were read."""

    def __init__(self, module: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        self._inputs = [x.clone() for x in inputs]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                module(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = module(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output


@contextmanager
def tensor_floats(allowed: bool) -> Iterator[None]:
    """Whether float32 is multiplied in TF32 meanwhile; torch's own default lets convolutions and not products."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # made when torch is loaded
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, convolutions)
    before = [flag.fp32_precision for flag in flags]
    try:
        for flag in flags:
            flag.fp32_precision = "tf32" if allowed else "ieee"
        yield
    finally:
        for flag, precision in zip(flags, before, strict=True):
            flag.fp32_precision = precision
