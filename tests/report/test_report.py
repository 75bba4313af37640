"""The page says everything the run's files say, names each number's origin, and refuses damaged runs."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from autocompress.errors import RunError
from autocompress.methods.configs import Prune, Quantize
from autocompress.plan import Plan, Step
from autocompress.report import write_report
from autocompress.report.plots import decisions, prediction_figure, time_figure
from autocompress.report.records import read_records
from autocompress.workload import DType

MakeRun = Callable[..., Path]


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


def read(run: Path) -> _Text:
    text = _Text()
    text.feed(write_report(run).read_text(encoding="utf-8"))
    return text


def test_the_page_shows_every_front_model_and_needs_nothing_from_outside(make_run: MakeRun) -> None:
    text = read(make_run())
    words = " ".join(text.words)
    for told in ("0.9400", "0.600", "1.67x", "12 kB", "250,000", "3 models on the front, of 4 plans"):
        assert told in words
    assert set(text.addresses) == {"models/aaa.onnx", "models/bbb.onnx"}


def test_the_page_marks_what_lies_outside_its_interval(make_run: MakeRun) -> None:
    html = write_report(make_run()).read_text(encoding="utf-8")
    assert re.findall(r"<tr class=marked><td>(\w+)", html) == ["bbb"]


def test_the_page_says_whether_there_was_a_test_split(make_run: MakeRun) -> None:
    run = make_run()
    assert "looked at once" in " ".join(read(run).words)
    for name in ("front.csv", "candidates.csv"):
        text = (run / name).read_text()
        (run / name).write_text(text.replace(",0.94,1.0", ",,1.0").replace(",0.93,0.5", ",,0.5"))
    assert "There was no test split" in " ".join(read(run).words)


def test_markup_in_names_is_escaped(make_run: MakeRun) -> None:
    run = make_run()
    (run / "run.toml").write_text("task = '<script>alert(1)</script>'")
    assert "<script>alert(1)" not in write_report(run).read_text(encoding="utf-8")


def test_without_measurements_it_says_so(make_run: MakeRun) -> None:
    run = make_run(front="ccc", candidates="ccc ddd")
    assert prediction_figure(read_records(run)) is None
    assert "every latency here is a prediction" in " ".join(read(run).words)


def test_time_is_shown_only_where_it_was_kept(make_run: MakeRun) -> None:
    assert time_figure(read_records(make_run())) is None


@pytest.mark.parametrize(
    ("configs", "kind"),
    [
        ((), "as it was"),
        ((Prune(0), Quantize(DType.INT8)), "dropped"),
        ((Prune(8), Quantize(DType.INT8)), "narrowed, 8 bit"),
        ((Quantize(DType.FP32),), "as it was"),
    ],
)
def test_decisions_have_one_kind(configs: tuple[Prune | Quantize, ...], kind: str) -> None:
    assert decisions(Plan("f", tuple(Step("t", config) for config in configs)), "t")[0] == kind


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda run: (run / "front.csv").unlink(), "has no front.csv; run the search again"),
        (lambda run: (run / "run.toml").unlink(), "has no run.toml"),
        (lambda run: (run / "run.toml").write_bytes(b"\xff\x00"), "run.toml is damaged"),
        (lambda run: (run / "candidates.csv").write_text(""), "candidates.csv is damaged"),
        (lambda run: (run / "candidates.csv").write_text("id,status\naaa,complete\n"), "lacks the columns score,"),
        (lambda run: (run / "plans" / "bbb.json").write_text("{"), "bbb.json is damaged"),
        (lambda run: (run / "plans" / "bbb.json").unlink(), "bbb.json is missing"),
        (lambda run: (run / "models" / "aaa.card.json").write_text("{}"), "not a model's card"),
    ],
)
def test_damaged_runs_are_refused_with_the_file_at_fault(
    make_run: MakeRun, damage: Callable[[Path], object], line: str
) -> None:
    run = make_run()
    damage(run)
    with pytest.raises(RunError, match=line):
        write_report(run)


def test_ids_can_not_lead_out_of_the_run(make_run: MakeRun) -> None:
    run = make_run()
    (run.parent / "secret.json").write_text(Plan("f").to_json())
    text = (run / "front.csv").read_text().replace("\nbbb,", "\n../../secret,")
    (run / "front.csv").write_text(text)
    with pytest.raises(RunError, match="missing"):
        write_report(run)


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        write_report(tmp_path / "nowhere")
