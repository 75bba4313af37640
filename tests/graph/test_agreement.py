"""A captured model that is not the user's is refused, and the first layer that differs is named."""

import copy
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from autocompress.graph.agreement import require_agreement
from autocompress.graph.trace import capture
from autocompress.vocabulary.errors import TraceError

aten = torch.ops.aten


class Residual(nn.Module):
    """Convolutions with norms, activations in place, a residual branch, and a scaled sum at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = x + self.b(self.relu(self.a(x))) * 0.7
        return self.head(self.last(x).mean((2, 3))) * 0.3


class Encoder(nn.Module):
    """Attention and an MLP, each behind a norm, each with a shortcut; the second is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.first, self.second = nn.Linear(6, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        y = self.first(x)
        x = x + self.o(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Siamese(nn.Module):
    """One layer called on two inputs, with a recurrent layer behind."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.rnn, self.head = nn.Linear(6, 8), nn.GRU(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.rnn(torch.tanh(self.net(x)) - torch.tanh(self.net(y)))[0][:, -1])


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "residual": (Residual, (torch.randn(2, 3, 8, 8),)),
    "encoder": (Encoder, (torch.randn(2, 5, 6),)),
    "siamese": (Siamese, (torch.randn(2, 4, 6), torch.randn(2, 4, 6))),
}

Mutation = Callable[[GraphModule], None]


def setting(layer: str, name: str, value: Any) -> Mutation:
    return lambda m: setattr(m.get_submodule(layer), name, value)


def swapped(one: str, other: str) -> Mutation:
    def mutate(m: GraphModule) -> None:
        a, b = m.get_submodule(one), m.get_submodule(other)
        a.weight, b.weight = b.weight, a.weight

    return mutate


def call(m: GraphModule, target: Any, number: int = 0) -> Node:
    return [node for node in m.graph.nodes if node.target is target][number]


def argument(target: Any, place: int, value: Any, number: int = 0) -> Mutation:
    def mutate(m: GraphModule) -> None:
        call(m, target, number).update_arg(place, value)
        m.recompile()

    return mutate


def option(target: Any, name: str, value: Any) -> Mutation:
    def mutate(m: GraphModule) -> None:
        call(m, target).update_kwarg(name, value)
        m.recompile()

    return mutate


def dropped(place: int, number: int = 0) -> Mutation:
    """An add yields one of its operands alone."""

    def mutate(m: GraphModule) -> None:
        add = call(m, aten.add.Tensor, number)
        add.replace_all_uses_with(add.args[place])
        m.graph.erase_node(add)
        m.recompile()

    return mutate


MUTATIONS: dict[str, tuple[str, Mutation, str]] = {
    "swapped convolutions": ("residual", swapped("a", "b"), "first at a"),
    "another stride": ("residual", setting("last", "stride", (2, 2)), "first at last"),
    "a stride whose result fits nothing": ("residual", setting("b", "stride", (2, 2)), "first at b"),
    "another dilation": ("residual", setting("b", "dilation", (2, 2)), "first at b"),
    "another eps": ("residual", setting("norm", "eps", 0.1), "first at norm"),
    "no bias of a convolution": ("residual", setting("a", "bias", None), "first at a"),
    "another factor": ("residual", argument(aten.mul.Tensor, 1, 0.6), "first at last"),
    "another factor at the end": ("residual", argument(aten.mul.Tensor, 1, 0.4, 1), "after head"),
    "no branch": ("residual", dropped(0), "first at last"),
    "no shortcut": ("residual", dropped(1), "first at last"),
    "swapped queries and values": ("encoder", swapped("q", "v"), "first at q"),
    "another scale of attention": (
        "encoder",
        option(aten.scaled_dot_product_attention.default, "scale", 1.0),
        "first at o",
    ),
    "another eps of a layer norm": ("encoder", setting("second", "eps", 0.1), "first at second"),
    "no bias of a linear layer": ("encoder", setting("up", "bias", None), "first at up"),
    "no attention": ("encoder", dropped(0), "first at second"),
    "no MLP": ("encoder", dropped(0, 1), "after down"),
    "the second call alone": ("siamese", setting("net@2", "bias", None), "first at net@2"),
    "no bias behind a recurrent layer": ("siamese", setting("head", "bias", None), "first at head"),
}


@cache
def captured(net: str) -> tuple[nn.Module, GraphModule, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    make, inputs = NETS[net]
    model = make().eval()
    return model, capture(model, inputs), inputs


@pytest.mark.parametrize("net", NETS)
def test_the_captured_model_is_the_users(net: str) -> None:
    require_agreement(*captured(net))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_copy_is_refused_where_it_breaks(name: str) -> None:
    net, mutate, place = MUTATIONS[name]
    model, lifted, inputs = captured(net)
    broken = copy.deepcopy(lifted)
    mutate(broken)
    with pytest.raises(TraceError, match=rf"not yours.*\({re.escape(place)}\)"):
        require_agreement(model, broken, inputs)
