"""Whatever ends a search, what was finished is kept and the next call goes on from there."""

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.search import records
from autocompress.search.candidate import Candidate, Status
from autocompress.search.config import load_settings
from autocompress.search.loop import run
from autocompress.search.study import load
from autocompress.vocabulary.errors import RunError, StorageError
from tests.search.fake import FakeEvaluator

SETTINGS = load_settings(None, trials=15, fine_tuning={"time_s": 60.0})
ROOT = Path(__file__).parents[2]


def killed_after(out: Path, questions: int) -> bool:
    """Runs a search and kills it (-9) once it asked so many questions; False if it ended before."""
    command = [sys.executable, "-m", "tests.search.searcher", str(out), "15"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for asked, line in enumerate(process.stdout, start=1):
            if line.startswith("front"):
                return False
            if asked >= questions:
                process.send_signal(signal.SIGKILL)
                return True
    raise AssertionError("the search ended without a front")


def test_killed_at_any_moment_it_resumes_with_every_finished_candidate(tmp_path):
    out, draw = tmp_path / "run", random.Random(0)
    finished: dict[str, Candidate] = {}
    kills = [draw.randrange(3, 60) for _ in range(4)]
    for questions in kills:
        if not killed_after(out, questions):
            break
        found = records.RunFolder(out).candidates()
        assert finished.keys() <= found.keys()
        for key, before in finished.items():
            assert found[key].score is not None or before.score is None
        finished = found
    last = FakeEvaluator()
    study = run(lambda _: last, SETTINGS, out)
    assert study.complete and len(study.front) >= 3
    assert finished.keys() <= {c.id for c in study.candidates}
    again = [key for key in last.asked("score") if key in finished and finished[key].score is not None]
    assert not again, "a finished candidate was scored again"


def test_ctrl_c_writes_the_front_so_far(tmp_path):
    def interrupt(what: str, key: str) -> None:
        if what == "fine_tune":
            raise KeyboardInterrupt

    study = run(lambda _: FakeEvaluator(before=interrupt), SETTINGS, tmp_path / "run")
    assert not study.complete and study.front
    rows = (tmp_path / "run" / "front.csv").read_text().splitlines()
    assert len(rows) == 1 + len(study.front)
    assert run(lambda _: FakeEvaluator(), SETTINGS, tmp_path / "run").complete


class FullDisk:
    """Lets so many bytes through, then has no space left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room, self._fsync = room, os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._fsync(descriptor)


@pytest.mark.parametrize("room", [0, 3, 20, 40])
def test_a_full_disk_loses_nothing(tmp_path, room):
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, room)
        with pytest.raises(StorageError, match="No space left on device; free some space"):
            run(lambda _: FakeEvaluator(), SETTINGS, tmp_path / "run")
    kept = records.RunFolder(tmp_path / "run").candidates()
    last = FakeEvaluator()
    study = run(lambda _: last, SETTINGS, tmp_path / "run")
    assert study.complete and kept.keys() <= {c.id for c in study.candidates}
    assert not set(last.asked("score")) & {key for key, c in kept.items() if c.score is not None}


def test_a_line_cut_off_is_removed_and_the_rest_kept(tmp_path):
    out = tmp_path / "run"
    run(lambda _: FakeEvaluator(), SETTINGS, out)
    before = records.RunFolder(out).candidates()
    for name in ("candidates.jsonl", "study.journal"):
        content = (out / name).read_bytes()
        (out / name).write_bytes(content[:-7])
    study = run(lambda _: FakeEvaluator(), SETTINGS, out)
    assert before.keys() == {c.id for c in study.candidates} and study.complete


@pytest.mark.parametrize("damage", [b"\x00\x01 not json\n", b'{"op_code": 99}\n', b"[1, 2]\n", b"{}\n"])
def test_a_damaged_optuna_journal_is_set_aside_and_rebuilt(tmp_path, damage):
    out = tmp_path / "run"
    run(lambda _: FakeEvaluator(), SETTINGS, out)
    known = load(out).candidates
    lines = (out / "study.journal").read_bytes().splitlines(keepends=True)
    (out / "study.journal").write_bytes(b"".join([*lines[:40], damage, *lines[40:]]))
    more = load_settings(None, trials=18, fine_tuning={"enabled": False})
    evaluator = FakeEvaluator()
    study = run(lambda _: evaluator, more, out)
    assert [c.id for c in known] == [c.id for c in study.candidates][: len(known)]
    assert not set(evaluator.asked("score")) & {c.id for c in known if c.score is not None}
    assert len([c for c in study.candidates if c.status is not Status.REJECTED]) == 18


def test_damaged_candidates_are_passed_over(tmp_path):
    out = tmp_path / "run"
    run(lambda _: FakeEvaluator(), SETTINGS, out)
    journal = out / "candidates.jsonl"
    journal.write_bytes(b"nonsense\n" + journal.read_bytes() + b'{"id": "abc"}\n')
    study = load(out)
    assert len(study.candidates) == 15
    assert run(lambda _: FakeEvaluator(), SETTINGS, out).complete


def test_a_damaged_run_file_says_what_to_do(tmp_path):
    out = tmp_path / "run"
    run(lambda _: FakeEvaluator(), SETTINGS, out)
    (out / "run.toml").write_text("fingerprint = ")
    for use in (lambda: load(out), lambda: run(lambda _: FakeEvaluator(), SETTINGS, out)):
        with pytest.raises(RunError, match="delete that one file and search again"):
            use()
    (out / "run.toml").unlink()
    assert run(lambda _: FakeEvaluator(), SETTINGS, out).complete


def test_a_damaged_state_is_found_out_anew(tmp_path):
    out = tmp_path / "run"
    run(lambda _: FakeEvaluator(), SETTINGS, out)
    (out / "state.json").write_text("{")
    evaluator = FakeEvaluator()
    assert run(lambda _: evaluator, SETTINGS, out).complete
    assert evaluator.asked("baseline") == ["original"] and not evaluator.asked("score")


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        load(tmp_path)


def test_a_folder_in_use_is_refused(tmp_path):
    folder = records.RunFolder(tmp_path / "run")
    with folder.opened(), pytest.raises(RunError, match="searched by another process"):
        run(lambda _: FakeEvaluator(), SETTINGS, tmp_path / "run")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="check the path"):
        run(lambda _: FakeEvaluator(), SETTINGS, tmp_path / "file" / "run")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    records.replace_file(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        records.replace_file(path, b"new and longer")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    journal = tmp_path / "journal"
    journal.write_bytes(b"one\n")
    with pytest.raises(OSError, match="No space"):
        records.append_lines(journal, ["two"])
    assert journal.read_bytes() == b"one\n"


def test_workers_share_the_trials_and_no_plan_is_scored_twice(tmp_path):
    """What each process asks of its evaluator goes to a file of the test's own."""
    log = tmp_path / "asked"

    def note(what: str, key: str) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()} {what} {key}\n")

    settings = load_settings(None, trials=30, workers=3, fine_tuning={"enabled": False})
    study = run(lambda _: FakeEvaluator(before=note), settings, tmp_path / "run")
    asked = [line.split(" ", 2) for line in log.read_text().splitlines()]
    scored = [key for _, what, key in asked if what == "score"]
    assert len({process for process, what, _ in asked if what == "score"}) > 1
    assert len(scored) == len(set(scored)) and set(scored) == {c.id for c in study.candidates}
    assert study.complete and 30 <= len(scored) <= 32


def test_a_worker_that_dies_leaves_the_others_working(tmp_path):
    first = os.getpid()

    def die(what: str, key: str) -> None:
        if what == "score" and os.getpid() != first:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = load_settings(None, trials=12, workers=2, fine_tuning={"enabled": False})
    study = run(lambda _: FakeEvaluator(before=die), settings, tmp_path / "run")
    assert study.complete and len(study.candidates) >= 12
