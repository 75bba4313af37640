"""Models as the NPU's tests need them: on disk, in float or with layers in int8, and what becomes of them."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.compression.build import build
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.plan import Plan, Step
from autocompress.devices import open_device
from autocompress.devices.base import NodeTime
from autocompress.devices.vela.lowering import lowered
from autocompress.devices.vela.operators import HANDLERS
from autocompress.export.onnx import plain_onnx, to_onnx
from autocompress.graph import Graph, trace
from autocompress.vocabulary.formats import INT8
from tests.zoo import make

ZOO = [("resnet", slice(None)), ("mobilenet", slice(None)), ("dense", slice(None)), ("transformer", slice(None))]
FAMILIES = ("ethos-u55-128", "ethos-u65-512", "ethos-u85-256")


def write(path: Path, net: nn.Module, *inputs: Tensor) -> Path:
    torch.manual_seed(0)
    return plain_onnx(net.eval(), inputs, path).path


@cache
def traced(name: str) -> Graph:
    return trace(*make(name))


def planned(name: str, path: Path, int8: slice | None = None) -> tuple[Graph, Plan, Path]:
    """A model of the zoo with some of its layers in int8."""
    graph = traced(name)
    layers = [n for n, layer in graph.layers.items() if layer.frozen is None and layer.kind in ("conv", "linear")]
    plan = Plan(graph.fingerprint, tuple(Step(n, Quantize(INT8)) for n in layers[int8 or slice(0)]))
    to_onnx(build(plan, graph, None), path, plan.key)
    return graph, plan, path


def profile(path: Path, accelerator: str = "ethos-u55-128") -> list[NodeTime]:
    return open_device(f"vela:{accelerator}").profile(path, [], 1)


def codes(path: Path) -> list[str]:
    """Operators of the file that is written, in order."""
    return [operator.code for operator in lowered(path, HANDLERS).operators]


class Several(nn.Module):
    """What the zoo leaves out: one axis, uneven windows, bounds, norms, resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Sequential(nn.Conv1d(8, 12, 3, padding=1), nn.Tanh())
        self.wide = nn.Conv2d(3, 8, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(8, 8, 3, 2, 1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.up, self.odd = nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.ConvTranspose2d(8, 8, 3, 2, 1, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(nn.functional.hardtanh(self.wide(x), -0.7, 0.9))
        y = nn.functional.avg_pool2d(nn.functional.elu(self.grouped(x)), 3, 1, 1)
        small = nn.functional.max_pool2d(y, 3, 2, 1)
        y = self.up(small) + self.odd(small) * nn.functional.hardsigmoid(y)
        y = nn.functional.interpolate(nn.functional.leaky_relu(y, 0.2), scale_factor=2.0, mode="nearest")
        z = self.line((nn.functional.pad(y, (1, 0, 0, 1))[:, :, 1:, :-1] * x).flatten(2))
        return self.head(torch.log_softmax(z.amax(2), 1)) / 2


class Turned(nn.Module):
    """One tensor, read in three orders of its axes."""

    def forward(self, x: Tensor) -> Tensor:
        turned = x.permute(0, 2, 3, 1).softmax(1), x.permute(0, 3, 1, 2).softmax(1)
        return (x.softmax(1) + turned[0] + turned[1]).flatten(1)
