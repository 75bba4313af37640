"""ONNX Runtime: times, runs and profiles ONNX models on the CPU."""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.devices._host import processor
from autocompress.devices._refusals import check_count, first_line, unknown_variant
from autocompress.devices._timing import middle_mean, stopwatch
from autocompress.devices.base import Array, Availability, Device, NodeTime
from autocompress.errors import DeviceError
from autocompress.workload import Capabilities, DType

PROVIDERS = {"cpu": "CPUExecutionProvider"}
"""Variant of `ort:` → ONNX Runtime's execution provider."""

LAYOUT_OPS = frozenset({"ReorderInput", "ReorderOutput"})
"""Operators by which the runtime moves tensors into and out of its blocked NCHWc layout."""

_PROFILE_WARMUP = 5
_KERNEL_SUFFIX = "_kernel_time"
_BLOCKED_SUFFIX = "_nchwc"
_TOKEN = re.compile(r"_token_\d+$")
_FATAL = 4


def available() -> list[Availability]:
    """The CPU under ONNX Runtime, if the package is here."""
    if find_spec("onnxruntime") is None:
        return [Availability("ort:cpu", False, "onnxruntime is not installed", "pip install onnxruntime")]
    return [Availability("ort:cpu", True, f"{OrtDevice('cpu').runtime}, {processor()}")]


def open_device(variant: str) -> Device:
    """`ort:cpu`; raises DeviceError for another provider."""
    if variant not in PROVIDERS:
        raise unknown_variant("ort", variant, PROVIDERS)
    return OrtDevice(variant)


@dataclass(frozen=True, slots=True)
class OrtDevice:
    """ONNX Runtime with all graph optimisations, threads that sleep instead of spinning, one provider."""

    variant: str = "cpu"
    estimate: bool = False

    @property
    def name(self) -> str:
        return f"ort:{self.variant}"

    @property
    def runtime(self) -> str:
        return f"onnxruntime {_onnxruntime().__version__}"

    def capabilities(self) -> Capabilities:
        """Widths step by 16 in fp32 (blocked NCHWc layout) and by 4 in int8 (a dot product of four bytes)."""
        return Capabilities(frozenset({DType.FP32, DType.INT8}), {DType.FP32: 16, DType.INT8: 4})

    def environment(self) -> dict[str, str]:
        return {"device": self.name, "runtime": self.runtime, "processor": processor()}

    def open(self, path: Path, threads: int = 1) -> "OrtSession":
        return OrtSession(path, self._create(path, _options(threads)), self)

    def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
            options = _options(1)
            options.enable_profiling = True
            options.profile_file_prefix = f"{folder}/nodes"
            options.optimized_model_filepath = f"{folder}/optimized.onnx"
            session = self._create(path, options)
            feed = _feed(session, inputs, path)
            for _ in range(_PROFILE_WARMUP + runs):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text())
            return _node_times(events, path, Path(options.optimized_model_filepath))

    def _create(self, path: Path, options: Any) -> Any:
        ort = _onnxruntime()
        try:
            return ort.InferenceSession(str(path), options, providers=[PROVIDERS[self.variant]])
        except Exception as error:
            raise DeviceError(f"{self.name} can't load {path}: {first_line(error)}") from error


class OrtSession:
    """One model in one ONNX Runtime session."""

    def __init__(self, path: Path, session: Any, device: OrtDevice) -> None:
        self._path = path
        self._session = session
        self._device = device

    def run(self, *inputs: Array) -> Array:
        feed = _feed(self._session, inputs, self._path)
        try:
            result: Array = self._session.run(None, feed)[0]
        except Exception as error:
            raise DeviceError(f"{self._device.name} can't run {self._path}: {first_line(error)}") from error
        return result

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        return stopwatch(partial(self._session.run, None, _feed(self._session, inputs, self._path)), runs)

    def providers(self) -> dict[str, str]:
        inputs = [_zeros(argument) for argument in self._session.get_inputs()]
        return {node.name: node.provider for node in self._device.profile(self._path, inputs, runs=1)}


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError("onnxruntime is not installed; pip install onnxruntime") from error
    return onnxruntime


def _options(threads: int) -> Any:
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _FATAL
    return options


def _feed(session: Any, inputs: Sequence[Array], path: Path) -> dict[str, Array]:
    names = [argument.name for argument in session.get_inputs()]
    check_count(path, names, inputs)
    return dict(zip(names, inputs, strict=True))


_NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


def _zeros(argument: Any) -> Array:
    """A sample of the declared shape and type, one where an axis is dynamic."""
    shape = [axis if isinstance(axis, int) else 1 for axis in argument.shape]
    return np.zeros(shape, _NUMPY.get(argument.type, np.float32))


@dataclass(frozen=True, slots=True)
class _Executed:
    """One node's events in a profile."""

    name: str
    op: str
    provider: str
    durations_us: list[float]


def _node_times(events: list[dict[str, Any]], artifact: Path, optimized: Path) -> list[NodeTime]:
    import onnx

    made = {node.name: node for node in onnx.load(str(optimized), load_external_data=False).graph.node}
    origins = _Origins(onnx.load(str(artifact), load_external_data=False).graph.node)
    times = []
    for node in _executed(events):
        proto = made.get(node.name, onnx.NodeProto())
        inputs, outputs = tuple(proto.input), tuple(proto.output)
        seconds = middle_mean(node.durations_us[_PROFILE_WARMUP:]) * 1e-6
        source = "" if node.op in LAYOUT_OPS else origins.of(node.name, outputs)
        times.append(NodeTime(node.name, source, node.op, node.provider, seconds, inputs, outputs))
    return times


def _executed(events: list[dict[str, Any]]) -> list[_Executed]:
    """Nodes in the order in which they first ran."""
    found: dict[str, _Executed] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL_SUFFIX):
            name, details = event["name"].removesuffix(_KERNEL_SUFFIX), event["args"]
            node = _Executed(name, details.get("op_name", ""), details.get("provider", ""), [])
            found.setdefault(f"{name} {details.get('node_index')}", node).durations_us.append(event["dur"])
    return list(found.values())


class _Origins:
    """Which node of the artifact an optimised node comes from.

    ONNX Runtime keeps a node's name, appends `_token_N` to it, or (blocked layout) names the node after the tensor that
    it makes, with `_nchwc` behind.
    """

    def __init__(self, nodes: Sequence[Any]) -> None:
        self._names: set[str] = {node.name for node in nodes}
        self._makers: dict[str, str] = {tensor: node.name for node in nodes for tensor in node.output}

    def of(self, name: str, outputs: Sequence[str]) -> str:
        if name.endswith(_BLOCKED_SUFFIX) and (tensor := name.removesuffix(_BLOCKED_SUFFIX)) in self._makers:
            return self._makers[tensor]
        plain = _TOKEN.sub("", name)
        if plain in self._names:
            return plain
        return next((self._makers[tensor] for tensor in outputs if tensor in self._makers), "")
