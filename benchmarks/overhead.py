"""What the search itself costs: time to price a plan, and time per trial outside building and scoring.

    python benchmarks/overhead.py

Runs on the demo's network. The second figure is that of a real search without fine-tuning (which would only dilute it):
its time, once everything is set up, less what building, exporting, scoring and measuring took.
"""

import json
import resource
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import typer
from environment import environment
from rich.console import Console
from rich.table import Table

import autocompress as ac
from autocompress.cli.demo import digits_task
from autocompress.compression.build import plan_kernels
from autocompress.compression.methods import methods
from autocompress.graph import trace
from autocompress.profiles import Profile, load
from autocompress.search.config import load_settings
from autocompress.search.engine import Evaluator, Setup
from autocompress.search.evaluator import open_evaluator
from autocompress.search.loop import run
from autocompress.search.profiling import profile_task, sample_plans
from autocompress.search.space import find_space
from autocompress.task.task import Task


def pricing(task: Task, profile: Profile, plans: int, seed: int) -> dict[str, Any]:
    """Milliseconds from a plan to its latency, of plans that were never priced before, each kernel of which may be new;
    and of the same plans again."""
    graph = trace(task.model, task.example_inputs)
    space = find_space(graph, methods(), profile.capabilities)
    sampled = sample_plans(space, plans, seed)
    cold, warm = ([_milliseconds(profile, plan, graph) for plan in sampled] for _ in range(2))
    return {"plans": len(sampled), "decisions": len(space.decisions), "first": _spread(cold), "again": _spread(warm)}


def _milliseconds(profile: Profile, plan: ac.Plan, graph: Any) -> float:
    start = time.perf_counter()
    profile.predict(plan_kernels(plan, graph))
    return 1e3 * (time.perf_counter() - start)


def _spread(samples: list[float]) -> dict[str, float]:
    return {"median_ms": median(samples), "p95_ms": quantiles(samples, n=20)[-1], "worst_ms": max(samples)}


class Timed:
    """An evaluator that adds up the seconds spent in it; pricing is not its work but the search's."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._evaluator, name)
        if not callable(found) or name == "price":
            return found

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return found(*arguments)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


def searching(task: Task, profile: Path, trials: int, seed: int, out: Path) -> dict[str, Any]:
    """A search without fine-tuning: its seconds per trial, and the share of its time, that went into proposing,
    pricing, choosing and writing, once the evaluator is open; and the process's peak memory."""
    settings = load_settings(trials=trials, profile=str(profile), seed=seed, fine_tuning={"enabled": False})
    opened: list[tuple[Timed, float]] = []

    def opener(setup: Setup) -> Any:
        evaluator = Timed(open_evaluator(task, settings)(setup))
        opened.append((evaluator, time.perf_counter()))
        return evaluator

    study = run(opener, settings, out)
    evaluator, begun = opened[0]
    whole_s = time.perf_counter() - begun
    overhead_s = whole_s - evaluator.seconds
    tried = len(study.candidates)
    return {
        "trials": tried,
        "search_s": whole_s,
        "building_scoring_measuring_s": evaluator.seconds,
        "overhead_ms_per_trial": 1e3 * overhead_s / tried,
        "overhead_share": overhead_s / whole_s,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main(
    plans: Annotated[int, typer.Option(help="Plans to price.")] = 1000,
    trials: Annotated[int, typer.Option(help="Trials of the search.")] = 100,
    profile: Annotated[str, typer.Option(help="Hardware profile; one is measured otherwise.")] = "",
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="JSON file.")] = Path("overhead.json"),
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        task = digits_task(Path(folder) / "original.safetensors")
        found = load(profile) if profile else profile_task(task)
        found.save(Path(folder) / "profile")
        priced = pricing(task, found, plans, seed)
        searched = searching(task, Path(folder) / "profile", trials, seed, Path(folder) / "run")
    out.write_text(json.dumps({"environment": environment(), "pricing": priced, "search": searched}, indent=1))
    table = Table("figure", "median", "95 %", "worst", box=None)
    for name, key in (("pricing a plan, first time", "first"), ("pricing it again", "again")):
        row = priced[key]
        table.add_row(name, *(f"{row[k]:.3f} ms" for k in ("median_ms", "p95_ms", "worst_ms")))
    outside = "outside building, scoring and measuring"
    table.add_row(f"search, per trial {outside}", f"{searched['overhead_ms_per_trial']:.1f} ms")
    table.add_row(f"search, share of its time {outside}", f"{searched['overhead_share']:.1%}")
    table.add_row("peak memory", "", "", f"{searched['peak_memory_gib']:.2f} GiB")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
