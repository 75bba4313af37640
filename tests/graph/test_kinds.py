"""Every kind of structure is followed: the lifted net is the user's, its groups are free and right, its file agrees."""

import random
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from autocompress.compression.build import build
from autocompress.compression.plan import Plan
from autocompress.export.onnx import to_onnx
from autocompress.graph import trace
from autocompress.graph.cut import cut
from autocompress.graph.double import in_double, made_in_double
from autocompress.graph.silence import silence
from autocompress.graph.types import Graph
from tests.graph.kinds import KINDS, Net


@pytest.fixture(params=KINDS, scope="module")
def kind(request: pytest.FixtureRequest) -> tuple[str, Net, Graph]:
    torch.manual_seed(0)
    make, inputs, _ = KINDS[request.param]
    model = make().eval()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return request.param, model, trace(model, inputs())


def samples(name: str, count: int) -> tuple[Tensor, ...]:
    torch.manual_seed(count)
    return tuple(torch.cat([KINDS[name][1]()[i] for _ in range(count)]) for i in range(len(KINDS[name][1]())))


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.reshape(theirs.shape), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_lifted_net_is_the_users(kind: tuple[str, Net, Graph], count: int) -> None:
    name, model, graph = kind
    x = samples(name, count)
    with torch.no_grad():
        same(graph.model(*x), model(*x))


SHARING = ["two dilations of one weight", "a backbone called twice", "a tied head", "a tied decoder"]


@pytest.mark.parametrize("name", SHARING)
def test_shared_weights_are_stored_and_counted_once(name: str, tmp_path: Path) -> None:
    make, inputs, _ = KINDS[name]
    model = make().eval()
    graph = trace(model, inputs())
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in graph.model.parameters()) <= weights
    path = tmp_path / "model.onnx"
    to_onnx(build(Plan(graph.fingerprint), graph), path, "plan")
    stored = sum(numpy_helper.to_array(t).size for t in onnx.load(path).graph.initializer)
    assert stored <= weights + 64, "nothing beside the weights but a few sizes"


class Padded(nn.Module):
    """A padded map that no label reaches: every axis of it varies and nothing can be tied."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(nn.functional.pad(torch.lgamma(self.a(x).abs() + 1), (1, 1, 1, 1))).mean((2, 3)))


def test_padding_around_what_is_not_in_the_table_ends() -> None:
    graph = trace(Padded().eval(), torch.randn(1, 3, 6, 6))
    assert "lgamma" in str(graph.groups["a"].frozen)
    assert set(graph.free_groups) == {"b"}


def test_what_can_go_is_free(kind: tuple[str, Net, Graph]) -> None:
    name, _, graph = kind
    reasons = {group.id: group.frozen for group in graph.groups.values() if group.frozen}
    assert set(graph.free_groups) == KINDS[name][2], reasons


def test_channels_of_all_groups_can_be_cut_at_once(kind: tuple[str, Net, Graph]) -> None:
    name, _, graph = kind
    draw = random.Random(1)
    keep = {
        g.id: sorted(draw.sample(range(g.channels), draw.randint(1, g.channels))) for g in graph.free_groups.values()
    }
    silenced, shorter = in_double(graph.model), in_double(graph.model)
    silence(silenced, graph, keep)
    cut(shorter, graph, keep)
    x = tuple(t.double() if t.is_floating_point() else t for t in samples(name, 3))
    with torch.no_grad(), made_in_double():
        torch.testing.assert_close(shorter(*x), silenced(*x), rtol=1e-9, atol=1e-9)


def test_the_untouched_file_is_the_users_model(kind: tuple[str, Net, Graph], tmp_path: Path) -> None:
    name, model, graph = kind
    path = tmp_path / "model.onnx"
    to_onnx(build(Plan(graph.fingerprint), graph), path, "plan")
    session = ort.InferenceSession(path)
    for count in (1, 2, 3):
        x = samples(name, count)
        feed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), x, strict=True)}
        with torch.no_grad():
            same(torch.from_numpy(session.run(None, feed)[0]), model(*x))
