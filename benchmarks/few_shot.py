"""A new device from a few measurements, beside baselines that had the same ones.

    python benchmarks/few_shot.py --data DIR
    python benchmarks/few_shot.py --data DIR --csv nasbench201.csv.gz --csv mine.csv --new mine_1

Devices are split as published (Lee et al., HELP, NeurIPS 2021). In every draw the train devices are known on 900
models; a new one is measured on n of these, at random or as `Transfer.choose` says, and judged on models that no
device ran.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from environment import environment
from latency_tables import Floats, LatencyTable, Split, fbnet, from_csv, hat, nasbench201, published_split
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from autocompress.profiles.transfer import Transfer

Rows = NDArray[np.intp]

KNOWN_MODELS = 900
JUDGED_MODELS = 5000
COUNTS = (5, 10, 20, 50)
ALPHAS = np.logspace(-4, 3, 15)

TABLES: dict[str, Callable[[Path], LatencyTable]] = {"nasbench201": nasbench201, "fbnet": fbnet, "hat": hat}
RANDOM, DESIGNED = "autocompress", "autocompress, chosen models"

console = Console()


@dataclass(frozen=True, slots=True)
class Errors:
    """Of one predictor on one device in one draw; the interval's width is relative to its middle."""

    spearman: float
    mape: float
    within_5: float
    within_10: float
    covered: float = float("nan")
    width: float = float("nan")


@dataclass(frozen=True, slots=True)
class Draw:
    """A table's rows in random order, the known models first, with what is known of the train devices."""

    features: Floats
    counts: Floats
    macs: Floats | None
    latencies: Floats
    """[models, train devices], NaN where not known."""
    truth: Floats
    """[models] on the new device."""
    candidates: Rows
    judged: Rows
    source: Rows
    """[models]: rows of the table."""


def ridge(rows: Floats, measured: Rows, target: Floats) -> Floats:
    """All models' latencies by ridge regression on the measured ones'; penalty, and whether logarithms are taken, by
    the relative error of closed-form leave-one-out predictions."""
    deviation = rows.std(0)
    scaled = (rows - rows.mean(0)) / np.where(deviation > 0, deviation, 1.0)
    best: tuple[float, Floats] | None = None
    for forward, backward in ((np.asarray, np.asarray), (np.log, np.exp)):
        wanted, seen = forward(target), scaled[measured]
        centre, middle = wanted.mean(), seen.mean(0)
        gram = (seen - middle) @ (seen - middle).T
        for alpha in ALPHAS:
            inverse = np.linalg.inv(gram + alpha * len(target) * np.eye(len(target)))
            hat_matrix = gram @ inverse + 1 / len(target)
            residual = (wanted - hat_matrix @ wanted) / np.maximum(1 - np.diag(hat_matrix), 1e-6)
            error = float(np.mean(np.abs(backward(wanted - residual) / target - 1)))
            if best is None or error < best[0]:
                weights = (seen - middle).T @ inverse @ (wanted - centre)
                best = error, backward(centre + (scaled - middle) @ weights)
    assert best is not None
    return best[1]


def nearest_rescaled(known: Floats, measured: Rows, target: Floats) -> Floats:
    """The known device whose logarithms differ most evenly, times the median ratio."""
    off = np.log(target)[:, None] - np.log(known[measured])
    best = int(np.argmin(off.std(0)))
    return known[:, best] * np.exp(np.median(off[:, best]))


def errors(predicted: Floats, truth: Floats, low: Floats | None = None, high: Floats | None = None) -> Errors:
    relative = np.abs(predicted / truth - 1)
    constant = np.ptp(predicted) < 1e-12
    rank = 0.0 if constant else float(spearmanr(predicted, truth).statistic)
    found = rank, float(relative.mean()), float((relative <= 0.05).mean()), float((relative <= 0.1).mean())
    if low is None or high is None:
        return Errors(*found)
    return Errors(*found, float(((low <= truth) & (truth <= high)).mean()), float(((high - low) / predicted).mean()))


def draw_of(table: LatencyTable, train: Sequence[str], device: str, seed: int) -> Draw:
    """The same models are known of all train devices where these ran the same ones."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(table.features))
    values = table.latencies.to_numpy()[order]
    columns = {name: values[:, table.latencies.columns.get_loc(name)] for name in (*train, device)}
    known = np.full((len(order), len(train)), np.nan)
    for i, name in enumerate(train):
        rows = _first_measured(columns[name])
        known[rows, i] = columns[name][rows]
    candidates = _first_measured(columns[device])
    others = np.setdiff1d(np.flatnonzero(np.isfinite(columns[device])), candidates)
    others = others[~np.isfinite(known[others]).any(1)] if train else others
    judged = others[:JUDGED_MODELS]
    kept = np.union1d(np.flatnonzero(np.isfinite(known).any(1)), np.union1d(candidates, judged))
    where = {row: i for i, row in enumerate(kept)}

    def renumbered(rows: Rows) -> Rows:
        return np.array([where[row] for row in rows], dtype=np.intp)

    source = order[kept]
    macs = None if table.macs is None else table.macs[source]
    return Draw(
        table.features[source], table.counts[source], macs, known[kept], columns[device][kept],
        renumbered(candidates), renumbered(judged), source,
    )  # fmt: skip


def _first_measured(latencies: Floats) -> Rows:
    """The first 900 rows that a device ran, or the first half if it ran fewer than twice that."""
    rows = np.flatnonzero(np.isfinite(latencies))
    return rows[: min(KNOWN_MODELS, len(rows) // 2)]


def judged(
    table: LatencyTable, train: Sequence[str], device: str, seed: int, counts: Sequence[int], transfers: dict[Any, Any]
) -> dict[tuple[str, int], Errors]:
    """(predictor, measurements) → errors of one device in one draw."""
    draw = draw_of(table, train, device, seed)
    key = seed, tuple(train), draw.source.tobytes()
    if key not in transfers:
        transfers.clear()
        transfers[key] = Transfer(draw.features, draw.latencies, summary=draw.counts, seed=seed)
    transfer: Transfer = transfers[key]
    designed = transfer.choose(max(counts), draw.candidates.tolist())
    alone = Transfer(draw.features, draw.latencies[:, :0], summary=draw.counts, seed=seed)
    generator = np.random.default_rng([seed, *map(ord, device)])
    order = generator.permutation(draw.candidates)
    found: dict[tuple[str, int], Errors] = {}
    for count in counts:
        rows = order[:count]
        target, truth = draw.truth[rows], draw.truth[draw.judged]
        for system, chosen in ((RANDOM, rows), (DESIGNED, np.array(designed[:count]))):
            found[system, count] = _onboarded(transfer, draw, chosen)
        found["autocompress, no other device", count] = _onboarded(alone, draw, rows)
        found["ridge, operator counts", count] = errors(ridge(draw.counts, rows, target)[draw.judged], truth)
        if draw.macs is not None:
            found["ridge, FLOPs", count] = errors(ridge(draw.macs[:, None], rows, target)[draw.judged], truth)
        if train:
            nearest = nearest_rescaled(transfer.known(), rows, target)
            found["nearest device, rescaled", count] = errors(nearest[draw.judged], truth)
    return found


def _onboarded(transfer: Transfer, draw: Draw, rows: Rows) -> Errors:
    device = transfer.onboard([(int(row), float(draw.truth[row])) for row in rows])
    forecast = device.predict()
    at = draw.judged
    return errors(forecast.latency[at], draw.truth[at], forecast.low[at], forecast.high[at])


def run(table: LatencyTable, split: Split, draws: int, counts: Sequence[int]) -> list[dict[str, Any]]:
    """One row per predictor, number of measurements, device and draw."""
    rows = []
    for seed in range(draws):
        transfers: dict[Any, Any] = {}
        for device in split.new:
            train = [name for name in split.train if name != device]
            for (system, count), found in judged(table, train, device, seed, counts, transfers).items():
                values = {name: getattr(found, name) for name in Errors.__slots__}
                rows.append({"system": system, "measurements": count, "device": device, "draw": seed, **values})
        console.print(f"{table.name}: draw {seed + 1} of {draws}", style="dim")
    return rows


def summary(rows: Sequence[dict[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """Means over devices and draws with standard errors over draws, a draw's devices averaged first."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in by)].append(row)
    found = []
    for key, members in groups.items():
        line: dict[str, Any] = dict(zip(by, key, strict=True))
        for metric in Errors.__slots__:
            per_draw = [
                float(np.mean([m[metric] for m in members if m["draw"] == d])) for d in {m["draw"] for m in members}
            ]
            if np.isnan(per_draw).any():
                continue
            line[metric] = round(float(np.mean(per_draw)), 5)
            error = np.std(per_draw, ddof=1) / np.sqrt(len(per_draw)) if len(per_draw) > 1 else float("nan")
            line[f"{metric}_stderr"] = None if np.isnan(error) else round(float(error), 5)
        found.append(line)
    return found


def main(
    data: Annotated[Path, typer.Option(help="Folder with nasbench201.csv.gz, fbnet.csv.gz, fbnet_archs.json, hat/.")],
    tables: Annotated[str, typer.Option(help="Which of nasbench201, fbnet, hat; commas between.")] = ",".join(TABLES),
    csv: Annotated[
        list[Path] | None,
        typer.Option(
            help="Instead: a table of your own (.csv or .csv.gz), one row per model and one column per device, named "
            "by --train and --new, in any unit; empty or not positive is not measured. Models are described by a "
            "column `arch_str` as in NAS-Bench-201, or by --archs. Given several times, tables are joined on `index`: "
            "the shipped one first, then yours with further devices."
        ),
    ] = None,
    archs: Annotated[
        Path | None,
        typer.Option(
            help="What --csv's models are: JSON, a list per model, of operator ids by place (whole numbers, 0 up) or "
            "of any other numbers; or CSV with a header, numbers only. In the order of rows, or of `index` if given."
        ),
    ] = None,
    train: Annotated[str, typer.Option(help="Known devices of --csv, commas between; - for none.")] = "",
    new: Annotated[str, typer.Option(help="New devices of --csv, commas between; all others if not given.")] = "",
    test: Annotated[bool, typer.Option("--test", help="Judge on the test devices: once, at the end.")] = False,
    draws: Annotated[int, typer.Option(help="Draws of known models and measurements.")] = 10,
    counts: Annotated[str, typer.Option(help="Numbers of measurements, commas between.")] = ",".join(map(str, COUNTS)),
    out: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
) -> None:
    try:
        chosen = _own(csv, archs, train, new) if csv else _shipped(data, tables, test)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    document: dict[str, Any] = {
        "benchmark": "few_shot",
        "environment": environment(),
        "draws": draws,
        "known_models": KNOWN_MODELS,
        "tables": {},
    }
    for table, split in chosen:
        rows = run(table, split, draws, [int(count) for count in counts.split(",")])
        overall = summary(rows, ("system", "measurements"))
        document["tables"][table.name] = {
            "train": split.train, "new": split.new, "mean": overall,
            "devices": summary(rows, ("system", "measurements", "device")),
        }  # fmt: skip
        console.print(_table(table.name, split, draws, overall))
    out = out or Path(__file__).parent / "results" / ("few_shot_test.json" if test else "few_shot.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    console.print(f"written: {out}")


def _shipped(data: Path, names: str, test: bool) -> list[tuple[LatencyTable, Split]]:
    unknown = [name for name in names.split(",") if name not in TABLES]
    if unknown:
        raise ValueError(f"unknown table {', '.join(unknown)}: valid are {', '.join(TABLES)}")
    found = [TABLES[name](data) for name in names.split(",")]
    splits = [(table, published_split(table, test)) for table in found]
    return [(table, split) for table, split in splits if split.new]


def _own(csv: Sequence[Path], archs: Path | None, train: str, new: str) -> list[tuple[LatencyTable, Split]]:
    named = [name for name in f"{train},{new}".split(",") if name not in ("", "-")]
    table = from_csv(csv, archs, named)
    known = published_split(table, test=False).train
    known = tuple(train.split(",")) if train else known
    known = tuple(name for name in known if name != "-")
    others = tuple(new.split(",")) if new else tuple(c for c in table.latencies.columns if c not in known)
    return [(table, Split(known, others))]


def _table(name: str, split: Split, draws: int, lines: Sequence[dict[str, Any]]) -> Table:
    title = f"{name}: {len(split.new)} new devices, {len(split.train)} known, mean (standard error) of {draws} draws"
    table = Table(
        "predictor", "n", "Spearman", "MAPE", "in 5 %", "in 10 %", "in its 90 %", "width", title=title, box=None
    )
    for line in lines:
        cells = [_cell(line, metric) for metric in Errors.__slots__]
        table.add_row(line["system"], str(line["measurements"]), *cells)
    return table


def _cell(line: dict[str, Any], metric: str) -> str:
    if metric not in line:
        return ""
    scale, digits, unit = (1, 3, "") if metric == "spearman" else (100, 1, " %")
    error = line[f"{metric}_stderr"]
    spread = "" if error is None else f" ({scale * error:.{digits}f})"
    return f"{scale * line[metric]:.{digits}f}{spread}{unit}"


if __name__ == "__main__":
    typer.run(main)
