"""What a device is: the protocol that every runtime implements, in one file each next to this one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from autocompress.vocabulary.workload import Capabilities

Array = NDArray[np.generic]

Results = Array | tuple[Array, ...]
"""A model's only output, or its several ones in the file's order."""


def as_results(arrays: Iterable[Array]) -> Results:
    found = tuple(arrays)
    return found if len(found) != 1 else found[0]


def as_arrays(results: Results) -> tuple[Array, ...]:
    return results if isinstance(results, tuple) else (results,)


class DeviceWarning(UserWarning):
    """A device does not quite do what it was asked for; its times are doubtful."""


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One node as the runtime executed it.

    `name` is the runtime's own; `source` is the artifact's node that it (or the last or the weightiest part of it)
    stands for, "" for a node of the runtime's making, such as a change of layout. `inputs` and `outputs` name the
    tensors it read and wrote. `seconds` is the mean of the middle half of the runs.
    """

    name: str
    source: str
    op: str
    provider: str
    seconds: float
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a device can be opened here; `detail` says with what, or why not; `install` what would help."""

    name: str
    usable: bool
    detail: str
    install: str = ""


class Session(Protocol):
    """A model, loaded and ready to run."""

    def run(self, *inputs: Array) -> Results:
        """The model's output for a batch, a tuple where it has several. Raises DeviceError when the runtime refuses."""
        ...

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        """Seconds of each of `runs` consecutive runs, none discarded. All are positive and finite."""
        ...

    def providers(self) -> dict[str, str]:
        """Node → the backend that really ran it."""
        ...


class Device(Protocol):
    """A runtime on some hardware.

    `estimate` is True for ever where times come from a model of the hardware and not from a stopwatch. `runtime` names
    the runtime with its version.
    """

    @property
    def name(self) -> str: ...

    @property
    def runtime(self) -> str: ...

    @property
    def estimate(self) -> bool: ...

    def capabilities(self) -> Capabilities:
        """What the device can make use of."""
        ...

    def environment(self) -> dict[str, str]:
        """What a measured time depends on: hardware ("processor"), "runtime", versions.

        "precision" names what fp32 layers are computed in, where that is not fp32: "bf16", "tf32" or "fp16".
        """
        ...

    def open(self, path: Path, threads: int = 1) -> Session:
        """Load an artifact; timing wants one thread, scoring may have more. Raises DeviceError."""
        ...

    def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        """Every node that the runtime executes for this model, in execution order, with its own time."""
        ...
