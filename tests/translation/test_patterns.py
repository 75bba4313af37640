"""What exporters spell out becomes the one function or layer that it is, and nothing that only looks like it does."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autocompress.translation.patterns import simplified
from autocompress.translation.writer import SHAPE

X = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))


def graph_of(forward: Callable[..., Tensor], *constants: Tensor) -> fx.GraphModule:
    """A module of the calls that the function makes of x and its constants."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, constant in enumerate(constants):
                self.register_parameter(f"c{i}", nn.Parameter(constant))

        def forward(self, x: Tensor) -> Tensor:
            return forward(x, *(getattr(self, f"c{i}") for i in range(len(constants))))

    model = fx.symbolic_trace(Net())

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                n.meta[SHAPE] = tuple(value.shape)
            return value

    Shapes(model).run(X)
    return model


def called(model: fx.GraphModule) -> list[Any]:
    functions = [n.target for n in model.graph.nodes if n.op == "call_function"]
    return functions + [type(model.get_submodule(str(n.target))) for n in model.graph.nodes if n.op == "call_module"]


def standard(x: Tensor) -> Tensor:
    centred = torch.sub(x, torch.mean(x, [-1], True))
    return torch.div(centred, torch.sqrt(torch.add(torch.mean(torch.pow(centred, 2), [-1], True), 1e-5)))


def reciprocal(x: Tensor) -> Tensor:
    centred = torch.sub(x, torch.mean(x, [2], True))
    inverse = torch.reciprocal(torch.sqrt(torch.add(torch.mean(torch.mul(centred, centred), [2], True), 1e-3)))
    return torch.mul(centred, inverse)


def root_mean_square(x: Tensor) -> Tensor:
    return torch.mul(x, torch.rsqrt(torch.add(torch.mean(torch.pow(x, 2), [-1], True), 1e-6)))


def by_tanh(x: Tensor) -> Tensor:
    inner = torch.mul(torch.add(x, torch.mul(torch.pow(x, 3.0), 0.044715)), math.sqrt(2 / math.pi))
    return torch.mul(torch.mul(x, 0.5), torch.add(torch.tanh(inner), 1.0))


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Any]] = {
    "silu": (lambda x: torch.mul(x, torch.sigmoid(x)), F.silu),
    "gelu of torch": (lambda x: x * 0.5 * (torch.erf(x / 1.4142135381698608) + 1.0), F.gelu),
    "gelu, factors elsewhere": (lambda x: x * (torch.erf(x * 0.7071067690849304) * 0.5 + 0.5), F.gelu),
    "gelu, half at the end": (lambda x: (x * (torch.erf(x / 1.4142135381698608) + 1.0)) * 0.5, F.gelu),
    "gelu by tanh": (by_tanh, F.gelu),
    "hard swish": (lambda x: x * torch.clamp(x + 3.0, 0, 6) / 6.0, F.hardswish),
    "hard swish of relu6": (lambda x: torch.mul(x, F.relu6(x + 3.0)) * 0.1666666716337204, F.hardswish),
    "hard sigmoid": (lambda x: torch.clamp(x + 3.0, 0, 6) / 6.0, F.hardsigmoid),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), F.mish),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_known_by_its_values(name: str) -> None:
    forward, wanted = ACTIVATIONS[name]
    model = simplified(graph_of(forward))
    assert called(model) == [wanted]
    torch.testing.assert_close(model(X), forward(X), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x * torch.sigmoid(1.702 * x),
        lambda x: x * 0.5 * (torch.erf(x / 1.4) + 1.0),
        lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
        lambda x: x * torch.clamp(x + 3.0, 0, 5) / 6.0,
    ],
)
def test_what_only_looks_like_an_activation_stays(forward: Callable[[Tensor], Tensor]) -> None:
    model = simplified(graph_of(forward))
    assert not {F.silu, F.gelu, F.hardswish} & set(called(model))
    torch.testing.assert_close(model(X), forward(X))


def test_the_gate_of_a_product_of_two_stays_a_product() -> None:
    """SwiGLU: silu(x) * y has two inputs, of which only the first is an activation's."""
    model = simplified(graph_of(lambda x, c: torch.mul(torch.mul(x, torch.sigmoid(x)), torch.mul(x, c)), torch.rand(8)))
    assert called(model).count(F.silu) == 1


NORMS: dict[str, tuple[Callable[..., Tensor], type[nn.Module]]] = {
    "quotient": (lambda x, w, b: torch.add(torch.mul(standard(x), w), b), nn.LayerNorm),
    "constants first": (lambda x, w, b: torch.add(b, torch.mul(w, standard(x))), nn.LayerNorm),
    "reciprocal": (lambda x, w, b: torch.add(torch.mul(reciprocal(x), w), b), nn.LayerNorm),
    "without bias": (lambda x, w, b: torch.mul(standard(x), w), nn.LayerNorm),
    "root mean square": (lambda x, w, b: torch.mul(w, root_mean_square(x)), nn.RMSNorm),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_in_parts_is_a_layer(name: str) -> None:
    forward, kind = NORMS[name]
    constants = torch.rand(8) + 0.5, torch.randn(8)
    model = simplified(graph_of(forward, *constants))
    assert called(model) == [kind]
    torch.testing.assert_close(model(X), forward(X, *constants))


@pytest.mark.parametrize("axes", [[1], [0, 2], [1, 2]])
def test_a_norm_over_other_axes_is_right(axes: list[int]) -> None:
    def forward(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        centred = torch.sub(x, torch.mean(x, axes, True))
        deviation = torch.sqrt(torch.add(torch.mean(torch.pow(centred, 2), axes, True), 1e-5))
        return torch.add(torch.mul(torch.div(centred, deviation), w), b)

    constants = torch.rand(8), torch.randn(8)
    torch.testing.assert_close(simplified(graph_of(forward, *constants))(X), forward(X, *constants))


def test_groups_folded_into_instances_are_a_group_norm() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.instance = nn.InstanceNorm1d(3)
            self.w, self.b = nn.Parameter(torch.rand(6, 1)), nn.Parameter(torch.randn(6, 1))

        def forward(self, x: Tensor) -> Tensor:
            unfolded = torch.reshape(self.instance(torch.reshape(x, [-1, 3, 16])), [-1, 6, 8])
            return torch.add(torch.mul(unfolded, self.w), self.b)

    net = Net().eval()
    model = fx.symbolic_trace(net)
    for node, shape in zip(model.graph.nodes, [X.shape, (3, 3, 16), (3, 3, 16), X.shape], strict=False):
        node.meta[SHAPE] = tuple(shape)
    found = simplified(model)
    assert called(found) == [nn.GroupNorm]
    torch.testing.assert_close(found(X), net(X))


@pytest.mark.parametrize(
    ("layer", "constant", "taken"),
    [
        (nn.Linear(8, 4, bias=False), torch.randn(4), True),
        (nn.Linear(8, 4, bias=False), torch.randn(1, 1, 4), True),
        (nn.Linear(8, 6, bias=False), torch.randn(6, 1), False),
        (nn.Linear(8, 4), torch.randn(4), False),
        (nn.Conv1d(6, 5, 3, bias=False), torch.randn(5, 1), True),
        (nn.Conv1d(6, 6, 3, bias=False), torch.randn(6), False),
    ],
)
def test_what_is_added_to_each_channel_is_a_bias(layer: nn.Module, constant: Tensor, taken: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.c = layer, nn.Parameter(constant)

        def forward(self, x: Tensor) -> Tensor:
            return torch.add(self.c, self.layer(x))

    net = Net()
    model = fx.symbolic_trace(net)
    wanted = net(X).detach()
    for node in model.graph.nodes:
        node.meta[SHAPE] = tuple(wanted.shape)
    found = simplified(model)
    assert (called(found) == [type(layer)]) is taken
    torch.testing.assert_close(found(X), wanted)
