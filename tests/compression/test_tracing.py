"""Models of every form of call are traced, written and run as what they are to their users."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.compression.build import build
from autocompress.compression.methods.prune import Prune
from autocompress.compression.plan import Plan, Step
from autocompress.compression.tracing import fingerprint_of, trace_task
from autocompress.devices import open_device
from autocompress.evidence.verify import predictor
from autocompress.export.onnx import plain_onnx, to_onnx
from autocompress.task.calling import calling_of, flat_model
from autocompress.task.outputs import as_flat
from autocompress.task.task import Task
from autocompress.vocabulary.errors import TaskError
from tests.task.test_calling import GIVES, OneGraph, Output, Sentences, a_task, called, same, sentences

SIZES = (9, 12, 7)


class TwoHeads(nn.Module):
    """Tokens and their mask by keyword; logits, a size, and the states that they were made of."""

    def __init__(self, give: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.inner, self.outer = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.kind, self.size = nn.Linear(8, 3), nn.Linear(8, 1)
        self.give = give

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        assert attention_mask is not None
        states = self.words(input_ids)
        states = states + self.outer(self.inner(states).relu())
        kept = attention_mask.to(states.dtype).unsqueeze(-1)
        pooled = (states * kept).sum(1) / kept.sum(1)
        return self.give(self.kind(pooled), self.size(pooled), states)


def tokens(n: int, length: int) -> dict[str, Tensor]:
    mask = (torch.arange(length)[None] <= torch.arange(n)[:, None] % length).long()
    return {"attention_mask": mask, "input_ids": torch.randint(0, 20, (n, length))}


def two_heads(give: Callable[..., Any], lengths: tuple[int, ...] = (9, 9, 9)) -> Task:
    split = [
        (tokens(n, length), torch.zeros(n, dtype=torch.long)) for n, length in zip((4, 3, 1), lengths, strict=True)
    ]
    return Task(TwoHeads(give).eval(), tokens(1, lengths[0]), split)


GIVEN: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "dict": lambda kind, size, states: {"logits": kind, "size": size, "hidden": states},
    "tuple": lambda kind, size, states: (kind, size, states),
    "output": lambda kind, size, states: Output(kind, (size, states)),
    "one twice": lambda kind, size, states: [kind, kind],
}


def agrees(path: Path, task: Task, model: nn.Module | None = None) -> None:
    """The file called as the user's model gives what that model gives, of the same types, on every batch."""
    predict = predictor(open_device("ort:cpu").open(path), calling_of(task))
    for inputs, _ in task.validation:
        with torch.no_grad():
            wanted = called(model or task.model, inputs)
        found = called(predict, inputs)  # type: ignore[arg-type]
        calling = calling_of(task)
        for a, b in zip(calling.flat_outputs(found), calling.flat_outputs(wanted), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert same(calling.restore(calling.flat_outputs(wanted)), wanted) and type(found) is type(wanted)


def files(task: Task, folder: Path) -> list[Path]:
    """The original as torch exports it, and its lifted model as we do."""
    calling, graph = calling_of(task), trace_task(task)
    plain_onnx(flat_model(task.model, calling), calling.examples, folder / "plain.onnx")
    plan = Plan(graph.fingerprint)
    to_onnx(build(plan, graph), folder / "ours.onnx", plan.key)
    return [folder / "plain.onnx", folder / "ours.onnx"]


def named(values: Any) -> list[tuple[str, list[Any]]]:
    return [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]) for v in values]


@pytest.mark.parametrize("give", GIVEN)
def test_a_model_of_two_heads_is_itself_in_every_file(give: str, tmp_path: Path) -> None:
    task = two_heads(GIVEN[give])
    for path in files(task, tmp_path):
        agrees(path, task)


@pytest.mark.parametrize("take", ["constants", "dict by position", "dataclass", "dict of keywords", "variadic"])
@pytest.mark.parametrize("give", ["dict", "nested", "named as an input"])
def test_every_form_of_call_leads_to_a_graph_and_files(take: str, give: str, tmp_path: Path) -> None:
    task = a_task(take, give)
    calling = calling_of(task)
    for path in files(task, tmp_path):
        model = onnx.load(path)
        assert tuple(v.name for v in model.graph.input) == calling.names
        assert tuple(v.name for v in model.graph.output) == calling.results
        agrees(path, task)
    assert give == "named as an input" or calling.results == GIVES[give][1]


def test_files_name_inputs_outputs_and_axes_as_the_user_does(tmp_path: Path) -> None:
    for path in files(two_heads(GIVEN["dict"], SIZES), tmp_path):
        graph = onnx.load(path).graph
        wanted = ["batch", "length"]
        assert named(graph.input) == [("input_ids", wanted), ("attention_mask", wanted)]
        assert [(name, axes[0]) for name, axes in named(graph.output)] == [
            ("logits", "batch"), ("size", "batch"), ("hidden", "batch")
        ]  # fmt: skip


def test_lengths_and_inputs_without_a_batch_stay_what_they_are(tmp_path: Path) -> None:
    split = [(sentences(n, length), torch.zeros(n, dtype=torch.long)) for n, length in ((4, 9), (3, 12), (1, 7))]
    task = Task(Sentences().eval(), sentences(1, 9), split)
    for path in files(task, tmp_path):
        inputs = dict(named(onnx.load(path).graph.input))
        assert inputs == {"tokens": ["batch", "length"], "positions": [1, "length"], "temperature": []}
        agrees(path, task)


def test_one_graph_is_one_sample(tmp_path: Path) -> None:
    split = [((torch.randn(7, 4), torch.rand(7, 7)), torch.zeros(7, dtype=torch.long)) for _ in range(3)]
    task = Task(OneGraph().eval(), split[0][0], split)
    for path in files(task, tmp_path):
        assert [axes for _, axes in named(onnx.load(path).graph.input)] == [[7, 4], [7, 7]]
        agrees(path, task)


def test_single_samples_of_several_sizes_are_refused() -> None:
    split = [((torch.randn(n, 4), torch.rand(n, n)), torch.zeros(n)) for n in (7, 5)]
    with pytest.raises(TaskError, match="axis 0 of input x differs between batches and is no batch"):
        trace_task(Task(OneGraph().eval(), split[0][0], split))


def test_what_torch_exports_wrongly_is_exported_otherwise(tmp_path: Path) -> None:
    """The older exporter writes a linear layer on what a convolution makes of an image without a batch as a product of
    another shape; only running the file tells."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(0), nn.Linear(4, 2)).eval()
    split = [(torch.randn(3, 8, 8), torch.tensor(1)) for _ in range(2)]
    task = Task(model, split[0][0], split)
    for path in files(task, tmp_path):
        agrees(path, task)


def test_an_input_that_nothing_reads_stays_an_input(tmp_path: Path) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor, unused: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(x + y)}

    split = [((torch.randn(n, 4), torch.randn(n, 2), torch.randn(n, 4)), torch.zeros(n)) for n in (2, 3)]
    task = Task(Reads().eval(), split[0][0], split)
    for path in files(task, tmp_path):
        assert [name for name, _ in named(onnx.load(path).graph.input)] == ["x", "unused", "y"]
        agrees(path, task)


def test_a_group_behind_both_heads_is_cut_for_both(tmp_path: Path) -> None:
    task = two_heads(GIVEN["dict"])
    graph = trace_task(task)
    (group,) = graph.free_groups.values()
    assert group.channels == 16
    plan = Plan(graph.fingerprint, (Step(group.id, Prune(8)),))
    built = build(plan, graph)
    to_onnx(built, tmp_path / "cut.onnx", plan.key)
    calling = calling_of(task)
    session = open_device("ort:cpu").open(tmp_path / "cut.onnx")
    inputs = calling.batch(*next(iter(task.validation)))[0]
    found = session.run(*(t.numpy() for t in inputs))
    assert isinstance(found, tuple)
    with torch.no_grad():
        for array, tensor in zip(found, as_flat(built(*inputs)), strict=True):
            np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-4, atol=1e-5)


def test_the_fingerprint_is_that_of_the_user_s_model_and_weights() -> None:
    task = two_heads(GIVEN["dict"])
    found = fingerprint_of(task, calling_of(task))
    assert found == trace_task(task).fingerprint
    with torch.no_grad():
        task.model.get_parameter("size.bias").add_(1)
    assert fingerprint_of(task, calling_of(task)) != found
