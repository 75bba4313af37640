"""A verification passes what is sound and refuses what is broken, each mutation by its own check."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from rich.console import Console

from autocompress.cli.terminal import verification_view
from autocompress.compression.build import build
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.plan import Plan, Step
from autocompress.devices import open_device
from autocompress.evidence.card import Card, Parity, card_path, read_card, write_card
from autocompress.evidence.scores import top1
from autocompress.evidence.sensitivity import rounding_effect
from autocompress.evidence.verify import (
    ROUNDING_SAFETY,
    Verification,
    model_rows,
    parity,
    predictor,
    provider_counts,
    session_rows,
    tolerance,
    validation_batch,
    verify,
    worst_parity,
)
from autocompress.export.onnx import to_onnx
from autocompress.graph import trace
from autocompress.task.calling import calling_of
from autocompress.task.task import Score, Task
from autocompress.vocabulary.errors import RunError, UntimedError, VerificationError
from autocompress.vocabulary.formats import INT8
from autocompress.vocabulary.workload import Latency

ROUNDS = 6


def make_task() -> Task:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4),
    ).eval()  # fmt: skip
    images = torch.randn(64, 1, 6, 6)
    labels = model(images).argmax(1)
    batches = [(images[:32], labels[:32]), (images[32:], labels[32:])]
    return Task(model, images[:1], validation=batches, test=batches[:1])


def seconds(value: float) -> Latency:
    return Latency(value, value, value, 1.0, "measured")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Path]:
    """A task, and an int8 model of it with its card."""
    task = make_task()
    graph = trace(task.model, task.example_inputs)
    plan = Plan(graph.fingerprint, tuple(Step(name, Quantize(INT8)) for name in graph.layers))
    built = build(plan, graph)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    artifact = to_onnx(built, path, plan.key)
    session = open_device("ort:cpu").open(path)
    batch = validation_batch(task, calling_of(task))
    outputs = model_rows(built, batch)
    rounding = rounding_effect(built, batch)
    found = worst_parity(outputs, session_rows(session, batch), rounding, len(session.providers()))
    score = top1(predictor(session), task.validation)
    card = Card(
        plan.key, plan, artifact, score, top1(predictor(session), task.test or []),
        Latency(1e-3, 1e-3, 1e-3, 1.0), seconds(1.0), seconds(0.1),
        found, outputs.as_lists(), provider_counts(session), {"runtime": "here"}, outputs.widths, rounding,
    )  # fmt: skip
    write_card(card)
    return task, path


def broken(found: Verification) -> list[str]:
    return [check.name for check in found.checks if not check.passed]


def shown(found: Verification) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(verification_view(found))
    return console.export_text()


def test_a_sound_file_keeps_every_promise(exported: tuple[Task, Path]) -> None:
    task, path = exported
    told: list[tuple[int, int]] = []
    found = verify(path, task, rounds=ROUNDS, progress=lambda done, whole: told.append((done, whole)))
    assert found.passed, broken(found)
    assert told == [(done, len(told)) for done in range(1, len(told) + 1)] and told
    assert {c.name for c in found.checks} == {"file", "parity", "validation score", "test score", "speed-up", "ran on"}
    assert set(found.providers) == {"CPUExecutionProvider"}
    assert found.speedup is not None and found.speedup > 0
    found.require()


def test_elsewhere_the_card_promises_no_speed_and_a_device_may_be_one_that_cannot_be_timed(
    exported: tuple[Task, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def untimed(*args: Any, **settings: Any) -> None:
        raise UntimedError("emulated")

    task, path = exported
    card = replace(read_card(path), environment={"device": "openvino:cpu"}, providers={"OpenVINO": 9})
    there = {"file", "parity", "validation score", "test score"}
    found = verify(path, task, promised=card, rounds=ROUNDS)
    assert found.passed and {c.name for c in found.checks} == there and found.latency is not None
    assert re.search(r"ms, \d+\.\d\dx as fast as the original.*\nran on CPUExecutionProvider \d", shown(found))
    monkeypatch.setattr(sys.modules["autocompress.evidence.verify"], "measure", untimed)
    found = verify(path, task, promised=card, rounds=ROUNDS)
    assert found.passed and {c.name for c in found.checks} == there
    assert (found.latency, found.speedup, found.untimed) == (None, None, "emulated")
    assert "not timed: emulated\nran on CPUExecutionProvider" in shown(found)


def test_a_card_survives_its_json(exported: tuple[Task, Path]) -> None:
    card = read_card(exported[1])
    assert Card.from_json(card.to_json(), exported[1].parent) == card
    assert card.speedup == pytest.approx(0.1)


def corrupt_weights(path: Path) -> None:
    model = onnx.load(path)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4 and t.dims[1] == 8)
    values = numpy_helper.to_array(weight).copy()
    weight.CopyFrom(numpy_helper.from_array(values[::-1].copy(), weight.name))
    onnx.save(model, path)


def test_corrupted_weights_break_parity_and_digest(exported: tuple[Task, Path], tmp_path: Path) -> None:
    task, path = exported
    copy = tmp_path / "model.onnx"
    copy.write_bytes(path.read_bytes())
    corrupt_weights(copy)
    found = verify(copy, task, promised=read_card(path), rounds=ROUNDS)
    assert {"file", "parity"} <= set(broken(found))
    with pytest.raises(VerificationError, match=r"breaks its promise: file promised .*; parity promised"):
        found.require()


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda c: {"validation": Score(c.validation.value + 0.5, 0.01, 64)}, "validation score"),
        (lambda c: {"test": Score(c.validation.value + 0.5, 0.01, 64)}, "test score"),
        (lambda c: {"measured": seconds(1e-6)}, "speed-up"),
        (lambda c: {"providers": {"NpuExecutionProvider": 9}}, "ran on"),
        (lambda c: {"outputs": tuple(tuple(-v for v in row) for row in c.outputs)}, "parity"),
    ],
)
def test_each_broken_promise_fails_its_own_check(
    exported: tuple[Task, Path], change: Callable[[Card], dict[str, Any]], check: str
) -> None:
    task, path = exported
    card = read_card(path)
    assert broken(verify(path, task, promised=replace(card, **change(card)), rounds=ROUNDS)) == [check]


def test_another_model_is_refused(exported: tuple[Task, Path]) -> None:
    path = exported[1]
    other = make_task()
    with torch.no_grad():
        other.model[0].weight.add_(1)
    with pytest.raises(RunError, match="was made from model"):
        verify(path, other, rounds=ROUNDS)


def test_missing_files_are_named(exported: tuple[Task, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no artifact"):
        verify(tmp_path / "none.onnx", exported[0])
    copy = tmp_path / "model.onnx"
    copy.write_bytes(exported[1].read_bytes())
    with pytest.raises(RunError, match="has no card"):
        verify(copy, exported[0])
    card_path(copy).write_text('{"id": 3}')
    with pytest.raises(RunError, match="not a model's card"):
        verify(copy, exported[0])


def test_tolerance_is_zero_for_nothing_and_grows_with_what_rounds() -> None:
    outputs = np.array([[-1.0, 3.0]])
    float_only = tolerance(outputs, 0.0, 10)
    assert 0 < float_only < 1e-2
    assert tolerance(outputs, 0.0, 40) == pytest.approx(2 * float_only)
    assert tolerance(10 * outputs, 0.0, 10) == pytest.approx(10 * float_only)
    assert tolerance(outputs, 0.3, 10) - float_only == pytest.approx(0.3 * ROUNDING_SAFETY)


@pytest.mark.parametrize("found", [np.array([[np.nan, 1.0]]), np.array([[np.inf, 1.0]]), np.zeros((1, 3))])
def test_outputs_that_are_no_numbers_or_of_another_shape_never_agree(found: np.ndarray) -> None:
    assert not parity(np.array([[0.0, 1.0]]), found, 0.1, 3).agrees


def test_equal_outputs_agree() -> None:
    same = np.array([[0.0, 1.0]])
    assert parity(same, same, 0.1, 1) == Parity(1, 0.0, 0.0, tolerance(same, 0.1, 1))
