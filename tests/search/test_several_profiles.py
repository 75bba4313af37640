"""Searching for several devices at once: rooflines stand for two boards, and the real net is built and scored."""

from pathlib import Path

import pandas as pd
import pytest

from autocompress.search import Study, search
from autocompress.search.candidate import Rung
from autocompress.search.config import load_settings
from autocompress.search.objective import Objective
from autocompress.vocabulary.errors import ConfigError
from tests.search.test_evaluator import SETTINGS, tiny_task

PROFILES = ("arm-cortex-a76-roofline", "nvidia-h200-roofline")


def run(out: Path, objective: Objective) -> Study:
    return search(
        tiny_task(), out=out, settings=SETTINGS, profile=PROFILES, objective=objective, trials=8, seed=0,
        fine_tuning={"enabled": False},
    )  # fmt: skip


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[Objective, Study]:
    return {objective: run(tmp_path_factory.mktemp(objective), objective) for objective in Objective}


def test_every_candidate_is_priced_on_every_profile(studies: dict[Objective, Study]) -> None:
    for study in studies.values():
        assert study.baseline is not None
        assert tuple(study.baseline.devices) == PROFILES
        assert all(tuple(c.devices) == PROFILES for c in study.candidates)


def test_the_latency_is_what_the_objective_says(studies: dict[Objective, Study]) -> None:
    for objective, study in studies.items():
        assert study.baseline is not None
        original = {name: latency.seconds for name, latency in study.baseline.devices.items()}
        for c in study.verified:
            cpu, gpu = (c.devices[name].seconds for name in PROFILES)
            assert c.measured is not None
            worst = original[PROFILES[0]] * max(cpu / original[PROFILES[0]], gpu / original[PROFILES[1]])
            wanted = {Objective.EACH: cpu, Objective.WORST: worst, Objective.BEST: min(cpu, gpu)}[objective]
            assert c.measured.seconds == pytest.approx(wanted), objective


def test_each_keeps_what_is_best_on_either(studies: dict[Objective, Study]) -> None:
    """With a front over both latencies no model on it is beaten in score and both times, and none outside is missed."""
    study = studies[Objective.EACH]
    assert all(len(c.cost) == 3 for c in study.front)
    best = {name: min(study.verified, key=lambda c: (c.devices[name].seconds, c.cost)) for name in PROFILES}
    ids = {c.id for c in study.front}
    assert {c.id for c in best.values()} <= ids


def test_a_datasheet_is_never_called_measured(studies: dict[Objective, Study]) -> None:
    for study in studies.values():
        assert study.verified
        for c in study.verified:
            assert c.rung is Rung.MEASURED
            assert {latency.origin for latency in c.devices.values()} == {"estimate"}
            assert c.measured is not None and c.measured.origin == "estimate"


def test_the_tables_have_columns_for_each_profile(studies: dict[Objective, Study]) -> None:
    study = studies[Objective.BEST]
    table = pd.read_csv(study.path / "candidates.csv").set_index("id")
    for c in study.verified:
        assert table.loc[c.id, "fastest_on"] == min(PROFILES, key=lambda name: c.devices[name].seconds)
        for name in PROFILES:
            assert table.loc[c.id, f"ms on {name}"] == pytest.approx(1e3 * c.devices[name].seconds)
            assert table.loc[c.id, f"how known on {name}"] == "estimate"


def test_a_finished_run_is_loaded_and_resumed_with_its_profiles(studies: dict[Objective, Study]) -> None:
    before = studies[Objective.EACH]
    again = run(before.path, Objective.EACH)
    assert {c.id for c in again.candidates} >= {c.id for c in before.candidates}
    assert again.settings.objective is Objective.EACH


def test_an_unknown_objective_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'wurst' is not known: did you mean 'worst'"):
        load_settings(objective="wurst")
