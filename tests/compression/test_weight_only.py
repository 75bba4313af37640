"""Weights in few bits, in groups: which codes, what is rounded, and what stands in the file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from autocompress.compression.methods.quantize import insert_weight_only
from autocompress.compression.weight_only import RoundGroups, WeightOnlyLinear, store_weights
from autocompress.export.onnx import to_onnx
from autocompress.export.whole import export_whole
from autocompress.graph.trace import capture
from autocompress.vocabulary.errors import ExportError
from autocompress.vocabulary.formats import Format, Mode
from tests.runner import Runner


def row(bits: int, group: int = 32) -> Format:
    return Format(f"w{bits}g{group}", bits, 32, Mode.WEIGHT_ONLY, group_size=group, layers=frozenset({"linear"}))


def stored(weight: Tensor, bits: int, group: int = 32) -> WeightOnlyLinear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    store_weights(layer, row(bits, group))
    assert isinstance(layer, WeightOnlyLinear)
    return layer


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from((2, 4, 8)), st.integers(1, 100), st.integers(0, 1000))
def test_codes_fill_their_bits_and_weights_move_half_a_step(bits: int, width: int, seed: int) -> None:
    """The furthest weight is the lowest code. One as far on the other side lacks a code: it moves a whole step."""
    layer, half = stored(random(3, width, seed=seed), bits), 2 ** (bits - 1)
    codes, scales = layer.codes()
    assert codes.shape == (3, -(-width // 32), 32) and scales.shape == codes.shape[:2]
    assert int(codes.min()) == -half and int(codes.max()) <= half - 1
    step = scales.abs().repeat_interleave(32, 1)[:, :width]
    off = (layer.rounded_weight - layer.weight).abs()
    at_the_end = codes.flatten(1)[:, :width] == half - 1
    assert (off <= torch.where(at_the_end, 1.0, 0.5) * step * (1 + 1e-5)).all()


def test_a_group_of_zeros_stays_zero() -> None:
    layer = stored(torch.zeros(2, 64), 4)
    assert not layer.rounded_weight.any() and not layer(torch.ones(1, 64)).any()


def test_inputs_are_rounded_by_groups_of_each_position() -> None:
    x = random(2, 5, 40) * torch.tensor([1.0, 100.0]).reshape(2, 1, 1)
    rounded = RoundGroups(32)(x).numpy()
    for place in np.ndindex(2, 5):
        for start in (0, 32):
            part = x.numpy()[place][start : start + 32]
            step = np.abs(part).max() / np.float32(127)
            assert rounded[place][start : start + 32] == pytest.approx(np.rint(part / step) * step, rel=1e-6)
    assert not RoundGroups(32)(torch.zeros(1, 40)).any()


class Net(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 24, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(x)
        return found


@pytest.mark.parametrize("shape", [(2, 96), (2, 7, 96), (2, 3, 7, 100)], ids=str)
@pytest.mark.parametrize(("bits", "group"), [(2, 32), (4, 16), (4, 128), (8, 32), (8, 256)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_runtime_computes_what_was_simulated(
    shape: tuple[int, ...], bits: int, group: int, bias: bool, tmp_path: Path
) -> None:
    """To 1e-5 of the largest output: sums in another order. Inputs far larger in one group show that each has its own
    step."""
    x = random(*shape) * torch.where(torch.arange(shape[-1]) < group, 50.0, 1.0)
    lifted = capture(Net(shape[-1], bias).eval(), (x,))
    insert_weight_only(lifted, {"fc": row(bits, group)}, (x,))
    path = tmp_path / "model.onnx"
    to_onnx(lifted, path, "plan")
    with torch.no_grad():
        simulated = lifted(x).numpy()
    assert Runner(tmp_path).run(path, x) == pytest.approx(simulated, abs=1e-5 * float(np.abs(simulated).max()))
    proto = onnx.load(path)
    (node,) = proto.graph.node
    settings = {attribute.name: attribute.i for attribute in node.attribute}
    assert settings == {"K": shape[-1], "N": 24, "bits": bits, "block_size": group, "accuracy_level": 4}


def test_a_file_with_another_scale_shows(tmp_path: Path) -> None:
    """Mutation: five per cent on the scales of a layer is far more than what a right file is off by."""
    x = random(2, 96)
    lifted = capture(Net(96, True).eval(), (x,))
    insert_weight_only(lifted, {"fc": row(4)}, (x,))
    path = tmp_path / "model.onnx"
    to_onnx(lifted, path, "plan")
    proto = onnx.load(path)
    (scale,) = (tensor for tensor in proto.graph.initializer if tensor.name == "fc.weight_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.05), scale.name))
    onnx.save(proto, path)
    with torch.no_grad():
        simulated = lifted(x).numpy()
    assert np.abs(Runner(tmp_path).run(path, x) - simulated).max() > 1e-3 * np.abs(simulated).max()


def test_a_model_that_only_torch_can_write_whole_is_refused() -> None:
    """It would write the rounding out, operator by operator: no such kernel was priced."""
    x = random(2, 96)
    lifted = capture(Net(96, True).eval(), (x,))
    insert_weight_only(lifted, {"fc": row(4)}, (x,))
    with pytest.raises(ExportError, match=r"operator foo .* has no weight-only layers"):
        export_whole(lifted, ExportError("operator foo can't be written"))
