"""Calibration: measures models of a search space on a device, next to the reference, and fits a profile to them."""

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from autocompress.devices.base import Array, Device, NodeTime
from autocompress.devices.measure import (
    RUNS_PER_ROUND,
    WARMUP_RUNS,
    Ratio,
    measure,
    reference_seconds,
    to_ratio,
    undisturbed,
)
from autocompress.profiles.files import Description, KernelRow, ModelRow, Role
from autocompress.profiles.profile import Profile
from autocompress.profiles.sites import Site, sites
from autocompress.vocabulary.errors import ProfileError
from autocompress.vocabulary.workload import Kernel, Kernels, Measurement

TURNS = 3
"""Every model is measured this often, minutes apart and in other company: what a host's other tenants are up to moves
the ratios of all models of one turn by up to 2 % together, and a burst of work some kernels by half."""

ROUNDS = 10
PROFILED_RUNS = 16
_CHUNK = 24

Progress = Callable[[int, int], None]
"""Called with (models done, models in all)."""


class Planned(NamedTuple):
    """A plan to measure: its key, its kernels (a plan's as a mapping, lowered as a sequence) and its built model."""

    key: str
    kernels: Kernels | Sequence[Kernel]
    path: Path


@dataclass(frozen=True, slots=True)
class Turn:
    """What is kept of one model's turn: samples as in a Measurement; no `nodes` for a model measured only whole."""

    key: str
    times_s: tuple[float, ...]
    reference_times_s: tuple[float, ...]
    gated: tuple[bool, ...]
    nodes: tuple[NodeTime, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """A model's turns taken together."""

    ratio: Ratio
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
    planned = [Planned(*plan) for plan in plans]
    if holdout is None or isinstance(holdout, int):
        held_out = _spread(planned, len(planned) // 3 if holdout is None else holdout)
    else:
        held_out = frozenset(holdout)
    measured = measure_in_turns(
        device, planned, reference, inputs, unprofiled=held_out, progress=progress, resume_dir=resume_dir
    )
    return _profile(device, planned, held_out, measured, reference, name or slug(device.name))


def measure_in_turns(
    device: Device,
    plans: Sequence[Planned],
    reference: Path,
    inputs: Sequence[Array],
    *,
    unprofiled: Collection[str] = (),
    progress: Progress | None = None,
    resume_dir: Path | None = None,
) -> dict[str, Measured]:
    """Key → what was found: models take turns, and the kernels of all but the `unprofiled` keys are timed too.

    Raises what `calibrate` raises.
    """
    if not plans:
        raise ProfileError("calibration needs at least one plan to measure, got none")
    log = _Log(resume_dir)
    turns = _turns(device)
    for turn in range(turns):
        todo = [plan for plan in plans if len(log.turns[plan.key]) <= turn]
        random.Random(turn).shuffle(todo)
        for start in range(0, len(todo), _CHUNK):
            log.add(_take_turn(device, todo[start : start + _CHUNK], unprofiled, reference, inputs))
            if progress is not None:
                progress(sum(len(log.turns[plan.key]) for plan in plans) // turns, len(plans))
    return {plan.key: _together(log.turns[plan.key]) for plan in plans}


def measured_before(device: Device, resume_dir: Path | None) -> frozenset[str]:
    """Keys of the models that an interrupted calibration is done with: their files are not needed again."""
    return frozenset(key for key, turns in _Log(resume_dir).turns.items() if len(turns) >= _turns(device))


def _turns(device: Device) -> int:
    """An estimate repeats exactly."""
    return 1 if device.estimate else TURNS


def attribute(nodes: Sequence[NodeTime], names: Iterable[str], overhead_s: float = 0.0) -> dict[str, float]:
    """Kernel → seconds of the nodes that the runtime made of it, `overhead_s` taken off each.

    An artifact's nodes are named after their kernel (`conv1`, `conv1/Relu`), and so are the runtime's duplicates of
    them; the longest kernel name that fits counts. A node of the runtime's own making (changes of layout) goes to the
    kernel that made what it reads, or else to the one that reads what it makes.
    """
    owners = _owners(nodes, sorted(names, key=len, reverse=True))
    seconds: dict[str, float] = defaultdict(float)
    for node in nodes:
        owner = owners.get(node.name)
        if owner is not None:
            seconds[owner] += max(node.seconds - overhead_s, 0.0)
    return dict(seconds)


class _Log:
    """Turns of models, one JSON line each, kept in a folder if there is one."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "turns.jsonl"
        self.turns: dict[str, list[Turn]] = defaultdict(list)
        if self._path is not None and self._path.exists():
            for turn in filter(None, map(_decode, self._path.read_text().splitlines())):
                self.turns[turn.key].append(turn)

    def add(self, turns: Iterable[Turn]) -> None:
        for turn in turns:
            self.turns[turn.key].append(turn)
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a") as file:
                    file.write(json.dumps(asdict(turn)) + "\n")


def _decode(line: str) -> Turn | None:
    """None for a line that an interruption cut short: that turn is taken again."""
    try:
        row: dict[str, Any] = json.loads(line)
        samples = {name: tuple(row[name]) for name in ("times_s", "reference_times_s", "gated")}
        return Turn(row["key"], **samples, nodes=tuple(map(_decode_node, row["nodes"])))
    except (ValueError, KeyError, TypeError):
        return None


def _decode_node(row: dict[str, Any]) -> NodeTime:
    tensors = {name: tuple(row[name]) for name in ("inputs", "outputs")}
    return NodeTime(**{**row, **tensors})


def _take_turn(
    device: Device, chunk: Sequence[Planned], unprofiled: Collection[str], reference: Path, inputs: Sequence[Array]
) -> list[Turn]:
    found = measure(device, {plan.key: plan.path for plan in chunk}, reference, inputs, rounds=ROUNDS)
    nodes: dict[str, tuple[NodeTime, ...]] = {}
    with undisturbed():
        for plan in chunk:
            if plan.key not in unprofiled:
                nodes[plan.key] = tuple(device.profile(plan.path, inputs, PROFILED_RUNS))
    return [Turn(k, m.times_s, m.reference_times_s, m.gated, nodes.get(k, ())) for k, m in found.items()]


def _together(turns: Sequence[Turn]) -> Measured:
    def joined(name: str) -> tuple[Any, ...]:
        return tuple(chain.from_iterable(getattr(turn, name) for turn in turns))

    samples = joined("times_s"), joined("reference_times_s")
    whole = Measurement(*samples, WARMUP_RUNS, RUNS_PER_ROUND, joined("gated"), {})
    return Measured(to_ratio(whole), reference_seconds(whole), _typical([turn.nodes for turn in turns]))


def _typical(visits: Sequence[Sequence[NodeTime]]) -> tuple[NodeTime, ...]:
    """Each node with the median of its times over the turns in which it was profiled."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for nodes in visits:
        for node in nodes:
            seconds[node.name].append(node.seconds)
    return tuple(replace(node, seconds=median(seconds[node.name])) for node in next(filter(None, visits), ()))


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
    models = [_model_row(p.key, measured[p.key], where[p.key], p.key in held_out) for p in planned]
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


def _model_row(key: str, measured: Measured, where: Mapping[str, Site], held_out: bool) -> ModelRow:
    role = Role.HELD_OUT if held_out else Role.FIT
    ratio = measured.ratio
    return ModelRow(
        id=key, role=role, ratio=ratio.value, low=ratio.low, high=ratio.high, gated=ratio.gated,
        sites=tuple(where.values()),
    )  # fmt: skip


def _node_overhead(measured: Iterable[Measured], reference_s: float) -> float:
    """What profiling adds to a node: the median model's surplus of profiled over measured time, per node."""
    surplus = [
        (sum(node.seconds for node in row.nodes) - row.ratio.value * reference_s) / len(row.nodes)
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
        scale = measured.ratio.value * reference_s / total if total > 0 else 1.0
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
