"""The evaluator of real models: builds with torch, exports to ONNX, scores and times in the runtime of a device."""

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.fx import GraphModule

from autocompress.compression.build import finalize, plan_kernels, restructure, standing
from autocompress.compression.importance import require_importance
from autocompress.compression.methods import methods
from autocompress.compression.plan import Plan
from autocompress.compression.repair.distill import Budget, Recipe, Teacher, fine_tune
from autocompress.compression.repair.matching import divergence, outputs_of
from autocompress.compression.repair.statistics import collect
from autocompress.compression.tracing import trace_task
from autocompress.devices import Device, open_device
from autocompress.evidence.card import Card, write_card
from autocompress.evidence.outputs import Rows
from autocompress.evidence.scores import top1
from autocompress.evidence.sensitivity import rounding_effect
from autocompress.evidence.verify import (
    model_rows,
    precision_of,
    predictor,
    provider_counts,
    session_rows,
    validation_batch,
    worst_parity,
)
from autocompress.export.onnx import plain_onnx, to_onnx
from autocompress.graph.types import Graph
from autocompress.profiles import Profile
from autocompress.profiles import load as load_profile
from autocompress.search.candidate import Candidate
from autocompress.search.config import Settings
from autocompress.search.engine import Baseline, Lesson, Price, Setup, Start, Timings, Trained
from autocompress.search.paying import paying_space
from autocompress.search.profiling import Bench, profile_bench
from autocompress.search.space import Space, find_space, single_plans
from autocompress.search.targets import Target, Targets
from autocompress.task.batches import subset
from autocompress.task.calling import flat_model
from autocompress.task.checks import check_task
from autocompress.task.onnx_file import notes_of
from autocompress.task.task import Loader, Score, Task
from autocompress.vocabulary.errors import BuildError, ExportError, TaskError, VerificationError
from autocompress.vocabulary.formats import format_of
from autocompress.vocabulary.workload import Artifact, Kernel, Kernels, Latency, distinct_weights, total_macs

ORIGINAL = "original.onnx"

NODE_BYTES = 400
"""What the description of one kernel takes in a file, weights aside; only for the predicted size."""

TELL_EVERY_S = 1.0
"""A training tells the watcher how it goes about this often."""


class TorchEvaluator:
    """One task on one device, or several. See engine.Evaluator for what each method promises."""

    def __init__(self, task: Task, settings: Settings, setup: Setup) -> None:
        self._task = task
        self._settings = settings
        self._tell = setup.tell
        require_importance(settings.importance)
        setup.tell("setup", "checking the task")
        self._calling = check_task(task)
        for note in notes_of(task.model):
            setup.tell("setup", note)
        setup.tell("setup", "tracing the model and proving its channel groups")
        self.graph = trace_task(task, self._calling)
        setup.tell("setup", "collecting statistics on calibration data")
        calibration = self._calling.split(_calibration(task))
        self.statistics = collect(self.graph, calibration, settings.samples.calibration)
        self._probes = subset(self.statistics.batches, settings.samples.sensitivity)
        self._wanted = outputs_of(self.graph.model, self._probes)
        validation = self._calling.split(task.validation)
        self._subset = self._calling.as_user_split(subset(validation, settings.samples.subset))
        self._checked = validation_batch(task, self._calling)
        self._own_profile = setup.folder / "profile"
        self._original = setup.folder / "models" / ORIGINAL
        self._original.parent.mkdir(parents=True, exist_ok=True)
        self._plain = plain_onnx(flat_model(task.model, self._calling), self._calling.examples, self._original)
        sample = self._calling.one_sample()
        aims = [Target(profile, self._original, sample) for profile in self._profiles(setup)]
        self.targets = Targets(settings.objective, aims)
        self._teacher = Teacher(self.graph, settings.fine_tuning.precision)
        self._threads = os.cpu_count() or 1
        self._outputs: dict[str, Rows] = {}
        self._rounding: dict[str, tuple[float, ...]] = {}
        self._scores: dict[tuple[str, str, str], Score] = {}

    @property
    def fingerprint(self) -> str:
        return self.graph.fingerprint

    @property
    def trainable(self) -> bool:
        return self._task.train is not None

    @property
    def environment(self) -> Mapping[str, str]:
        device = self.targets.device()
        return {**device.environment(), "device": device.name, "profile": ", ".join(self.targets.by_name)}

    def space(self) -> Space:
        """What pays on at least one device; where a size is to be kept, what only makes a model smaller is offered too.

        It is decided by the profiles as they were before any search corrected them: a resumed search finds the same.
        """
        asked, capabilities = self._settings, self.targets.capabilities
        found = tuple(method.using(asked.importance) for method in methods())
        if asked.max_size_bytes is not None:
            return find_space(self.graph, found, capabilities, decisions=asked.decisions)
        settled = [profile.without_search() for profile in self.targets.profiles]
        space = paying_space(self.graph, found, capabilities, settled, asked.decisions)
        for profile in self.targets.profiles:
            profile.warm(plan_kernels(plan, self.graph) for plan in single_plans(space))
        return space

    def kernels(self, plan: Plan) -> Kernels:
        return plan_kernels(plan, self.graph)

    def price(self, plan: Plan) -> Price:
        kernels = self.kernels(plan)
        found = self.targets.price(kernels)
        size_bytes, params = _size(kernels.values())
        macs = total_macs(kernels.values())
        return Price(self.targets.combined(found), size_bytes, params, macs, found, self.targets.each)

    def baseline(self) -> Baseline:
        """The original's own figures; the model after exact rewrites alone is timed beside it."""
        rewritten = self._original.with_name("rewritten.onnx")
        original = Plan(self.fingerprint)
        self.export(original, None, rewritten)
        kernels = plan_kernels(original, self.graph)
        times = self.targets.baseline(rewritten, kernels)
        rewritten.unlink()
        first = times[self.targets.first]
        params = sum(parameter.numel() for parameter in self._task.model.parameters())
        return Baseline(
            score=self.score(self._original, None), subset_score=self.score(self._original, len(self._subset)),
            latency=first[0], size_bytes=self._plain.size_bytes, params=params, macs=total_macs(kernels.values()),
            test_score=self.test_score(self._original), rewritten=first[1],
            devices={name: found[0] for name, found in times.items()},
            rewritten_on={name: found[1] for name, found in times.items()},
            doubts=self.targets.doubts(times, kernels, original.key),
        )  # fmt: skip

    def adopt(self, baseline: Baseline) -> None:
        original = Plan(self.fingerprint)
        self.targets.adopt(baseline, plan_kernels(original, self.graph), original.key)

    def share(self, workers: int) -> None:
        self._threads = max(1, (os.cpu_count() or 1) // workers)
        torch.set_num_threads(self._threads)

    def divergence(self, plan: Plan) -> float:
        return self._distance(self._final(plan, None))

    def export(self, plan: Plan, weights: Path | None, path: Path) -> Artifact:
        model = self._final(plan, weights)
        artifact = to_onnx(model, path, plan.key)
        outputs = self._outputs[artifact.sha256] = model_rows(model, self._checked)
        if not np.isfinite(outputs.values).all():
            raise BuildError(f"plan {plan.key} makes outputs that are not finite of the first validation samples")
        self._rounding[artifact.sha256] = rounding_effect(model, self._checked)
        return artifact

    def score(self, path: Path, samples: int | None, profile: str | None = None) -> Score:
        return self._score(path, "validation" if samples is None else "subset", self.targets.device(profile))

    def test_score(self, path: Path) -> Score | None:
        return self._score(path, "test", self.targets.device()) if self._task.test is not None else None

    def fine_tune(self, plan: Plan, starts: Sequence[Start], seconds: float, weights: Path) -> Trained:
        assert self._task.train is not None, "only trainable tasks are fine-tuned"
        begun = time.monotonic()
        made = [self._begun(plan, start) for start in starts]
        if all(start.plan != plan for start in starts):
            made.append(self._structured(plan, None))
        distances = [self._distance(model) for model in made]
        closest = distances.index(min(distances))
        model = made[closest]
        budget = Budget(max(0.0, seconds - (time.monotonic() - begun)))
        report = fine_tune(
            model, self._teacher, self._calling.split(self._task.train), budget, self._recipe(model),
            self._watched(plan, seconds),
        )  # fmt: skip
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
        return Trained(closest if closest < len(starts) else None, report.seconds)

    def untaught(self, plan: Plan) -> bool:
        return standing(plan, self.graph)[1] is not self.graph

    def measure(
        self, paths: Mapping[str, Path], seconds: float, predicted: Mapping[str, Mapping[str, Latency]]
    ) -> Timings:
        return self.targets.measure(paths, seconds, self._settings.measuring.rounds, predicted)

    def learn(self, timed: Sequence[Candidate]) -> list[Lesson]:
        """The run's own profile is written with what it has learnt, so that a resumed search knows it too."""
        lessons = self.targets.learn([(plan_kernels(c.plan, self.graph), c.devices) for c in timed])
        if lessons and not self._settings.profile:
            self.targets.profiles[0].save(self._own_profile)
        return lessons

    def certify(self, candidate: Candidate, artifact: Artifact, baseline: Baseline) -> None:
        outputs = self._outputs[artifact.sha256]
        device = self.targets.runs_on(candidate.fastest_on)
        session = device.open(artifact.path)
        found = session_rows(session, self._checked)
        providers = provider_counts(session)
        rounding, kernels = self._rounding[artifact.sha256], sum(providers.values())
        same = worst_parity(outputs, found, rounding, kernels, precision_of(device))
        if not same.agrees:
            raise VerificationError(
                f"{artifact.path.name} differs from its torch model by {same.rms_difference:.3g} (root mean square), "
                f"{same.tolerance:.3g} is explained by rounding; it is not offered"
            )
        assert candidate.score is not None, "only scored candidates are certified"
        card = Card(
            id=candidate.id, plan=candidate.plan, artifact=artifact, validation=candidate.score,
            test=candidate.test_score, predicted=candidate.latency, measured=candidate.measured,
            baseline=baseline.latency, parity=same, outputs=outputs.as_lists(), providers=providers,
            environment={**self.environment, **device.environment()}, widths=outputs.widths,
            rounding=rounding,
        )  # fmt: skip
        write_card(card)

    def _distance(self, model: GraphModule) -> float:
        found = divergence(model.eval(), self._probes, self._wanted)
        return found if math.isfinite(found) else math.inf

    def _recipe(self, model: GraphModule) -> Recipe:
        options = self._settings.fine_tuning
        present = {node.name for node in model.graph.nodes}
        features = tuple(add for add in self.graph.branches if add in present) if options.feature_weight else ()
        return Recipe(
            rate=options.learning_rate, momentum=options.momentum, weight_decay=options.weight_decay,
            warmup=options.warm_up, temperature=options.temperature, final_temperature=options.final_temperature,
            label_weight=options.label_weight, feature_weight=options.feature_weight, clip=options.clip,
            precision=options.precision, loss=self._calling.loss(self._task.loss), feature_nodes=features,
        )  # fmt: skip

    def _watched(self, plan: Plan, seconds: float) -> Callable[[float, float], bool]:
        """Tells the watcher every second or so how a training goes."""
        told = -math.inf

        def watch(progress: float, loss: float) -> bool:
            nonlocal told
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                self._tell("fine-tuning", f"plan {plan.key}, {progress:.0%} of {seconds:.0f} s, loss {loss:.3g}")
            return True

        return watch

    def _profiles(self, setup: Setup) -> list[Profile]:
        """The named profiles, the one this run measured before, or a new one."""
        if self._settings.profile:
            return [load_profile(name) for name in self._settings.profile]
        own = self._own_profile
        if (own / "profile.toml").exists():
            return [load_profile(own)]
        device = open_device(self._settings.device)
        found = profile_bench(
            Bench(self.graph, device, self._original, self._calling.one_sample(), setup.folder),
            seed=self._settings.seed, seconds=setup.seconds(),
            progress=lambda done, whole: setup.tell("setup", f"profiling the device, step {done} of {whole}"),
        )  # fmt: skip
        found.save(own)
        return [found]

    def _final(self, plan: Plan, weights: Path | None) -> GraphModule:
        with torch.no_grad():
            model = self._structured(plan, weights)
            return finalize(model, plan, self.graph, self.statistics, self._settings.ranges)

    def _structured(self, plan: Plan, weights: Path | None) -> GraphModule:
        model = restructure(plan, self.graph, self.statistics, repaired=weights is None)
        if weights is not None:
            model.load_state_dict(load_file(weights))
        return model

    def _begun(self, plan: Plan, start: Start) -> GraphModule:
        """The plan's model made from trained weights, its own or another plan's, instead of the original's.

        What another plan left whole takes part in cutting and repair as the original's weights do; what both cut alike
        is taken over as it is.
        """
        if self.untaught(plan):
            same = standing(plan, self.graph)[1] is standing(start.plan, self.graph)[1]
            return self._structured(plan, start.weights if same else None)
        if start.plan == plan:
            return self._structured(plan, start.weights)
        source = self._structured(start.plan, start.weights).state_dict()
        donor = _with_weights(self.graph, source)
        model = restructure(plan, donor, self.statistics)
        whole = self.graph.model.state_dict()
        state = model.state_dict()
        alike = {
            name: source[name]
            for name, tensor in state.items()
            if name in source and source[name].shape == tensor.shape and _shape(whole, name) != tensor.shape
        }
        model.load_state_dict({**state, **alike})
        return model

    def _score(self, path: Path, split: str, device: Device) -> Score:
        """Equal files score the same: each is looked at once per split and device."""
        key = sha256(path.read_bytes()).hexdigest(), split, device.name
        if key not in self._scores:
            loader = self._subset if split == "subset" else getattr(self._task, split)
            self._scores[key] = self._scored(path, loader, device)
        return self._scores[key]

    def _scored(self, path: Path, split: Loader, device: Device) -> Score:
        session = device.open(path, threads=self._threads)
        try:
            return (self._task.score or top1)(predictor(session, self._calling), split)
        except TaskError as error:
            if path == self._original:
                raise
            raise ExportError(f"{path.name} has no score: {error}") from error


def open_evaluator(task: Task, settings: Settings) -> Callable[[Setup], TorchEvaluator]:
    """What `run` opens once it holds the run's folder."""
    return lambda setup: TorchEvaluator(task, settings, setup)


def _calibration(task: Task) -> Loader:
    found = task.calibration if task.calibration is not None else task.train
    if found is None:
        raise TaskError("Task.calibration and Task.train are both missing; give a few hundred inputs as calibration")
    return found


def _size(kernels: Iterable[Kernel]) -> tuple[int, int]:
    """(bytes of the exported file, parameters), both before building; weights that several calls share count once."""
    everything = list(kernels)
    size_bytes, params = NODE_BYTES * len(everything), 0
    for kernel in distinct_weights(everything).values():
        w = kernel.workload
        size_bytes += format_of(w.dtype).stored_bytes(w.weights, w.out_channels)
        params += w.weights + w.out_channels
    return size_bytes, params


def _with_weights(graph: Graph, state: Mapping[str, Tensor]) -> Graph:
    """The graph with a model that has these weights wherever they have the original's shape."""
    model = copy.deepcopy(graph.model)
    whole = model.state_dict()
    model.load_state_dict({n: state[n] if _shape(state, n) == tensor.shape else tensor for n, tensor in whole.items()})
    return replace(graph, model=model)


def _shape(state: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return state[name].shape if name in state else None
