"""Least squares after a cut: what can be made up for is made up for, and nothing else is touched."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autocompress.compression.matrices import ridge_of, solve
from autocompress.compression.repair.least_squares import fit, repair
from autocompress.compression.repair.matching import divergence, outputs_of
from autocompress.graph.cut import cut, drop_branch
from tests.compression.repair.nets import chain, known, zoo


def moments(rows: torch.Tensor) -> torch.Tensor:
    padded = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1)
    return padded.T @ padded / len(rows)


@given(st.integers(0, 10**6))
def test_the_fit_minimises_the_ridged_error(seed: int) -> None:
    """Closed form against the gradient: at the solution it is zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    kept = [0, 2, 3]
    gram = moments(x)
    solved, constant = fit(weight, gram, kept, ridge=0.1)
    z, c = solved.requires_grad_(), constant.requires_grad_()
    error = (x @ weight.T - x[:, kept] @ z.T - c).square().sum(1).mean()
    strength = ridge_of(gram[[*kept, 6]][:, [*kept, 6]], 0.1)
    (error + strength * (z - weight[:, kept]).square().sum()).backward()
    assert z.grad is not None and c.grad is not None
    assert z.grad.abs().max() < 1e-9 and c.grad.abs().max() < 1e-9


def test_keeping_everything_is_the_identity() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 5, dtype=torch.float64)
    solved, constant = fit(weight, moments(torch.randn(50, 5, dtype=torch.float64)), range(5))
    torch.testing.assert_close(solved, weight)
    assert constant.abs().max() < 1e-9


def test_a_strong_ridge_keeps_the_start() -> None:
    start = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    solved, _ = solve(moments(torch.randn(9, 2, dtype=torch.float64)), torch.zeros(1, 3).double(), start, ridge=1e9)
    torch.testing.assert_close(solved, start)


@pytest.mark.parametrize("norm", [True, False])
def test_redundant_channels_are_removed_without_loss(norm: bool) -> None:
    """A channel that is another's copy and a constant one: their readers are refitted exactly."""
    model = chain(norm=norm)
    owner = [model.norm.weight, model.norm.bias] if norm else [model.first.bias]
    tensors = [model.first.weight, *owner, *([model.norm.running_mean, model.norm.running_var] if norm else [])]
    for tensor in tensors:
        tensor.data[4] = tensor.data[1]
    model.first.weight.data[2] = 0
    owner[-1].data[2] = 1.5
    model.second.weight.data[:, :, 0] = model.second.weight.data[:, :, :, 0] = 0
    statistics = known(model)
    changed = copy.deepcopy(statistics.graph.model)
    keep = {"first": [0, 1, 3, 5]}
    cut(changed, statistics.graph, keep)
    wanted = outputs_of(statistics.graph.model, statistics.batches)
    assert divergence(changed, statistics.batches, wanted) > 1e-4
    assert repair(changed, statistics.graph, keep, statistics) == ("second",)
    for outputs, expected in zip(outputs_of(changed, statistics.batches), wanted, strict=True):
        torch.testing.assert_close(outputs, expected, atol=2e-3, rtol=1e-3)


@settings(max_examples=15)
@given(st.sets(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 20))
def test_the_readers_error_never_grows(kept: set[int], seed: int) -> None:
    model = chain(seed=seed)
    statistics = known(model)
    keep = {"first": sorted(kept)}
    plain = copy.deepcopy(statistics.graph.model)
    cut(plain, statistics.graph, keep)
    repaired = copy.deepcopy(plain)
    repair(repaired, statistics.graph, keep, statistics)
    wanted = seen(statistics.graph.model, statistics)
    assert (seen(repaired, statistics) - wanted).norm() <= 1.01 * (seen(plain, statistics) - wanted).norm()


def seen(model: nn.Module, statistics: object) -> torch.Tensor:
    """What the layer `second` puts out."""
    found: list[torch.Tensor] = []
    handle = model.get_submodule("second").register_forward_hook(lambda m, i, o: found.append(o))
    outputs_of(model, statistics.batches)  # type: ignore[attr-defined]
    handle.remove()
    return torch.cat(found)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "shufflenet", "dense", "transformer"])
def test_every_zoo_model_comes_closer_to_the_original(name: str) -> None:
    statistics = zoo(name)
    graph = statistics.graph
    keep = {
        group.id: sorted(
            statistics.importance(group.id, "reconstruction").topk(-(-3 * group.channels // 4)).indices.tolist()
        )
        for group in graph.free_groups.values()
    }
    plain = copy.deepcopy(graph.model)
    cut(plain, graph, keep)
    repaired = copy.deepcopy(plain)
    assert repair(repaired, graph, keep, statistics)
    wanted = outputs_of(graph.model, statistics.batches)
    before, after = (divergence(m, statistics.batches, wanted) for m in (plain, repaired))
    assert after < before


def test_layers_of_a_dropped_branch_are_passed_over() -> None:
    statistics = zoo("resnet")
    graph = statistics.graph
    model = copy.deepcopy(graph.model)
    drop_branch(model, next(iter(graph.branches.values())))
    keep = {"conv1": list(range(graph.groups["conv1"].channels - 2))}
    cut(model, graph, keep)
    repaired = repair(model, graph, keep, statistics)
    assert "layer1.0.conv1" not in repaired and "layer2.0.conv1" in repaired
