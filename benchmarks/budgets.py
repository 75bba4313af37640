"""Whether a latency budget is kept: models that a search returns for budgets all over its range, measured afresh.

    python benchmarks/budgets.py --net resnet20 --minutes 6

A net with random weights is searched, its score being how close a model's outputs stay to the original's: latency does
not depend on weights, and the loss only has to be of the right kind. Then budgets are drawn evenly between the fastest
model and the original. For each, the best model is asked for and timed again beside the original; its time as a share
of the original's is held against the budget's. Beside it stands the same question answered by predicted latencies
alone, and by multiply-accumulates as if they were time.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from environment import environment
from nets import NETS, Net
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import autocompress as ac
from autocompress.devices import Device, open_device
from autocompress.devices.measure import measure, to_ratio
from autocompress.search import Study
from autocompress.search.candidate import Candidate
from autocompress.task.task import Predict, Score

SAMPLES, BATCH = 192, 16
OVER = 0.03
"""A budget is broken where the fresh measurement is over it by more than this share: what repeats between processes."""
ROUNDS = 40
AT_ONCE = 10

console = Console()

Choose = Callable[[float], Candidate | None]
"""Budget in ms → the model that is returned for it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One budget, as shares of the original's time: what was asked, what was promised, what was found."""

    asked: float
    promised: float
    found: float
    model: str

    @property
    def excess(self) -> float:
        return self.found / self.asked - 1


def likeness(predict: Predict, split: object) -> Score:
    """Mean cosine similarity of the outputs with the original's, which the split holds as targets."""
    found = torch.cat([F.cosine_similarity(predict(*as_inputs(x)), y, dim=1) for x, y in split])  # type: ignore[attr-defined]
    return Score(float(found.mean()), float(found.std() / len(found) ** 0.5), len(found))


def as_inputs(x: object) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)  # type: ignore[return-value]


def make_task(net: Net) -> ac.Task:
    model, example = net.make()
    draw = torch.Generator().manual_seed(1)
    shape = (SAMPLES, *example.shape[1:])
    inputs = torch.randint(0, 30522, shape, generator=draw) if net.tokens else torch.randn(shape, generator=draw)
    with torch.no_grad():
        batches = [(x, model(x)) for x in inputs.split(BATCH)]
    return ac.Task(model, example, validation=batches, calibration=batches[:4], score=likeness)


def by_measurement(study: Study) -> Choose:
    return lambda budget_ms: study.best(budget_ms=budget_ms)


def by_price(study: Study, price_ms: Callable[[Candidate], float]) -> Choose:
    """The best verified model whose price keeps the budget; never mind what was measured."""

    def choose(budget_ms: float) -> Candidate | None:
        fit = [c for c in study.verified if price_ms(c) <= budget_ms]
        return min(fit, key=lambda c: c.cost, default=None)

    return choose


def judge(
    systems: Mapping[str, Choose], shares: Sequence[float], study: Study, device: Device, sample: Sequence[np.ndarray]
) -> dict[str, list[Outcome]]:
    """Asks each system for a model at each share of the original's time, and times it again beside the original.

    Systems that return the same model for a budget share its measurement.
    """
    assert study.baseline is not None
    original_ms = 1e3 * study.baseline.latency.seconds
    chosen = {name: {share: choose(share * original_ms) for share in shares} for name, choose in systems.items()}
    told = {name: {s: c for s, c in rows.items() if c and c.artifact and c.measured} for name, rows in chosen.items()}
    asked = {f"{c.id} at {share}": study.path / str(c.artifact) for rows in told.values() for share, c in rows.items()}
    found = _timed(asked, study.path / "models" / "original.onnx", device, sample)

    def outcome(share: float, c: Candidate) -> Outcome:
        assert c.measured is not None
        return Outcome(share, 1e3 * c.measured.seconds / original_ms, found[f"{c.id} at {share}"], c.id)

    return {name: [outcome(share, c) for share, c in rows.items()] for name, rows in told.items()}


def _timed(asked: Mapping[str, Path], original: Path, device: Device, sample: Sequence[np.ndarray]) -> dict[str, float]:
    """Fresh ratios to the original, a few budgets in turn at a time; a model asked for twice is timed twice."""
    names = list(asked)
    found: dict[str, float] = {}
    for start in track(range(0, len(names), AT_ONCE), console=console, transient=True):
        chunk = {name: asked[name] for name in names[start : start + AT_ONCE]}
        found |= {n: to_ratio(m).value for n, m in measure(device, chunk, original, sample, rounds=ROUNDS).items()}
    return found


def main(
    net: Annotated[str, typer.Option(help=f"One of {', '.join(NETS)}.")] = "resnet20",
    minutes: Annotated[float, typer.Option(help="Time of the search.")] = 6,
    budgets: Annotated[int, typer.Option(help="Budgets to draw.")] = 100,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Where the run goes.")] = Path("runs/budgets"),
) -> None:
    task = make_task(NETS[net])
    study = ac.search(
        task, out=out / f"{net}-seed{seed}", time_s=60 * minutes, seed=seed, fine_tuning={"enabled": False},
        measuring={"candidates": 24},
    )  # fmt: skip
    assert study.baseline is not None
    original_s = study.baseline.latency.seconds
    fastest = min(c.measured.seconds for c in study.verified if c.measured) / original_s
    draw = random.Random(seed)
    shares = [draw.uniform(fastest, 1.0) for _ in range(budgets)]
    device, sample = open_device("ort:cpu"), [task.example_inputs[:1].numpy()]
    macs = study.baseline.macs
    systems = {
        "autocompress": by_measurement(study),
        "by predicted latency": by_price(study, lambda c: 1e3 * c.latency.seconds),
        "by multiply-accumulates": by_price(study, lambda c: 1e3 * original_s * (c.macs or macs) / macs),
    }
    _report(net, minutes, seed, study, judge(systems, shares, study, device, sample))


def _report(net: str, minutes: float, seed: int, study: Study, found: dict[str, list[Outcome]]) -> None:
    document = {
        "benchmark": "budgets", "environment": environment(), "net": net, "minutes": minutes, "seed": seed,
        "verified_models": len(study.verified), "front": len(study.front),
        "outcomes": {name: [asdict(o) for o in rows] for name, rows in found.items()},
    }  # fmt: skip
    path = Path(__file__).parent / "results" / f"budgets_{net}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    table = Table("chosen", "budgets", f"over by > {OVER:.0%}", "worst", "median of budget used", box=None, title=net)
    for name, rows in found.items():
        over = sum(row.excess > OVER for row in rows)
        used = float(np.median([row.found / row.asked for row in rows])) if rows else float("nan")
        worst = max((row.excess for row in rows), default=float("nan"))
        table.add_row(name, str(len(rows)), str(over), f"{worst:+.1%}", f"{used:.0%}")
    console.print(table)
    console.print(f"written: {path}")


if __name__ == "__main__":
    typer.run(main)
