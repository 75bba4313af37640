"""TVM: compiles ONNX models with LLVM, and runs them in this process or on a board by TVM's own RPC."""

import math
import os
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from autocompress.devices._timing import middle_mean
from autocompress.devices.base import Array, Availability, Device, NodeTime, Results
from autocompress.devices.tvm.address import FORM, SCHEME, parse
from autocompress.devices.tvm.loaded import Loaded
from autocompress.devices.tvm.local import Local
from autocompress.devices.tvm.model import Model, Shapes, read
from autocompress.devices.tvm.package import DISTRIBUTION, INSTALL, first_line, missing, require_tvm
from autocompress.devices.tvm.program import KernelCall, compiled, imported
from autocompress.devices.tvm.remote import connect
from autocompress.devices.tvm.schedule import CHANNELS
from autocompress.vocabulary.errors import DeviceError, nearest
from autocompress.vocabulary.formats import FP32
from autocompress.vocabulary.workload import Capabilities

BOARDS = "AUTOCOMPRESS_TVM_RPC"
"""Environment variable with addresses (`rpc://HOST:PORT/KEY`, spaces between) of boards that `available` lists."""

_LOCAL = "llvm"
_SERVE = "python -m tvm.exec.rpc_server, there"
_REACHABLE_S = 1.0


def available() -> list[Availability]:
    """This processor, and the boards that are named in the environment."""
    if reason := missing():
        return [Availability(name, False, reason, INSTALL) for name in (f"tvm:{_LOCAL}", FORM)]
    what = f"tvm {version(DISTRIBUTION)}, untuned"
    here = Availability(f"tvm:{_LOCAL}", True, f"{what}: a second compiler beside ort:cpu")
    boards = [_board(f"tvm:{variant}", what) for variant in os.environ.get(BOARDS, "").split()]
    return [here, *(boards or [Availability(FORM, False, f"a board of yours; {BOARDS} lists it", _SERVE)])]


def open_device(variant: str) -> Device:
    """`tvm:llvm` or `tvm:rpc://HOST:PORT/KEY?target=...`; raises DeviceError for another name or option."""
    if variant.startswith(f"{SCHEME}:"):
        parse(variant)
        return TvmDevice(variant)
    asked = f"tvm:{variant}"
    if variant != _LOCAL:
        raise DeviceError(f"unknown device {asked!r}: {nearest(asked, (f'tvm:{_LOCAL}', FORM))}")
    return TvmDevice(variant)


class Machine(Protocol):
    """Where programs run: `build` and `load` raise what TVM raises, `working` makes DeviceError of it.

    `target` is what is compiled for, as TVM's JSON. Once `lost`, a machine stays lost.
    """

    lost: bool

    @property
    def provider(self) -> str: ...

    @property
    def target(self) -> str: ...

    @property
    def processor(self) -> str: ...

    def build(self, model: Model, shapes: Shapes) -> Any: ...

    def load(self, program: Any) -> Loaded: ...

    def working(self, task: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class TvmDevice:
    """LLVM code, operators fused, loops ordered by one rule and not tuned, on one thread whatever is asked.

    Quantised layers are computed in fp32 between their conversions, so int8 only costs time here (a tenth on a
    ResNet-20) and is not among the capabilities; such a model still runs.
    """

    variant: str = _LOCAL
    estimate: bool = False

    @property
    def name(self) -> str:
        return f"tvm:{self.variant}"

    @property
    def runtime(self) -> str:
        require_tvm()
        return f"tvm {version(DISTRIBUTION)}"

    def capabilities(self) -> Capabilities:
        return Capabilities(frozenset({FP32}), {FP32: CHANNELS})

    def environment(self) -> dict[str, str]:
        machine = self.machine()
        here = {"device": self.name, "runtime": self.runtime, "processor": machine.processor}
        return here | {"target": machine.target}

    def open(self, path: Path, threads: int = 1) -> "TvmSession":
        """Also raises DeviceError for an operator that TVM does not know; compiles when the batch is known."""
        require_tvm()
        model = read(path)
        try:
            imported(model, model.shapes_of_one())
        except Exception as error:  # the importer raises whatever its assertions do
            raise DeviceError(f"{self.name} can't load {path}: {first_line(error)}") from error
        return TvmSession(self, path, model, self.machine())

    def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        """Each kernel timed by itself, on zeros: its caches are warm, and equal ones are timed once."""
        return self.open(path).profile(inputs, runs)

    def machine(self) -> Machine:
        """Where the models run; raises DeviceLostError if it can't be reached."""
        return _local() if self.variant == _LOCAL else connect(parse(self.variant))


class TvmSession:
    """One model, compiled for each shape of inputs that it meets. After a loss the next call connects again."""

    def __init__(self, device: TvmDevice, path: Path, model: Model, machine: Machine) -> None:
        self._device = device
        self._path = path
        self._model = model
        self._machine = machine
        self._loaded: dict[Shapes, Loaded] = {}

    def run(self, *inputs: Array) -> Results:
        task = f"run {self._path}"
        loaded = self._load(inputs, task)
        with self._machine.working(task):
            return loaded.run(inputs)

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        """Timed by the clock of the device's own machine, after one more run that does not count."""
        task = f"time {self._path}"
        loaded = self._load(inputs, task)
        with self._machine.working(task):
            samples = loaded.time(inputs, runs)
        if not all(math.isfinite(seconds) and seconds > 0 for seconds in samples):
            raise DeviceError(f"{self._device.name} timed a run of {self._path} at {min(samples)} s: check its clock")
        return samples

    def providers(self) -> dict[str, str]:
        calls = self._calls(self._model.shapes_of_one())
        return dict.fromkeys(calls, self._machine.provider)

    def profile(self, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        """Each kernel timed by itself, on zeros: its caches are warm, and equal ones are timed once."""
        task = f"profile {self._path}"
        loaded = self._load(inputs, task)
        calls = self._calls(self._model.shapes_for(inputs))
        seconds: dict[str, float] = {}
        for call in calls.values():
            if call.function not in seconds:
                with self._machine.working(task):
                    seconds[call.function] = middle_mean(loaded.time_kernel(call, runs))
        provider = self._machine.provider
        return [
            NodeTime(name, call.source, call.function, provider, seconds[call.function], call.inputs, call.outputs)
            for name, call in calls.items()
        ]

    def _load(self, inputs: Sequence[Array], task: str) -> Loaded:
        if self._machine.lost:
            self._machine, self._loaded = self._device.machine(), {}
        names = [declared.name for declared in self._model.inputs()]
        if len(names) != len(inputs):
            raise DeviceError(f"{self._path} takes {len(names)} inputs ({', '.join(names)}), got {len(inputs)}")
        try:
            shapes = self._model.shapes_for(inputs)
            program = None if shapes in self._loaded else self._machine.build(self._model, shapes)
        except DeviceError:
            raise
        except Exception as error:  # the compiler raises whatever its assertions do
            raise DeviceError(f"{self._device.name} can't {task}: {first_line(error)}") from error
        if program is not None:
            with self._machine.working(task):
                self._loaded[shapes] = self._machine.load(program)
        return self._loaded[shapes]

    def _calls(self, shapes: Shapes) -> dict[str, KernelCall]:
        """The program's calls by name: the function's, and which call of it this is from the second on."""
        seen: Counter[str] = Counter()
        named = {}
        for call in compiled(self._model, shapes, self._machine.target).calls:
            seen[call.function] += 1
            named[call.function if seen[call.function] == 1 else f"{call.function}#{seen[call.function]}"] = call
        return named


def _board(name: str, what: str) -> Availability:
    """Whether somebody answers at a board's address (or at its tracker's); it may still be busy."""
    try:
        address = parse(name.removeprefix("tvm:"))
        socket.create_connection((address.host, address.port), timeout=_REACHABLE_S).close()
    except (DeviceError, OSError) as error:
        return Availability(name, False, first_line(error), _SERVE)
    return Availability(name, True, f"{what}, on {address.key or address.host} by RPC")


@cache
def _local() -> Local:
    return Local()
