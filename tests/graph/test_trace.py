"""Lifting keeps the function, frees the batch size, and explains what it can't do."""

import pytest
import torch
from torch import nn

from autocompress.graph import trace
from autocompress.graph.trace import capture, fingerprint
from autocompress.vocabulary.errors import TraceError
from tests.zoo import MODELS, make


@pytest.mark.parametrize("name", MODELS)
def test_lifted_model_equals_the_original_at_other_batch_sizes(name: str) -> None:
    model, inputs = make(name)
    lifted = capture(model, (inputs,))
    for batch in (1, 2, 5):
        x = inputs[:1].repeat(batch, *[1] * (inputs.dim() - 1))
        torch.testing.assert_close(lifted(x), model(x))


def test_batch_norm_is_a_module_that_trains() -> None:
    model, inputs = make("resnet")
    lifted = capture(model, (inputs,)).train()
    before = lifted.get_submodule("bn1").running_mean.clone()
    lifted(inputs).sum().backward()
    assert not torch.equal(before, lifted.get_submodule("bn1").running_mean)
    assert lifted.get_submodule("conv1").weight.grad is not None


def test_fingerprint_sees_weights_and_structure() -> None:
    model, inputs = make("resnet")
    first = fingerprint(capture(model, (inputs,)))
    assert first == fingerprint(capture(model, (inputs,)))
    model.linear.bias.data[0] += 1e-3
    assert first != fingerprint(capture(model, (inputs,)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return self.fc(x)
        return -self.fc(x)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.view(2, 3))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.fc(x), x


def test_data_dependent_control_flow_names_the_users_line() -> None:
    with pytest.raises(TraceError, match=r"test_trace\.py.*tensor operations only"):
        capture(Branching(), (torch.randn(2, 3),))


def test_a_fixed_batch_size_is_refused() -> None:
    with pytest.raises(TraceError, match="batch size"):
        capture(FixedBatch(), (torch.randn(2, 3),))


def test_wrong_example_shape_is_reported_before_tracing() -> None:
    model, _ = make("resnet")
    with pytest.raises(TraceError, match=r"does not run on example_inputs of shape \(2, 1, 8, 8\)"):
        capture(model, (torch.randn(2, 1, 8, 8),))


def test_several_outputs_are_returned_as_a_tuple() -> None:
    model, x = TwoOutputs(), torch.randn(2, 3)
    for ours, theirs in zip(capture(model, (x,))(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_model_without_layers_has_nothing_to_compress() -> None:
    with pytest.raises(TraceError, match="nothing to compress"):
        trace(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(4)), torch.randn(2, 4))


class Summing(nn.Module):
    """Takes any number of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return self.first(x) + sum(self.rest(other) for other in others)


def test_inputs_without_names_of_their_own_are_captured() -> None:
    model, inputs = Summing(), tuple(torch.randn(3, 2, 4))
    lifted = capture(model, inputs)
    wide = tuple(tensor.repeat(3, 1) for tensor in inputs)
    torch.testing.assert_close(lifted(*wide), model(*wide))


class TurnedConstant(nn.Module):
    """A parameter whose axes change places before an einsum joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.votes = nn.Linear(4, 6), nn.Parameter(torch.randn(3, 5, 2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bcs,cnso->bno", self.first(x).view(-1, 3, 2), self.votes)


def test_constants_are_viewed_whatever_their_strides() -> None:
    model, x = TurnedConstant(), torch.randn(3, 4)
    torch.testing.assert_close(capture(model, (x,))(x), model(x))
