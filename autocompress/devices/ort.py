"""ONNX Runtime: times, runs and profiles ONNX models on the CPU, or on what its other execution providers drive."""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.devices import _ort_qnn
from autocompress.devices._host import nvidia_gpu, processor
from autocompress.devices._ort_providers import (
    CPU,
    NO_HARDWARE,
    PROVIDERS,
    Provider,
    audit,
    is_weighted,
    known,
    packed_formats,
)
from autocompress.devices._ort_saturation import UINT8_WEIGHTS, saturates, unshared
from autocompress.devices._refusals import check_count, out_of_memory, unknown_variant
from autocompress.devices._timing import middle_mean, stopwatch
from autocompress.devices.base import Array, Availability, Device, NodeTime, Results, as_results
from autocompress.vocabulary.errors import DeviceError, UntimedError, first_line
from autocompress.vocabulary.workload import Capabilities

LAYOUT_OPS = frozenset({"ReorderInput", "ReorderOutput"})
"""Operators by which the runtime moves tensors into and out of its blocked NCHWc layout."""

_PROFILE_WARMUP = 5
_KERNEL_SUFFIX = "_kernel_time"
_BLOCKED_SUFFIX = "_nchwc"
_TOKEN = re.compile(r"_token_\d+$")
_FATAL = 4


def available() -> list[Availability]:
    """Every provider: in this ONNX Runtime and able to start, or what to install."""
    if find_spec("onnxruntime") is None:
        return [
            Availability(f"ort:{v}", False, "onnxruntime is not installed", p.install) for v, p in PROVIDERS.items()
        ]
    return [_availability(OrtDevice(variant)) for variant in known(_found())]


def open_device(variant: str) -> Device:
    """`ort:cpu`, `ort:cuda` and so on; raises DeviceError for a provider that ONNX Runtime does not have."""
    if variant not in PROVIDERS:
        providers = known(_found()) if find_spec("onnxruntime") else PROVIDERS
        if variant not in providers:
            raise unknown_variant("ort", variant, providers)
    return OrtDevice(variant)


def _availability(device: "OrtDevice") -> Availability:
    provider = device.provider
    if provider.name == CPU:
        return Availability(device.name, True, f"{device.runtime}, {processor()}")
    if provider.name not in _found():
        detail = f"{provider.name} is not in this {device.runtime}; never run on hardware"
        return Availability(device.name, False, detail, provider.install)
    if not _starts(device):
        detail = f"{device.runtime} has {provider.name}, which does not start here"
        return Availability(device.name, False, detail, provider.install or "the libraries that the provider loads")
    if device.emulated:
        detail = f"{device.runtime}, {provider.name} emulating {_ort_qnn.EMULATED}: compiles and computes, is not timed"
        return Availability(device.name, True, detail)
    return Availability(device.name, True, f"{device.runtime}, {provider.name}; never run on hardware")


@dataclass(frozen=True, slots=True)
class OrtDevice:
    """ONNX Runtime with all graph optimisations, threads that sleep instead of spinning, one provider and its defaults.

    What the provider does not take runs on the CPU, as it would in use: that is audited when a model is opened. Times
    are from arrays in memory to arrays in memory, copies to and from the hardware included; those of single nodes are
    the runtime's own, for providers that work asynchronously the time to launch.
    """

    variant: str = "cpu"
    estimate: bool = False

    @property
    def provider(self) -> Provider:
        return PROVIDERS.get(self.variant) or known(_found())[self.variant]

    @property
    def name(self) -> str:
        return f"ort:{self.variant}"

    @property
    def runtime(self) -> str:
        return f"onnxruntime {_onnxruntime().__version__}"

    @property
    def emulated(self) -> bool:
        """Whether the provider is here, its hardware is not, and the CPU stands in for it."""
        return self.provider.plugin and _ort_qnn.installed() and _ort_qnn.emulated(_onnxruntime())

    def capabilities(self) -> Capabilities:
        """On the CPU, widths step by 16 in fp32 (blocked NCHWc layout) and by 4 in int8 (a dot product of four bytes).

        int8 only where the provider runs what the exporter writes (uint8 activations, int8 weights) in integers, and
        weight-only formats where it packs weights; on processors where int8 saturates these are unproven.
        """
        packed = packed_formats() if self.provider.packs and not saturates() else {}
        multiples = {**self.provider.channel_multiple, **packed}
        return Capabilities(frozenset(multiples), multiples)

    def environment(self) -> dict[str, str]:
        provider = self.provider
        hardware = (nvidia_gpu() if provider.gpu else "") or processor()
        found = {"device": self.name, "runtime": self.runtime, "processor": hardware}
        if provider.name != CPU:
            found["provider"] = provider.name
        return {**found, "precision": provider.precision} if provider.precision else found

    def open(self, path: Path, threads: int = 1) -> "OrtSession":
        session = OrtSession(path, self._create(path, _options(threads)), self)
        if self.provider.name != CPU:
            status = path.stat()
            _audit_once(self, path, status.st_mtime_ns, status.st_size)
        return session

    def profile(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        self.require_clock()
        return self.executed(path, inputs, runs)

    def require_clock(self) -> None:
        """Raises UntimedError where the hardware is emulated."""
        if self.emulated:
            raise UntimedError(
                f"{self.name} is emulated here, and how long that takes means nothing: check models on it with "
                "`autocompress verify`, and time them where the hardware is"
            )

    def executed(self, path: Path, inputs: Sequence[Array], runs: int) -> list[NodeTime]:
        """What ran each node, whatever its time means."""
        with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
            optimised = Path(folder) / "optimized.onnx"
            options = _options(1)
            options.enable_profiling = True
            options.profile_file_prefix = f"{folder}/nodes"
            if not self.provider.compiles:
                options.optimized_model_filepath = str(optimised)
            session = OrtSession(path, self._create(path, options), self)
            session.repeat(inputs, _PROFILE_WARMUP + runs)
            return _node_times(session.end_profiling(), path, optimised)

    def _create(self, path: Path, options: Any) -> Any:
        """Raises DeviceError where ONNX Runtime would take the CPU without a word."""
        asked = self.provider.name
        _check_present(self)
        with _refused(f"{self.name} can't load {path}"):
            session = _session(self.provider, unshared(path) if saturates() else str(path), options)
        if asked not in session.get_providers():
            raise DeviceError(
                f"{self.name} was asked for, but ONNX Runtime could not start {asked} and took "
                f"{', '.join(session.get_providers())}: {self.provider.install or 'see what libraries it needs'}"
            )
        return session


class OrtSession:
    """One model in one ONNX Runtime session."""

    def __init__(self, path: Path, session: Any, device: OrtDevice) -> None:
        self._path = path
        self._session = session
        self._device = device
        self._seen: dict[str, tuple[int, ...]] = {}

    def run(self, *inputs: Array) -> Results:
        feed = self._feed(inputs)
        feeds = self._samples(feed) if self._device.provider.plugin else [feed]
        with _refused(f"{self._device.name} can't run {self._path}"):
            made: list[list[Array]] = [self._session.run(None, one) for one in feeds]
        return as_results(np.concatenate(parts) if len(parts) > 1 else parts[0] for parts in zip(*made, strict=True))

    def time(self, inputs: Sequence[Array], runs: int) -> list[float]:
        self._device.require_clock()
        return self.repeat(inputs, runs)

    def repeat(self, inputs: Sequence[Array], runs: int) -> list[float]:
        run = partial(self._session.run, None, self._feed(inputs))
        with _refused(f"{self._device.name} can't run {self._path}"):
            return stopwatch(run, runs)

    def providers(self) -> dict[str, str]:
        return {node.name: node.provider for node in self._device.executed(self._path, self.zeros(), runs=1)}

    def zeros(self) -> list[Array]:
        """One sample of the declared shapes and types, with the sizes last seen where an axis other than 0 is open."""
        return [_zeros(argument, self._seen.get(argument.name, ())) for argument in self._session.get_inputs()]

    def end_profiling(self) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = json.loads(Path(self._session.end_profiling()).read_text())
        return events

    def _feed(self, inputs: Sequence[Array]) -> dict[str, Array]:
        names = [argument.name for argument in self._session.get_inputs()]
        check_count(self._path, names, inputs)
        self._seen = {name: array.shape for name, array in zip(names, inputs, strict=True)}
        return dict(zip(names, inputs, strict=True))

    def _samples(self, feed: Mapping[str, Array]) -> list[dict[str, Array]]:
        """The feed sample by sample, along the axes 0 that hold more than was compiled for."""
        shapes = {argument.name: argument.shape for argument in self._session.get_inputs()}
        batched = {name for name, shape in shapes.items() if shape and len(feed[name]) != shape[0]}
        count = min((len(feed[name]) for name in batched), default=1)
        return [{n: array[i : i + 1] if n in batched else array for n, array in feed.items()} for i in range(count)]


@cache
def _audit_once(device: OrtDevice, path: Path, modified_ns: int, size_bytes: int) -> None:
    """Once per file as it is now: a measurement opens it many times."""
    import onnx

    session = OrtSession(path, device._create(path, _options(1)), device)
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    audit(device.name, path, device.executed(path, session.zeros(), 1), sum(is_weighted(n.op_type) for n in nodes))


def _check_present(device: OrtDevice) -> None:
    found = _found()
    if device.provider.name not in found:
        raise DeviceError(
            f"{device.name} asks for {device.provider.name}, this {device.runtime} has {', '.join(found)}: "
            f"{device.provider.install}"
        )


@cache
def _starts(device: OrtDevice) -> bool:
    """Whether a session on the smallest of models really gets the provider: its libraries may be missing."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        session = _session(device.provider, model.SerializeToString(), _options(1))
    except Exception:  # whatever it trips over: that is the answer
        return False
    return device.provider.name in session.get_providers()


def _session(provider: Provider, model: str | bytes, options: Any) -> Any:
    """Of a file or of its content."""
    ort = _onnxruntime()
    if not provider.plugin:
        return ort.InferenceSession(model, options, providers=[provider.name], enable_fallback=0)
    with _ort_qnn.silenced():
        _ort_qnn.attach(ort, options, model)
        return ort.InferenceSession(model, options)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the runtime has a type of exception for each of its status codes
        if out_of_memory(error):
            raise DeviceError(f"{what}: out of memory; take a smaller batch or model ({first_line(error)})") from error
        raise DeviceError(f"{what}: {first_line(error)}") from error


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError("onnxruntime is not installed; pip install onnxruntime") from error
    return onnxruntime


def _found() -> list[str]:
    """A plug-in counts once its package is installed, loaded yet or not."""
    listed: list[str] = _onnxruntime().get_available_providers()
    found = [name for name in listed if name not in NO_HARDWARE and name != _ort_qnn.PROVIDER]
    return [*found, _ort_qnn.PROVIDER] if _ort_qnn.installed() else found


def _options(threads: int) -> Any:
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if saturates():
        options.add_session_config_entry(*UINT8_WEIGHTS)
    options.log_severity_level = _FATAL
    return options


_NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


def _zeros(argument: Any, seen: tuple[int, ...]) -> Array:
    """A sample of the declared shape and type; where an axis is dynamic, of the size seen, or one."""
    sizes = (1, *seen[1:]) if seen else (1,) * len(argument.shape)
    shape = [axis if isinstance(axis, int) else size for axis, size in zip(argument.shape, sizes, strict=True)]
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

    written = onnx.load(str(optimized), load_external_data=False).graph.node if optimized.exists() else ()
    made = {node.name: node for node in written}
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
