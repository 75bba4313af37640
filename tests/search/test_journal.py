"""The study's journal is what Optuna's own backend writes and reads."""

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autocompress.search.journal import Journal


def told(backend, trials: int):
    """Adds trials to the study in a backend, new or stored."""
    storage = JournalStorage(backend)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(study_name="s", storage=storage, sampler=sampler, load_if_exists=True)
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", 0, 1) + trial.suggest_int("n", 0, 9))
    return [(trial.params, trial.values, trial.state) for trial in study.trials]


@pytest.mark.parametrize(("writer", "reader"), [(Journal, JournalFileBackend), (JournalFileBackend, Journal)])
def test_either_backend_continues_what_the_other_wrote(tmp_path, writer, reader):
    path = tmp_path / "study.journal"
    written = told(writer(path if writer is Journal else str(path)), 5)
    found = told(reader(path if reader is Journal else str(path)), 3)
    assert found[:5] == written and len(found) == 8


def test_two_writers_see_each_other(tmp_path):
    one, two = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    one.append_logs([{"a": 1}, {"a": 2}])
    assert list(two.read_logs(1)) == [{"a": 2}]
    two.append_logs([{"a": 3}])
    assert list(one.read_logs(0)) == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert list(one.read_logs(2)) == [{"a": 3}] and list(one.read_logs(3)) == []


def test_a_line_that_is_being_written_is_left_for_later(tmp_path):
    journal = Journal(tmp_path / "j")
    (tmp_path / "j").write_bytes(b'{"a":1}\n{"a":')
    assert list(journal.read_logs(0)) == [{"a": 1}]
    with (tmp_path / "j").open("ab") as file:
        file.write(b"2}\n")
    assert list(journal.read_logs(1)) == [{"a": 2}]
