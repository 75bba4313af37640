"""Factorised layers: exact at full rank, the best there is below it, and alike to the original in shape."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import symbolic_trace

from autocompress.compression.factorise import factorise, ranks
from autocompress.compression.matrices import RIDGE, input_patches, second_moments
from autocompress.compression.repair.matching import divergence, outputs_of
from tests.compression.repair.nets import chain, known

KINDS = ["svd", "spatial", "tucker2"]
LAYERS: dict[str, nn.Module] = {
    "conv3x3": nn.Conv2d(4, 6, 3, padding=1),
    "strided": nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(1, 2), bias=False),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2, padding="same"),
    "valid": nn.Conv2d(6, 4, 3, padding="valid"),
    "narrowing": nn.Conv2d(40, 2, 3, padding=1),
    "conv1x1": nn.Conv2d(4, 6, 1, stride=2),
    "conv1d": nn.Conv1d(4, 6, 3, padding=1),
    "linear": nn.Linear(4, 6),
}
SUITED = {"conv1x1": ["svd"], "linear": ["svd"], "conv1d": ["tucker2"]}
CASES = [(name, kind) for name in LAYERS for kind in SUITED.get(name, ["spatial", "tucker2"])]


def one_layer(name: str) -> tuple[torch.fx.GraphModule, torch.Tensor]:
    torch.manual_seed(0)
    layer = copy.deepcopy(LAYERS[name])
    channels = layer.weight.shape[1]  # type: ignore[union-attr, index, operator]
    shape = {"linear": (5, channels), "conv1d": (5, channels, 9)}.get(name, (5, channels, 9, 11))
    return symbolic_trace(nn.Sequential(layer)), torch.randn(shape)


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("aware", [False, True])
def test_full_rank_changes_nothing(name: str, kind: str, aware: bool) -> None:
    model, x = one_layer(name)
    expected = model(x)
    gram = second_moments(rows := input_patches(model.get_submodule("0"), x).double()) / len(rows) if aware else None
    names = factorise(model, "0", kind, 10**6, gram)
    assert [n.target for n in model.graph.nodes if n.op == "call_module"] == list(names)
    assert model.meta["factorised"] == {"0": names}
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_truncated_layer_keeps_shape_and_mean(name: str, kind: str) -> None:
    model, x = one_layer(name)
    expected = model(x)
    rows = input_patches(model.get_submodule("0"), x).double()
    factorise(model, "0", kind, 2, second_moments(rows) / len(rows))
    found = model(x)
    assert found.shape == expected.shape
    channels_last = name == "linear"
    mean = [d for d in range(found.dim()) if d != (found.dim() - 1 if channels_last else 1)]
    torch.testing.assert_close(found.mean(mean), expected.mean(mean), atol=1e-4, rtol=1e-3)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_svd_is_optimal_on_the_inputs(seed: int, rank: int) -> None:
    """No rank-r matrix is closer: the error is the squared singular values of W S beyond r (Eckart-Young), but for the
    ridge."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(5, 5, generator=generator)
    x = torch.randn(400, 5, generator=generator) @ mix + 1
    linear = nn.Linear(5, 5)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(5, 5, generator=generator))
    model = symbolic_trace(nn.Sequential(linear))
    expected = model(x)
    factorise(model, "0", "svd", rank, second_moments(x.double()) / len(x))
    centred = (x - x.mean(0)).double()
    root = torch.linalg.cholesky(centred.T @ centred / len(x))
    least = torch.linalg.svdvals(linear.weight.detach().double() @ root)[rank:].square().sum()
    error = (model(x) - expected).double().square().sum(1).mean()
    power = expected.double().square().sum(1).mean()
    assert (1 - 1e-3) * least - 1e-6 * power <= error <= 1.01 * least + RIDGE * power


@pytest.mark.parametrize(("kind", "layer"), [("spatial", "second"), ("tucker2", "second"), ("svd", "last")])
def test_knowing_the_inputs_helps(kind: str, layer: str) -> None:
    """Against plain factorisation of the weight, on inputs of very unequal channels."""
    model = chain(inner=8)
    model.norm.weight.data *= torch.tensor([8.0, 4, 2, 1, 0.5, 0.2, 0.1, 0.05])
    model.second.weight.data /= model.norm.weight.detach().reshape(1, -1, 1, 1)
    statistics = known(model)
    wanted = outputs_of(statistics.graph.model, statistics.batches)
    plain, aware = copy.deepcopy(statistics.graph.model), copy.deepcopy(statistics.graph.model)
    factorise(plain, layer, kind, 2, None)
    factorise(aware, layer, kind, 2, statistics.gram(layer))
    assert divergence(aware, statistics.batches, wanted) < divergence(plain, statistics.batches, wanted)


@settings(max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 40),
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_ranks_lie_between_one_and_the_full_one(
    kind: str, rank: int, inputs: int, outputs: int, h: int, w: int
) -> None:
    found = ranks(kind, rank, inputs, outputs, (h, w))
    assert all(r >= 1 for r in found)
    assert found[-1] <= rank and found[-1] <= max(inputs * h, outputs)
    if kind == "tucker2":
        assert found[0] <= min(inputs, outputs * h * w), "no more than the taps of all outputs can tell apart"


def test_rows_that_the_norm_silences_are_no_obstacle() -> None:
    model = chain()
    model.norm.weight.data[:2] = 0
    statistics = known(model)
    changed = copy.deepcopy(statistics.graph.model)
    factorise(changed, "first", "tucker2", 3, statistics.gram("first"))
    assert all(torch.isfinite(p).all() for p in changed.parameters())
    assert all(torch.isfinite(out).all() for out in outputs_of(changed, statistics.batches))
