"""Exported float models compute what torch does; what can't be exported is named."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from autocompress.export.onnx import plain_onnx, to_onnx
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.trace import capture
from autocompress.vocabulary.errors import ExportError, StorageError
from tests.runner import Runner
from tests.zoo import MODELS, make

TOLERANCE = 1e-5


def _lifted(model: nn.Module, *inputs: Tensor) -> GraphModule:
    return capture(model.eval(), inputs)


@cache
def _zoo(name: str) -> tuple[nn.Module, Tensor, GraphModule]:
    model, inputs = make(name)
    return model, inputs, _lifted(model, inputs)


def _check(model: nn.Module, lifted: GraphModule, inputs: tuple[Tensor, ...], path: Path, runtime: Runner) -> None:
    """The file is valid and agrees with torch for one sample and for three."""
    to_onnx(lifted, path, "plan")
    onnx.checker.check_model(onnx.load(path), full_check=True)
    for batch in (1, 3):
        fed = tuple(torch.cat([x, x])[:batch] for x in inputs)
        with torch.no_grad():
            expected = model(*fed).numpy()
        found = runtime.run(path, *fed)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert abs(found - expected).max() <= TOLERANCE * max(1.0, abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_models_agree_with_torch(name: str, tmp_path: Path, runtime: Runner) -> None:
    model, inputs, lifted = _zoo(name)
    _check(model, lifted, (inputs,), tmp_path / "model.onnx", runtime)


class _Unary(nn.Module):
    """Puts side by side what several functions make of the input, so that one export covers them all."""

    def __init__(self, *functions: Callable[..., Tensor]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([function(x).flatten(1) for function in self.functions], 1)


class _Binary(_Unary):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat([function(x, y).flatten(1) for function in self.functions], 1)


ACTIVATIONS = (
    F.relu, F.relu6, F.sigmoid, F.tanh, F.silu, F.mish, F.hardswish, F.hardsigmoid, F.softplus, F.hardtanh, torch.erf,
    torch.exp, torch.neg, torch.abs, F.elu, F.leaky_relu, F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.selu,
    lambda x: F.leaky_relu(x, 0.3), lambda x: x.clamp(-0.2, 0.7), lambda x: x.clamp_min(0.1),
    lambda x: x.clamp(max=0.5), lambda x: F.softplus(x, beta=2.0), lambda x: F.elu(x, 0.5),
)  # fmt: skip
ARITHMETIC = (
    lambda x, y: x + y,
    lambda x, y: x - 2 * y,
    lambda x, y: torch.add(x, y, alpha=3),
    lambda x, y: x * 0.5 / (y.abs() + 1.0),
    lambda x, y: 1 - x,
    lambda x, y: (x.abs() + 1).sqrt() + (y.abs() + 1).rsqrt() + x.pow(2) + (x.abs() + 1).log(),
    lambda x, y: torch.maximum(x, y) - torch.minimum(x, y),
    lambda x, y: torch.where(x > y, x, torch.zeros_like(y)),
    lambda x, y: x.masked_fill(y < 0, -2.0),
    lambda x, y: (x >= 0).float() + (y == 0).to(torch.float32),
    lambda x, y: x * (y > 0),
)
POOLING = (
    lambda x: F.max_pool2d(x, 2),
    lambda x: F.max_pool2d(x, 3, 2, 1),
    lambda x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    lambda x: F.max_pool2d(x, 2, dilation=2),
    lambda x: F.avg_pool2d(x, 2),
    lambda x: F.avg_pool2d(x, 3, 2, 1),
    lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    lambda x: F.adaptive_avg_pool2d(x, 1),
    lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
    lambda x: x.mean((2, 3)),
    lambda x: x.mean((2, 3), keepdim=True),
    lambda x: x.mean(1),
    lambda x: x.sum((1, 2)),
    lambda x: x.amax(-1, keepdim=True),
    lambda x: F.interpolate(x, scale_factor=2),
)
MOVES = (
    lambda x: F.pad(x, (1, 2, 0, 3)),
    lambda x: F.pad(x, (1, 2), value=2.5),
    lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect"),
    lambda x: F.pad(x, (1, 1, 2, 2), mode="replicate"),
    lambda x: F.pad(x, (-1, -1, 0, 0)),
    lambda x: x[:, 1:3, ::2, :-1],
    lambda x: x[:, 1],
    lambda x: x[:, -1:, 2:4],
    lambda x: torch.cat([x[:, :1], x, x], 1),
    lambda x: torch.stack([x, -x], 2),
    lambda x: x.permute(0, 2, 3, 1),
    lambda x: x.transpose(-1, -3),
    lambda x: x.flatten(2).unsqueeze(1),
    lambda x: x[:, :1].squeeze(1),
    lambda x: x[:, :1].expand(-1, 5, -1, -1),
    lambda x: x.repeat(1, 2, 1, 1),
    lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    lambda x: torch.cat(x.split((1, 3), 1)[::-1], 1),
    lambda x: torch.cat(x.unbind(1), 1),
    lambda x: F.pixel_shuffle(x, 2),
    lambda x: F.pixel_unshuffle(x, 2),
    lambda x: F.channel_shuffle(x, 2),
    lambda x: x.reshape(x.shape[0] * 4, 64).softmax(-1).reshape(-1, 4, 64),
    lambda x: x.log_softmax(1),
    lambda x: torch.zeros(x.shape[0], 2) + x.mean((1, 2, 3)).unsqueeze(1),
    lambda x: x.flip(2),
    lambda x: x.roll(1, 3),
)
ATTENTION = (
    lambda q, k: F.scaled_dot_product_attention(q, k, k),
    lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True),
    lambda q, k: F.scaled_dot_product_attention(q, k, k, attn_mask=torch.ones(5, 5).tril().bool()),
    lambda q, k: F.scaled_dot_product_attention(q, k, k, attn_mask=q @ k.transpose(-1, -2), scale=0.3),
    lambda q, k: torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).reshape(-1, 2, 5, 5),
)
FAMILIES: dict[str, tuple[tuple[Callable[..., Tensor], ...], tuple[Tensor, ...]]] = {
    "activations": (ACTIVATIONS, (torch.linspace(-8, 8, 24).reshape(2, 12),)),
    "arithmetic": (ARITHMETIC, (torch.randn(2, 3, 4), torch.randn(2, 3, 4))),
    "pooling": (POOLING, (torch.randn(2, 4, 8, 8),)),
    "moves": (MOVES, (torch.randn(2, 4, 8, 8),)),
    "attention": (ATTENTION, (torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4))),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_functions_agree_with_torch(family: str, tmp_path: Path, runtime: Runner) -> None:
    functions, inputs = FAMILIES[family]
    model = (_Unary if len(inputs) == 1 else _Binary)(*functions)
    _check(model, _lifted(model, *inputs), inputs, tmp_path / "model.onnx", runtime)


class _Layers(nn.Module):
    """Layers of one kind after the other, each on what is left of its input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([layer(x).flatten(1) for layer in self.layers], 1)


LAYERS: dict[str, tuple[tuple[nn.Module, ...], Tensor]] = {
    "images": (
        (
            nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, (3, 1), padding="same", bias=False), nn.Conv2d(4, 8, 3, groups=2),
            nn.Conv2d(4, 4, 3, groups=4, dilation=2), nn.Conv2d(4, 4, 3, padding="valid"),
            nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1), nn.ConvTranspose2d(4, 6, 2, 2, groups=2, bias=False),
            nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4), nn.LayerNorm((8, 8)),
            nn.InstanceNorm2d(4), nn.PReLU(4),
        ),
        torch.randn(2, 4, 8, 8),
    ),
    "sequences": (
        (
            nn.Linear(6, 5), nn.Linear(6, 5, bias=False), nn.LayerNorm(6), nn.LayerNorm(6, bias=False),
            nn.Conv1d(7, 3, 3), nn.ConvTranspose1d(7, 3, 2), nn.BatchNorm1d(7), nn.GroupNorm(7, 7),
        ),
        torch.randn(2, 7, 6),
    ),
    "vectors": ((nn.Linear(6, 5), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(6), nn.LayerNorm(6)), torch.randn(2, 6)),
    "volumes": ((nn.Conv3d(2, 3, 2), nn.ConvTranspose3d(2, 3, 2), nn.BatchNorm3d(2)), torch.randn(2, 2, 3, 4, 4)),
    "tokens": ((nn.Embedding(9, 4),), torch.randint(0, 9, (2, 5))),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_agree_with_torch(kind: str, tmp_path: Path, runtime: Runner) -> None:
    layers, inputs = LAYERS[kind]
    model = _Layers(*layers)
    _check(model, _lifted(model, inputs), (inputs,), tmp_path / "model.onnx", runtime)


def test_file_says_what_it_is(tmp_path: Path) -> None:
    _, inputs, original = _zoo("resnet")
    lifted = copy.deepcopy(original)
    apply_exact(lifted, (inputs,))
    artifact = to_onnx(lifted, tmp_path / "model.onnx", "0123456789ab")
    proto = onnx.load(artifact.path)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata["plan"] == artifact.plan_key == "0123456789ab"
    assert metadata["exact_rewrites"] == "fold_batch_norm x7, shortcut_as_convolution x2, pool_as_mean x1"
    assert metadata["autocompress"]
    assert artifact.size_bytes == artifact.path.stat().st_size
    assert artifact.opset == proto.opset_import[0].version
    names = {node.name for node in proto.graph.node}
    assert {"conv1", "layer2.0.conv1", "linear", "pad_as_conv"} <= names
    assert len(names) == len(proto.graph.node)
    assert [i.name for i in proto.graph.input] == ["x"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_same_model_gives_the_same_file(tmp_path: Path) -> None:
    lifted = _zoo("mobilenet")[2]
    first, second = (to_onnx(lifted, tmp_path / f"{i}.onnx", "plan") for i in range(2))
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("name", ["resnet", "transformer", "shufflenet"])
def test_original_is_exported_untouched(name: str, tmp_path: Path, runtime: Runner) -> None:
    """shufflenet needs the newer exporter: the older has no channel shuffle."""
    model, inputs = make(name)
    artifact = plain_onnx(model, (inputs,), tmp_path / "plain.onnx")
    with torch.no_grad():
        expected = model(inputs).numpy()
    assert abs(runtime.run(artifact.path, inputs) - expected).max() <= TOLERANCE
    assert runtime.run(artifact.path, inputs[:1]).shape == expected[:1].shape
    assert artifact.plan_key == "original"


class _Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(x)


def test_operator_without_onnx_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"aten\.erfinv.*node.*replace"):
        to_onnx(_lifted(_Custom(), torch.rand(2, 3)), tmp_path / "model.onnx", "plan")
    assert not list(tmp_path.iterdir())


def test_original_that_no_exporter_takes_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("\n no such thing as frobnicate\nmore")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ExportError, match=r"neither exporter.*frobnicate"):
        plain_onnx(nn.ReLU(), (torch.randn(1, 2),), tmp_path / "plain.onnx")


def test_unwritable_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="can't write"):
        to_onnx(_lifted(nn.ReLU(), torch.randn(2, 3)), tmp_path / "missing" / "model.onnx", "plan")


def test_a_wrong_parameter_is_caught_by_the_parity_check(tmp_path: Path, runtime: Runner) -> None:
    """What every test above relies on: one changed weight shows."""
    model, inputs, lifted = _zoo("mobilenet")
    path = to_onnx(lifted, tmp_path / "model.onnx", "plan").path
    proto = onnx.load(path)
    (bias,) = (t for t in proto.graph.initializer if t.name == "project.bias")
    changed = numpy_helper.to_array(bias).copy()
    changed[0] += 0.01
    bias.CopyFrom(numpy_helper.from_array(changed, bias.name))
    onnx.save(proto, path)
    with torch.no_grad():
        assert abs(runtime.run(path, inputs) - model(inputs).numpy()).max() > 10 * TOLERANCE
