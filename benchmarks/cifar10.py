"""The whole search on the trained CIFAR ResNets, beside baselines that had the same data and the same time.

    python benchmarks/cifar10.py --data DIR --depth 20 --minutes 20

All models are timed again at the end, in turn with the original as plainly exported, in one process. Each system's
models are chosen by validation; the test split is looked at once per chosen model.
"""

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cifar
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
from autocompress.devices import open_device
from autocompress.devices.measure import Ratio, measure, to_ratio
from autocompress.evidence.scores import top1
from autocompress.evidence.verify import predictor
from autocompress.export.onnx import plain_onnx, to_onnx
from autocompress.graph import trace
from autocompress.graph.types import Graph
from autocompress.search import Study
from autocompress.search.config import load_settings, override
from autocompress.task.calling import calling_of
from autocompress.task.task import Loader, Score, Task
from autocompress.vocabulary.workload import DType

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


def score(path: Path, split: Loader) -> Score:
    return top1(predictor(open_device("ort:cpu").open(path, threads=2)), split)


def original(task: Task, out: Path) -> Model:
    path = out / "original.onnx"
    plain_onnx(task.model, (task.example_inputs,), path)
    return Model("original", "as plainly exported", path, score(path, task.validation))


def built(
    system: str, name: str, plan: Plan, graph: Graph, statistics: Statistics, task: Task, out: Path, seconds: float = 0
) -> Model:
    model = restructure(plan, graph, statistics)
    if seconds:
        fine_tune(model, Teacher(graph), task.train, Budget(seconds=seconds))
    path = out / f"{system}-{name}.onnx".replace(" ", "-")
    to_onnx(finalize(model, plan, graph, statistics), path, plan.key)
    return Model(system, name, path, score(path, task.validation))


def int8(graph: Graph, *left_alone: str) -> tuple[Step, ...]:
    return tuple(Step(name, Quantize(DType.INT8)) for name in graph.layers if name not in left_alone)


def uniform(graph: Graph, width: float) -> Plan:
    """Every inner group at one width, to the next multiple of 8, everything but the stem in int8."""
    inner = [group for group in graph.free_groups.values() if group.branch]
    cuts = tuple(
        Step(g.id, Prune(keep)) for g in inner if (keep := 8 * round(g.channels * width / 8)) < g.channels and keep
    )
    return Plan(graph.fingerprint, (*cuts, *int8(graph, next(iter(graph.layers)))))


def from_study(system: str, study: Study) -> list[Model]:
    return [
        Model(system, c.id, study.path / c.artifact, c.score)
        for c in study.front
        if c.artifact is not None and c.score is not None
    ]


def picks(models: Sequence[Model], reference: Model) -> dict[float, Model]:
    """Per allowed validation drop, the fastest model within it."""
    found = {}
    for drop in DROPS:
        within = [m for m in models if reference.validation.value - m.validation.value <= drop]
        if within:
            found[drop] = max(within, key=lambda m: m.speedup)
    return found


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds cifar10/.")],
    depth: Annotated[int, typer.Option(help="20 or 56.")] = 20,
    minutes: Annotated[float, typer.Option(help="Time of the search, everything in.")] = 20,
    out: Annotated[Path, typer.Option(help="Where runs and models go.")] = Path("runs/cifar10"),
    seed: int = 0,
    uniform_too: Annotated[
        bool, typer.Option("--uniform/--no-uniform", help="Uniform pruning, trained as long.")
    ] = True,
    random_too: Annotated[bool, typer.Option("--random/--no-random", help="Random search for as long.")] = True,
) -> None:
    started = time.time()
    out = out / f"resnet{depth}-seed{seed}"
    out.mkdir(parents=True, exist_ok=True)
    task = cifar.make_task(data, depth, seed)
    reference = original(task, out)
    settings = load_settings(max_drop=max(DROPS), time_s=60 * minutes, seed=seed)
    study = ac.search(task, settings=settings, out=out / "search")
    models = from_study("autocompress", study)
    graph = trace(task.model, task.example_inputs)
    statistics = collect(graph, task.calibration)
    models += simple_baselines(graph, statistics, task, out)
    if uniform_too:
        models += uniform_baselines(graph, statistics, task, out, study.stage_seconds.get("fine_tuning", 0.0))
    if random_too:
        settings = override(settings, sampler="random", warm_start={"enabled": False})
        models += from_study("random search", ac.search(task, settings=settings, out=out / "random"))
    report(task, reference, models, out, depth, minutes, seed, time.time() - started, study)


def simple_baselines(graph: Graph, statistics: Statistics, task: Task, out: Path) -> list[Model]:
    plans = {"exact rewrites only": (), "all": int8(graph), "all but the stem": int8(graph, next(iter(graph.layers)))}
    return [
        built("int8 only" if steps else "rewrites", name, Plan(graph.fingerprint, steps), graph, statistics, task, out)
        for name, steps in plans.items()
    ]


def uniform_baselines(graph: Graph, statistics: Statistics, task: Task, out: Path, seconds: float) -> list[Model]:
    share = seconds / len(UNIFORM_WIDTHS)
    return [
        built("uniform pruning", f"inner {width:.0%}", uniform(graph, width), graph, statistics, task, out, share)
        for width in UNIFORM_WIDTHS
    ]


def report(
    task: Task,
    reference: Model,
    models: list[Model],
    out: Path,
    depth: int,
    minutes: float,
    seed: int,
    wall_s: float,
    study: Study,
) -> None:
    example = calling_of(task).one_sample()
    timed = measure(
        open_device("ort:cpu"), {str(i): m.path for i, m in enumerate(models)}, reference.path, example, rounds=ROUNDS
    )
    for i, model in enumerate(models):
        model.ratio = to_ratio(timed[str(i)])
    reference.test = score(reference.path, task.test)
    systems = list(dict.fromkeys(m.system for m in models))
    chosen = {system: picks([m for m in models if m.system == system], reference) for system in systems}
    for model in {id(m): m for found in chosen.values() for m in found.values()}.values():
        model.test = score(model.path, task.test)
    console.print(_table(chosen, reference, depth, minutes))
    document = {
        "benchmark": "cifar10",
        "depth": depth,
        "minutes": minutes,
        "seed": seed,
        "wall_s": wall_s,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "environment": environment(),
        "original": {
            "validation": reference.validation.value,
            "test": reference.test.value,
            "samples": reference.test.samples,
            "stderr_points": 100 * reference.test.stderr,
        },
        "stage_seconds": dict(study.stage_seconds),
        "picks": [
            {"allowed_drop_points": 100 * drop, **model.document(reference)}
            for found in chosen.values()
            for drop, model in found.items()
        ],
        "models": [model.document(reference) for model in models],
    }
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    path = results / f"cifar10_resnet{depth}_seed{seed}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    console.print(f"written: {path}")


def _table(chosen: dict[str, dict[float, Model]], reference: Model, depth: int, minutes: float) -> Table:
    table = Table(
        title=f"ResNet-{depth}, {minutes:g} minutes: fastest model within a validation drop, measured on ONNX Runtime"
    )
    for column in ("system", "allowed drop", "speed-up (95 %)", "drop on validation", "drop on test", "model"):
        table.add_column(column)
    for system, found in chosen.items():
        for drop in DROPS:
            model = found.get(drop)
            if model is None:
                table.add_row(system, f"{100 * drop:g}", "none", "", "", "")
                continue
            facts = model.document(reference)
            table.add_row(
                system,
                f"{100 * drop:g}",
                f"{facts['speedup']:.2f}x ({facts['speedup_low']:.2f}-{facts['speedup_high']:.2f})",
                f"{facts['validation_drop_points']:+.2f}",
                f"{facts['test_drop_points']:+.2f}",
                model.name,
            )
    return table


if __name__ == "__main__":
    typer.run(main)
