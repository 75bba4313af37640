"""Profiles for one model: plans like those a search visits are built, measured on the device, and fitted."""

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from autocompress.compression.build import build, plan_kernels
from autocompress.compression.methods import methods
from autocompress.compression.methods.method import Approach
from autocompress.compression.plan import Plan
from autocompress.compression.tracing import trace_task
from autocompress.devices import Device, open_device
from autocompress.export.onnx import plain_onnx, to_onnx
from autocompress.graph.types import Graph
from autocompress.profiles import Planned, Profile, calibrate, describe, measure_in_turns, measured_before, slug
from autocompress.profiles.onboarding import choose_models, onboard
from autocompress.search.space import Space, find_space
from autocompress.task.calling import calling_of, flat_model
from autocompress.task.checks import check_task
from autocompress.task.task import Task
from autocompress.vocabulary.errors import Failure, StorageError

PLANS = 60
"""Models measured for a profile; a third of them are held out to judge it."""

BUILD_SHARE = 0.5
"""Share of the time that building may take; the rest is for measuring."""

LEAST_PLANS = 12

Tell = Callable[[int, int], None]
"""Called with (steps done, steps in all): every model is built, then measured."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What measuring a model's plans takes: the traced model, the device, the original as a file, one sample of its
    inputs, and a folder to build in."""

    graph: Graph
    device: Device
    reference: Path
    inputs: Sequence[NDArray[np.generic]]
    folder: Path


def profile_task(
    task: Task,
    device: str = "ort:cpu",
    *,
    plans: int = PLANS,
    seed: int = 0,
    progress: Tell | None = None,
    resume_dir: Path | None = None,
) -> Profile:
    """A profile of a device for this task's model, measured here and now.

    With `resume_dir`, what was measured is kept there, and an interrupted calibration goes on. Raises TaskError for a
    task that can't be used, TraceError for a model that can't be followed, DeviceError for a device that fails.
    """
    with _bench(task, device) as bench:
        kept = resume_dir and resume_dir / slug(f"{bench.graph.fingerprint} {bench.device.name} {bench.device.runtime}")
        return profile_bench(bench, plans, seed, progress=progress, resume_dir=kept)


def onboard_task(
    task: Task, device: str, known: Sequence[Profile], *, models: int = 10, seed: int = 0, progress: Tell | None = None
) -> Profile:
    """A profile of a device for this task's model from few models measured on it, and other devices' profiles.

    Raises ProfileError for fewer than 3 models or no known profile, and what `profile_task` does.
    """
    tell = progress or (lambda done, whole: None)
    with _bench(task, device) as bench:
        plans = sample_plans(find_space(bench.graph, methods(), bench.device.capabilities()), PLANS, seed)
        kernels = [plan_kernels(plan, bench.graph) for plan in plans]
        chosen = choose_models(known, kernels, min(models, len(plans)))
        whole = 2 * len(chosen)
        built = []
        for done, index in enumerate(chosen):
            tell(done, whole)
            built.append(Planned(str(index), kernels[index], bench.folder / f"{index}.onnx"))
            to_onnx(build(plans[index], bench.graph, None), built[-1].path, plans[index].key)
        found = measure_in_turns(
            bench.device, built, bench.reference, bench.inputs, unprofiled=[plan.key for plan in built],
            progress=lambda done, _: tell(len(chosen) + done, whole),
        )  # fmt: skip
    reference_s = median(measured.reference_s for measured in found.values())
    description = describe(bench.device, slug(bench.device.name), bench.reference.name, reference_s)
    return onboard(description, known, kernels, {int(key): measured.ratio.value for key, measured in found.items()})


@contextmanager
def _bench(task: Task, device: str) -> Iterator[Bench]:
    check_task(task)
    calling = calling_of(task)
    graph, opened = trace_task(task, calling), open_device(device)
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        reference = Path(folder) / "original.onnx"
        plain_onnx(flat_model(task.model, calling), calling.examples, reference)
        yield Bench(graph, opened, reference, calling.one_sample(), Path(folder))


def profile_bench(
    bench: Bench,
    plans: int = PLANS,
    seed: int = 0,
    *,
    seconds: float | None = None,
    progress: Tell | None = None,
    resume_dir: Path | None = None,
) -> Profile:
    """A profile from sampled plans of a traced model, whose files are removed afterwards.

    With `seconds`, as many of the plans as building has time for, but at least LEAST_PLANS. Plans that can't be built,
    or that the device refuses, are left out; if it refuses all, its reason is raised.
    """
    graph, device = bench.graph, bench.device
    space = find_space(graph, methods(), device.capabilities())
    begun, tell = time.monotonic(), progress or (lambda done, whole: None)
    known = measured_before(device, resume_dir)
    built = []
    sampled = sample_plans(space, plans, seed)
    refused: Failure | None = None
    for count, plan in enumerate(sampled):
        tell(count, 2 * len(sampled))
        late = seconds is not None and time.monotonic() - begun > BUILD_SHARE * seconds
        if late and count >= LEAST_PLANS:
            break
        path = bench.folder / f"{plan.key}.onnx"
        try:
            if plan.key not in known:
                to_onnx(build(plan, graph, None), path, plan.key)
                device.open(path)
        except StorageError:
            raise
        except Failure as error:
            refused = error
            continue
        built.append((plan.key, plan_kernels(plan, graph), path))
    if refused is not None and not built:
        raise refused
    try:
        return calibrate(
            device, built, bench.reference, bench.inputs, progress=lambda done, whole: tell(whole + done, 2 * whole),
            resume_dir=resume_dir,
        )  # fmt: skip
    finally:
        for _, _, path in built:
            path.unlink(missing_ok=True)


def sample_plans(space: Space, count: int, seed: int) -> list[Plan]:
    """Different plans: the original and the uniform formats first, then random ones, few of them mainly in fp32.

    How much is cut, dropped and factorised varies from plan to plan, so that kernels of all sizes and neighbourhoods
    come up. Fewer than `count` if the space holds no more.
    """
    draw = random.Random(seed)
    alike = [some for uniform in space.uniform.values() for some in (uniform, dict(list(uniform.items())[1:]))]
    found = {plan.key: plan for plan in map(space.plan, ({}, *alike))}
    for _ in range(20 * count):
        if len(found) >= count:
            break
        plan = space.plan(_drawn(space, draw))
        found.setdefault(plan.key, plan)
    return list(found.values())[:count]


def _drawn(space: Space, draw: random.Random) -> dict[str, int]:
    formats, cut = draw.choice((0.0, 0.5, 0.9, 1.0, 1.0, 1.0)), draw.random()
    dropped, replaced, other = 0.5 * draw.random(), draw.choice((0.0, 0.0, 0.0, 0.3)), draw.random() < 0.15
    choice: dict[str, int] = {}
    for decision in space.decisions:
        last, approach = len(decision.options) - 1, decision.by.approach
        droppable = approach is Approach.AMOUNT and space.drops(decision)
        if approach is Approach.FORMAT:
            chosen = draw.random() < formats
            choice[decision.name] = draw.randint(1, last) if chosen and last > 1 else int(chosen)
        elif approach is Approach.MODEL:
            choice[decision.name] = draw.randint(1, last) if other else 0
        elif approach is Approach.REPLACEMENT:
            choice[decision.name] = draw.randint(1, last) if draw.random() < replaced else 0
        elif droppable and draw.random() < dropped:
            choice[decision.name] = last
        elif draw.random() < cut:
            choice[decision.name] = draw.randint(0, last - droppable)
    return choice
