"""What is written in place is followed as a new tensor, where nobody sees the difference by torch's own way."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from autocompress.graph.trace import capture


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.last = nn.ReLU(inplace=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.relu(self.norm(self.conv(x)))
        return self.last(self.written(shortcut).mean((2, 3)))

    def written(self, shortcut: Tensor) -> Tensor:
        out = self.norm(shortcut)
        out += shortcut
        return self.relu(out)


class _ReadAfter(_Net):
    def written(self, shortcut: Tensor) -> Tensor:
        out = self.norm(shortcut)
        out.mul_(3.0)
        return out + out.relu_()


class _ThroughAView(_Net):
    def written(self, shortcut: Tensor) -> Tensor:
        out = self.norm(shortcut)
        out.flatten(1).neg_()
        return out


class _IntoAView(_Net):
    def written(self, shortcut: Tensor) -> Tensor:
        out = self.norm(shortcut)
        seen = out.permute(0, 1, 3, 2)
        out.neg_()
        return seen


class _ThroughACopyThatIsNone(_Net):
    def written(self, shortcut: Tensor) -> Tensor:
        out = shortcut.contiguous()
        out.sub_(1.0)
        return out * shortcut


class _OtherNames(_Net):
    def written(self, shortcut: Tensor) -> Tensor:
        some = (shortcut > 0).to(shortcut.device) & (shortcut < 1).to(torch.bool)
        return shortcut * some.type_as(shortcut).view(shortcut.shape)


class _Wider(_Net):
    def written(self, shortcut: Tensor) -> Tensor:
        out = self.norm(shortcut)
        out.add_(torch.ones(4, 1, 1, dtype=torch.float64))
        return out


class _NormOfTheBatch(_Net):
    def written(self, shortcut: Tensor) -> Tensor:
        return nn.functional.batch_norm(shortcut, None, None, training=True)


@pytest.mark.parametrize(
    "kind",
    [_Net, _ReadAfter, _ThroughAView, _IntoAView, _ThroughACopyThatIsNone, _OtherNames, _Wider, _NormOfTheBatch],
)
def test_whatever_is_written_is_followed(kind: type[_Net]) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 3, 6, 6)
    lifted = capture(model, (x.clone(),))
    torch.testing.assert_close(lifted(x.clone()), model(x.clone()))
    assert lifted(x.clone()).dtype == torch.float32


@pytest.mark.parametrize("kind", [_Net, _ReadAfter, _OtherNames])
def test_what_is_plain_but_for_names_and_fresh_results_costs_no_second_trace(
    kind: type[_Net], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: ExportedProgram, table: object = None) -> ExportedProgram:
        raise AssertionError("decomposed")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", refused)
    capture(kind().eval(), (torch.randn(2, 3, 6, 6),))
