"""What the rounding of 8-bit tensors does to a model's outputs: right files stay within it, wrong ones do not."""

import copy
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn
from torch.fx import GraphModule

from autocompress.compression.fake_quant import FakeQuantize
from autocompress.compression.methods.quantize import insert_fake_quant
from autocompress.evidence.sensitivity import rounding_effect
from autocompress.evidence.verify import parity
from autocompress.export.onnx import to_onnx
from autocompress.graph.rewrites import apply_exact
from autocompress.graph.trace import capture
from tests.runner import Runner


class Deep(nn.Module):
    """Depthwise and pointwise convolutions in turn, each made to keep the spread of random inputs."""

    def __init__(self, depth: int, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        pairs = [(nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.Conv2d(width, width, 1)) for _ in range(depth)]
        self.layers = nn.ModuleList(layer for pair in pairs for layer in pair)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x.mean((2, 3)))


def _spread_out(model: Deep, inputs: Tensor) -> None:
    """Scales each layer so that its channels are of unit variance, as batch norms do."""

    def normalise(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        mean, sigma = output.mean((0, 2, 3)), output.std((0, 2, 3)) + 1e-3
        layer.weight.div_(sigma.reshape(-1, 1, 1, 1))
        layer.bias.sub_(mean).div_(sigma)
        return (output - mean.reshape(1, -1, 1, 1)) / sigma.reshape(1, -1, 1, 1)

    handles = [layer.register_forward_hook(normalise) for layer in (model.stem, *model.layers)]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()


@cache
def _simulated(depth: int) -> tuple[GraphModule, Tensor]:
    torch.manual_seed(depth)
    model, inputs = Deep(depth).eval(), torch.randn(16, 3, 16, 16)
    _spread_out(model, torch.randn(32, 3, 16, 16))
    lifted = capture(model, (inputs[:2],))
    apply_exact(lifted, (inputs[:2],))
    layers = {str(n.target) for n in lifted.graph.nodes if n.op == "call_module"}
    insert_fake_quant(lifted, layers, [torch.randn(32, 3, 16, 16)], (inputs[:2],))
    return lifted, inputs


def _outputs(model: nn.Module, inputs: Tensor) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = model(inputs).numpy()
    return result


def _effect(model: nn.Module, inputs: Tensor) -> float:
    (effect,) = rounding_effect(model, ((inputs,), None))
    return effect


def _with_noise(model: GraphModule, noise: float) -> GraphModule:
    """The model, but each value is off by up to `noise` of a step before it is rounded."""
    generator = torch.Generator().manual_seed(3)

    def blur(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] + module.scale * noise * (2 * torch.rand(args[0].shape, generator=generator) - 1),)

    noisy = copy.deepcopy(model)
    for module in noisy.modules():
        if isinstance(module, FakeQuantize):
            module.register_forward_pre_hook(blur)
    return noisy


def test_a_model_without_8_bit_tensors_has_none() -> None:
    assert rounding_effect(nn.Linear(3, 2), ((torch.randn(4, 3),), None)) == (0,)


def test_one_tensor_moves_by_half_a_step_in_the_root_mean_square() -> None:
    """Rounded up or down at random: step^2 times the distance to the nearest, which is a quarter on average."""
    rounding = FakeQuantize.over(-1, 1)
    (found,) = rounding_effect(rounding, ((torch.rand(100, 2_000) * 1.8 - 0.9,), None))
    assert found == pytest.approx(0.5 * rounding.scale.item(), rel=0.02)


def test_each_output_has_an_effect_of_its_own() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rounding = FakeQuantize.over(-1, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x, self.rounding(x), 10 * self.rounding(x)

    none, one, ten = rounding_effect(Two(), ((torch.rand(100, 500) * 1.8 - 0.9,), None))
    assert none == 0 and ten == pytest.approx(10 * one, rel=0.1)


def test_the_same_seed_gives_the_same_and_the_model_is_left_as_it_was() -> None:
    model, inputs = _simulated(2)
    before = _outputs(model, inputs)
    assert _effect(model, inputs) == _effect(model, inputs) > 0
    assert np.array_equal(_outputs(model, inputs), before)


def test_in_a_deep_net_a_thousandth_of_a_step_grows_to_what_independent_roundings_make() -> None:
    """That is why the effect is that of roundings drawn at random, not of the order of a sum."""
    model, inputs = _simulated(12)
    moved = _outputs(_with_noise(model, 1e-3), inputs) - _outputs(model, inputs)
    assert 0.1 < float(np.sqrt((moved**2).mean())) / _effect(model, inputs) < 1


@pytest.mark.parametrize("depth", [1, 4, 12])
def test_the_file_agrees_and_a_wrong_one_does_not(depth: int, tmp_path: Path, runtime: Runner) -> None:
    model, inputs = _simulated(depth)
    path = to_onnx(model, tmp_path / "model.onnx", "plan").path
    expected, effect = _outputs(model, inputs), _effect(model, inputs)
    assert parity(expected, runtime.run(path, inputs), effect, 2 * depth).agrees
    proto = onnx.load(path)
    weight = next(t for t in proto.graph.initializer if t.name == "stem.weight")
    turned = numpy_helper.to_array(weight)[::-1].copy()
    weight.CopyFrom(numpy_helper.from_array(turned, weight.name))
    onnx.save(proto, path)
    assert not parity(expected, runtime.run(path, inputs), effect, 2 * depth).agrees


def test_a_net_that_multiplies_rounding_errors_is_allowed_more_than_its_number_of_layers_says() -> None:
    """Independent errors of half a step of the outputs, added up over the layers, would be the square root below."""
    model, inputs = _simulated(12)
    assert _effect(model, inputs) > 2 * np.sqrt(26 / 6) / 255 * np.ptp(_outputs(model, inputs))
