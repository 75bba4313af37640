"""A whole search beside its baselines: every system's models on one task, chosen by validation, timed in one process.

All models are timed again at the end, in turn with the original as it came. The test split is looked at once per chosen
model.
"""

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from environment import environment
from rich.console import Console
from rich.table import Table

import autocompress as ac
from autocompress.compression.build import finalize, restructure
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.plan import Plan, Step
from autocompress.compression.repair.distill import Budget, Teacher, fine_tune
from autocompress.compression.repair.statistics import Statistics, collect
from autocompress.compression.tracing import trace_task
from autocompress.devices import open_device
from autocompress.devices.measure import Ratio, measure, to_ratio
from autocompress.evidence.scores import top1
from autocompress.evidence.verify import predictor
from autocompress.export.onnx import plain_onnx, to_onnx
from autocompress.graph.types import Graph
from autocompress.search import Study
from autocompress.search.config import load_settings, override
from autocompress.task.calling import Calling, calling_of, flat_model
from autocompress.task.task import Loader, Score, Task
from autocompress.vocabulary.formats import INT8

Minutes = Annotated[float, typer.Option(help="Time of the search, everything in.")]
Folder = Annotated[Path, typer.Option(help="Where runs and models go.")]
UniformToo = Annotated[bool, typer.Option("--uniform/--no-uniform", help="Uniform pruning, trained as long.")]
RandomToo = Annotated[bool, typer.Option("--random/--no-random", help="Random search for as long.")]

DROPS = (0.005, 0.01, 0.02)
UNIFORM_WIDTHS = (0.75, 0.5)
ROUNDS = 120

console = Console()


@dataclass(slots=True)
class Model:
    """One exported model of one system, with what was found out about it."""

    system: str
    name: str
    path: Path
    validation: Score
    ratio: Ratio | None = None
    test: Score | None = None

    @property
    def speedup(self) -> float:
        assert self.ratio is not None
        return 1 / self.ratio.value

    def document(self, original: "Model") -> dict[str, Any]:
        assert self.ratio is not None
        return {
            "system": self.system,
            "name": self.name,
            "validation": self.validation.value,
            "validation_drop_points": 100 * (original.validation.value - self.validation.value),
            "test": self.test.value if self.test else None,
            "test_drop_points": 100 * (original.test.value - self.test.value) if self.test and original.test else None,
            "samples": self.validation.samples,
            "stderr_points": 100 * self.validation.stderr,
            "speedup": self.speedup,
            "speedup_low": 1 / self.ratio.high,
            "speedup_high": 1 / self.ratio.low,
            "bytes": self.path.stat().st_size,
        }


@dataclass(slots=True)
class Contest:
    """One task, the original's file, and the models of all systems that were tried on it."""

    task: Task
    out: Path
    minutes: float
    seed: int
    calling: Calling = field(init=False)
    original: Model = field(init=False)
    models: list[Model] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.calling = calling_of(self.task)
        path = self.out / "original.onnx"
        plain_onnx(flat_model(self.task.model, self.calling), self.calling.examples, path)
        self.original = Model("original", "as it came", path, self.score(path, self.task.validation))

    def score(self, path: Path, split: Loader) -> Score:
        """The task's own score of a file in ONNX Runtime."""
        judge = self.task.score or top1
        return judge(predictor(open_device("ort:cpu").open(path, threads=2), self.calling), split)

    def run(self, uniform_too: bool, random_too: bool) -> None:
        """The search, then its baselines; uniform pruning is trained as long as the search trained its finalists."""
        study = self.search()
        self.stage_seconds = dict(study.stage_seconds)
        self.baselines(self.stage_seconds.get("fine_tuning", 0.0) if uniform_too else 0.0)
        if random_too:
            self.search("random search", "random", sampler="random", warm_start={"enabled": False})

    def search(self, system: str = "autocompress", folder: str = "search", **changed: Any) -> Study:
        """Adds the front of a search with that long a time and these settings otherwise."""
        settings = load_settings(max_drop=max(DROPS), time_s=60 * self.minutes, seed=self.seed)
        study = ac.search(self.task, settings=override(settings, **changed), out=self.out / folder)
        self.models += [
            Model(system, c.id, study.path / c.artifact, c.score)
            for c in study.front
            if c.artifact is not None and c.score is not None
        ]
        return study

    def baselines(self, training_s: float) -> None:
        """Exact rewrites, int8 alone and uniform pruning with int8 that is trained for `training_s` seconds in all."""
        graph = trace_task(self.task, self.calling)
        statistics = collect(graph, self.calling.split(self.task.calibration or self.task.train or ()))
        first = next(iter(graph.layers))
        for name, steps in {
            "exact rewrites only": (),
            "all": int8(graph),
            "all but the stem": int8(graph, first),
        }.items():
            self._build("int8 only" if steps else "rewrites", name, Plan(graph.fingerprint, steps), graph, statistics)
        for width in UNIFORM_WIDTHS if training_s else ():
            plan, share = uniform(graph, width), training_s / len(UNIFORM_WIDTHS)
            self._build("uniform pruning", f"inner {width:.0%}", plan, graph, statistics, share)

    def _build(
        self, system: str, name: str, plan: Plan, graph: Graph, statistics: Statistics, seconds: float = 0
    ) -> None:
        model = restructure(plan, graph, statistics)
        if seconds:
            assert self.task.train is not None
            fine_tune(model, Teacher(graph), self.calling.split(self.task.train), Budget(seconds=seconds))
        path = self.out / f"{system}-{name}.onnx".replace(" ", "-")
        to_onnx(finalize(model, plan, graph, statistics), path, plan.key)
        self.models.append(Model(system, name, path, self.score(path, self.task.validation)))

    def settle(self) -> dict[str, dict[float, Model]]:
        """Times all models, then per system and allowed drop the fastest model, looked at on the test split."""
        files = {str(i): model.path for i, model in enumerate(self.models)}
        sample = self.calling.one_sample()
        timed = measure(open_device("ort:cpu"), files, self.original.path, sample, rounds=ROUNDS)
        for i, model in enumerate(self.models):
            model.ratio = to_ratio(timed[str(i)])
        systems = dict.fromkeys(model.system for model in self.models)
        chosen = {system: picks([m for m in self.models if m.system == system], self.original) for system in systems}
        if self.task.test is not None:
            looked_at = {id(m): m for found in chosen.values() for m in found.values()}
            for model in (self.original, *looked_at.values()):
                model.test = self.score(model.path, self.task.test)
        return chosen

    def report(self, title: str, results: Path, about: dict[str, Any]) -> None:
        """Prints the table of `settle`, and writes it to `results` with what the benchmark says `about` itself."""
        chosen = self.settle()
        console.print(self._table(title, chosen))
        results.parent.mkdir(exist_ok=True)
        results.write_text(json.dumps({**about, **self._document(chosen)}, indent=1) + "\n")
        console.print(f"written: {results}")

    def _document(self, chosen: dict[str, dict[float, Model]]) -> dict[str, Any]:
        judged = self.original.test or self.original.validation
        return {
            "minutes": self.minutes,
            "seed": self.seed,
            "wall_s": time.time() - self.started,
            "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "environment": environment(),
            "original": {
                "validation": self.original.validation.value,
                "test": self.original.test.value if self.original.test else None,
                "samples": judged.samples,
                "stderr_points": 100 * judged.stderr,
            },
            "stage_seconds": self.stage_seconds,
            "picks": [
                {"allowed_drop_points": 100 * drop, **model.document(self.original)}
                for found in chosen.values()
                for drop, model in found.items()
            ],
            "models": [model.document(self.original) for model in self.models],
        }

    def _table(self, title: str, chosen: dict[str, dict[float, Model]]) -> Table:
        table = Table(title=f"{title}: fastest model within a validation drop, measured on ONNX Runtime")
        for column in ("system", "allowed drop", "speed-up (95 %)", "drop on validation", "drop on test", "model"):
            table.add_column(column)
        for system, found in chosen.items():
            for drop in DROPS:
                model = found.get(drop)
                if model is None:
                    table.add_row(system, f"{100 * drop:g}", "none", "", "", "")
                    continue
                facts = model.document(self.original)
                on_test = facts["test_drop_points"]
                table.add_row(
                    system,
                    f"{100 * drop:g}",
                    f"{facts['speedup']:.2f}x ({facts['speedup_low']:.2f}-{facts['speedup_high']:.2f})",
                    f"{facts['validation_drop_points']:+.2f}",
                    "" if on_test is None else f"{on_test:+.2f}",
                    model.name,
                )
        return table


def int8(graph: Graph, *left_alone: str) -> tuple[Step, ...]:
    return tuple(Step(name, Quantize(INT8)) for name in graph.layers if name not in left_alone)


def uniform(graph: Graph, width: float) -> Plan:
    """Every inner group at one width, to the next multiple of 8, everything but the stem in int8."""
    inner = [group for group in graph.free_groups.values() if group.branch]
    cuts = tuple(
        Step(g.id, Prune(keep)) for g in inner if (keep := 8 * round(g.channels * width / 8)) < g.channels and keep
    )
    return Plan(graph.fingerprint, (*cuts, *int8(graph, next(iter(graph.layers)))))


def picks(models: Sequence[Model], reference: Model) -> dict[float, Model]:
    """Per allowed validation drop, the fastest model within it."""
    found = {}
    for drop in DROPS:
        within = [m for m in models if reference.validation.value - m.validation.value <= drop]
        if within:
            found[drop] = max(within, key=lambda m: m.speedup)
    return found
