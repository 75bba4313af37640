"""Exact rewrites: what each does, that it changes nothing, and that a wrong one is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.graph import rewrites
from autocompress.graph.rewrites import Rewrite, apply_exact
from autocompress.graph.trace import capture


def _randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.1, 3)
    return model.eval()


def _rewritten(model: nn.Module, *inputs: Tensor) -> tuple[torch.fx.GraphModule, tuple[Rewrite, ...]]:
    """The rewritten model, already compared with the original on three samples that the proof has not seen."""
    lifted = capture(_randomise(model), inputs)
    done = apply_exact(lifted, inputs)
    fresh = tuple(torch.randn(3, *t.shape[1:]) for t in inputs)
    with torch.no_grad():
        expected, found = model(*fresh), lifted(*fresh)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    return lifted, done


def _kinds(done: tuple[Rewrite, ...]) -> list[str]:
    return [rewrite.kind for rewrite in done]


IMAGE = torch.randn(2, 4, 8, 8)


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6)),
        (nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4, affine=False)),
        (nn.ConvTranspose2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.BatchNorm2d(6)),
    ],
    ids=["plain", "grouped", "depthwise", "transposed", "grouped transposed"],
)
def test_batch_norm_folds_into_convolutions(layers: tuple[nn.Module, ...]) -> None:
    lifted, done = _rewritten(nn.Sequential(*layers), IMAGE)
    assert _kinds(done) == ["fold_batch_norm"]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in lifted.modules())


def test_batch_norm_folds_into_a_linear_layer() -> None:
    _, done = _rewritten(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), torch.randn(2, 5))
    assert _kinds(done) == ["fold_batch_norm"]


def test_batch_norm_over_another_axis_than_the_layers_outputs_stays() -> None:
    _, done = _rewritten(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(3)), torch.randn(2, 3, 5))
    assert done == ()


class _Residual(nn.Module):
    """Reads the convolution's output before and after the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


def test_batch_norm_stays_where_its_source_is_read_elsewhere() -> None:
    _, done = _rewritten(_Residual(), IMAGE)
    assert done == ()


class _Shortcut(nn.Module):
    """The parameter-free shortcut of He et al. 2016 (option A)."""

    def __init__(self, pads: tuple[int, ...], stride: int = 2, value: float = 0.0) -> None:
        super().__init__()
        self.pads, self.stride, self.value = pads, stride, value

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.pads, value=self.value)


@pytest.mark.parametrize("size", [8, 7])
def test_shortcut_becomes_one_convolution(size: int) -> None:
    lifted, done = _rewritten(_Shortcut((0, 0, 0, 0, 1, 3)), torch.randn(2, 4, size, size))
    assert _kinds(done) == ["shortcut_as_convolution"]
    assert done[0].max_difference == 0
    (conv,) = (m for m in lifted.modules() if isinstance(m, nn.Conv2d))
    assert (conv.in_channels, conv.out_channels, conv.stride) == (4, 8, (2, 2))
    assert not conv.weight.requires_grad


@pytest.mark.parametrize(
    "model",
    [_Shortcut((1, 0, 0, 0, 1, 3)), _Shortcut((0, 0, 0, 0, 1, 3), value=1.0), _Shortcut((0, 0, 0, 0, 2, 2), stride=1)],
    ids=["pads positions", "pads ones", "no stride"],
)
def test_other_paddings_stay(model: nn.Module) -> None:
    assert _rewritten(model, IMAGE)[1] == ()


class _Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("pool", [lambda x: F.avg_pool2d(x, 8), lambda x: F.adaptive_avg_pool2d(x, 1)])
def test_pooling_of_whole_maps_becomes_a_mean(pool: Any) -> None:
    assert _kinds(_rewritten(_Function(pool), IMAGE)[1]) == ["pool_as_mean"]


@pytest.mark.parametrize("pool", [lambda x: F.avg_pool2d(x, 4), lambda x: F.avg_pool2d(x, 2, count_include_pad=False)])
def test_pooling_of_parts_stays(pool: Any) -> None:
    assert _rewritten(_Function(pool), IMAGE)[1] == ()


NON_NEGATIVE = [
    lambda x: F.relu(F.relu(x)),
    lambda x: F.relu(F.max_pool2d(F.relu(x), 2)),
    lambda x: F.relu(torch.sigmoid(x) + F.relu6(x)),
    lambda x: F.relu(torch.cat([F.relu(x), x.abs()], 1)),
    lambda x: F.relu(F.pad(F.relu(x), (1, 1, 1, 1))),
    lambda x: F.relu(F.relu(x).chunk(2, 1)[1]),
]
MAYBE_NEGATIVE = [
    lambda x: F.relu(x),
    lambda x: F.relu(F.relu(x) - x.abs()),
    lambda x: F.relu(F.relu(x) + x),
    lambda x: F.relu(F.relu(x) - 1),
    lambda x: F.relu(F.relu(x) * -1.0),
    lambda x: F.relu(torch.add(F.relu(x), x.abs(), alpha=-1)),
    lambda x: F.relu(F.hardtanh(x)),
    lambda x: F.relu(F.pad(F.relu(x), (1, 1, 1, 1), value=-1.0)),
]


@pytest.mark.parametrize("function", NON_NEGATIVE)
def test_relu_of_a_non_negative_tensor_goes(function: Any) -> None:
    lifted, done = _rewritten(_Function(function), IMAGE)
    assert _kinds(done) == ["drop_relu"]
    assert done[0].max_difference == 0
    assert lifted.meta["replaced"][done[0].place] in {n.name for n in lifted.graph.nodes}


@pytest.mark.parametrize("function", MAYBE_NEGATIVE)
def test_relu_of_anything_else_stays(function: Any) -> None:
    """Even where the example happens to hold no negative value."""
    assert _rewritten(_Function(function), IMAGE.abs() + 2)[1] == ()


def test_moves_of_nothing_go() -> None:
    model = _Function(lambda x: F.pad(x[:, 0:4].reshape(-1, 4, 8, 8), (0, 0, 0, 0)).exp())
    lifted, done = _rewritten(model, IMAGE)
    assert set(_kinds(done)) == {"drop_identity"}
    assert [n.name for n in lifted.graph.nodes if n.op == "call_function"] == ["exp"]


def test_what_fed_a_removed_node_is_found_through_chains_of_rewrites() -> None:
    layers = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.ReLU())
    lifted, done = _rewritten(layers, IMAGE)
    assert _kinds(done) == ["fold_batch_norm", "drop_relu"]
    names = {n.name for n in lifted.graph.nodes}
    assert set(lifted.meta["replaced"].values()) <= names
    assert not set(lifted.meta["replaced"]) & names


def test_rewriting_twice_changes_nothing_more() -> None:
    lifted, _ = _rewritten(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), IMAGE)
    assert apply_exact(lifted, (IMAGE,)) == ()


def test_running_statistics_are_untouched_by_the_proof() -> None:
    lifted = capture(_randomise(_Residual()), (IMAGE,)).train()
    before = {name: t.clone() for name, t in lifted.state_dict().items()}
    apply_exact(lifted, (IMAGE,))
    assert lifted.training
    assert all(torch.equal(before[name], t) for name, t in lifted.state_dict().items())


def test_a_fold_that_forgets_the_mean_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rewrites._folded

    def wrong(layer: Any, norm: Any) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias, terms = right(layer, norm)
        return weight, bias + norm.running_mean * 1e-3, terms

    monkeypatch.setattr(rewrites, "_folded", wrong)
    assert _rewritten(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), IMAGE)[1] == ()


def test_a_shortcut_that_selects_other_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = rewrites._strided_slices
    monkeypatch.setattr(rewrites, "_strided_slices", lambda node: ((1, 2), right(node)[1]))
    assert _rewritten(_Shortcut((0, 0, 0, 0, 1, 3)), IMAGE)[1] == ()


def test_an_unsound_sign_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrites, "_non_negative", lambda node: True)
    assert _rewritten(_Function(F.relu), IMAGE)[1] == ()
