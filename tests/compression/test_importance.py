"""Importances against brute force: what they predict is what removal does."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from autocompress.compression import importance
from autocompress.compression.importance import gate_gradients, l2, reconstruction
from autocompress.compression.matrices import columns
from autocompress.compression.repair.least_squares import fit
from autocompress.compression.repair.statistics import collect
from autocompress.graph import trace
from tests.compression.repair.nets import chain, known


def test_a_duplicated_channel_goes_first() -> None:
    """One of two equal channels costs nothing to remove; once it is gone, the other is as dear as any."""
    model = chain(inner=5)
    for tensor in (
        model.first.weight,
        model.norm.weight,
        model.norm.bias,
        model.norm.running_mean,
        model.norm.running_var,
    ):
        tensor.data[4] = tensor.data[1]
    scores = known(model).importance("first", "reconstruction")
    assert int(scores.argmin()) in (1, 4)
    pair = sorted([float(scores[1]), float(scores[4])])
    assert pair[1] > 2 * pair[0]


def test_the_first_to_go_is_the_cheapest_by_brute_force() -> None:
    statistics = known(chain(inner=5))
    gram = statistics.gram("second")
    weight = statistics.graph.model.get_submodule("second").weight.detach().flatten(1).double()  # type: ignore[union-attr, operator]
    assert gram is not None
    padded = F.pad(weight, (0, 1))

    def error(removed: tuple[int, ...]) -> float:
        kept = columns([c for c in range(5) if c not in removed], 9)
        solved, constant = fit(weight, gram, kept)
        difference = padded.clone()
        difference[:, kept] -= solved
        difference[:, -1] -= constant
        return float(torch.einsum("oi,ij,oj->", difference, gram, difference))

    order = statistics.importance("first", "reconstruction").argsort().tolist()
    assert order[0] == min(range(5), key=lambda c: error((c,)))
    second = min((c for c in range(5) if c != order[0]), key=lambda c: error((order[0], c)))
    assert order[1] == second
    pairs = {pair: error(pair) for pair in itertools.combinations(range(5), 2)}
    assert error(tuple(sorted(order[:2]))) <= sorted(pairs.values())[len(pairs) // 2]


def test_gate_gradients_are_the_slope_of_the_loss() -> None:
    """Against a finite difference of each sample's loss in one channel's gate."""
    statistics = known(chain(), samples=8)
    model = statistics.graph.model.double()
    batches = [((inputs[0].double(),), targets) for inputs, targets in statistics.batches]
    gradients = gate_gradients(model, ["second"], batches)["second"]
    x, y = torch.cat([b[0][0] for b in batches]), torch.cat([b[1] for b in batches])

    def losses(gate: float) -> torch.Tensor:
        def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            scaled = args[0].clone()
            scaled[:, 2] *= gate
            return (scaled,)

        handle = model.get_submodule("second").register_forward_pre_hook(hook)
        with torch.no_grad():
            outputs = model(x)
        handle.remove()
        return F.cross_entropy(outputs, y, reduction="none")

    slope = (losses(1 + 1e-5) - losses(1 - 1e-5)) / 2e-5
    torch.testing.assert_close(gradients[:, 2], slope, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_magnitudes_count_the_norm(order: int) -> None:
    """Doubling a norm's scale is doubling the convolution's row."""
    by_norm, by_weight = chain(), chain()
    by_norm.norm.weight.data[3] *= 2
    by_weight.first.weight.data[3] *= 2
    name = f"l{order}"
    torch.testing.assert_close(known(by_norm).importance("first", name), known(by_weight).importance("first", name))


@pytest.mark.parametrize("positions", [2, 6, 8])
def test_gates_are_per_sample_wherever_the_samples_lie(positions: int) -> None:
    """A layer that holds positions along axis 0 (as many as samples, too) has the gradients of its batch-first twin."""

    class Encoder(torch.nn.Module):
        def __init__(self, batch_first: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.TransformerEncoderLayer(16, 4, 24, batch_first=batch_first).eval()
            self.batch_first = batch_first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).mean(1) if self.batch_first else self.layer(x.transpose(0, 1)).mean(0)

    x = torch.randn(8, positions, 16, generator=torch.Generator().manual_seed(1))
    batches = [((x[:6],), torch.arange(6)), ((x[6:],), torch.arange(2))]
    first, twin = (trace(Encoder(batch_first), x[:2]) for batch_first in (False, True))
    found = gate_gradients(first.model, first.layers, batches)
    expected = gate_gradients(twin.model, ["layer.linear1", "layer.linear2"], batches)
    assert all(gradient.shape[0] == 8 for gradient in found.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_removing_several_at_a_time_errs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of 320 channels errs as much as after an elimination one by one; 1.3 % apart were seen."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(48, 320), torch.nn.GELU(), torch.nn.Linear(320, 64)).eval()
    with torch.no_grad():
        model[2].weight.mul_(torch.randn(1, 320).exp())
    x = torch.randn(2048, 48)
    statistics = collect(trace(model, x[:2]), [(x, None)], len(x))
    graph, gram = statistics.graph, statistics.gram("2")
    weight = model[2].weight.detach().double()
    assert gram is not None

    def error(scores: torch.Tensor) -> float:
        kept = sorted(scores.argsort(descending=True)[:160].tolist())
        difference = F.pad(weight, (0, 1))
        solved, constant = fit(weight, gram, kept)
        difference[:, kept] -= solved
        difference[:, -1] -= constant
        return float(torch.einsum("oi,ij,oj->", difference, gram, difference))

    several = error(reconstruction(graph.model, graph.groups["0"], statistics))
    monkeypatch.setattr(importance, "_AT_ONCE", 320)
    one_by_one = error(reconstruction(graph.model, graph.groups["0"], statistics))
    assert several <= 1.02 * one_by_one and several < error(l2(graph.model, graph.groups["0"], statistics))
