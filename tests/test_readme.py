"""What the documents show works as written."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from autocompress import devices
from autocompress.cli import app as cli
from autocompress.compression.importance import IMPORTANCES, score_channels
from autocompress.compression.repair.statistics import collect
from autocompress.export.onnx import to_onnx
from autocompress.graph import trace

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
TEST_COMMAND = ".venv/bin/python -m pytest"


def files_of(text: str) -> dict[str, str]:
    """Python blocks that begin with `# name.py`, by name."""
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return {block.splitlines()[0].removeprefix("# "): block for block in blocks}


def commands_of(text: str) -> list[str]:
    return [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def write(folder: Path, text: str) -> None:
    for name, block in files_of(text).items():
        (folder / name).write_text(block)


def autocompress(command: str, folder: Path, timeout: float) -> str:
    words = command.split()
    assert words[0] == "autocompress"
    process = [sys.executable, "-m", "autocompress.cli", *words[1:]]
    return subprocess.run(process, cwd=folder, check=True, capture_output=True, text=True, timeout=timeout).stdout


def test_ci_runs_the_two_commands_of_the_readme() -> None:
    install, tests, *_ = commands_of(README)
    assert tests == TEST_COMMAND
    ci = (ROOT / ".ci" / "run").read_text()
    assert ci.rstrip().endswith(TEST_COMMAND)
    assert '-c constraints.txt -e ".[test,cifar]"' in install
    assert '-c constraints.txt -e ".[test,cifar,npu,openvino,qnn,tvm]"' in ci, "and the runtimes that are tested"


def test_the_command_table_names_every_command_and_no_other() -> None:
    named = set(re.findall(r"^\| `autocompress (\w+)", README, re.MULTILINE))
    assert named == set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def test_every_link_leads_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_readme_s_task_can_be_inspected(tmp_path: Path) -> None:
    write(tmp_path, README)
    command = next(line for line in commands_of(README) if line.startswith("autocompress inspect"))
    assert "Where the time goes" in autocompress(command, tmp_path, timeout=120)


def test_the_method_shown_is_the_method_there_is() -> None:
    name = "autocompress/compression/methods/student.py"
    shown = files_of(EXTENDING)[name].split("\n", 1)[1].strip()
    assert shown in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_readme_s_commands_and_script_run_as_written(tmp_path: Path) -> None:
    write(tmp_path, README)
    for command in commands_of(README):
        if command.startswith("autocompress "):
            autocompress(command, tmp_path, timeout=300)
    assert (tmp_path / "model.card.json").exists() and (tmp_path / "runs" / "mine" / "report.html").exists()
    done = subprocess.run([sys.executable, "my_search.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "x as fast" in done.stdout


def test_the_importance_shown_ranks_by_the_largest_weight() -> None:
    exec(compile(files_of(EXTENDING)["importance_example.py"], "importance_example.py", "exec"), {})
    try:
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(3, 4) * torch.tensor([[2.0], [5.0], [1.0]]))
        graph = trace(model, torch.zeros(1, 4))
        statistics = collect(graph, [(torch.randn(8, 4), torch.zeros(8, dtype=torch.long))], 8)
        group = next(g for g in graph.free_groups.values() if g.channels == 3)
        scores = score_channels("largest", graph.model, group, statistics)
        assert scores.argsort().tolist() == [2, 0, 1]
    finally:
        IMPORTANCES.pop("largest", None)


def test_the_device_shown_runs_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reference.py").write_text(files_of(EXTENDING)["device_example.py"])
    monkeypatch.setattr(devices, "__path__", [*devices.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "autocompress.devices.reference", raising=False)
    assert "reference:numpy" in {row.name for row in devices.list_devices()}
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 3)
    ).eval()
    graph = trace(model, torch.zeros(1, 2, 4, 4))
    path = tmp_path / "model.onnx"
    to_onnx(graph.model, path, "plan")
    session = devices.open_device("reference:numpy").open(path)
    x = torch.randn(5, 2, 4, 4)
    np.testing.assert_allclose(session.run(x.numpy()), model(x).detach().numpy(), atol=1e-5)
    assert len(session.time([x.numpy()], 3)) == 3
    assert set(session.providers().values()) == {"numpy"}
