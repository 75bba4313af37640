"""Modules of a lifted model are written as torch computes them, in every variant; equal weights are stored once."""

from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from autocompress.export.lowering import lower
from tests.export.exported import assert_same, batch_of, flat, refuse, run


class _Layers(nn.Module):
    """Every layer on the same inputs, its results side by side."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(x) for layer in self.layers)


class _Recurrent(_Layers):
    """(output, last state) of every layer, from nothing."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = [layer(x) for layer in self.layers]
        return tuple(m[i] if i != 1 or not isinstance(layer, nn.LSTM) else m[1][j]
                     for m, layer in zip(made, self.layers, strict=True) for i in range(2)
                     for j in range(2 if i and isinstance(layer, nn.LSTM) else 1))  # fmt: skip


class _Given(_Layers):
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        made = [layer(x, (h, h) if isinstance(layer, nn.LSTM) else h) for layer in self.layers]
        return tuple(m[0] for m in made)


def graph_of_layers(model: nn.Module, free: dict[int, str], *inputs: Tensor) -> torch.fx.GraphModule:
    """A lifted model whose modules are called as they are."""
    graph = torch.fx.symbolic_trace(model.eval())
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node, value in zip(placeholders, inputs, strict=True):
        node.meta["val"], node.meta["axes"] = torch.empty_like(value, device="meta"), free
    return graph


def _randomised(model: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=draw) * (1 if "var" in name else 0.6) + 0.1
    return model


def _check(model: nn.Module, free: dict[int, str], *inputs: Tensor) -> onnx.ModelProto:
    graph = graph_of_layers(model, free, *inputs)
    with torch.no_grad():
        proto = lower(graph, {}, refuse)
    onnx.checker.check_model(proto, full_check=True)
    axis = next(iter(free), 0)
    for batch in (1, 2, 3):
        fed = batch_of(inputs, batch, axis)
        with torch.no_grad():
            expected = flat(model(*fed))
        for found, wanted in zip(run(proto, *fed), expected, strict=True):
            assert_same(found, wanted)
    return proto


IMAGES = [
    nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, (5, 3), padding="same", bias=False), nn.Conv2d(4, 8, 3, groups=2),
    nn.Conv2d(4, 4, 3, groups=4, dilation=2), nn.Conv2d(4, 4, 3, padding="valid"),
    *(nn.Conv2d(4, 3, 3, padding=(1, 2), padding_mode=mode) for mode in ("reflect", "replicate", "circular")),
    nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), nn.ConvTranspose2d(4, 6, 2, 2, groups=2, bias=False),
    nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4), nn.GroupNorm(4, 4, affine=False),
    nn.LayerNorm((8, 8)), nn.LayerNorm(8, elementwise_affine=False), nn.LayerNorm(8, bias=False),
    nn.InstanceNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.InstanceNorm2d(4, track_running_stats=True),
    nn.PReLU(), nn.PReLU(4), nn.RMSNorm(8), nn.RMSNorm((8, 8), eps=1e-3), nn.RMSNorm(8, elementwise_affine=False),
    nn.Linear(8, 3),
]  # fmt: skip
SEQUENCES = [
    nn.Linear(6, 5), nn.Linear(6, 5, bias=False), nn.LayerNorm(6), nn.Conv1d(7, 3, 3), nn.ConvTranspose1d(7, 3, 2),
    nn.Conv1d(7, 3, 3, padding=2, padding_mode="circular"), nn.BatchNorm1d(7), nn.GroupNorm(7, 7), nn.PReLU(7),
    nn.InstanceNorm1d(7), nn.RMSNorm(6),
]  # fmt: skip
VOLUMES = [nn.Conv3d(2, 3, 2), nn.ConvTranspose3d(2, 3, 2), nn.BatchNorm3d(2), nn.InstanceNorm3d(2),
           nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate")]  # fmt: skip
VECTORS = [nn.Linear(6, 5), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(6), nn.LayerNorm(6), nn.PReLU(6)]


@pytest.mark.parametrize(
    ("layers", "shape"),
    [(IMAGES, (3, 4, 8, 8)), (SEQUENCES, (3, 7, 6)), (VOLUMES, (3, 2, 3, 4, 4)), (VECTORS, (3, 6))],
    ids=["images", "sequences", "volumes", "vectors"],
)
def test_layers_agree_with_torch(layers: list[nn.Module], shape: tuple[int, ...]) -> None:
    _check(_randomised(_Layers(*layers)), {0: "batch"}, torch.randn(shape))


def test_layers_on_one_map_without_a_batch() -> None:
    model = _randomised(_Layers(nn.Conv1d(4, 3, 3), nn.ConvTranspose1d(4, 3, 2), nn.Linear(9, 2)))
    graph = graph_of_layers(model, {}, torch.randn(4, 9))
    x = torch.randn(4, 9)
    with torch.no_grad():
        for found, wanted in zip(run(lower(graph, {}, refuse), x), flat(model(x)), strict=True):
            assert_same(found, wanted)


def _recurrent(kind: Any, batch_first: bool) -> list[nn.Module]:
    options = [{}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False},
               {"num_layers": 2, "bidirectional": True, "bias": False}]  # fmt: skip
    if kind is nn.RNN:
        options.append({"nonlinearity": "relu"})
    return [kind(5, 4, batch_first=batch_first, **option) for option in options]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_agree_with_torch(kind: Any, batch_first: bool) -> None:
    model = _randomised(_Recurrent(*_recurrent(kind, batch_first)))
    _check(model, {0 if batch_first else 1: "batch"}, torch.randn(3, 6, 5) if batch_first else torch.randn(6, 3, 5))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_start_from_given_states(kind: Any) -> None:
    model = _randomised(_Given(kind(5, 4), kind(5, 4, bias=False)))
    _check(model, {1: "batch"}, torch.randn(6, 3, 5), torch.randn(1, 3, 4))
    both_ways = _randomised(_Given(kind(5, 4, num_layers=2, bidirectional=True)))
    _check(both_ways, {1: "batch"}, torch.randn(6, 3, 5), torch.randn(4, 3, 4))


def test_recurrent_layers_take_one_sequence() -> None:
    model = _randomised(_Recurrent(nn.LSTM(5, 4, bidirectional=True), nn.GRU(5, 4)))
    x = torch.randn(6, 5)
    with torch.no_grad():
        proto = lower(graph_of_layers(model, {}, x), {}, refuse)
        for found, wanted in zip(run(proto, x), flat(model(x)), strict=True):
            assert_same(found, wanted)


class _Tied(nn.Module):
    """An embedding whose table is the head's weight too, and a layer that is called twice."""

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.head.weight, self.second.weight = self.embed.weight, self.first.weight
        self.late = late

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.late:
            return self.head(torch.ops.aten.add.Tensor(x, self.second(self.first(x))))
        return self.head(self.second(self.first(x)))


@pytest.mark.parametrize("late", [True, False])
def test_shared_weights_are_stored_once(late: bool) -> None:
    model = _Tied(late)
    proto = _check(model, {0: "batch"}, torch.randint(0, 50, (3, 7)))
    stored = [numpy_helper.to_array(t) for t in proto.graph.initializer]
    assert sum(array.size == 50 * 16 for array in stored) == 1
    assert sum(array.shape == (16, 16) for array in stored) == 1


def test_weights_that_differ_in_one_bit_are_stored_both() -> None:
    first = nn.Linear(6, 6)
    second = nn.Linear(6, 6)
    second.load_state_dict(first.state_dict())
    model = nn.Sequential(first, second)
    assert len(lower(graph_of_layers(model, {0: "batch"}, torch.randn(2, 6)), {}, refuse).graph.initializer) == 2
    second.weight.data[0, 0] += 1e-6
    assert len(lower(graph_of_layers(model, {0: "batch"}, torch.randn(2, 6)), {}, refuse).graph.initializer) == 3
