"""The latency predictor's error on whole models that it never saw, beside two baselines fitted to the same models.

    python benchmarks/predictor.py --net resnet20 --net minilm
    python benchmarks/predictor.py --net resnet20 --run RUN --data DIR

Plans are drawn from the search space of a net, built, and measured in turn with the original. For each seed, 40 of them
are set aside, the others make a profile (a third of them to calibrate its interval), and the 40 are predicted from
their shapes. With --run, so are the models that a search of a trained CIFAR ResNet ended with, timed afresh. Of all
nets together, every model counts once per seed.
"""

import json
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import numpy as np
import typer
from environment import environment
from nets import NETS, Net
from rich.console import Console
from rich.table import Table
from scipy.optimize import nnls
from tasks import cifar

from autocompress.compression.build import build, plan_kernels
from autocompress.compression.methods import methods
from autocompress.compression.plan import Plan
from autocompress.devices import Device, open_device
from autocompress.devices.base import Array
from autocompress.devices.measure import measure, to_ratio
from autocompress.export.onnx import plain_onnx, to_onnx
from autocompress.graph import trace
from autocompress.graph.types import Graph
from autocompress.profiles import Planned, Profile, calibrate, measured_before
from autocompress.profiles.accuracy import Accuracy, accuracy
from autocompress.profiles.files import Role
from autocompress.profiles.kernel_times import kernel_class
from autocompress.profiles.sites import Site, sites
from autocompress.search.profiling import sample_plans
from autocompress.search.space import find_space
from autocompress.vocabulary.formats import formats
from autocompress.vocabulary.workload import Latency

HELD_OUT = 40
console = Console()

Predict = Callable[[Iterable[Site]], float]
"""Sites of a whole model → ratio to the original."""


def built(graph: Graph, device: Device, count: int, seed: int, folder: Path) -> list[Planned]:
    """Sampled plans with their exported models; weights do not matter to time, so nothing is repaired.

    Models that were measured before are not built again.
    """
    found, known = [], measured_before(device, folder)
    for plan in sample_plans(find_space(graph, methods(), device.capabilities()), count, seed):
        path = folder / f"{plan.key}.onnx"
        if plan.key not in known:
            to_onnx(build(plan, graph, None), path, plan.key)
        found.append(Planned(plan.key, plan_kernels(plan, graph), path))
    return found


def macs_baseline(profile: Profile) -> Predict:
    """Linear in the multiplications of each precision, and a constant."""

    def row(where: Iterable[Site]) -> list[float]:
        macs = {row.name: 0.0 for row in formats()}
        for site in where:
            macs[site.workload.dtype] += site.workload.macs / 1e6
        return [*macs.values(), 1.0]

    fitted = [model for model in profile.models if model.role is Role.FIT]
    rows = np.array([row(model.sites) for model in fitted]) / np.array([[model.ratio] for model in fitted])
    weights = nnls(rows, np.ones(len(rows)))[0]
    return lambda where: float(np.dot(row(where), weights))


def lookup_baseline(profile: Profile) -> Predict:
    """The runtime's own times of the kernels added up; an unseen kernel takes what its operation takes per element."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for site, row in profile.kernels.items():
        times[kernel_class(site)].append((row.time_s or 0.0) / _work(site))

    def seconds(site: Site) -> float:
        row = profile.kernels.get(site)
        if row is not None and row.time_s is not None:
            return row.time_s
        return _work(site) * median(times.get(kernel_class(site), [0.0]))

    return lambda where: sum(map(seconds, where)) / profile.reference_s


def _work(site: Site) -> float:
    w = site.workload
    return w.macs or w.out_channels * float(np.prod(w.out_size))


def compared(profile: Profile, models: Sequence[tuple[Planned, float]]) -> dict[str, Accuracy]:
    """Accuracy of each predictor on (plan, measured ratio) pairs."""

    def of(predict: Callable[[Planned], Latency]) -> Accuracy:
        return accuracy([(predict(plan), ratio * profile.reference_s) for plan, ratio in models])

    def point(baseline: Predict) -> Callable[[Planned], Latency]:
        def predict(plan: Planned) -> Latency:
            seconds = baseline(sites(plan.kernels).values()) * profile.reference_s
            return Latency(seconds, seconds, seconds, 0.0)

        return predict

    return {
        "autocompress": of(lambda plan: profile.predict(plan.kernels)),
        "sum of profiled kernels": of(point(lookup_baseline(profile))),
        "multiplications per precision": of(point(macs_baseline(profile))),
    }


def ended_with(run: Path, graph: Graph, device: Device, sample: Sequence[Array]) -> list[tuple[Planned, float]]:
    """The models on a run's front with their ratios, timed afresh."""
    ids = [
        path.stem for path in sorted((run / "models").glob("*.onnx")) if (run / "plans" / f"{path.stem}.json").exists()
    ]
    plans = {i: Plan.from_json((run / "plans" / f"{i}.json").read_text()) for i in ids}
    paths = {i: run / "models" / f"{i}.onnx" for i in ids}
    found = measure(device, paths, run / "models" / "original.onnx", sample)
    return [(Planned(i, plan_kernels(plans[i], graph), paths[i]), to_ratio(found[i]).value) for i in ids]


@dataclass
class Judged:
    """Accuracies on the held-out plans of each seed, by predictor, and on what a search ended with."""

    original_s: float
    held_out: dict[str, list[Accuracy]]
    ended: dict[str, Accuracy]


def judge(
    net: Net, device: Device, plans: int, seeds: int, run: Path | None, data: Path | None, folder: Path
) -> Judged:
    """Builds and measures everything; the models of a run are those of the trained net, which is built the same."""
    model, inputs = net.make()
    if run is not None and data is not None:
        model = cifar.make_task(data, 20 if net is NETS["resnet20"] else 56).model
    graph, sample = trace(model, inputs), [inputs.numpy()]
    reference = folder / "original.onnx"
    plain_onnx(model, (inputs,), reference)
    models = built(graph, device, plans, 0, folder)

    def profile_of(chosen: Sequence[Planned], holdout: int | None = None) -> Profile:
        return calibrate(device, chosen, reference, sample, holdout=holdout, resume_dir=folder)

    everything = profile_of(models, holdout=0)
    ratio = {row.id: row.ratio for row in everything.models}
    rows: dict[str, list[Accuracy]] = defaultdict(list)
    for seed in range(seeds):
        test = set(random.Random(seed).sample(sorted(ratio), HELD_OUT))
        profile = profile_of([plan for plan in models if plan.key not in test])
        for system, found in compared(profile, [(p, ratio[p.key]) for p in models if p.key in test]).items():
            rows[system].append(found)
    ended = compared(profile_of(models), ended_with(run, graph, device, sample)) if run else {}
    return Judged(everything.reference_s, rows, ended)


def main(
    net: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(NETS)}; all by default.")] = None,
    plans: Annotated[int, typer.Option(help="Plans of each net to build and measure.")] = 160,
    seeds: Annotated[int, typer.Option(help="Random splits into known and held-out models.")] = 5,
    device: Annotated[str, typer.Option(help="Device to predict.")] = "ort:cpu",
    run: Annotated[Path | None, typer.Option(help="A finished search of a CIFAR ResNet.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with cifar10/, for --run.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder that keeps measurements: what is there is not redone.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the JSON files.")] = Path(__file__).parent / "results",
) -> None:
    for name in net or NETS:
        with _folder(keep and keep / name) as folder:
            found = judge(NETS[name], open_device(device), plans, seeds, run, data, folder)
        document: dict[str, Any] = {
            "environment": environment(), "net": name, "device": device, "plans": plans, "held_out_plans": HELD_OUT,
            "original_ms": 1e3 * found.original_s,
            "held_out": {system: [asdict(a) for a in rows] for system, rows in found.held_out.items()},
            "ended_with": {system: asdict(a) for system, a in found.ended.items()},
        }  # fmt: skip
        (out / f"predictor_{name}.json").write_text(json.dumps(document, indent=1) + "\n")
        _table(f"{name}, {HELD_OUT} held-out plans of {plans}, mean of {seeds} splits", found.held_out)
        if found.ended:
            count = next(iter(found.ended.values())).models
            _table(f"{name}, {count} models that a search ended with", {s: [a] for s, a in found.ended.items()})


@contextmanager
def _folder(kept: Path | None) -> Iterator[Path]:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _table(title: str, rows: dict[str, list[Accuracy]]) -> None:
    table = Table(
        "predictor", "MAPE", "worst split", "in 5 %", "in 10 %", "Spearman", "in its interval", title=title, box=None
    )
    for system, found in rows.items():
        shares = (f"{mean(getattr(a, name) for a in found):.1%}" for name in ("within_5", "within_10"))
        errors = [a.mape for a in found]
        inside = f"{mean(a.covered for a in found):.1%}" if system == "autocompress" else ""
        rank = f"{mean(a.spearman for a in found):.3f}"
        table.add_row(system, f"{mean(errors):.2%}", f"{max(errors):.2%}", *shares, rank, inside)
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
