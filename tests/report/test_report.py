"""The page says everything the run's files say, names each number's origin, and refuses damaged runs."""

import re
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autocompress.compression.methods.lowrank import LowRank
from autocompress.compression.methods.method import Config
from autocompress.compression.methods.prune import Prune
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.methods.student import Student
from autocompress.compression.plan import Plan, Step
from autocompress.report import write_report
from autocompress.report.plots import decisions, front_figure, prediction_figure, time_figure
from autocompress.report.records import read_records
from autocompress.search.engine import Lesson
from autocompress.search.records import RunFolder
from autocompress.search.space import Slowing
from autocompress.vocabulary.errors import AutocompressError, RunError
from autocompress.vocabulary.formats import FP32, INT8

from .conftest import CANDIDATES

MakeRun = Callable[..., Path]
OUTSIDE, LOW_RANK = CANDIDATES["outside"].id, CANDIDATES["low_rank"].id


class _Text(HTMLParser):
    """Collects what a reader sees, and every address the page points at."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in ("script", "style")
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)


def read(run: Path) -> tuple[str, _Text]:
    text = _Text()
    text.feed(write_report(run).read_text(encoding="utf-8"))
    return " ".join(text.words), text


def test_the_page_shows_every_front_model_and_needs_nothing_from_outside(make_run: MakeRun) -> None:
    words, text = read(make_run())
    for told in ("0.9400", "0.600", "1.67x", "12 kB", "250,000", "3 models on the front, of 5 plans", "seed 7"):
        assert told in words
    assert "runs 2.44x as fast as the original (measured)" in words
    assert "alone bring 1.09x" in words
    measured = ("original", "outside", "low_rank")
    assert set(text.addresses) == {CANDIDATES[name].artifact for name in measured}


def test_the_page_marks_what_lies_outside_its_interval(make_run: MakeRun) -> None:
    html = write_report(make_run()).read_text(encoding="utf-8")
    assert re.findall(r"<tr class=marked><td>(\w+)", html) == [OUTSIDE]


@pytest.mark.parametrize(("tested", "line"), [(True, "looked at once"), (False, "There was no test split")])
def test_the_page_says_whether_there_was_a_test_split(make_run: MakeRun, tested: bool, line: str) -> None:
    assert line in read(make_run(tested=tested))[0]


def test_markup_in_settings_is_escaped(make_run: MakeRun) -> None:
    run = make_run()
    path = run / "run.toml"
    path.write_text(path.read_text().replace('"f00d"', '"<script>alert(1)</script>"'))
    assert "<script>alert(1)" not in write_report(run).read_text(encoding="utf-8")


def test_without_measurements_it_says_so(make_run: MakeRun) -> None:
    run = make_run("scored rejected")
    assert prediction_figure(read_records(run)) is None
    assert "every latency here is a prediction" in read(run)[0]


def test_an_empty_run_has_a_page_too(make_run: MakeRun) -> None:
    assert "0 models on the front" in read(make_run("rejected"))[0]


def test_the_front_is_drawn_with_both_originals(make_run: MakeRun) -> None:
    names = {trace.name for trace in front_figure(read_records(make_run())).data}
    assert names == {"others", "front, measured", "original, measured", "original, exactly rewritten"}


def test_stages_are_shown_where_they_were_kept(make_run: MakeRun) -> None:
    run = make_run()
    figure = time_figure(read_records(run))
    assert figure is not None and list(figure.data[0].y) == ["setup", "fine tuning"]
    (run / "state.json").unlink()
    assert time_figure(read_records(run)) is None


@pytest.mark.parametrize(
    ("configs", "kind", "words"),
    [
        ((), "as it was", ""),
        ((Prune(0), Quantize(INT8)), "dropped", "dropped, int8"),
        ((Prune(8), Quantize(INT8)), "narrowed, 8 bit", "keep 8, int8"),
        ((Quantize(FP32),), "as it was", "fp32"),
        ((LowRank("svd", 4),), "low rank", "svd 4"),
        ((Student(0.5),), "narrowed", "x 0.5"),
    ],
)
def test_decisions_have_one_kind(configs: tuple[Config, ...], kind: str, words: str) -> None:
    assert decisions(Plan("f", tuple(Step("t", config) for config in configs)), "t") == (kind, words)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda run: (run / "run.toml").unlink(), r"run\.toml is missing"),
        (lambda run: (run / "run.toml").write_bytes(b"\xff\x00"), r"run\.toml is damaged"),
        (lambda run: (run / "run.toml").write_text("[settings]\nsede = 1"), "unknown key 'sede': did you mean 'seed'"),
        (lambda run: (run / "models" / f"{OUTSIDE}.card.json").write_text("{}"), "not a model's card"),
    ],
)
def test_damaged_runs_are_refused_with_the_file_at_fault(
    make_run: MakeRun, damage: Callable[[Path], object], line: str
) -> None:
    run = make_run()
    (run / "models").mkdir()
    damage(run)
    with pytest.raises(AutocompressError, match=line) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere holds no run"):
        write_report(tmp_path / "nowhere")


def test_the_predictor_s_lessons_and_what_was_left_out_are_told(make_run: MakeRun) -> None:
    run = make_run()
    folder = RunFolder(run)
    lessons = [Lesson("ort-cpu", 6, 0.031, 0.8), Lesson("ort-cpu", 5, 0.012, 1.0)]
    slowing = [Slowing("quantize:conv1", "int8", 1.37), Slowing("prune:g2", 12, 1.0)]
    folder.write_state(
        folder.read_state() | {"lessons": [asdict(x) for x in lessons], "slowing": [asdict(x) for x in slowing]}
    )
    text, _ = read(run)
    for cell in ("3.1%", "1.2%", "quantize:conv1", "1.37x", "2 options were left out before the search"):
        assert cell in text, cell
    (run / "report.html").unlink()
    folder.write_state(folder.read_state() | {"lessons": [], "slowing": []})
    text, _ = read(run)
    assert "left out before the search" not in text and "mean error before" not in text
