"""What every row of the table of number formats promises: run over all of them, a package's too."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from autocompress.compression.build import build, plan_kernels
from autocompress.compression.methods.quantize import Quantize, QuantizeMethod
from autocompress.compression.plan import Plan, Step
from autocompress.devices import open_device
from autocompress.devices.fake import workloads
from autocompress.devices.roofline import Rates, roofline
from autocompress.evidence.sensitivity import rounding_effect
from autocompress.evidence.verify import model_rows, session_rows, worst_parity
from autocompress.export.onnx import to_onnx
from autocompress.graph import trace
from autocompress.graph.types import Graph
from autocompress.search import kernel_records
from autocompress.search.space import find_space
from autocompress.vocabulary.formats import FP32, TRAINED_IN, Format, formats
from autocompress.vocabulary.workload import Capabilities

NAMES = [row.name for row in formats()]
RATES = Rates(
    macs_per_s=dict.fromkeys(NAMES, 1e9), bytes_per_s=1e8, launch_s=0, channel_multiple=dict.fromkeys(NAMES, 1)
)  # fmt: skip
LAYERS = ("first", "second")


class Net(nn.Module):
    """Two linear layers over positions that every format has kernels for, the first with a group not quite full."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(300, 256), nn.Linear(256, 384, bias=False), nn.Linear(384, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.second(torch.nn.functional.gelu(self.first(x)))))
        return found


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return trace(Net().eval(), torch.randn(2, 5, 300))


@pytest.fixture(params=formats(), ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Format:
    found: Format = request.param
    return found


def uniform(graph: Graph, row: Format) -> Plan:
    return Plan(graph.fingerprint, tuple(Step(name, Quantize(row.name)) for name in LAYERS))


def test_a_plan_in_it_survives_json(graph: Graph, row: Format) -> None:
    plan = uniform(graph, row)
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["steps"][0]["dtype"] == row.name


def test_it_is_offered_where_a_device_has_it_and_nowhere_else(graph: Graph, row: Format) -> None:
    have = Capabilities(frozenset({TRAINED_IN, row.name}), {})
    offered = {step for name in LAYERS for step in QuantizeMethod().options(name, graph, have)}
    assert offered - {None} == ({Quantize(row.name)} if row.name != TRAINED_IN else set())
    lack = Capabilities(frozenset(NAMES) - {row.name}, {})
    assert Quantize(row.name) not in QuantizeMethod().options("first", graph, lack)


def test_a_search_stores_it_by_its_name(graph: Graph, row: Format) -> None:
    space = find_space(graph, [QuantizeMethod()], Capabilities(frozenset({TRAINED_IN, row.name}), {}))
    assert set(space.uniform) == {row.name} - {TRAINED_IN}
    for choice in space.uniform.values():
        assert space.from_values(space.values(choice)) == space.choice(space.plan(choice))


def test_its_layers_have_it_in_their_price(graph: Graph, row: Format) -> None:
    kernels = plan_kernels(uniform(graph, row), graph)
    assert {name for name, kernel in kernels.items() if kernel.workload.dtype == row.name} >= set(LAYERS)
    assert kernel_records._kernel(json.loads(json.dumps(kernel_records._row(kernels["first"])))) == kernels["first"]


def test_fewer_bits_are_moved_in_less_time(graph: Graph, row: Format) -> None:
    workload = plan_kernels(uniform(graph, row), graph)["first"].workload
    plain = roofline(dataclasses.replace(workload, dtype=FP32), RATES)
    assert roofline(workload, RATES) < plain or row.weight_bits == 32


def test_the_bytes_foretold_are_those_stored(graph: Graph, row: Format, tmp_path: Path) -> None:
    """But for the names, and for scale and zero point of an integer bias."""
    path = tmp_path / "model.onnx"
    to_onnx(build(uniform(graph, row), graph), path, "plan")
    stored = {tensor.name: numpy_helper.to_array(tensor).nbytes for tensor in onnx.load(path).graph.initializer}
    found = sum(size for name, size in stored.items() if name.startswith("first."))
    assert found == pytest.approx(row.stored_bytes(300 * 256, 256), abs=8 * 256 + 64)


def test_a_file_in_it_computes_what_was_simulated(graph: Graph, row: Format, tmp_path: Path) -> None:
    """Within what `verify` allows; and rounding moves the outputs, though not by much."""
    device = open_device("ort:cpu")
    if row.name not in device.capabilities().dtypes:
        pytest.skip(f"{device.name} has no kernels for {row.name}")
    built = build(uniform(graph, row), graph)
    path = tmp_path / "model.onnx"
    to_onnx(built, path, "plan")
    batch = ((torch.randn(16, 5, 300, generator=torch.Generator().manual_seed(1)),), torch.zeros(16))
    simulated, original = model_rows(built, batch), model_rows(graph.model, batch)
    found = session_rows(device.open(path), batch)
    assert worst_parity(simulated, found, rounding_effect(built, batch), 5).agrees
    moved = float(np.abs(simulated.values - original.values).max() / np.abs(original.values).max())
    assert moved < 0.3 and (moved > 1e-4 or row.is_float)


def test_a_roofline_reads_it_off_the_file(graph: Graph, row: Format, tmp_path: Path) -> None:
    """What was priced is what a device that times by arithmetic finds in the file."""
    plan = uniform(graph, row)
    to_onnx(build(plan, graph), tmp_path / "model.onnx", plan.key)
    found = {node.name: node.workload for node in workloads(tmp_path / "model.onnx", [(1, 5, 300)])}
    for name in LAYERS:
        priced = plan_kernels(plan, graph)[name].workload
        assert roofline(found[name], RATES) == pytest.approx(roofline(priced, RATES))
        assert found[name].dtype == row.name
