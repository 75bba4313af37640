"""Every way in which a task reference can be wrong has its own clear line."""

import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.task.loading import load_task, split_reference
from autocompress.task.task import Task
from autocompress.vocabulary.errors import TaskError

GOOD = """
import torch
from autocompress import Task
batch = (torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
task = Task(model=torch.nn.Linear(4, 3), example_inputs=torch.zeros(1, 4), validation=[batch])
other = 3
def make(): return task
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.py"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("a/b.py:task", ("a/b.py", "task")),
        ("a/b.py", ("a/b.py", "task")),
        ("pkg.mod:mine", ("pkg.mod", "mine")),
        ("C:/a/b.py", ("C:/a/b.py", "task")),
        ("a/b.py:", ("a/b.py", "task")),
    ],
)
def test_reference_is_split_at_the_last_colon(reference: str, parts: tuple[str, str]) -> None:
    assert split_reference(reference) == parts


def test_loads_by_file_with_or_without_name(good: Path) -> None:
    assert isinstance(load_task(f"{good}:task"), Task)
    assert isinstance(load_task(str(good)), Task)


def test_loads_by_module(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(good.parent)
    (good.parent / "autocompress_sample_module.py").write_text(GOOD)
    assert isinstance(load_task("autocompress_sample_module:task"), Task)


def test_a_task_file_may_import_its_neighbours(good: Path) -> None:
    (good.parent / "neighbour_of_task.py").write_text("from good import task")
    assert isinstance(load_task(str(good.parent / "neighbour_of_task.py")), Task)


def test_missing_file_names_the_nearest(good: Path) -> None:
    with pytest.raises(TaskError, match=r"no task file .*god\.py.*did you mean .*good\.py"):
        load_task(str(good.parent / "god.py"))


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no task file"):
        load_task(str(tmp_path / "nowhere" / "task.py"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import torch\nraise ValueError('no data here')", r"ValueError: no data here \(bad\.py, line 2\)"),
        ("import no_such_package_at_all", r"No module named 'no_such_package_at_all'"),
        ("def f(:\n", r"SyntaxError: .*bad\.py, line 1"),
    ],
)
def test_file_that_fails_names_error_and_line(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(TaskError, match=line) as caught:
        load_task(str(path))
    assert "\n" not in str(caught.value)


def test_missing_name_offers_the_tasks_there(good: Path) -> None:
    with pytest.raises(TaskError, match="has no 'tusk'; did you mean 'task'"):
        load_task(f"{good}:tusk")


def test_no_task_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1")
    with pytest.raises(TaskError, match=r"has no 'task'; write `task = autocompress\.Task"):
        load_task(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(("name", "line"), [("other", "is a int, not an"), ("make", "is a function, .*; call it")])
def test_wrong_object(good: Path, name: str, line: str) -> None:
    with pytest.raises(TaskError, match=line):
        load_task(f"{good}:{name}")


@pytest.mark.parametrize("reference", ["no_such_package_at_all:task", "not a module:task", "no_such.sub:task"])
def test_missing_module(reference: str) -> None:
    with pytest.raises(TaskError, match="module"):
        load_task(reference)


def test_module_with_a_missing_dependency_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "autocompress_broken_module.py").write_text("import no_such_package_at_all")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match="fails to import: ModuleNotFoundError"):
        load_task("autocompress_broken_module")


def test_lazy_task_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text("def __getattr__(name):\n    raise OSError('no folder data')")
    with pytest.raises(TaskError, match="OSError: no folder data"):
        load_task(str(tmp_path / "lazy.py"))


def test_public_names_survive_the_import_of_submodules_of_the_same_name() -> None:
    code = "import autocompress as ac, autocompress.search; assert callable(ac.search); assert callable(ac.trace)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
