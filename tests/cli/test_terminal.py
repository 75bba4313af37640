"""What people see: the state of a search in one line, fronts with baselines, and nothing that breaks on odd names."""

import io
import logging
import sys
from contextlib import redirect_stderr
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from autocompress.cli import terminal
from autocompress.devices import Availability
from autocompress.search.config import Settings
from autocompress.search.progress import Snapshot
from autocompress.search.study import Study
from autocompress.vocabulary.workload import Latency
from tests.report.conftest import BASELINE, CANDIDATES

FRONT = [CANDIDATES[name] for name in ("original", "outside", "low_rank")]


def snapshot(**changes: object) -> Snapshot:
    values = {
        "stage": "trials", "detail": "warm start", "trials": 31, "trials_limit": 200, "rejected": 12, "failed": 1,
        "elapsed_s": 61.0, "time_left_s": 200.0, "baseline": BASELINE, "front": FRONT, "best": FRONT[1],
    }  # fmt: skip
    return Snapshot(**{**values, **changes})  # type: ignore[arg-type]


def text(view: RenderableType, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_devices_are_told_in_full_where_lines_are_short() -> None:
    """What to install is to be copied: it goes on in the next line instead of being cut."""
    wanted = "an NVIDIA GPU with CUDA and cuDNN; pip install onnxruntime-gpu in place of onnxruntime"
    missing = "CUDAExecutionProvider is not in this onnxruntime 1.31.1; never run on hardware"
    shown = text(terminal.devices_table([Availability("ort:cuda", False, missing, wanted)]), width=100)
    assert "…" not in shown
    assert all(word in shown.split() for word in ("ort:cuda", *missing.split(), *wanted.split()))


def test_the_status_line_says_how_far_and_how_long() -> None:
    line = "trials: 31 of 200 trials, 12 over budget, 1 failed, front 3, 1:01 spent, 3:20 left"
    assert terminal.status_line(snapshot()) == line
    unlimited = terminal.status_line(snapshot(trials_limit=None, time_left_s=None))
    assert unlimited == "trials: 31 trials, 12 over budget, 1 failed, front 3, 1:01 spent"


def test_a_finished_study_shows_every_verified_model_and_marks_the_front(tmp_path) -> None:
    models = list(CANDIDATES.values())
    study = Study(tmp_path, Settings(), models, BASELINE, {}, complete=True)
    lines = text(terminal.study_view(study)).splitlines()
    for candidate in models:
        line = next((line for line in lines if line.startswith(candidate.id)), None)
        assert (line is not None) == (candidate in study.verified)
        assert line is None or ("front" in line) == (candidate in study.front)
    assert any(str(tmp_path) in line for line in lines)


def test_the_view_shows_front_original_and_best() -> None:
    shown = text(terminal.snapshot_view(snapshot()))
    assert shown.count(CANDIDATES["outside"].id) == 2 and "Best at the budget" in shown
    assert "original" in shown and "1.67x" in shown and "outside its interval" in shown
    assert "0.600 (0.570-0.630) measured" in shown


def test_an_empty_view_is_possible() -> None:
    assert "setup" in text(terminal.snapshot_view(snapshot(stage="setup", baseline=None, front=(), best=None)))


def test_a_long_front_is_thinned_but_keeps_its_ends() -> None:
    long = [CANDIDATES["original"], *[CANDIDATES["scored"]] * 40, CANDIDATES["low_rank"]]
    shown = text(terminal.snapshot_view(snapshot(front=long, best=None)))
    assert CANDIDATES["original"].id in shown and CANDIDATES["low_rank"].id in shown
    assert shown.count(CANDIDATES["scored"].id) == terminal.FRONT_ROWS - 2


def test_brackets_in_names_are_text_not_markup() -> None:
    assert "[red]layer[/red]" in text(terminal.table("layer", rows=[("[red]layer[/red]",)]))


def test_without_a_terminal_each_stage_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.watching(quiet=False) as progress:
        for stage in ("setup", "trials", "trials", "done"):
            progress(snapshot(stage=stage))
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["setup", "trials", "done"]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.watching(quiet=True) as progress, terminal.counting("models", quiet=True) as count:
        progress(snapshot())
        count(1, 2)
    assert capsys.readouterr() == ("", "")


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("patience_s", "told"), [(0.0, True), (60.0, False)])
def test_what_takes_long_says_what_it_is_at(patience_s: float, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while another stream stands in for standard error, as it does when a model is captured."""
    screen = _Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "PATIENCE_S", patience_s)
    monkeypatch.setenv("TERM", "xterm")
    logger = logging.getLogger("autocompress.graph")
    with terminal.telling(quiet=False), redirect_stderr(io.StringIO()):
        logger.info("proving %d groups", 37)
    assert ("proving 37 groups, 0 s" in screen.getvalue()) == told
    assert not logger.isEnabledFor(logging.INFO)


@pytest.mark.parametrize(("quiet", "stream"), [(True, _Screen), (False, io.StringIO)])
def test_no_line_where_nobody_would_see_it(
    quiet: bool, stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = stream()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.0)
    with terminal.telling(quiet=quiet):
        logging.getLogger("autocompress").info("at work")
    assert screen.getvalue() == ""


def test_models_of_several_profiles_are_shown_on_each(tmp_path) -> None:
    """At a glance: where each model is fastest, and whether a runtime alone beats compression."""
    on = {"ort-cpu": Latency(1e-3, 0.9e-3, 1.1e-3, 1.0, "measured"), "npu": Latency(2e-3, 2e-3, 2e-3, 0.0, "estimate")}
    model = replace(CANDIDATES["outside"], devices=on)
    baseline = replace(BASELINE, devices={name: replace(found, seconds=9e-3) for name, found in on.items()})
    shown = text(terminal.study_view(Study(tmp_path, Settings(), [model], baseline, {}, complete=True)))
    assert "front, fastest on ort-cpu, outside its interval" in shown
    assert "The same models on each profile" in shown
    assert shown.count("9.000 (") == 2 and "2.000 (2.000-2.000) estimate" in shown
