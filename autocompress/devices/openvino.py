"""OpenVINO with its own runtime: on CPUs (in bfloat16 where AMX is present, or in float32), on Intel GPUs and NPUs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.devices._openvino_nodes import Executed, Origins, executed, seconds_by_counter
from autocompress.devices._openvino_probe import require_survival
from autocompress.devices._refusals import check_count, last_line, unknown_variant
from autocompress.devices._timing import stopwatch
from autocompress.devices.base import Array, Availability, Device, NodeTime, Results, as_results
from autocompress.vocabulary.errors import DeviceError
from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.workload import Capabilities

INSTALL = 'pip install "autocompress[openvino]"'


@dataclass(frozen=True, slots=True)
class Target:
    """A plugin of the runtime, and the precision that float layers are held to ("" is the plugin's own choice)."""

    plugin: str
    precision: str = ""
    proven: bool = False


TARGETS = {
    "cpu": Target("CPU", proven=True),
    "cpu-f32": Target("CPU", "f32", proven=True),
    "gpu": Target("GPU"),
    "npu": Target("NPU"),
}
"""Variant of `openvino:` → where it runs. What is not `proven` was never run on such hardware."""

_DRIVERS = {
    "GPU": "an Intel GPU with its compute runtime (OpenCL) driver",
    "NPU": "an Intel NPU with its Level Zero driver",
    "CPU": INSTALL,
}


def available() -> list[Availability]:
    """What the installed runtime finds on this machine."""
    if find_spec("openvino") is None:
        return [Availability(f"openvino:{v}", False, "openvino is not installed", INSTALL) for v in TARGETS]
    return [_availability(OpenvinoDevice(variant)) for variant in TARGETS]


def open_device(variant: str) -> Device:
    """`openvino:cpu`, `cpu-f32`, `gpu` or `npu`; raises DeviceError for anything else."""
    if variant not in TARGETS:
        raise unknown_variant("openvino", variant, TARGETS)
    return OpenvinoDevice(variant)


def _availability(device: "OpenvinoDevice") -> Availability:
    plugin, untried = device.target.plugin, "" if device.target.proven else "; never run on hardware"
    found = _plugins()
    if plugin not in found:
        detail = f"{device.runtime} finds no {plugin} here, only {', '.join(found) or 'nothing'}{untried}"
        return Availability(device.name, False, detail, _DRIVERS[plugin])
    precision = device.environment().get("precision", "fp32")
    return Availability(device.name, True, f"{device.runtime}, {_full_name(plugin)}, {precision}{untried}")


@dataclass(frozen=True, slots=True)
class OpenvinoDevice:
    """One stream, tuned for latency, compiled for the exact shape of its inputs.

    The runtime's own pinning is off: with one thread it computes in the caller's, which `measure` has pinned already.
    """

    variant: str = "cpu"
    estimate: bool = False

    @property
    def target(self) -> Target:
        return TARGETS[self.variant]

    @property
    def name(self) -> str:
        return f"openvino:{self.variant}"

    @property
    def runtime(self) -> str:
        return f"openvino {_openvino().__version__.split('-')[0]}"

    def capabilities(self) -> Capabilities:
        """int8 where the plugin names it; widths step by 16, a register of floats and a column of an AMX tile.

        So measured on a CPU with AMX, 3x3 convolutions 64 -> C -> 64 at 16x16: in float32 49 channels take 11 % longer
        than 48, and 65 than 64; in bfloat16 and int8 the steps are there too, and lower.
        """
        self._check_present()
        names = _core().get_property(self.target.plugin, "OPTIMIZATION_CAPABILITIES")
        dtypes = frozenset({FP32} | ({INT8} if "INT8" in names else set()))
        return Capabilities(dtypes, dict.fromkeys(dtypes, 16))

    def environment(self) -> dict[str, str]:
        self._check_present()
        plugin, precision = self.target.plugin, _precision(self.target)
        found = {"device": self.name, "runtime": self.runtime, "processor": _full_name(plugin)}
        return found if precision == "fp32" else {**found, "precision": precision}

    def open(self, path: Path, threads: int = 1) -> "OpenvinoSession":
        return OpenvinoSession(self, path, _read(self, path), threads)

    def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        model = _read(self, path)
        _check_inputs(self, path, model, inputs)
        loaded = _Loaded(self, path, model, [x.shape for x in inputs], 1, profiled=True)
        loaded.bind(inputs)
        nodes, seconds = loaded.nodes(), loaded.seconds_by_counter(runs)
        sources = Origins.read(path, model).of(nodes)
        return [
            NodeTime(n.name, sources[n.name], n.op, n.provider, seconds.get(n.counter, 0.0), n.inputs, n.outputs)
            for n in nodes
        ]

    def _check_present(self) -> None:
        plugin = self.target.plugin
        if plugin not in _plugins():
            raise DeviceError(
                f"{self.name} asks for a {plugin}, {self.runtime} finds {', '.join(_plugins()) or 'nothing'}: "
                f"it takes {_DRIVERS[plugin]}"
            )


class OpenvinoSession:
    """One model, compiled once for each shape of its inputs."""

    def __init__(self, device: OpenvinoDevice, path: Path, model: Any, threads: int) -> None:
        self._device = device
        self._path = path
        self._model = model
        self._threads = threads
        self._loaded: dict[tuple[tuple[int, ...], ...], _Loaded] = {}
        if all(_has_free_batch_only(entry) for entry in model.inputs):
            self._for(_one_sample(model))

    def run(self, *inputs: Array) -> Results:
        request = self._bound(inputs)
        with _refused(f"{self._device.name} can't run {self._path}"):
            made = request.infer()
            return as_results(made[i] for i in range(len(self._model.outputs)))

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        request = self._bound(inputs)
        with _refused(f"{self._device.name} can't run {self._path}"):
            return stopwatch(partial(request.infer, share_outputs=True), runs)

    def providers(self) -> dict[str, str]:
        return {node.name: node.provider for node in self._for(_one_sample(self._model)).nodes()}

    def _bound(self, inputs: Sequence[Array]) -> Any:
        _check_inputs(self._device, self._path, self._model, inputs)
        loaded = self._for([x.shape for x in inputs])
        loaded.bind(inputs)
        return loaded.request

    def _for(self, shapes: Sequence[tuple[int, ...]]) -> "_Loaded":
        key = tuple(shapes)
        if key not in self._loaded:
            self._loaded[key] = _Loaded(self._device, self._path, self._model, shapes, self._threads)
        return self._loaded[key]


class _Loaded:
    """A model compiled for exactly these shapes, with its one request. Raises DeviceError."""

    def __init__(
        self, device: OpenvinoDevice, path: Path, model: Any, shapes: Sequence[tuple[int, ...]], threads: int,
        *, profiled: bool = False,
    ) -> None:  # fmt: skip
        device._check_present()
        self._plugin = device.target.plugin
        settings = _settings(device.target, threads)
        require_survival(path, model, shapes, self._plugin, settings)
        with _refused(f"{device.name} can't run {path}"):
            fixed = model.clone()
            fixed.reshape({i: _openvino().PartialShape(list(shape)) for i, shape in enumerate(shapes)})
            self._compiled = _core().compile_model(fixed, self._plugin, settings | {"PERF_COUNT": profiled})
            self.request = self._compiled.create_infer_request()

    def bind(self, inputs: Sequence[Array]) -> None:
        """The request reads these arrays where they are, so they are kept."""
        self._arrays = [np.ascontiguousarray(array) for array in inputs]
        for i, array in enumerate(self._arrays):
            self.request.set_input_tensor(i, _openvino().Tensor(array, shared_memory=True))

    def seconds_by_counter(self, runs: int) -> dict[str, float]:
        return seconds_by_counter(self.request, runs, self._plugin)

    def nodes(self) -> list[Executed]:
        return executed(self._compiled.get_runtime_model(), self._plugin)


def _settings(target: Target, threads: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if target.plugin == "CPU":
        settings |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    if target.precision:
        settings["INFERENCE_PRECISION_HINT"] = target.precision
    return settings


def _read(device: OpenvinoDevice, path: Path) -> Any:
    """By the ONNX reader itself: asked to guess the format, other readers' complaints go to standard error."""
    frontends = _openvino().frontend.FrontEndManager()
    with _refused(f"{device.name} can't load {path}"):
        reader = frontends.load_by_framework("onnx")
        return reader.convert(reader.load(str(path)))


def _check_inputs(device: OpenvinoDevice, path: Path, model: Any, inputs: Sequence[Array]) -> None:
    """Refuses what the runtime would reshape or convert to make it fit."""
    check_count(path, [entry.any_name for entry in model.inputs], inputs)
    for entry, given in zip(model.inputs, inputs, strict=True):
        shape, dtype = entry.partial_shape, entry.element_type.to_dtype()
        if given.dtype != dtype or not shape.compatible(_openvino().PartialShape(list(given.shape))):
            raise DeviceError(
                f"{device.name} can't run {path}: input {entry.any_name} is {shape} of {np.dtype(dtype)}, "
                f"got {given.shape} of {given.dtype}"
            )


def _has_free_batch_only(entry: Any) -> bool:
    return all(axis == 0 or not size.is_dynamic for axis, size in enumerate(entry.partial_shape))


def _one_sample(model: Any) -> list[tuple[int, ...]]:
    """The declared shapes, one where an axis is free."""
    return [tuple(1 if d.is_dynamic else d.get_length() for d in entry.partial_shape) for entry in model.inputs]


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the runtime raises RuntimeError for everything, its readers types of their own
        raise DeviceError(f"{what}: {last_line(error)}") from error


def _openvino() -> Any:
    try:
        return import_module("openvino")
    except ImportError as error:
        raise DeviceError(f"openvino is not installed; {INSTALL}") from error


@cache
def _core() -> Any:
    """One for the process: plugins are loaded once."""
    return _openvino().Core()


@cache
def _plugins() -> tuple[str, ...]:
    """CPU, GPU, NPU as found here; several GPUs are GPU.0, GPU.1 and so on, of which GPU means the first."""
    return tuple(dict.fromkeys(name.split(".")[0] for name in _core().available_devices))


@cache
def _full_name(plugin: str) -> str:
    return str(_core().get_property(plugin, "FULL_DEVICE_NAME"))


@cache
def _precision(target: Target) -> str:
    """What float layers are computed in, as a compiled model tells."""
    ov = _openvino()
    opset = ov.opset13
    x = opset.parameter([1, 4], ov.Type.f32)
    compiled = _core().compile_model(ov.Model([opset.relu(x)], [x]), target.plugin, _settings(target, 1))
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return {"bf16": "bf16", "f16": "fp16"}.get(hint, "fp32")
