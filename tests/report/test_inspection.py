"""`inspect` says what a model is and costs, and where little stands behind a price."""

from io import StringIO

import pytest
import torch
from torch import Tensor, nn

from autocompress.cli.terminal import inspection_view
from autocompress.profiles import Profile, load
from autocompress.report.inspection import inspect_task
from autocompress.task.task import Task
from tests.zoo import make


class Unknown(nn.Module):
    """An operator that no table knows between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.h = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.h(torch.logcumsumexp(self.a(x), 1))
        return found


def task_of(model: nn.Module, inputs: Tensor) -> Task:
    return Task(model.eval(), inputs, validation=[(inputs, torch.zeros(len(inputs), dtype=torch.long))])


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load("intel-xeon-amx-ort")


def test_an_unknown_operator_stands_in_a_row_of_its_own(profile: Profile) -> None:
    rows = {row.name: row for row in inspect_task(task_of(Unknown(), torch.randn(2, 8)), profile).kernels}
    assert rows["logcumsumexp"].note == "unknown operator: priced by its bytes alone"
    assert rows["logcumsumexp"].seconds and rows["logcumsumexp"].share and rows["logcumsumexp"].op == "logcumsumexp"
    assert not rows["a"].note and not rows["h"].note


def test_it_is_said_on_the_terminal(profile: Profile) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=StringIO())
    console.print(inspection_view(inspect_task(task_of(Unknown(), torch.randn(2, 8)), profile)))
    assert "priced by its bytes alone" in console.export_text()


def test_without_a_profile_unknown_operators_are_named_too() -> None:
    rows = {row.name: row for row in inspect_task(task_of(Unknown(), torch.randn(2, 8))).kernels}
    assert rows["logcumsumexp"].note and rows["logcumsumexp"].seconds is None


def test_what_the_profile_never_measured_is_noted() -> None:
    """A transposed convolution is known, but not to this profile: its multiplications are priced at others' pace."""
    found = inspect_task(task_of(*make("dense")), load("intel-xeon-amx-ort"))
    row = next(row for row in found.kernels if row.op == "conv_transpose")
    assert row.note == "never measured: priced by its bytes and MACs"


@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_weights_are_the_models_and_every_row_is_known(name: str) -> None:
    model, inputs = make(name)
    found = inspect_task(task_of(model, inputs))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert not any(row.note for row in found.kernels)
