"""What the documents show works as written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from autocompress.cli import app as cli
from autocompress.task.checks import check_task
from autocompress.task.loading import load_task

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
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


def test_the_task_of_sentences_is_one(tmp_path: Path) -> None:
    """Keyword inputs of several lengths, two outputs, a score that gets what the model returns."""
    write(tmp_path, README)
    calling = check_task(load_task(str(tmp_path / "my_sentences.py")))
    assert calling.axes.varying == (frozenset({1}),) * 2 and calling.results == ("logits", "states")


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


def test_the_onnx_file_of_the_models_page_can_be_inspected(tmp_path: Path) -> None:
    write(tmp_path, MODELS)
    script, command, search = commands_of(MODELS)
    subprocess.run([sys.executable, *script.split()[1:]], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert "Where the time goes" in autocompress(command, tmp_path, timeout=120)
    assert search.startswith("autocompress search onnx_task.py")


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
