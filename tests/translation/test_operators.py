"""Every operator that is translated computes what ONNX Runtime does, at any batch, and torch.export can follow it."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import fx

from autocompress.translation.program import Program
from autocompress.translation.writer import DEPLOYED, TRAINABLE, Style
from tests.translation.cases import CASES, Case

FLOAT32 = 1e-5
"""Other orders of summation, relative to the largest output."""
FREE = sorted(name for name, case in CASES.items() if case.free and name != case.op)
"""Without those that only map elements."""


def on_onnx_runtime(path: Path, x: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path).run(None, {"x": x})


def translated(path: Path, examples: list[np.ndarray], style: Style = TRAINABLE) -> fx.GraphModule:
    return Program(path).written([[torch.from_numpy(x) for x in examples]], style)


def outputs(model: fx.GraphModule, x: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        found = model(torch.from_numpy(x))
    return [t.numpy() for t in (found.values() if isinstance(found, dict) else [found])]


def batches(case: Case) -> list[np.ndarray]:
    x = case.inputs[0]
    return [x, np.concatenate([x, x[:1]])] if case.free and x.ndim else [x]


def agree(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=FLOAT32, atol=FLOAT32 * max(np.abs(b).max(), 1e-3))


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_trainable_module_computes_what_onnx_runtime_does(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = case.write(tmp_path / "one.onnx")
    model = translated(path, batches(case))
    for x in [*batches(case), *([case.inputs[0][:1]] if case.free else [])]:
        agree(outputs(model, x), on_onnx_runtime(path, x))


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_deployed_module_computes_what_onnx_runtime_does(name: str, tmp_path: Path) -> None:
    path = CASES[name].write(tmp_path / "one.onnx")
    x = CASES[name].inputs[0]
    agree(outputs(translated(path, [x], DEPLOYED), x), on_onnx_runtime(path, x))


@pytest.mark.parametrize("name", FREE)
def test_torch_export_follows_it_with_a_free_batch(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    path = case.write(tmp_path / "one.onnx")
    first, second = (torch.from_numpy(x) for x in batches(case))
    model = translated(path, batches(case))
    program = torch.export.export(model, (first,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    agree(outputs(program.module(), second.numpy()), on_onnx_runtime(path, second.numpy()))
