"""Every way in which a model can be handed over is taken or refused with a line of its own."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.graph import trace
from autocompress.task.checks import check_task
from autocompress.task.doors import settle
from autocompress.task.loading import load_task
from autocompress.task.task import Task
from autocompress.vocabulary.errors import TaskError
from tests.onnx_files import CLASSES, write_net

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCH = (X, torch.zeros(2, dtype=torch.long))

TASK = """
import torch
from autocompress import Task
x = torch.zeros(2, 3, 8, 8)
task = Task(model={model!r}, example_inputs=x, validation=[(x, torch.zeros(2, dtype=torch.long))])
"""


def a_task(model: Any) -> Task:
    return Task(model=model, example_inputs=X, validation=[BATCH])


def exported(path: Path, model: nn.Module, example: Tensor = X, free: bool = True) -> Path:
    shapes = ({0: torch.export.Dim.AUTO},) if free else None
    torch.export.save(torch.export.export(model, (example,), dynamic_shapes=shapes), path)
    return path


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_a_module_is_left_as_it_is() -> None:
    net = Net()
    task = a_task(net)
    settle(task)
    assert task.model is net


@pytest.mark.parametrize("kind", [str, Path])
def test_the_path_of_an_onnx_file_becomes_its_module_once(kind: type, tmp_path: Path) -> None:
    task = a_task(kind(write_net(tmp_path / "net.onnx")))
    check_task(task)
    model = task.model
    assert isinstance(model, nn.Module)
    check_task(task)
    assert task.model is model


def test_paths_are_relative_to_the_task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    write_net(tmp_path / "models" / "net.onnx")
    (tmp_path / "relative_task.py").write_text(TASK.format(model="models/net.onnx"))
    monkeypatch.chdir("/")
    assert isinstance(load_task(str(tmp_path / "relative_task.py")).model, nn.Module)
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_task("relative_task.py").model, nn.Module)
    assert isinstance(load_task("relative_task").model, nn.Module)


def test_a_program_of_torch_export_is_a_module_that_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    task = a_task(exported(tmp_path / "net.pt2", net))
    check_task(task)
    with torch.no_grad():
        for batch in (X[:1], X, torch.cat([X, X[:1]])):
            torch.testing.assert_close(task.model(batch), net(batch))
    task.model.train()
    task.model(X).sum().backward()
    assert all(p.grad is not None for p in task.model.parameters())
    assert list(trace(task.model, (X,)).layers) == ["conv", "head"]


def test_a_program_that_fixes_the_batch_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"net.pt2 fixes the batch of input 'x' at 2; export it again: torch.export"):
        settle(a_task(exported(tmp_path / "net.pt2", Net().eval(), free=False)))


def test_a_program_in_training_mode_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"net.pt2 was exported in training mode .*model.eval\(\)"):
        settle(a_task(exported(tmp_path / "net.pt2", Net().train())))


def test_a_program_of_other_inputs_is_told_so(tmp_path: Path) -> None:
    path = exported(tmp_path / "net.pt2", Net().eval(), torch.zeros(2, 3, 9, 9))
    with pytest.raises(TaskError, match=r"net.pt2 does not run on Task.example_inputs of \(2, 3, 8, 8\)"):
        settle(a_task(path))


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_a_damaged_program_is_told_in_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(content)
    with pytest.raises(TaskError, match=r"net.pt2 is no file of torch.export.save") as caught:
        settle(a_task(tmp_path / "net.pt2"))
    assert "\n" not in str(caught.value)


def test_a_program_with_pickled_objects_is_not_opened(tmp_path: Path) -> None:
    path = exported(tmp_path / "net.pt2", Net().eval())
    forged = tmp_path / "forged.pt2"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(forged, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b'"use_pickle": false', b'"use_pickle": true'))
    with pytest.raises(TaskError, match=r"forged.pt2 holds pickled objects"):
        settle(a_task(forged))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("missing.onnx", r"no model file '.*missing.onnx'; give the path of an .onnx file"),
        ("missing.pt2", r"no model file '.*missing.pt2'; give the path of a .pt2 file"),
        ("net.pth", r"'.*net.pth', which is no model file .*; it may hold any Python code and is not opened"),
        ("net.tflite", "convert it to ONNX first"),
        ("net.safetensors", "it holds weights without a model"),
        ("net.ort", "give the .onnx file it was made of"),
        ("resnet50", r"give a torch.nn.Module, or a file that ends in .onnx or .pt2"),
    ],
)
def test_each_other_file_has_its_line(name: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=line) as caught:
        settle(a_task(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_anything_else_is_no_model() -> None:
    with pytest.raises(TaskError, match=r"Task.model is a int; it must be a trained torch.nn.Module, or the path"):
        settle(a_task(3))


@pytest.mark.parametrize("reference", ["net.onnx", "folder/net.pt2", "weights.pth"])
def test_a_model_where_a_task_is_asked_for_says_what_to_write(reference: str) -> None:
    with pytest.raises(TaskError, match=r"is a model, but data are needed too; write a Python file with `task = auto"):
        load_task(reference)
