"""Which sampler to propose plans with: hypervolume on a synthetic net after equal trials, with and without warm start.

    python -m benchmarks.samplers --trials 150 --seeds 5

The net is that of tests/search/fake.py: errors of neighbouring blocks add up to more than their sum, int8 pays in all
but the stem, and time has a floor per block. Hypervolume is relative to the best front known from all runs together.
"""

import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from autocompress.search.config import load_settings
from autocompress.search.loop import run
from autocompress.search.rungs import pareto_front
from autocompress.search.study import Study
from autocompress.vocabulary.pareto import hypervolume
from tests.search.fake import ORIGINAL_SCORE, FakeEvaluator

SAMPLERS = ("tpe", "nsga2", "random")
REFERENCE = (-(ORIGINAL_SCORE - 0.3), 1e-3)
"""Worst point that counts: 30 points of loss at the original's time. Random plans of deep nets lose more than that."""


def main(
    trials: Annotated[int, typer.Option(help="Plans scored in each run.")] = 150,
    seeds: Annotated[int, typer.Option(help="Runs of each sampler.")] = 5,
    blocks: Annotated[int, typer.Option(help="Residual blocks of the net; about two parameters each.")] = 20,
) -> None:
    found = {
        (sampler, warm): [volume(searched(sampler, warm, trials, seed, blocks)) for seed in range(seeds)]
        for sampler in SAMPLERS
        for warm in (True, False)
    }
    best = max(max(volumes) for volumes in found.values())
    table = Table(
        "sampler", "warm start", "median", "least", "most", title=f"{2 * blocks + 2} parameters, {trials} trials"
    )
    for (sampler, warm), volumes in found.items():
        shares = [f"{value / best:.3f}" for value in (median(volumes), min(volumes), max(volumes))]
        table.add_row(sampler, "yes" if warm else "no", *shares)
    Console().print(table)


def searched(sampler: str, warm: bool, trials: int, seed: int, blocks: int) -> Study:
    settings = load_settings(
        trials=trials, sampler=sampler, seed=seed, warm_start={"enabled": warm}, fine_tuning={"enabled": False}
    )
    with tempfile.TemporaryDirectory() as folder:
        return run(lambda _: FakeEvaluator(blocks=blocks, trainable=False), settings, Path(folder))


def volume(study: Study) -> float:
    scored = [c for c in study.candidates if c.score is not None]
    return hypervolume([c.cost for c in pareto_front(scored)], REFERENCE)


if __name__ == "__main__":
    typer.run(main)
