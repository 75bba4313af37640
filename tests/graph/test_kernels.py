"""Kernels tell what runs: their multiplications are those of the user's model, counted by torch itself, and each
operator has one."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autocompress.compression.build import build, plan_kernels
from autocompress.compression.methods.prune import Prune
from autocompress.compression.plan import Plan, Step
from autocompress.graph import trace
from autocompress.graph.kernels import kernels_of
from autocompress.graph.types import Graph
from autocompress.vocabulary.precision import is_fixed
from autocompress.vocabulary.workload import total_macs
from tests.zoo import MODELS, make

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")  # torch's own, of recurrent layers and of the switch that splits them
    for text in ("LSTM with projections is not supported with oneDNN", "TF32 acceleration", "The tensor attributes")
]


class Net(nn.Module):
    """Layers, and a forward that is a function of them and the inputs."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


class LastStates(nn.Module):
    """The states after the last step, of both directions; the output of every step is not read."""

    def __init__(self, cells: nn.RNNBase) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.cells(x)
        return torch.cat([last[-2], last[-1]], 1)


class Recurrent(nn.Module):
    """The states after every step."""

    def __init__(self, cells: nn.RNNBase) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.cells(x)[0]
        return states


def heads(x: Tensor, count: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def sdpa(s: Net, x: Tensor, **settings: bool) -> Tensor:
    q, k, v = heads(s.q(x), 4), heads(s.k(x), 4), heads(s.v(x), 4)
    return s.o(merged(F.scaled_dot_product_attention(q, k, v, **settings)))


def by_hand(s: Net, x: Tensor) -> Tensor:
    q, k, v = heads(s.q(x), 4), heads(s.k(x), 4), heads(s.v(x), 4)
    return s.o(merged(torch.softmax(q @ k.transpose(-1, -2), -1) @ v))


def with_bmm(s: Net, x: Tensor) -> Tensor:
    """Heads are folded into the batch axis."""
    q, k, v = (heads(layer(x), 4).flatten(0, 1) for layer in (s.q, s.k, s.v))
    y = torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
    return s.o(merged(y.view(x.shape[0], 4, x.shape[1], -1)))


def grouped_queries(s: Net, x: Tensor) -> Tensor:
    q, k, v = heads(s.q(x), 4), heads(s.k(x), 2), heads(s.v(x), 2)
    return s.o(merged(F.scaled_dot_product_attention(q, k, v, enable_gqa=True)))


def windows(s: Net, x: Tensor) -> Tensor:
    """Attention within windows, which are folded into the batch axis."""
    return sdpa(s, x.reshape(-1, 4, x.shape[2])).reshape(x.shape)


def frames(s: Net, x: Tensor) -> Tensor:
    """A video's frames go through a network of images."""
    y = F.relu(s.a(x.flatten(0, 1)))
    return s.h(y.mean((2, 3)).view(x.shape[0], x.shape[1], -1).mean(1))


def repeated(s: Net, x: Tensor) -> Tensor:
    x = s.a(x)
    for _ in range(6):
        x = torch.relu(s.f(x))
    return s.h(x)


def parts(s: Net, x: Tensor) -> Tensor:
    a, b, c = s.a(x).split((4, 8, 12), 1)
    return s.h(torch.cat([s.b(b), a, s.c(c)], 1).mean((2, 3)))


def attention(**changes: nn.Module) -> dict[str, nn.Module]:
    return {name: nn.Linear(16, 16) for name in "qkvo"} | changes


def square(count: int = 3) -> Tensor:
    return torch.randn(1, count, 8, 8)


def by_angles(q: Tensor, k: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """Cosine attention: unit queries and keys, and a bounded learnt scale for every head."""
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale.clamp(max=4.6).exp()
    return scores.softmax(-1) @ v


TOKENS = torch.randn(1, 8, 16)
VOLUME = torch.randn(1, 2, 4, 6, 8)
STEPS = torch.randn(1, 7, 6)
NETS: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "conv 1-D": (nn.Sequential(nn.Conv1d(3, 8, 5, 2, 1), nn.ReLU(), nn.Conv1d(8, 4, 3)), (torch.randn(1, 3, 32),)),
    "conv 3-D": (nn.Sequential(nn.Conv3d(2, 6, 3, padding=1), nn.Conv3d(6, 4, (1, 2, 3))), (VOLUME,)),
    "grouped": (nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 12, 1, groups=2)), (square(4),)),
    "dilated": (nn.Sequential(nn.Conv2d(3, 8, 3, dilation=2), nn.Conv2d(8, 4, 3, 2)), (square(),)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 8, 3, 2), nn.ConvTranspose2d(8, 4, 2, groups=2)), (square(),)),
    "transposed 1-D": (nn.Sequential(nn.Linear(6, 6), nn.ConvTranspose1d(3, 5, 4, 3)), (torch.randn(1, 3, 6),)),
    "transposed 3-D": (nn.Sequential(nn.ConvTranspose3d(2, 4, 2, 2), nn.Conv3d(4, 2, 1)), (VOLUME,)),
    "separable": (nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), (square(),)),
    "linear on images": (nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), (square(),)),
    "by hand": (Net(by_hand, **attention()), (TOKENS,)),
    "sdpa": (Net(sdpa, **attention()), (TOKENS,)),
    "sdpa, causal": (Net(lambda s, x: sdpa(s, x, is_causal=True), **attention()), (TOKENS,)),
    "bmm": (Net(with_bmm, **attention()), (TOKENS,)),
    "grouped queries": (
        Net(grouped_queries, **attention(k=nn.Linear(16, 8), v=nn.Linear(16, 8))), (TOKENS,),
    ),
    "windows": (Net(windows, **attention()), (TOKENS,)),
    "frames": (Net(frames, a=nn.Conv2d(3, 8, 3), h=nn.Linear(8, 3)), (torch.randn(1, 4, 3, 8, 8),)),
    "multi-head attention": (
        Net(lambda s, x: s.h(s.a(x, x, x)[0]), a=nn.MultiheadAttention(16, 4, batch_first=True), h=nn.Linear(16, 3)),
        (TOKENS,),
    ),
    "shared": (Net(repeated, a=nn.Linear(8, 16), f=nn.Linear(16, 16), h=nn.Linear(16, 3)), (torch.randn(1, 8),)),
    "siamese": (
        Net(lambda s, x, y: s.h(s.a(x).mean((2, 3)) - s.a(y).mean((2, 3))), a=nn.Conv2d(3, 8, 3), h=nn.Linear(8, 3)),
        (square(), square()),
    ),
    "encoder layer": (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (TOKENS,)),
    "parts of a split": (
        Net(parts, a=nn.Conv2d(3, 24, 3), b=nn.Conv2d(8, 4, 1), c=nn.Conv2d(12, 4, 3, 1, 1), h=nn.Linear(12, 3)),
        (square(),),
    ),
    "addmm": (
        Net(lambda s, x: s.h(torch.addmm(s.bias, x, s.w)), w=nn.Parameter(torch.randn(8, 6)), h=nn.Linear(6, 3),
            bias=nn.Parameter(torch.randn(6))),
        (torch.randn(1, 8),),
    ),
    "adjacency": (
        Net(lambda s, x, a: s.h(a @ torch.relu(s.a(x))), a=nn.Linear(6, 8), h=nn.Linear(8, 3)),
        (torch.randn(1, 5, 6), torch.rand(1, 5, 5)),
    ),
    "mixed positions": (
        Net(lambda s, x: s.h((s.w @ s.a(x)).mean(1)), a=nn.Linear(6, 8), w=nn.Parameter(torch.randn(7, 5)),
            h=nn.Linear(8, 3)),
        (torch.randn(1, 5, 6),),
    ),
    "weights that are made": (
        Net(lambda s, x: s.h(F.linear(x, s.a(x).view(-1, 4, 6).mean(0))), a=nn.Linear(6, 24), h=nn.Linear(4, 3)),
        (torch.randn(1, 6),),
    ),
    "einsum": (
        Net(lambda s, x: torch.einsum("bnc,bmc->bnm", s.a(x), s.b(x)), a=nn.Linear(6, 8), b=nn.Linear(6, 8)),
        (torch.randn(1, 5, 6),),
    ),
    "learnt queries": (
        Net(
            lambda s, x: s.h(
                F.scaled_dot_product_attention(s.q(s.latents.expand(x.shape[0], -1, -1)), s.k(x), s.v(x)).mean(1)
            ),
            latents=nn.Parameter(torch.randn(1, 4, 6), requires_grad=False), q=nn.Linear(6, 8), k=nn.Linear(6, 8),
            v=nn.Linear(6, 8), h=nn.Linear(8, 3),
        ),
        (torch.randn(1, 5, 6),),
    ),
    "attention by angles": (
        Net(lambda s, x: s.h(by_angles(*(each(x).view(x.shape[0], 5, 4, 2).transpose(1, 2) for each in (s.q, s.k, s.v)),
                                       s.scale).transpose(1, 2).flatten(2).mean(1)),
            q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 8), h=nn.Linear(8, 3),
            scale=nn.Parameter(torch.rand(4, 1, 1), requires_grad=False)),
        (torch.randn(1, 5, 6),),
    ),
    "mixed tokens": (
        Net(lambda s, x: s.h(s.t(F.gelu(s.m(s.a(x).transpose(1, 2)))).mean(2)), a=nn.Linear(6, 8), m=nn.Linear(5, 7),
            t=nn.Linear(7, 5), h=nn.Linear(8, 3)),
        (torch.randn(1, 5, 6),),
    ),
    "weight norm": (
        nn.Sequential(
            torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 8, 3)), nn.ReLU(), nn.Flatten(),
            torch.nn.utils.parametrizations.weight_norm(nn.Linear(48, 4)), nn.Linear(4, 2),
        ),
        (torch.randn(1, 3, 8),),
    ),
    "squeeze and excite": (
        Net(lambda s, x: s.h(s.a(x)) * torch.sigmoid(s.g(x.mean((2, 3), keepdim=True))), a=nn.Conv2d(3, 8, 3),
            g=nn.Conv2d(3, 2, 1), h=nn.Conv2d(8, 2, 1)),
        (square(),),
    ),
    "LSTM": (nn.Sequential(Recurrent(nn.LSTM(6, 8, batch_first=True)), nn.Linear(8, 3)), (STEPS,)),
    "GRU, both ways, 2 layers": (
        nn.Sequential(Recurrent(nn.GRU(6, 8, 2, batch_first=True, bidirectional=True)), nn.Linear(16, 3)), (STEPS,),
    ),
    "LSTM, both ways, 3 layers": (
        nn.Sequential(Recurrent(nn.LSTM(6, 8, 3, batch_first=True, bidirectional=True)), nn.Linear(16, 3)), (STEPS,),
    ),
    "GRU, last states": (
        nn.Sequential(LastStates(nn.GRU(6, 8, 2, batch_first=True, bidirectional=True)), nn.Linear(16, 3)), (STEPS,),
    ),
    "LSTM with a projection": (
        nn.Sequential(Recurrent(nn.LSTM(6, 8, 2, batch_first=True, proj_size=5)), nn.Linear(5, 3)), (STEPS,),
    ),
    "RNN": (nn.Sequential(Recurrent(nn.RNN(6, 8, nonlinearity="relu", batch_first=True)), nn.Linear(8, 3)), (STEPS,)),
    "tensordot": (
        Net(lambda s, x: s.h(torch.tensordot(x, s.w, ([2], [0]))), w=nn.Parameter(torch.randn(6, 4)),
            h=nn.Linear(4, 3)),
        (STEPS,),
    ),
    "filters that are made": (
        Net(lambda s, x: s.h(F.conv2d(x, s.a(x).mean((0, 2, 3)).view(2, 3, 3, 3))), a=nn.Conv2d(3, 54, 1),
            h=nn.Conv2d(2, 2, 1)),
        (square(),),
    ),
    "unknown operators": (
        Net(lambda s, x: s.h(torch.logcumsumexp(s.a(x), 1).flip(1)), a=nn.Linear(8, 8), h=nn.Linear(8, 3)),
        (torch.randn(1, 8),),
    ),
}  # fmt: skip


def counted(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates of the user's model by torch's own counter. It sees no fused operator: attention and
    recurrent layers are run as the products that they are made of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH),
            torch.backends.mkldnn.flags(enabled=False),
        ):  # fmt: skip
            model.eval()(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def macs(graph: Graph) -> int:
    """Of the user's own operators, not of those that an exact rewrite put in their place."""
    return total_macs(kernel for kernel in graph.kernels.values() if not is_fixed(kernel))


@pytest.mark.parametrize("name", MODELS)
def test_macs_of_the_zoo_are_those_that_torch_counts(name: str) -> None:
    model, inputs = make(name)
    assert macs(trace(model, inputs)) == counted(model, (inputs[:1],))


@pytest.mark.parametrize("name", NETS)
def test_macs_are_those_that_torch_counts(name: str) -> None:
    model, inputs = NETS[name]
    assert macs(trace(model.eval(), inputs)) == counted(model, inputs)


def test_macs_of_what_torch_does_not_count() -> None:
    """Closed forms: a bilinear layer multiplies by one input, then by the other; a bag adds its rows up."""
    bilinear = Net(lambda s, x: s.h(s.b(x, x)), b=nn.Bilinear(4, 4, 5), h=nn.Linear(5, 2)).eval()
    assert macs(trace(bilinear, torch.randn(1, 4))) == 5 * (4 * 4 + 4) + 5 * 2
    bag = Net(lambda s, x: s.h(s.b(x)), b=nn.EmbeddingBag(10, 5), h=nn.Linear(5, 2)).eval()
    assert macs(trace(bag, torch.randint(0, 10, (1, 3)))) == 3 * 5 + 5 * 2


def test_an_operator_outside_the_table_is_a_kernel_by_its_own_name() -> None:
    kernels = trace(*NETS["unknown operators"][:1], NETS["unknown operators"][1]).kernels
    assert [(k.workload.op, k.inputs) for k in kernels.values()] == [
        ("linear", ("inputs_0",)), ("logcumsumexp", ("a",)), ("flip", ("logcumsumexp",)), ("linear", ("flip",)),
    ]  # fmt: skip
    assert kernels["logcumsumexp"].workload.elements == 16 and kernels["logcumsumexp"].workload.macs == 0


def test_an_operator_is_not_taken_for_a_kernel_that_is_called_alike() -> None:
    """ATen's max over an axis is not the table's maximum of two tensors."""
    net = Net(lambda s, x: s.h(s.a(x).max(1).values), a=nn.Linear(8, 6), h=nn.Linear(6, 3)).eval()
    ops = [kernel.workload.op for kernel in trace(net, torch.randn(1, 5, 8)).kernels.values()]
    assert "amax" in ops and "max" not in ops


def test_recurrent_kernels_say_what_their_time_depends_on() -> None:
    net = nn.Sequential(Recurrent(nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)), nn.Linear(16, 3)).eval()
    work = next(k.workload for k in trace(net, STEPS).kernels.values() if k.workload.op == "lstm")
    assert (work.in_channels, work.out_channels, work.size, work.window) == (6, 16, (7,), (2, 2))
    assert work.weights == sum(p.numel() for n, p in net[0].named_parameters() if "weight" in n)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_norm_behind_an_activation_is_a_kernel_of_its_own(norm_first: bool) -> None:
    """It can't be folded into the layer before the activation."""
    middle = (nn.BatchNorm2d(4), nn.GELU())
    net = nn.Sequential(nn.Conv2d(3, 4, 1), *(middle if norm_first else middle[::-1]), nn.Conv2d(4, 3, 1)).eval()
    ops = [kernel.workload.op for kernel in trace(net, torch.randn(1, 3, 4, 4)).kernels.values()]
    assert ops == (["conv", "conv"] if norm_first else ["conv", "batch_norm", "conv"])


class Collision(nn.Module):
    """An input that is named like a layer, and a layer that is named like an operator's node."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.add, self.h = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, u: Tensor) -> Tensor:
        y = torch.relu(self.u(u))
        return self.h(torch.sigmoid(self.add(y) + y + u.mean()))


def test_inputs_layers_and_operators_share_no_name() -> None:
    graph = trace(Collision().eval(), torch.randn(1, 8))
    assert graph.kernels["u"].inputs == ("u:input",)
    assert {"u", "add", "h"} <= graph.kernels.keys() and graph.kernels["add"].workload.op == "linear"
    assert sum(kernel.workload.op == "add" for kernel in graph.kernels.values()) == 2
    assert len({kernel.name for kernel in graph.kernels.values()}) == len(graph.kernels)
    check_prices(graph)


class Parts(nn.Module):
    """A convolution's output in parts; each is read by a layer of its own, or all by one."""

    def __init__(self, count: int, alike: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8 * count, 3, padding=1)
        self.readers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(0 if alike else count - 1))
        self.h = nn.Conv2d(8 * count, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.relu(self.a(x)).chunk(self.a.out_channels // 8, 1)
        made = [torch.tanh(read(part)) for read, part in zip(self.readers, parts, strict=False)]
        rest = [F.avg_pool2d(part, 3, 1, 1) for part in parts[len(made) :]]
        return self.h(torch.cat([*made, *rest], 1)).mean((2, 3))


def test_parts_of_a_split_that_are_cut_by_themselves_are_priced_as_they_are_built() -> None:
    graph = trace(Parts(3, alike=False).eval(), square())
    assert len([g for g in graph.free_groups.values() if "a" in g.producers]) == 3, "a group per part"
    check_prices(graph)


def test_parts_of_a_split_that_are_cut_together_are_priced_as_half_of_it_each() -> None:
    """Importance alone tells which part keeps how many: a part is priced at its share, and their sum is right."""
    graph = trace(Parts(2, alike=True).eval(), square())
    kernels = plan_kernels(Plan(graph.fingerprint, (Step("a", Prune(6)),)), graph)
    widths = {k.workload.op: [] for k in kernels.values()}
    for kernel in kernels.values():
        widths[kernel.workload.op].append((kernel.workload.in_channels, kernel.workload.out_channels))
    assert widths["avg_pool"] == [(3, 3), (3, 3)]
    assert (widths["split"], widths["concat"], widths["conv"]) == ([(6, 6)], [(6, 6)], [(3, 6), (6, 4)])


@pytest.mark.parametrize(
    "name",
    [
        "by hand",
        "bmm",
        "sdpa",
        "grouped queries",
        "windows",
        "frames",
        "multi-head attention",
        "shared",
        "siamese",
        "encoder layer",
        "parts of a split",
        "LSTM",
        "GRU, both ways, 2 layers",
        "GRU, last states",
        "adjacency",
        "einsum",
        "addmm",
        "learnt queries",
        "attention by angles",
        "mixed tokens",
    ],
)
def test_products_are_priced_as_they_are_built(name: str) -> None:
    model, inputs = NETS[name]
    check_prices(trace(model.eval(), inputs))


def check_prices(graph: Graph) -> None:
    """Whatever is cut, the built model's kernels are those priced."""
    for seed in range(4):
        draw = random.Random(seed)
        cuts = {g.id: draw.randint(1, g.channels) for g in graph.free_groups.values()}
        plan = Plan(graph.fingerprint, tuple(Step(name, Prune(width)) for name, width in cuts.items()))
        assert kernels_of(build(plan, graph), graph.example_inputs) == plan_kernels(plan, graph), cuts
