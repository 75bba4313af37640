"""PyTorch: runs ONNX models as torch modules, on the CPU or an NVIDIA GPU, call by call, compiled, or as a CUDA graph.

A variant is HARDWARE[-HOW][-PRECISION]: `cpu` and `cpu-compile`; `cuda`, `cuda-compile` and `cuda-graph`, each also
with `-tf32`, `-fp16` or `-bf16` behind. int8 models are computed on dequantised values, as in simulated quantisation:
their scores are right, their times are worse than those of floats, so no device here claims int8.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autocompress.devices._host import nvidia_gpu, processor
from autocompress.devices._refusals import check_count, out_of_memory, unknown_variant
from autocompress.devices._timing import middle_mean, stopwatch
from autocompress.devices.base import Array, Availability, Device, NodeTime, Results, as_results
from autocompress.vocabulary.errors import DeviceError, first_line
from autocompress.vocabulary.formats import FP32
from autocompress.vocabulary.workload import Capabilities

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from autocompress.translation.program import Program

INSTALL = "pip install torch"
_PROFILE_WARMUP = 2


@dataclass(frozen=True, slots=True)
class Variant:
    """Where, how and in which precision; `str` is its name."""

    hardware: str
    how: str = ""
    precision: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.hardware, self.how, self.precision)))


_CUDA = product(("cuda",), ("", "compile", "graph"), ("", "tf32", "fp16", "bf16"))
VARIANTS = {str(v): v for v in (Variant("cpu"), Variant("cpu", "compile"), *(Variant(*parts) for parts in _CUDA))}
"""Every variant of `torch:` by name."""


def available() -> list[Availability]:
    """Hardware and ways to run; the precisions are further variants of those on a GPU."""
    listed = [variant for variant in VARIANTS.values() if not variant.precision]
    if find_spec("torch") is None:
        return [Availability(f"torch:{v}", False, "torch is not installed", INSTALL) for v in listed]
    return [_availability(TorchDevice(str(variant))) for variant in listed]


def open_device(variant: str) -> Device:
    """`torch:cpu`, `torch:cuda-graph-fp16` and so on; raises DeviceError for anything else."""
    if variant not in VARIANTS:
        raise unknown_variant("torch", variant, VARIANTS)
    return TorchDevice(variant)


def _availability(device: "TorchDevice") -> Availability:
    lacking = _lacking(device.parsed)
    if lacking is not None:
        return Availability(device.name, False, *lacking)
    detail = f"{device.runtime}, {device.environment()['processor']}"
    if device.parsed.hardware == "cuda":
        detail += "; also with -tf32, -fp16 or -bf16; never run on hardware"
    return Availability(device.name, True, detail)


def _lacking(variant: Variant) -> tuple[str, str] | None:
    """What is missing here, and what would help."""
    untried = "; never run on hardware" if variant.hardware == "cuda" else ""
    if variant.hardware == "cuda" and not nvidia_gpu():
        return f"no NVIDIA GPU is found{untried}", "an NVIDIA GPU with its driver, and torch built for CUDA"
    if variant.hardware == "cuda" and not _has_cuda():
        return (
            f"torch {version('torch')} can't use the GPU{untried}",
            "torch built for CUDA (pytorch.org has the command)",
        )
    if variant.how == "compile" and _compiler() is None:
        return f"torch.compile needs a C++ compiler, found neither g++ nor clang++{untried}", "apt-get install g++"
    return None


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _compiler() -> str | None:
    asked = os.environ.get("CXX", "")
    return next(filter(None, map(shutil.which, filter(None, (asked, "g++", "clang++", "c++")))), None)


@dataclass(frozen=True, slots=True)
class TorchDevice:
    """Modules in inference mode, one graph for each shape of the inputs, images channels-last (2 to 14 % less time for
    a ResNet-20 on a CPU).

    Times on a GPU are between events, of inputs that lie there already; on the CPU they are by the clock. Those of
    single nodes are of the model run call by call, whatever the variant.
    """

    variant: str = "cpu"
    estimate: bool = False

    @property
    def parsed(self) -> Variant:
        return VARIANTS[self.variant]

    @property
    def name(self) -> str:
        return f"torch:{self.variant}"

    @property
    def runtime(self) -> str:
        return f"torch {version('torch')}"

    @property
    def provider(self) -> str:
        return f"torch {self.parsed.hardware}"

    def capabilities(self) -> Capabilities:
        """Floats only; widths step by a register of 16 on the CPU, by 8 for a GPU's matrix units."""
        return Capabilities(frozenset({FP32}), {FP32: 16 if self.parsed.hardware == "cpu" else 8})

    def environment(self) -> dict[str, str]:
        hardware = nvidia_gpu() if self.parsed.hardware == "cuda" else processor()
        found = {"device": self.name, "runtime": self.runtime, "processor": hardware}
        return {**found, "precision": self.parsed.precision} if self.parsed.precision else found

    def open(self, path: Path, threads: int = 1) -> "TorchSession":
        return TorchSession(self, path, _read(self, path), threads)

    def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        from autocompress.devices._torch_graph import Clocked
        from autocompress.translation.writer import sources

        called = TorchDevice(str(Variant(self.parsed.hardware, "", self.parsed.precision)))
        with TorchSession(called, path, _read(self, path), 1).on(inputs) as (module, tensors):
            clocked = Clocked(module, _synchronize if self.parsed.hardware == "cuda" else None)
            for _ in range(_PROFILE_WARMUP + runs):
                clocked.run(*tensors)
        return [
            NodeTime(
                s.name, s.name, s.op, self.provider, middle_mean(clocked.seconds[node][-runs:]), s.inputs, s.outputs
            )
            for node, s in sources(module).items()
        ]


class TorchSession:
    """One model, made ready once for each shape of its inputs."""

    def __init__(self, device: TorchDevice, path: Path, program: "Program", threads: int) -> None:
        self._device = device
        self._path = path
        self._program = program
        self._threads = threads
        self._ready: dict[tuple[tuple[int, ...], ...], Callable[..., Tensor]] = {}

    def run(self, *inputs: Array) -> Results:
        with self.on(inputs) as (module, tensors):
            return as_results(_array(tensor) for tensor in _tensors(module(*tensors)))

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        from autocompress.devices._torch_cuda import event_times

        with self.on(inputs) as (module, tensors):
            run = partial(module, *tensors)
            return event_times(run, runs) if self._device.parsed.hardware == "cuda" else stopwatch(run, runs)

    def providers(self) -> dict[str, str]:
        from autocompress.translation.writer import sources

        module = _written(self._program, [_one_sample(entry.shape) for entry in self._program.inputs])
        return {source.name: self._device.provider for source in sources(module).values()}

    @contextmanager
    def on(self, inputs: Sequence[Array]) -> Iterator[tuple[Any, list["Tensor"]]]:
        """(what to call, with what), set up as the variant says; refusals become DeviceError."""
        import torch

        from autocompress.devices._torch_cuda import tensor_floats

        self._check(inputs)
        variant = self._device.parsed
        floats = tensor_floats(variant.precision == "tf32") if variant.hardware == "cuda" else nullcontext()
        refused = _refused(f"{self._device.name} can't run {self._path}")
        with refused, _threads(self._threads), torch.inference_mode(), floats:
            tensors = [_placed(torch.from_numpy(x), variant) for x in inputs]
            yield self._module(tensors), tensors

    def _check(self, inputs: Sequence[Array]) -> None:
        check_count(self._path, [entry.name for entry in self._program.inputs], inputs)
        for entry, given in zip(self._program.inputs, inputs, strict=True):
            if not entry.fits(given.shape) or given.dtype != entry.dtype:
                shape = tuple("?" if n is None else n for n in entry.shape)
                raise DeviceError(
                    f"{self._device.name} can't run {self._path}: input {entry.name} is {shape} of "
                    f"{np.dtype(entry.dtype)}, got {given.shape} of {given.dtype}"
                )

    def _module(self, tensors: Sequence["Tensor"]) -> Callable[..., "Tensor"]:
        shapes = tuple(tuple(x.shape) for x in tensors)
        if shapes not in self._ready:
            self._ready[shapes] = _made(self._device.parsed, self._program, tensors)
        return self._ready[shapes]


def _read(device: TorchDevice, path: Path) -> "Program":
    lacking = _lacking(device.parsed) if find_spec("torch") is not None else ("torch is not installed", INSTALL)
    if lacking is not None:
        raise DeviceError(f"{device.name} can't be opened: {lacking[0]}; it takes {lacking[1]}")
    from autocompress.translation.program import Program, TranslationError

    try:
        return Program(path)
    except TranslationError as error:
        raise _untranslated(path, error) from error


def _untranslated(path: Path, error: Exception) -> DeviceError:
    return DeviceError(f"torch can't load {path}: {error}; time the model on another device, such as ort:cpu")


def _made(variant: Variant, program: "Program", tensors: Sequence["Tensor"]) -> Callable[..., "Tensor"]:
    """The model where and how the variant says, warmed up."""
    import torch

    from autocompress.devices._torch_cuda import WARMUP, Captured
    from autocompress.devices._torch_graph import with_floats

    module = _written(program, [tuple(x.shape) for x in tensors])
    if variant.precision in _FLOATS:
        module = with_floats(module, getattr(torch, _FLOATS[variant.precision]))
    ready: Callable[..., Tensor] = module.to(_place(variant))
    if variant.how == "compile":
        ready = torch.compile(ready, fullgraph=True, dynamic=False)
    if variant.how == "graph":
        return Captured(ready, tensors)
    for _ in range(WARMUP):
        ready(*tensors)
    return ready


def _written(program: "Program", shapes: Sequence[tuple[int, ...]]) -> "torch.fx.GraphModule":
    from autocompress.translation.program import TranslationError

    try:
        return program.module(shapes)
    except TranslationError as error:
        raise _untranslated(program.path, error) from error


_FLOATS = {"fp16": "float16", "bf16": "bfloat16"}


def _place(variant: Variant) -> "torch.device":
    import torch

    return torch.device(variant.hardware)


def _placed(x: "Tensor", variant: Variant) -> "Tensor":
    import torch

    dtype = getattr(torch, _FLOATS[variant.precision]) if variant.precision in _FLOATS else None
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    return x.to(_place(variant), dtype if x.is_floating_point() else None, memory_format=layout)


def _synchronize() -> None:
    import torch

    torch.cuda.synchronize()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """The number is the process's: it is put back, for whoever trains in it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except DeviceError:
        raise
    except Exception as error:  # torch raises of every kind
        if out_of_memory(error):
            raise DeviceError(f"{what}: out of memory; take a smaller batch or model ({first_line(error)})") from error
        raise DeviceError(f"{what}: {first_line(error)}") from error


def _tensors(made: Any) -> list["Tensor"]:
    """What a module returns, by itself, in a tuple or by name."""
    if isinstance(made, dict):
        return list(made.values())
    return list(made) if isinstance(made, (tuple, list)) else [made]


def _array(tensor: "Tensor") -> Array:
    """A copy on the host, floats in fp32."""
    found: Array = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return found.copy()


def _one_sample(shape: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(1 if axis is None else axis for axis in shape)
