"""A model is called as its user calls it, whatever its inputs and outputs are made of, by flat tensors."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.task.batches import as_one, batched, batches, chunks, size, subset
from autocompress.task.calling import Calling, FlatModel, calling_of, flat_model
from autocompress.task.outputs import as_flat
from autocompress.task.task import Task
from autocompress.vocabulary.errors import TaskError


@dataclass
class Output(OrderedDict[str, Any]):
    """As transformers' ModelOutput: a dataclass whose fields that are not None are items too."""

    logits: Any = None
    hidden: Any = None
    loss: Any = None

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)


class Net(nn.Module):
    """`take` makes a tensor (N, 4) of forward's arguments, `give` the output of the head's and that tensor."""

    def __init__(self, take: Callable[..., Tensor], give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.rand(3))
        self.take, self.give = take, give


class ByPosition(Net):
    def forward(self, x: Any, y: Any = None, flag: bool = False) -> Any:
        made = self.take(x, y, flag)
        return self.give(self.head(made) * self.scale, made)


class ByKeyword(Net):
    def forward(self, first: Any, *, mask: Any = None, **others: Any) -> Any:
        made = self.take(first, mask, **others)
        return self.give(self.head(made) * self.scale, made)


class Variadic(Net):
    def forward(self, *tensors: Any) -> Any:
        made = self.take(*tensors)
        return self.give(self.head(made) * self.scale, made)


@dataclass
class Sample:
    image: Any
    extra: Any = None


def x(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed + n))


GIVES: dict[str, tuple[Callable[[Tensor, Tensor], Any], tuple[str, ...]]] = {
    "tensor": (lambda y, h: y, ("output",)),
    "tuple": (lambda y, h: (y, h), ("output_0", "output_1")),
    "tuple of one": (lambda y, h: (y,), ("output_0",)),
    "list with none": (lambda y, h: [None, y], ("output_1",)),
    "dict": (lambda y, h: {"logits": y, "hidden": h, "count": 3}, ("logits", "hidden")),
    "output": (lambda y, h: Output(y, (h, h + 1)), ("logits", "hidden_0", "hidden_1")),
    "nested": (lambda y, h: {"a": [{"b": y}, (h,)]}, ("a_0_b", "a_1_0")),
    "named as an input": (lambda y, h: {"x": y, "first": h}, ("x", "first")),
}

TAKES: dict[str, tuple[type[Net], Callable[..., Tensor], Callable[[int], Any], tuple[str, ...]]] = {
    "tensor": (ByPosition, lambda a, b, f: a, lambda n: x(n), ("x",)),
    "two": (ByPosition, lambda a, b, f: a + b, lambda n: (x(n), x(n, 1)), ("x", "y")),
    "list": (ByPosition, lambda a, b, f: a + b, lambda n: [x(n), x(n, 1)], ("x", "y")),
    "constants": (ByPosition, lambda a, b, f: a if f else b, lambda n: (x(n), None, True), ("x",)),
    "dict by position": (
        ByPosition, lambda a, b, f: a["u"] + a["v"][0],
        lambda n: ({"u": x(n), "v": (x(n, 1), 2)},), ("x_u", "x_v_0"),
    ),
    "dataclass": (ByPosition, lambda a, b, f: a.image, lambda n: Sample(x(n)), ("x_image",)),
    "dict of keywords": (
        ByKeyword, lambda a, m, **o: a * m + o["bias"],
        lambda n: {"bias": x(n, 2), "mask": torch.ones(n, 4), "first": x(n)}, ("first", "mask", "bias"),
    ),
    "dict with none": (ByKeyword, lambda a, m, **o: a, lambda n: {"first": x(n), "mask": None}, ("first",)),
    "variadic": (Variadic, lambda a, b: a - b, lambda n: (x(n), x(n, 1)), ("tensors_0", "tensors_1")),
}  # fmt: skip


def a_task(take: str = "tensor", give: str = "tensor", sizes: tuple[int, ...] = (3, 2)) -> Task:
    kind, taking, inputs, _ = TAKES[take]
    split = [(inputs(n), torch.zeros(n, dtype=torch.long)) for n in sizes]
    return Task(kind(taking, GIVES[give][0]), inputs(1), split)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return all(map(same, a, b)) if isinstance(a, (tuple, list)) else bool(a == b)


def called(model: nn.Module, inputs: Any) -> Any:
    """As a user's training loop calls it."""
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


@pytest.mark.parametrize("give", GIVES)
@pytest.mark.parametrize("take", TAKES)
def test_the_flat_model_is_the_user_s(take: str, give: str) -> None:
    task = a_task(take, give)
    calling = calling_of(task)
    flat = flat_model(task.model, calling)
    assert calling.names == TAKES[take][3]
    if give != "named as an input":
        assert calling.results == GIVES[give][1]
    assert calling.axes.usual and all(calling.batched_results)
    assert not set(calling.names) & set(calling.results)
    assert (flat is task.model) == (take in ("tensor", "two", "list", "variadic") and give == "tensor")
    for inputs, _ in task.validation:
        tensors = calling.batch(inputs, None)[0]
        wanted, found = called(task.model, inputs), flat(*tensors)
        assert isinstance(found, Tensor) == (give == "tensor")
        assert same(calling.restore(found), wanted)
        assert same(calling.restore(calling.flat_outputs(wanted)), wanted)
        assert same(called(task.model, calling.as_given(tensors)), wanted)
        predict = calling.predictor(lambda flat_inputs: as_flat(flat(*flat_inputs)))
        assert same(called(predict, inputs), wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("give", GIVES)
@pytest.mark.parametrize("take", TAKES)
def test_the_flat_model_can_be_exported_with_the_user_s_names(take: str, give: str) -> None:
    task = a_task(take, give)
    calling = calling_of(task)
    flat = copy.deepcopy(flat_model(task.model, calling))
    assert [name for name, _ in flat.named_parameters()] == [name for name, _ in task.model.named_parameters()]
    program = torch.export.export(flat.eval(), calling.axes.resized(calling.examples, 2))
    assert set(program.state_dict) == {"head.weight", "head.bias", "scale"}
    again = program.module()(*calling.axes.resized(calling.examples, 2))
    tensors = calling.axes.resized(calling.examples, 2)
    for a, b in zip(as_flat(again), as_flat(flat(*tensors)), strict=True):
        torch.testing.assert_close(a, b)


def test_modes_and_weights_are_shared_with_the_user_s_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    task = Task(Net(lambda a: a, lambda y, h: (y, h)), x(1), [(x(3), torch.zeros(3))])
    task.model = Inner(model)
    flat = flat_model(task.model, calling_of(task))
    assert isinstance(flat, FlatModel)
    flat.train()
    assert task.model.training and model[2].training
    flat.eval()
    assert not task.model.training and not model[2].training
    assert flat.state_dict().keys() == task.model.state_dict().keys()
    copied = copy.deepcopy(flat)
    with torch.no_grad():
        copied.get_parameter("inner.0.weight").zero_()
        copied.get_parameter("free").fill_(1.0)
    torch.testing.assert_close(copied(x(2))[0], (x(2) * 0 + model(x(2) * 0) - model(x(2) * 0)) + copied(x(2))[0])
    assert copied(x(2))[1].eq(1).all() and not flat(x(2))[1].eq(1).all()


class Inner(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.free = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), self.free.expand(len(x), 1)


def test_the_order_of_a_dict_s_keys_means_nothing() -> None:
    task = a_task("dict of keywords", "dict")
    calling = calling_of(task)
    inputs: dict[str, Tensor] = task.validation[0][0]  # type: ignore[index]
    wanted = calling.batch(inputs, None)[0]
    for keys in permutations(inputs):
        mixed = {key: inputs[key] for key in keys}
        assert all(a is b for a, b in zip(calling.batch(mixed, None)[0], wanted, strict=True))
        task.example_inputs = {key: inputs[key] for key in keys}
        assert calling_of(task).names == calling.names


def test_a_call_may_pass_by_name_what_the_example_passes_by_position() -> None:
    calling = calling_of(a_task("two", "tuple"))
    a, b = x(3), x(3, 1)
    for flat in (calling.flat(a, b), calling.flat(a, y=b), calling.flat(y=b, x=a)):
        assert flat[0] is a and flat[1] is b


@pytest.mark.parametrize(
    ("take", "inputs", "line"),
    [
        ("dict of keywords", {"first": x(2), "mask": x(2)}, "lacks 'bias'"),
        ("dict of keywords", {"first": x(2), "mask": x(2), "bias": x(2), "odd": x(2)}, "has 'odd' too many"),
        ("dict of keywords", {"mask": x(2), "bias": x(2)}, "missing a required argument: 'first'; forward takes"),
        ("constants", (x(2), None, False), "flag is False, in example_inputs it is True"),
        ("constants", (x(2), x(2), True), "y is a tensor of shape"),
        ("two", (x(2),), "lacks 'y'"),
        ("dataclass", x(2), r"x is a tensor of shape \(2, 4\) instead of a Sample"),
    ],
)
def test_a_batch_made_otherwise_is_refused_in_one_line(take: str, inputs: Any, line: str) -> None:
    task = a_task(take)
    task.test = [(inputs, torch.zeros(2, dtype=torch.long))]
    with pytest.raises(TaskError, match=line) as told:
        calling_of(task)
    assert "Task.test yields other inputs" in str(told.value) and "\n" not in str(told.value)


def test_a_model_that_fails_on_a_batch_is_told_with_its_shapes() -> None:
    task = a_task()
    task.train = [(torch.zeros(5, 7), torch.zeros(5))]
    line = r"Task.train yields inputs of shape \(7,\) .* \(a batch of \(5, 7\) float32\): RuntimeError"
    with pytest.raises(TaskError, match=line):
        calling_of(task)


def test_a_model_without_tensors_to_return_is_refused() -> None:
    task = a_task()
    task.model = Net(lambda a: a, lambda y, h: None)
    task.model.forward = lambda x: {"n": 3}
    with pytest.raises(TaskError, match="returns no tensor"):
        calling_of(task)


# which inputs carry the batch


class Graphs(nn.Module):
    """Features (N, nodes, 4) of graphs that all have the same edges (nodes, nodes)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, adjacency: Tensor, x: Tensor) -> Tensor:
        found: Tensor = self.head(adjacency @ x).mean(1)
        return found


class OneGraph(nn.Module):
    """Features (nodes, 4) and edges of one graph: no batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        found: Tensor = self.head(adjacency @ (adjacency @ x).relu())
        return found


class Sentences(nn.Module):
    """Tokens (N, length) with positions (1, length) and a scalar temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(9, 4), nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor, positions: Tensor, temperature: Tensor) -> dict[str, Tensor]:
        states = self.words(tokens) + self.places(positions)
        return {"logits": self.head(states.mean(1)) / temperature, "states": states}


def sentences(n: int, length: int) -> dict[str, Tensor]:
    return {
        "tokens": torch.randint(0, 9, (n, length)),
        "positions": torch.arange(length)[None],
        "temperature": torch.tensor(2.0),
    }


def calling_for(model: nn.Module, example: Any, *split: Any, targets: Any = None) -> Calling:
    return calling_of(Task(model, example, [(inputs, targets) for inputs in split]))


@pytest.mark.parametrize("sizes", [(1, 8, 5), (8, 8, 8), (1, 1, 1), (16, 16, 16)])
def test_an_adjacency_beside_batches_of_graphs_is_not_batched(sizes: tuple[int, ...]) -> None:
    inputs = [(torch.eye(16), torch.randn(n, 16, 4)) for n in sizes]
    axes = calling_for(Graphs(), *inputs).axes
    assert axes.batched == (False, True) and axes.varying == (frozenset(), frozenset())


def test_sentences_of_several_lengths() -> None:
    calling = calling_for(Sentences(), sentences(1, 6), sentences(4, 7), sentences(3, 9))
    assert calling.axes.batched == (True, False, False)
    assert calling.axes.varying == (frozenset({1}), frozenset({1}), frozenset())
    assert calling.axes.free() == (frozenset({0, 1}), frozenset({1}), frozenset())
    fixed = calling_for(Sentences(), sentences(1, 6), sentences(4, 6))
    assert fixed.axes.batched == (True, False, False) and not any(fixed.axes.varying)
    assert [tuple(t.shape) for t in calling.axes.resized(calling.examples, 3)] == [(3, 6), (1, 6), ()]


@pytest.mark.parametrize("nodes", [(7, 7, 7), (7, 5, 9), (3, 3, 4)])
def test_a_graph_by_itself_is_one_sample(nodes: tuple[int, ...]) -> None:
    inputs = [(torch.randn(n, 4), torch.eye(n)) for n in nodes]
    calling = calling_for(OneGraph(), *inputs, targets=torch.zeros(7))
    assert calling.axes.batched == (False, False) and calling.batched_results == (False,)
    moving = len(set(nodes)) > 1
    assert calling.axes.varying == ((frozenset({0}), frozenset({0, 1})) if moving else (frozenset(), frozenset()))
    assert size(calling.batch(inputs[0], None)) == 1


def test_one_image_at_a_time_is_one_sample() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(0), nn.Linear(4, 2))
    images = [torch.randn(3, 8, 8) for _ in range(4)]
    calling = calling_for(model, images[0], *images, targets=torch.tensor(1))
    assert calling.axes.batched == (False,)
    split = calling.split([(image, torch.tensor(1)) for image in images])
    assert [size(batch) for batch in chunks(split, 3)] == [1] * 4
    assert len(subset(split, 3)) == 3
    assert torch.equal(as_one(subset(split, 3))[0], images[0])


# batches that know which inputs are batched


def test_batches_are_cut_and_joined_along_what_is_batched() -> None:
    calling = calling_for(Sentences(), sentences(1, 6), sentences(4, 6))
    given = [(sentences(n, 6), {"label": torch.arange(n), "names": ["a"] * n}) for n in (4, 3, 2)]
    split = calling.split(given)
    taken = subset(split, 6)
    assert [size(batch) for batch in taken] == [4, 2]
    assert [t.shape for t in taken[1][0]] == [(2, 6), (1, 6), ()]
    assert taken[1][1]["label"].tolist() == [0, 1] and taken[1][1]["names"] == ["a", "a"]
    assert batched(taken[1]) == (True, False, False)
    joined = as_one(list(batches(split)))
    assert [tuple(t.shape) for t in joined] == [(9, 6), (1, 6), ()]
    pieces = list(chunks(split, 2))
    assert [size(batch) for batch in pieces] == [2, 2, 2, 1, 2]
    assert torch.equal(torch.cat([inputs[0] for inputs, _ in pieces]), joined[0])
    user = calling.as_user_split(taken)
    assert same(user[0][0], given[0][0]) and list(user[0][0]) == ["tokens", "positions", "temperature"]


def test_batches_of_several_lengths_are_joined_where_they_are_alike() -> None:
    calling = calling_for(Sentences(), sentences(1, 6), sentences(4, 7))
    split = calling.split([(sentences(n, length), None) for n, length in ((4, 7), (3, 5), (2, 5))])
    assert [tuple(t.shape) for t in as_one(list(batches(split)))] == [(5, 5), (1, 5), ()]
