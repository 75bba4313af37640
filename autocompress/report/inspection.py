"""What `inspect` tells of a model: its layers, channel groups, residual branches, and where its time goes."""

from dataclasses import asdict, dataclass
from logging import getLogger
from typing import Any

from autocompress.compression.methods import methods
from autocompress.compression.tracing import trace_task
from autocompress.graph import Graph
from autocompress.graph.kernels import KNOWN_OPS
from autocompress.profiles import Profile
from autocompress.search.paying import paying_space
from autocompress.search.space import Slowing
from autocompress.task.onnx_file import notes_of
from autocompress.task.task import Task
from autocompress.vocabulary.precision import is_fixed
from autocompress.vocabulary.workload import Latency, Workload, distinct_weights, total_macs

_log = getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One fused kernel of the original, one per call of a layer; weights that calls share stand at the first.

    `seconds` and `share` are predicted, None without a profile; `note` says so where little stands behind them.
    """

    name: str
    op: str
    shape: str
    fused: str
    macs: int
    weights: int
    seconds: float | None
    share: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """Channels that are cut together; `frozen` says why not, `drops` which branch goes with the last."""

    id: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    drops: str | None
    frozen: str | None


@dataclass(frozen=True, slots=True)
class Inspection:
    """`parameters` counts shared ones once, `macs` every call of the user's own operators (not what an exact rewrite
    puts in their place). `frozen_layers` maps a layer to the reason it is left alone. `slowing` are the options that a
    search on this profile would not offer, as the device would not get faster. Without a profile there are none, and no
    `latency`."""

    fingerprint: str
    parameters: int
    macs: int
    kernels: tuple[KernelRow, ...]
    groups: tuple[GroupRow, ...]
    frozen_layers: dict[str, str]
    latency: Latency | None
    profile: str | None
    slowing: tuple[Slowing, ...] = ()
    notes: tuple[str, ...] = ()
    """What a model that came from a file does otherwise than the file."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect_task(task: Task, profile: Profile | None = None) -> Inspection:
    """Trace the task's model and price each of its kernels. Raises TraceError where it can't be captured."""
    graph = trace_task(task)
    _log.info("pricing %d kernels, and each decision by itself", len(graph.kernels))
    rows = _kernel_rows(graph, profile)
    return Inspection(
        graph.fingerprint,
        sum(p.numel() for p in task.model.parameters()),
        total_macs(kernel for kernel in graph.kernels.values() if not is_fixed(kernel)),
        rows,
        tuple(GroupRow(g.id, g.channels, g.producers, g.consumers, g.branch, g.frozen) for g in graph.groups.values()),
        {name: layer.frozen for name, layer in graph.layers.items() if layer.frozen},
        profile.predict(graph.kernels) if profile else None,
        profile.name if profile else None,
        paying_space(graph, methods(), profile.capabilities, [profile]).slowing if profile else (),
        notes_of(task.model),
    )


def _kernel_rows(graph: Graph, profile: Profile | None) -> tuple[KernelRow, ...]:
    seconds = profile.breakdown(graph.kernels) if profile else {}
    guessed = profile.guessed(graph.kernels) if profile else frozenset()
    total = sum(seconds.values())
    first = distinct_weights(graph.kernels.values())
    rows = []
    for name, kernel in graph.kernels.items():
        work = kernel.workload
        share = seconds[name] / total if name in seconds and total else None
        weights = work.weights if name in first else 0
        rows.append(KernelRow(
            name, work.op, shape_of(work), "+".join(work.fused), work.macs, weights, seconds.get(name), share,
            _note(work, name in guessed),
        ))  # fmt: skip
    return tuple(rows)


def _note(work: Workload, guessed: bool) -> str:
    """What a price stands on, where no such kernel was measured or the operator is unknown."""
    if not guessed and (work.op in KNOWN_OPS or work.macs):
        return ""
    why = "never measured" if work.op in KNOWN_OPS else "unknown operator"
    return f"{why}: priced by its {'bytes and MACs' if work.macs else 'bytes alone'}"


def shape_of(work: Workload) -> str:
    """`16 → 32 3x3/2 @ 16x16`: channels, window, stride and output positions, each only where there is one."""
    parts = [f"{work.in_channels} → {work.out_channels}"]
    if work.window:
        stride = f"/{max(work.stride)}" if work.stride and max(work.stride) > 1 else ""
        parts.append(f"{_by(work.window)}{stride}")
    if work.groups > 1:
        parts.append(f"in {work.groups} groups")
    if work.out_size:
        parts.append(f"@ {_by(work.out_size)}")
    return " ".join(parts)


def _by(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))
