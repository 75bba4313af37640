"""A program in memory, here or on a device far away: fed, run and timed by the same calls."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autocompress.devices.base import Array, Results, as_results
from autocompress.devices.tvm.origins import MAIN
from autocompress.devices.tvm.program import KernelCall


@dataclass(frozen=True, slots=True)
class Loaded:
    """`machine` is TVM's virtual machine with the program, `device` is where its tensors live."""

    machine: Any
    device: Any

    def run(self, inputs: Sequence[Array]) -> Results:
        self._feed(MAIN, inputs)
        self.machine.invoke_stateful(MAIN)
        return as_results(_arrays(self.machine.get_outputs(MAIN)))

    def time(self, inputs: Sequence[Array], runs: int, function: str = MAIN) -> list[float]:
        """Seconds of each run by the clock of the device's own machine, after one run that does not count."""
        self._feed(function, inputs)
        evaluate = self.machine.time_evaluator("invoke_stateful", self.device, number=1, repeat=runs)
        return list(evaluate(function).results)

    def time_kernel(self, call: KernelCall, runs: int) -> list[float]:
        """Seconds of one function by itself, over and over on the same zeros."""
        return self.time([np.zeros(shape, dtype) for shape, dtype in call.arguments], runs, call.alone)

    def _feed(self, function: str, inputs: Sequence[Array]) -> None:
        import tvm

        tensors = (tvm.runtime.tensor(np.asarray(array, order="C"), self.device) for array in inputs)
        self.machine.set_input(function, *tensors)


def _arrays(made: Any) -> Iterator[Array]:
    """The arrays of a result, which TVM nests in tuples of its own."""
    if hasattr(made, "numpy"):
        yield made.numpy()
        return
    for part in made:
        yield from _arrays(part)
