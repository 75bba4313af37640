"""Linear CKA: its invariances, and features that have nothing in common."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx import GraphModule

from autocompress.evidence.cka import cka, linear_cka
from autocompress.graph.trace import capture
from autocompress.vocabulary.errors import TaskError
from tests.zoo import make


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_rotation_scale_and_shift_do_not_matter(seed: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(12, width, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
    assert linear_cka(features, 3 * features @ rotation + 7) == pytest.approx(1)


def test_uncorrelated_features_have_none() -> None:
    a, b = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]), torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert linear_cka(a, b) == pytest.approx(0)
    assert linear_cka(a, torch.ones(4, 2)) == 0


def test_it_is_symmetric_and_at_most_one() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 3, generator=generator), torch.randn(9, 5, generator=generator)
    assert linear_cka(a, b) == pytest.approx(linear_cka(b, a))
    assert 0 < linear_cka(a, b) < 1


@pytest.fixture(scope="module")
def lifted() -> GraphModule:
    model, inputs = make("resnet")
    return capture(model, (inputs,))


def test_a_changed_layer_shows_from_there_on(lifted: GraphModule) -> None:
    changed = copy.deepcopy(lifted)
    torch.nn.init.normal_(changed.get_submodule("layer2.0.conv1").weight)  # type: ignore[arg-type]
    calls = {str(n.target): n.name for n in lifted.graph.nodes if n.op == "call_module"}
    split = [(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(i)), None) for i in range(2)]
    before, after = calls["layer1.0.conv2"], calls["layer2.0.conv1"]
    found = cka(lifted, changed, split, (before, after))
    assert found[before] == pytest.approx(1)
    assert found[after] < 0.99


def test_an_unknown_node_is_named(lifted: GraphModule) -> None:
    with pytest.raises(TaskError, match="'nowhere'"):
        cka(lifted, lifted, [(torch.zeros(2, 3, 8, 8), None)], ("nowhere",))
