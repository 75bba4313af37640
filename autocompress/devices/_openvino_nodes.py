"""OpenVINO's graph as it runs: which nodes are executed, for which node of the artifact, and how long each takes."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.devices._timing import middle_mean

WARMUP = 3
"""Runs before those that count: the first makes the kernels, at a thousand times a run's cost."""

_NO_KERNEL = ("unknown", "undef")
"""How the name of an implementation begins where there is none."""

_IN_PLACE = frozenset({"Reshape", "Gather"})
"""What without an implementation is no work. A transposition without one is: oneDNN does not do it, the plugin does."""

_NO_MOVE = "_fake"
"""Ends the name of a change of layout that changes only how the same bytes are described."""

LAYOUT_OPS = frozenset({"Reorder", "Convert", "Transpose"})
"""What the runtime adds to move tensors from layout to layout and from precision to precision."""

_ROUNDING = "QuantizeLinear"
_NORMALISATIONS = frozenset({"LayerNormalization", "InstanceNormalization"})
_NORMALISATION_CORE = "MVN"
"""Mean and variance; the runtime keeps no name for it, and moves its scale and shift into what reads it."""

_SOURCELESS = frozenset({"Input", "Const", "Output"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_INTEGER = frozenset({"u8", "i8"})
_COUNTED = re.compile(r"(?<![A-Za-z0-9])([A-Z][A-Za-z0-9]*)_(\d+)")


@dataclass(frozen=True, slots=True)
class Executed:
    """A node that the runtime executes; `originals` are the nodes of the model it was given that went into it.

    `counter` is the runtime's name for it, `name` the same in every copy of the model. `rounds_to_int8` where floats go
    in and 8-bit integers come out. Tensors are named after the node that makes them, what only describes the same bytes
    anew left out.
    """

    counter: str
    name: str
    op: str
    provider: str
    originals: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rounds_to_int8: bool


def executed(graph: Any, plugin: str) -> list[Executed]:
    """The runtime's nodes that do something, in execution order.

    Told by their implementation and not by their time: the counters show less than a microsecond as nothing.
    """
    walk, steady = _Walk(), _Steady()
    for op in sorted(graph.get_ops(), key=lambda op: int(_info(op, "execOrder") or 0)):
        walk.visit(op)
    return [_executed(node, walk, plugin, steady) for node in walk.nodes.values() if node.works]


@dataclass(frozen=True, slots=True)
class _Node:
    """A node of the runtime's graph; `precision` is that of its first output, `sources` make its data."""

    name: str
    layer: str
    kernel: str
    precision: str
    originals: tuple[str, ...]
    sources: tuple[str, ...]
    works: bool


class _Walk:
    """Reads the runtime's graph in execution order; what depends on constants alone is computed at loading."""

    def __init__(self) -> None:
        self.nodes: dict[str, _Node] = {}
        self._constant: set[str] = set()

    def visit(self, op: Any) -> None:
        name, layer, kernel = op.get_friendly_name(), _info(op, "layerType"), _info(op, "primitiveType")
        inputs = [entry.get_source_output().get_node().get_friendly_name() for entry in op.inputs()]
        sources = tuple(dict.fromkeys(source for source in inputs if source not in self._constant))
        if layer == "Const" or (inputs and not sources):
            self._constant.add(name)
        idle = layer in _SOURCELESS or (layer in _IN_PLACE and kernel.startswith(_NO_KERNEL)) or name.endswith(_NO_MOVE)
        originals = tuple(filter(None, _info(op, "originalLayersNames").split(",")))
        precision = _info(op, "outputPrecisions").split(",")[0]
        works = not idle and name not in self._constant
        self.nodes[name] = _Node(name, layer or op.get_type_name(), kernel, precision, originals, sources, works)

    def tensor(self, name: str) -> str:
        """The nearest node at or before this one that does something, or an input of the model."""
        node = self.nodes[name]
        while not node.works and node.sources:
            node = self.nodes[node.sources[0]]
        return node.name


def _executed(node: _Node, walk: _Walk, plugin: str, steady: "_Steady") -> Executed:
    integers_in = any(walk.nodes[source].precision in _INTEGER for source in node.sources)
    name = steady(node.name)
    return Executed(
        counter=node.name, name=name, op=node.layer, provider=f"{plugin} {node.kernel}", originals=node.originals,
        inputs=tuple(dict.fromkeys(steady(walk.tensor(source)) for source in node.sources)), outputs=(name,),
        rounds_to_int8=bool(node.sources) and node.precision in _INTEGER and not integers_in,
    )  # fmt: skip


class _Steady:
    """Names without the numbers that the runtime counts on from model to model: `MVN_744039` → `MVN_1`."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, int]] = defaultdict(dict)

    def __call__(self, name: str) -> str:
        return _COUNTED.sub(self._renumbered, name)

    def _renumbered(self, found: re.Match[str]) -> str:
        numbers = self._numbers[found[1]]
        return f"{found[1]}_{numbers.setdefault(found[2], len(numbers) + 1)}"


def _info(op: Any, key: str) -> str:
    """An entry of the runtime's information about a node, "" where this plugin has none of that name."""
    found = op.get_rt_info()
    return str(found[key].astype(str)) if key in found else ""


@dataclass(frozen=True, slots=True)
class Origins:
    """Which node of the artifact an executed node stands for.

    The ONNX reader names what it makes after the ONNX node, with a suffix after a slash for all but the last of
    several, and whatever makes an output of the model after that tensor. `ops` are the operators of the artifact's
    nodes, `made_by` has the artifact's node for each node that OpenVINO read.
    """

    ops: Mapping[str, str]
    made_by: Mapping[str, str]

    @staticmethod
    def read(path: Path, model: Any) -> "Origins":
        """`model` is the file as OpenVINO read it; its tensors keep their ONNX names."""
        import onnx

        nodes = onnx.load(str(path), load_external_data=False).graph.node
        makers = {tensor: node.name for node in nodes for tensor in node.output}
        made_by = {
            op.get_friendly_name(): makers[tensor]
            for op in model.get_ops()
            for output in op.outputs()
            for tensor in output.names
            if tensor in makers
        }
        return Origins({node.name: node.op_type for node in nodes}, made_by)

    def of(self, nodes: Sequence[Executed]) -> dict[str, str]:
        """Name → source, "" for what the runtime made, of nodes in execution order.

        Of several nodes fused into one, that with the weights counts, or else the last. A computing node that the
        runtime made, and that nothing else is known about, stands for what reads it.
        """
        known = {node.name: [o for name in node.originals if (o := self._origin(name))] for node in nodes}
        found = {node.name: self._weightiest(known[node.name]) for node in nodes}
        found |= self._normalisations(nodes)
        found |= {node.name: self._rounding(node, known) for node in nodes if not found[node.name]}
        for node in reversed(nodes):
            if not found[node.name] and node.op not in LAYOUT_OPS:
                readers = (other.name for other in nodes if node.name in other.inputs)
                found[node.name] = next((found[reader] for reader in readers if found[reader]), "")
        return found

    def _normalisations(self, nodes: Sequence[Executed]) -> dict[str, str]:
        """Their cores in order are the artifact's in order, if there are as many."""
        cores = [node.name for node in nodes if node.op == _NORMALISATION_CORE]
        sources = [name for name, op in self.ops.items() if op in _NORMALISATIONS]
        return dict(zip(cores, sources, strict=True)) if len(cores) == len(sources) else {}

    def _rounding(self, node: Executed, known: Mapping[str, Sequence[str]]) -> str:
        """For a rounding to int8 the QuantizeLinear whose scale the node before it took in."""
        if not node.rounds_to_int8:
            return ""
        taken_in = [o for tensor in node.inputs for o in known.get(tensor, ()) if self.ops[o] == _ROUNDING]
        return (taken_in or [""])[-1]

    def _weightiest(self, known: Sequence[str]) -> str:
        weighted = [origin for origin in known if self.ops[origin] in _WEIGHTED]
        return (weighted or known or [""])[-1]

    def _origin(self, name: str) -> str:
        if name in self.made_by:
            return self.made_by[name]
        while name and name not in self.ops:
            name = name.rpartition("/")[0]
        return name


def seconds_by_counter(request: Any, runs: int, plugin: str) -> dict[str, float]:
    """Counter → seconds of one run; those of nodes that the runtime did not execute are left out or 0.

    The CPU plugin reports the mean of all runs since the model was compiled, cut to whole microseconds; other plugins
    report the last run.
    """
    for _ in range(WARMUP):
        request.infer()
    if plugin == "CPU":
        return _from_running_means(request, runs)
    samples = [_microseconds(request, 1) for _ in range(runs)]
    return {name: middle_mean([sample.get(name, 0.0) for sample in samples]) * 1e-6 for name in samples[-1]}


def _from_running_means(request: Any, runs: int) -> dict[str, float]:
    """What the runs after the warm-up took; half a microsecond is what cutting takes off on average."""
    before, after = _microseconds(request, 0), _microseconds(request, runs)
    count = WARMUP + runs
    return {
        name: max((mean * count - before.get(name, 0.0) * WARMUP) / runs + 0.5, 0.0) * 1e-6
        for name, mean in after.items()
        if mean > 0
    }


def _microseconds(request: Any, runs: int) -> dict[str, float]:
    """The counters after that many more runs."""
    for _ in range(runs):
        request.infer()
    return {info.node_name: info.real_time.total_seconds() * 1e6 for info in request.get_profiling_info()}
