"""Will quantising really make it faster? How well that can be told before quantising, or before running what came out.

    python benchmarks/slowdown.py --data DIR

Pairs of float and quantised latencies of the same model, component, device and runtime on Qualcomm AI Hub. A pair
counts as slower where the quantised model took longer. Models are held out whole: nothing of a model, in any precision,
is learnt from when it is judged.

This stays a benchmark and is no part of the package: what it learns is learnt from these data, which are not shipped,
and a search measures its finalists anyway.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from environment import environment
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float64]

CONDITIONS = ("w8a8", "w8a16", "w4a16")
COMPONENT, PAIR = ["model", "component"], ["model", "component", "device", "runtime"]
UNITS = ("npu", "gpu", "cpu")
FOLDS = 10
STRENGTHS = np.logspace(-3, 1, 9)
"""Candidates of the logistic regression's inverse penalty; models held out within the training models choose."""
BINS = 5
NEAR = 0.05
"""A log ratio within this of 0 is hardly a difference."""

console = Console()

Fit = Callable[[Floats, NDArray[np.bool_], NDArray[Any]], Callable[[Floats], Floats]]
"""(features, slower, models) → predicted probability of being slower."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What may be used to tell: a name, and the features of each pair."""

    name: str
    features: pd.DataFrame
    fit: Fit


@dataclass(frozen=True, slots=True)
class Judged:
    """Of one way to tell under one condition; standard errors by drawing models anew."""

    auc: float
    auc_stderr: float
    average_precision: float
    average_precision_stderr: float
    brier: float
    calibration_error: float


def pairs(table: pd.DataFrame) -> pd.DataFrame:
    """Quantised rows beside their float one, whose columns end in _float."""
    measured = table.dropna(subset=["latency_ms"])
    units = {f"layers_{unit}": 0.0 for unit in UNITS}
    measured = measured.fillna(units)
    floats = measured[measured["precision"] == "float"].drop(columns=["precision", "status"])
    quantised = measured[measured["precision"].isin(CONDITIONS)]
    found = quantised.merge(floats, on=PAIR, suffixes=("", "_float"))
    found["log_ratio"] = np.log(found["latency_ms"] / found["latency_ms_float"])
    found["slower"] = found["log_ratio"] > 0
    return found


def own_row(found: pd.DataFrame) -> pd.DataFrame:
    """The float model on the same device and runtime: latency, layers and the unit they run on, memory."""
    latency, layers = np.log(found["latency_ms_float"]), np.log(found["layers_total_float"])
    memory = np.log1p(found["peak_mem_max_mb_float"])
    numbers = {"latency": latency, "layers": layers, "per layer": latency - layers, "memory": memory}
    shares = {f"share {u}": found[f"layers_{u}_float"] / found["layers_total_float"] for u in ("gpu", "cpu")}
    where = pd.get_dummies(found[["device", "runtime", "precision"]]).astype(float)
    return pd.concat([pd.DataFrame({**numbers, **shares, "memory per time": memory - latency}), where], axis=1)


def elsewhere(found: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The same float model, nothing quantised, in the other runtimes of the device and on the other devices.

    In the other runtimes: latency, layers and memory relative to those here. On the other devices: latency relative to
    what is usual there, less the model's own mean of that.
    """
    floats = table[(table["precision"] == "float") & table["latency_ms"].notna()].copy()
    floats["log"] = np.log(floats["latency_ms"])
    here = {"log": np.log(found["latency_ms_float"]).to_numpy()}
    here |= {c: np.log1p(found[f"{c}_float"]).to_numpy() for c in ("layers_total", "peak_mem_max_mb")}
    columns: dict[str, Floats] = {}
    for runtime, rows in floats.groupby("runtime"):
        by_device = rows.set_index([*COMPONENT, "device"])
        wanted = by_device.reindex(pd.MultiIndex.from_frame(found[[*COMPONENT, "device"]]))
        there = {"log": wanted["log"], "layers_total": np.log1p(wanted["layers_total"])}
        there["peak_mem_max_mb"] = np.log1p(wanted["peak_mem_max_mb"])
        columns |= {f"{runtime} {name}": there[name].to_numpy() - here[name] for name in here}
    usual = floats.groupby(["device", "runtime"])["log"].transform("mean")
    floats["relative"] = floats["log"] - usual
    profile = floats.pivot_table(index=COMPONENT, columns="device", values="relative")
    level = profile.mean(axis=1)
    index = pd.MultiIndex.from_frame(found[COMPONENT])
    columns |= {f"on {name}": (profile[name] - level).reindex(index).to_numpy() for name in profile}
    columns |= {"level": level.reindex(index).to_numpy(), "unevenness": profile.std(axis=1).reindex(index).to_numpy()}
    return pd.DataFrame(columns, index=found.index)


def compiled(found: pd.DataFrame) -> pd.DataFrame:
    """What compiling the quantised model tells before it runs: how many layers it has, and on which unit each is."""
    shares = {u: found[f"layers_{u}"] / found["layers_total"] for u in ("gpu", "cpu")}
    grown = np.log(found["layers_total"] / found["layers_total_float"])
    moved = {f"moved to {u}": shares[u] - found[f"layers_{u}_float"] / found["layers_total_float"] for u in shares}
    named = {f"compiled share {u}": share for u, share in shares.items()}
    return pd.DataFrame({"layers grown": grown, **named, **moved, "cpu layers": np.log1p(found["layers_cpu"])})


def logistic(features: Floats, slower: NDArray[np.bool_], models: NDArray[Any]) -> Callable[[Floats], Floats]:
    """Penalised as models held out within these choose (by log loss)."""

    def fitted(strength: float, rows: NDArray[np.intp]) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000)).fit(
            features[rows], slower[rows]
        )

    losses = []
    for strength in STRENGTHS:
        loss = 0.0
        for train, test in GroupKFold(5).split(features, groups=models):
            if len(np.unique(slower[train])) < 2:
                continue
            told = np.clip(fitted(strength, train).predict_proba(features[test])[:, 1], 1e-6, 1 - 1e-6)
            loss -= float(np.log(np.where(slower[test], told, 1 - told)).sum())
        losses.append(loss)
    best = fitted(STRENGTHS[int(np.argmin(losses))], np.arange(len(features)))
    return lambda rows: best.predict_proba(rows)[:, 1]


def forest(features: Floats, slower: NDArray[np.bool_], models: NDArray[Any]) -> Callable[[Floats], Floats]:
    trees = ExtraTreesClassifier(300, min_samples_leaf=3, random_state=0).fit(features, slower)
    return lambda rows: trees.predict_proba(rows)[:, 1]


def both(features: Floats, slower: NDArray[np.bool_], models: NDArray[Any]) -> Callable[[Floats], Floats]:
    """The mean of a linear and a tree-based opinion."""
    linear, trees = logistic(features, slower, models), forest(features, slower, models)
    return lambda rows: (linear(rows) + trees(rows)) / 2


def base_rate(features: Floats, slower: NDArray[np.bool_], models: NDArray[Any]) -> Callable[[Floats], Floats]:
    """How often the training models were slower under the same condition, whatever the model.

    It ranks nothing: pooled over folds its area is below one half, as a slow model is judged by the others' rate.
    """
    rates = {tuple(row): slower[(features == row).all(1)].mean() for row in np.unique(features, axis=0)}
    return lambda rows: np.array([rates.get(tuple(row), slower.mean()) for row in rows])


def told(knowledge: Knowledge, found: pd.DataFrame) -> Floats:
    """Each pair's probability of being slower, from models other than its own."""
    features = knowledge.features.fillna(0.0).to_numpy(dtype=np.float64)
    slower, models = found["slower"].to_numpy(), found["model"].to_numpy()
    probability = np.full(len(found), np.nan)
    for train, test in GroupKFold(FOLDS).split(features, groups=models):
        probability[test] = knowledge.fit(features[train], slower[train], models[train])(features[test])
    return probability


def judge(slower: NDArray[np.bool_], probability: Floats, models: NDArray[Any], draws: int) -> Judged:
    """Standard errors by bootstrap over whole models (draws that hold but one class are drawn again)."""
    generator = np.random.default_rng(0)
    members = [np.flatnonzero(models == name) for name in np.unique(models)]
    aucs, precisions = [], []
    while len(aucs) < draws:
        rows = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        if 0 < slower[rows].sum() < len(rows):
            aucs.append(roc_auc_score(slower[rows], probability[rows]))
            precisions.append(average_precision_score(slower[rows], probability[rows]))
    return Judged(
        float(roc_auc_score(slower, probability)), float(np.std(aucs)),
        float(average_precision_score(slower, probability)), float(np.std(precisions)),
        float(brier_score_loss(slower, probability)), _calibration_error(slower, probability),
    )  # fmt: skip


def _calibration_error(slower: NDArray[np.bool_], probability: Floats) -> float:
    """Mean difference between what is told and what happens, over bins of equally many pairs."""
    bins = np.array_split(np.argsort(probability, kind="stable"), BINS)
    return float(sum(len(b) * abs(slower[b].mean() - probability[b].mean()) for b in bins) / len(slower))


def ways(found: pd.DataFrame, table: pd.DataFrame) -> list[Knowledge]:
    own, other, built = own_row(found), elsewhere(found, table), compiled(found)
    precision = own[[c for c in own if c.startswith("precision_")]]
    work = pd.concat([np.log(found["layers_total_float"]).rename("layers"), own["latency"], precision], axis=1)
    kinds: dict[str, tuple[pd.DataFrame, Fit]] = {
        "base rate of the condition": (precision, base_rate),
        "size only: float latency, layers": (work, logistic),
        "float model here": (own, both),
        "float model here and elsewhere": (pd.concat([own, other], axis=1), both),
        "... logistic regression alone": (pd.concat([own, other], axis=1), logistic),
        "... extremely randomised trees alone": (pd.concat([own, other], axis=1), forest),
        "float model here, quantised one compiled": (pd.concat([own, built], axis=1), both),
        "float model here and elsewhere, quantised one compiled": (pd.concat([own, other, built], axis=1), both),
    }
    return [Knowledge(name, *kind) for name, kind in kinds.items()]


def main(
    data: Annotated[Path, typer.Option(help="Folder with qualcomm_ai_hub.csv.gz.")],
    draws: Annotated[int, typer.Option(help="Bootstrap draws of models, for standard errors.")] = 1000,
    out: Annotated[Path, typer.Option(help="JSON file.")] = Path(__file__).parent / "results" / "slowdown.json",
) -> None:
    path = data / "qualcomm_ai_hub.csv.gz"
    if not path.exists():
        raise typer.BadParameter(f"no {path.name} in {data}")
    table = pd.read_csv(path)
    found = pairs(table)
    document: dict[str, Any] = {"benchmark": "slowdown", "environment": environment(), "folds": FOLDS, "conditions": {}}
    probabilities = {way.name: told(way, found) for way in ways(found, table)}
    for condition in CONDITIONS:
        rows = (found["precision"] == condition).to_numpy()
        if not rows.any():
            document["conditions"][condition] = {"pairs": 0, "reason": "no float latency to compare with"}
            continue
        document["conditions"][condition] = _described(
            found[rows], {n: p[rows] for n, p in probabilities.items()}, draws
        )
        console.print(_table(condition, document["conditions"][condition]))
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(document, indent=1) + "\n")
    console.print(f"written: {out}")


def _described(found: pd.DataFrame, probabilities: dict[str, Floats], draws: int) -> dict[str, Any]:
    slower, models = found["slower"].to_numpy(), found["model"].to_numpy()
    document: dict[str, Any] = {
        "pairs": len(found), "models": int(found["model"].nunique()), "slower": int(slower.sum()),
        "models_ever_slower": int(found.loc[slower, "model"].nunique()),
        "hardly_different": float((found["log_ratio"].abs() < NEAR).mean()),
    }  # fmt: skip
    if 0 < slower.sum() < len(slower):
        judged = {name: judge(slower, probability, models, draws) for name, probability in probabilities.items()}
        document["ways"] = {n: {k: round(getattr(j, k), 4) for k in Judged.__slots__} for n, j in judged.items()}
    return document


def _table(condition: str, document: dict[str, Any]) -> Table:
    title = (
        f"{condition}: {document['slower']} of {document['pairs']} pairs slower, of {document['models']} models "
        f"({document['models_ever_slower']} of them ever)"
    )
    table = Table("known", "ROC AUC", "average precision", "Brier", "calibration error", title=title, box=None)
    for name, row in document.get("ways", {}).items():
        table.add_row(name, _cell(row, "auc"), _cell(row, "average_precision"), *_plain(row))
    return table


def _cell(row: dict[str, float], name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_stderr']:.3f})"


def _plain(row: dict[str, float]) -> Sequence[str]:
    return f"{row['brier']:.3f}", f"{row['calibration_error']:.3f}"


if __name__ == "__main__":
    typer.run(main)
