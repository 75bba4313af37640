"""The command line: one line per mistake with the right exit code, tables for people, JSON for programs."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from autocompress.cli import app as cli

TASK = """
import torch
import autocompress as ac

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.b = torch.nn.Conv2d(16, 16, 3, padding=1)
        self.head = torch.nn.Linear(16, 4)
    def forward(self, x):
        y = torch.relu(self.a(x))
        y = torch.relu(y + self.b(y))
        {line}
        return self.head(y.mean((2, 3)))

torch.manual_seed(0)
images = torch.randn(16, 3, 8, 8)
task = ac.Task(model=Net().eval(), example_inputs={example}, validation=[(images, torch.arange(16) % 4)], {more})
"""


@pytest.fixture
def write_task(tmp_path: Path):  # type: ignore[no-untyped-def]
    def write(line: str = "pass", example: str = "images[:1]", more: str = "") -> str:
        path = tmp_path / "net.py"
        path.write_text(TASK.format(line=line, example=example, more=more))
        return str(path)

    return write


def run(*arguments: str) -> int:
    return cli.main([str(a) for a in arguments])


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autocompress.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error; nothing may be on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("autocompress: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["serch"], "no command 'serch'; did you mean 'search'?"),
        (["search", "net.py", "--ot", "x"], "no flag '--ot' of 'autocompress search'; did you mean '--out'?"),
        (["search", "net.py"], "Missing option '--out'"),
        (["search", "--out", "x"], "Missing argument 'task'"),
        (["search", "net.py", "--out", "x", "--trials", "many"], "Invalid value for '--trials'"),
        (["search", "none.py", "--out", "x"], "no task file 'none.py'"),
        (["inspect", "none.module:task"], "no module 'none.module'"),
        (["report", "nowhere"], "nowhere holds no run"),
        (["export", "nowhere", "--out", "model.onnx"], "nowhere holds no run"),
        (["verify", "none.onnx", "--task", "none.py"], "no task file"),
    ],
)
def test_mistakes_have_one_line_and_exit_code_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert line in told(capsys)


def test_a_model_that_can_not_be_captured_names_the_users_line(write_task, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert run("inspect", write_task(line="y = y if y.sum() > 0 else -y")) == 2
    line = told(capsys)
    assert "torch.export can't capture the model" in line
    assert 'net.py", line 14, in forward' in line
    assert "torch.where" in line


def test_example_inputs_of_the_wrong_shape(write_task, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    assert run("inspect", write_task(example="images[:1, :2]")) == 2
    assert "does not run on Task.example_inputs (a batch of (1, 2, 8, 8) float32)" in told(capsys)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ("trails = 3", "unknown key 'trails': did you mean 'trials'?"),
        ("[fine_tuning]\ntemprature = 3", "unknown key 'fine_tuning.temprature': did you mean 'temperature'?"),
        ("sampler = 'tpee'", "'tpee' is not known: did you mean 'tpe'?"),
        ("trials = 'many'", "trials = 'many'"),
        ("trials = ", "is not TOML"),
    ],
)
def test_settings_that_can_not_be(settings: str, line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(settings)
    assert run("search", "any.py", "--out", tmp_path / "run", "--config", tmp_path / "run.toml") == 2
    assert line in told(capsys)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("train=[]", "Task.train is empty"),
        ("test=[images]", "Task.test yields Tensor instead of an (inputs, targets) pair; labels are needed"),
        ("score=lambda p, s: ac.Score(float('nan'), 0.1, 16)", "Task.score of the original model is nan"),
        ("frozen=['*']", "there is nothing to decide about this model"),
    ],
)
def test_tasks_that_can_not_be_searched(  # type: ignore[no-untyped-def]
    write_task, more: str, line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    task = write_task(more=f"calibration=[(images, None)], {more}")
    assert run("search", task, "--out", tmp_path / "run", "--time", "1", "--json") == 2
    assert line in told(capsys)


def test_a_model_with_no_layer_to_compress(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nimport autocompress as ac\nx = torch.zeros(2, 3)\n"
        "task = ac.Task(torch.nn.ReLU(), x, validation=[(x, torch.zeros(2))])\n"
    )
    assert run("inspect", tmp_path / "net.py") == 2
    assert "no convolution or linear layer: nothing to compress" in told(capsys)


def test_an_unknown_profile_names_the_nearest(  # type: ignore[no-untyped-def]
    write_task, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profiles" / "my-board").mkdir(parents=True)
    (tmp_path / "profiles" / "my-board" / "profile.toml").write_text("")
    monkeypatch.setenv("AUTOCOMPRESS_PROFILES", str(tmp_path / "profiles"))
    assert run("inspect", write_task(), "--profile", "my-bord") == 2
    assert "no profile 'my-bord', neither as a folder nor by name: did you mean 'my-board'?" in told(capsys)


def test_a_warning_of_ours_is_one_line_and_those_of_others_are_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class OurWarning(UserWarning): ...

    OurWarning.__module__ = "autocompress.profiles"

    def warn_twice(arguments: list[str]) -> int:
        warnings.simplefilter("always")
        warnings.warn("made with another version", OurWarning, stacklevel=1)
        warnings.warn("will change in torch 3", FutureWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_run", warn_twice)
    assert run("devices") == 0
    assert told(capsys) == "autocompress: warning: made with another version\n"


def test_what_nobody_expected_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: list[str]) -> int:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(cli, "_run", fail)
    assert run("devices") == 1
    assert told(capsys) == "autocompress: unexpected ZeroDivisionError: division by zero; --debug shows where\n"


def test_an_interruption_has_its_own_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupt)
    assert run("devices") == 130
    assert told(capsys) == "autocompress: interrupted\n"


def test_debug_lets_the_traceback_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cli.AutocompressError):
        run("report", "nowhere", "--debug")


def test_inspect_shows_layers_groups_and_reasons(write_task, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    task = write_task(more="frozen=['b']")
    assert run("inspect", task) == 0
    text = capsys.readouterr().out
    assert "Where the time goes" in text and "3 → 16 3x3 @ 8x8" in text and "left alone by the task (b)" in text
    assert run("inspect", task, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frozen_layers"] == {"b": "left alone by the task (b)"}
    assert {row["name"]: row["macs"] for row in found["kernels"]}["head"] == 64
    assert sum(row["macs"] for row in found["kernels"]) == found["macs"]


def test_devices_lists_what_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("devices", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ort:cpu"]["usable"]


def test_help_names_every_command_without_importing_what_is_slow() -> None:
    code = (
        "import sys; from autocompress.cli.app import main; main([]); assert not {'torch', 'optuna'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("demo", "devices", "inspect", "profile", "search", "compare", "export", "verify", "report"):
        assert f" {verb} " in done.stdout


def test_a_real_process_exits_with_2_and_one_line_for_a_task_that_fails(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import torch\nraise OSError('the disk with the data is not mounted')\n")
    done = process("search", str(tmp_path / "bad.py"), "--out", str(tmp_path / "run"))
    assert (done.returncode, done.stdout) == (2, "")
    expected = "fails to run: OSError: the disk with the data is not mounted (bad.py, line 2); fix it and run again\n"
    assert done.stderr.endswith(expected) and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
