"""Calibration: measures models of a search space on a device, next to the reference, and fits a profile to them."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from autocompress.devices._timing import middle_mean
from autocompress.devices.base import Array, Device, NodeTime
from autocompress.errors import ProfileError
from autocompress.measure import measure, reference_seconds, to_ratio, undisturbed
from autocompress.profiles.files import Description, KernelRow, ModelRow, Role
from autocompress.profiles.profile import Profile
from autocompress.profiles.sites import Site, sites
from autocompress.workload import Kernel, Kernels

ROUNDS = 30
PROFILED_RUNS = 12
PROFILED_VISITS = 4
"""Models are profiled in turn, each this often: one session's luck, or a burst of other work, must not decide."""

_CHUNK = 24

Progress = Callable[[int, int], None]
"""Called with (models done, models in all)."""


class Planned(NamedTuple):
    """A plan to measure: its key, its kernels (a plan's as a mapping, lowered as a sequence) and its built model."""

    key: str
    kernels: Kernels | Sequence[Kernel]
    path: Path


@dataclass(frozen=True, slots=True)
class Measured:
    """What is kept of one measured model; `nodes` is empty for a held-out one."""

    key: str
    ratio: float
    low: float
    high: float
    gated: bool
    reference_s: float
    nodes: tuple[NodeTime, ...]


def calibrate(
    device: Device,
    plans: Sequence[tuple[str, Kernels | Sequence[Kernel], Path]],
    reference: Path,
    inputs: Sequence[Array],
    *,
    name: str | None = None,
    holdout: int | Collection[str] | None = None,
    progress: Progress | None = None,
    resume_dir: Path | None = None,
) -> Profile:
    """Measure whole models and their kernels, and fit a profile.

    `holdout` of the plans (a third by default), spread evenly, or those with these keys, are only measured whole: what
    is fitted without them is judged by them, and they calibrate the interval before they are fitted to as well. With
    `resume_dir`, what was measured is kept there and a calibration that was interrupted goes on. Raises ProfileError
    without plans, DeviceError if the device fails.
    """
    if not plans:
        raise ProfileError("calibration needs at least one plan to measure, got none")
    planned = [Planned(*plan) for plan in plans]
    if holdout is None or isinstance(holdout, int):
        held_out = _spread(planned, len(planned) // 3 if holdout is None else holdout)
    else:
        held_out = frozenset(holdout)
    log = _Log(resume_dir)
    todo = [plan for plan in planned if plan.key not in log.measured]
    for start in range(0, len(todo), _CHUNK):
        chunk = todo[start : start + _CHUNK]
        log.add(_measure_chunk(device, chunk, held_out, reference, inputs))
        if progress is not None:
            progress(len(log.measured), len(planned))
    return _profile(device, planned, held_out, log.measured, reference, name or slug(device.name))


def measured_before(resume_dir: Path | None) -> frozenset[str]:
    """Keys of the models that an interrupted calibration has measured: their files are not needed again."""
    return frozenset(_Log(resume_dir).measured)


def attribute(nodes: Sequence[NodeTime], names: Iterable[str], overhead_s: float = 0.0) -> dict[str, float]:
    """Kernel → seconds of the nodes that the runtime made of it, `overhead_s` taken off each.

    An artifact's nodes are named after their kernel (`conv1`, `conv1/Relu`), and so are the runtime's duplicates of
    them; the longest kernel name that fits counts.
    A node of the runtime's own making (changes of layout) goes to the kernel that made what it reads, or else to the
    one that reads what it makes.
    """
    owners = _owners(nodes, sorted(names, key=len, reverse=True))
    seconds: dict[str, float] = defaultdict(float)
    for node in nodes:
        owner = owners.get(node.name)
        if owner is not None:
            seconds[owner] += max(node.seconds - overhead_s, 0.0)
    return dict(seconds)


class _Log:
    """Measured models, one JSON line each, kept in a folder if there is one."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "measured.jsonl"
        self.measured: dict[str, Measured] = {}
        if self._path is not None and self._path.exists():
            self.measured = {m.key: m for m in map(_decode, self._path.read_text().splitlines()) if m is not None}

    def add(self, rows: Iterable[Measured]) -> None:
        for row in rows:
            self.measured[row.key] = row
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")


def _decode(line: str) -> Measured | None:
    """None for a line that an interruption cut short: that model is measured again."""
    try:
        row: dict[str, Any] = json.loads(line)
        return Measured(**{**row, "nodes": tuple(map(_decode_node, row["nodes"]))})
    except (ValueError, KeyError, TypeError):
        return None


def _decode_node(row: dict[str, Any]) -> NodeTime:
    tensors = {name: tuple(row[name]) for name in ("inputs", "outputs")}
    return NodeTime(**{**row, **tensors})


def _measure_chunk(
    device: Device, chunk: Sequence[Planned], held_out: Collection[str], reference: Path, inputs: Sequence[Array]
) -> list[Measured]:
    measurements = measure(device, {plan.key: plan.path for plan in chunk}, reference, inputs, rounds=ROUNDS)
    nodes = _profiled(device, {plan.key: plan.path for plan in chunk if plan.key not in held_out}, inputs)
    rows = []
    for plan in chunk:
        ratio, reference_s = to_ratio(measurements[plan.key]), reference_seconds(measurements[plan.key])
        rows.append(
            Measured(plan.key, ratio.value, ratio.low, ratio.high, ratio.gated, reference_s, nodes.get(plan.key, ()))
        )
    return rows


def _profiled(device: Device, models: Mapping[str, Path], inputs: Sequence[Array]) -> dict[str, tuple[NodeTime, ...]]:
    """Model → its nodes, each with the middle of its times over the visits; an estimate repeats exactly."""
    visits: dict[str, list[list[NodeTime]]] = {key: [] for key in models}
    with undisturbed():
        for turn in range(1 if device.estimate else PROFILED_VISITS):
            for key in list(models)[:: -1 if turn % 2 else 1]:
                visits[key].append(device.profile(models[key], inputs, PROFILED_RUNS))
    return {key: _typical(found) for key, found in visits.items()}


def _typical(visits: Sequence[Sequence[NodeTime]]) -> tuple[NodeTime, ...]:
    seconds: dict[str, list[float]] = defaultdict(list)
    for nodes in visits:
        for node in nodes:
            seconds[node.name].append(node.seconds)
    return tuple(replace(node, seconds=middle_mean(seconds[node.name])) for node in visits[0])


def _profile(
    device: Device,
    planned: Sequence[Planned],
    held_out: Collection[str],
    measured: Mapping[str, Measured],
    reference: Path,
    name: str,
) -> Profile:
    reference_s = median(measured[plan.key].reference_s for plan in planned)
    where = {plan.key: sites(plan.kernels) for plan in planned}
    overhead_s = _node_overhead([measured[p.key] for p in planned if p.key not in held_out], reference_s)
    description = describe(device, name, reference.name, reference_s, overhead_s)
    models = [_model_row(measured[p.key], where[p.key], p.key in held_out) for p in planned]
    fitted = [(measured[key], places) for key, places in where.items() if key not in held_out]
    kernels = _kernel_rows(fitted, reference_s, overhead_s)
    return Profile(description, kernels, tuple(models))


def slug(text: str) -> str:
    """A name in letters that any file and table takes: a profile of `tvm:rpc://board:9090` is `tvm-rpc-board-9090`."""
    return re.sub(r"[^\w.]+", "-", text)


def describe(
    device: Device, name: str, reference: str, reference_s: float, node_overhead_s: float = 0.0
) -> Description:
    """What a profile says of the device that it was measured on."""
    capabilities = device.capabilities()
    return Description(
        name=name, device=device.name, runtime=device.runtime, reference=reference, reference_s=reference_s,
        node_overhead_s=node_overhead_s, dtypes=tuple(sorted(capabilities.dtypes)),
        channel_multiple=dict(capabilities.channel_multiple), estimate=device.estimate,
        environment=device.environment(),
    )  # fmt: skip


def _model_row(measured: Measured, where: Mapping[str, Site], held_out: bool) -> ModelRow:
    role = Role.HELD_OUT if held_out else Role.FIT
    return ModelRow(
        id=measured.key, role=role, ratio=measured.ratio, low=measured.low, high=measured.high, gated=measured.gated,
        sites=tuple(where.values()),
    )  # fmt: skip


def _node_overhead(measured: Iterable[Measured], reference_s: float) -> float:
    """What profiling adds to a node: the median model's surplus of profiled over measured time, per node."""
    surplus = [
        (sum(node.seconds for node in row.nodes) - row.ratio * reference_s) / len(row.nodes)
        for row in measured
        if row.nodes
    ]
    return max(median(surplus), 0.0) if surplus else 0.0


def _kernel_rows(
    models: Sequence[tuple[Measured, Mapping[str, Site]]], reference_s: float, overhead_s: float
) -> dict[Site, KernelRow]:
    """Every site of every profiled model with the median of its times.

    A model's node times are scaled to add up to its measured time: that takes out the host's mood while profiling.
    """
    samples: dict[Site, list[float]] = defaultdict(list)
    for measured, where in models:
        if not measured.nodes:
            continue
        seconds = attribute(measured.nodes, where, overhead_s)
        total = sum(seconds.values())
        scale = measured.ratio * reference_s / total if total > 0 else 1.0
        for kernel, site in where.items():
            samples[site].append(scale * seconds.get(kernel, 0.0))
    return {site: KernelRow(time_s=median(times), samples=len(times)) for site, times in samples.items()}


def _spread(plans: Sequence[Planned], count: int) -> frozenset[str]:
    """Keys of `count` plans at equal distances."""
    step = len(plans) / count if count else 0
    return frozenset(plans[int((i + 0.5) * step)].key for i in range(min(count, len(plans))))


def _owners(nodes: Sequence[NodeTime], longest_first: Sequence[str]) -> dict[str, str]:
    named = {node.name: _named_after(node.source or node.name, longest_first) for node in nodes}
    owners = {name: owner for name, owner in named.items() if owner is not None}
    makers = {tensor: node for node in nodes for tensor in node.outputs}
    readers: dict[str, list[NodeTime]] = defaultdict(list)
    for node in nodes:
        for tensor in node.inputs:
            readers[tensor].append(node)
    for node in nodes:
        sources = [makers[tensor].name for tensor in node.inputs if tensor in makers]
        _inherit(owners, node.name, sources)
    for node in reversed(nodes):
        _inherit(owners, node.name, [reader.name for tensor in node.outputs for reader in readers[tensor]])
    return owners


def _inherit(owners: dict[str, str], node: str, neighbours: Sequence[str]) -> None:
    if node not in owners:
        known = [owners[name] for name in neighbours if name in owners]
        if known:
            owners[node] = known[0]


def _named_after(node: str, longest_first: Sequence[str]) -> str | None:
    for kernel in longest_first:
        if node.startswith(kernel) and (len(node) == len(kernel) or node[len(kernel)] in "/>"):
            return kernel
    return None
