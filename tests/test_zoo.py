"""The zoo's nets in plain torch build, a sample of them keeps its bars, and what is broken is told."""

import copy
import importlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
SAMPLE = (
    "lenet", "trident", "siamese", "unet3d_groupnorm", "multitask_dict", "textcnn", "tcn_plain", "two_tower",
    "rmsnorm_swiglu", "vision_transformer", "nn_mha_defaults", "gcn_adjacency",
)  # fmt: skip


def run(out: Path, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / "zoo.py"), "--json", str(out), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    document: dict[str, Any] = json.loads(out.read_text())
    return document


def named(*names: str) -> list[str]:
    return [word for name in names for word in ("--only", f"plain.{name}")]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of benchmarks/ by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_a_sample_of_the_zoo_keeps_every_bar(tmp_path: Path) -> None:
    document = run(tmp_path / "zoo.json", "--jobs", 2, *named(*SAMPLE))
    assert len(document["rows"]) == len(SAMPLE)
    assert {bar["bar"]: bar["short"] for bar in document["bars"] if not bar["kept"]} == {}
    assert document["environment"]["torch"]


def test_a_process_that_takes_too_long_is_a_row_and_rows_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "zoo.json"
    document = run(out, "--cpu-limit-s", 1, *named("resnet20_option_a"))
    (row,) = document["rows"].values()
    assert row["died"]["exit_code"] and row["died"]["during"]
    short = {bar["bar"]: bar["short"] for bar in document["bars"]}
    assert short["no hang, no crash"] == ["plain.resnet20_option_a"]
    assert run(out, *named("resnet20_option_a"))["rows"] == document["rows"]


def test_there_are_120_architectures_and_those_in_plain_torch_need_no_package(benchmark: Any) -> None:
    zoo = benchmark("architectures")
    assert len(zoo.ARCHITECTURES) >= 120
    assert all(not architecture.needs for architecture in zoo.PLAIN.values())


def test_a_net_is_the_same_for_the_same_seed_and_its_norms_are_no_identities(benchmark: Any) -> None:
    zoo = benchmark("architectures")
    first, second, other = (zoo.make("plain.lenet", seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not all(map(torch.equal, first.parameters(), other.parameters()))
    norm = zoo.make("plain.resnet_eca").blocks[0].bn1
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor.std() > 0.01


def test_the_oracle_refuses_a_group_that_is_wired_wrongly(benchmark: Any) -> None:
    """Each channel of a reader taken for its neighbour."""
    zoo, oracle, graphs = benchmark("architectures"), benchmark("zoo_oracle"), benchmark("autocompress.graph")
    model = zoo.make("plain.lenet")
    inputs = zoo.PLAIN["plain.lenet"].inputs(3)
    graph = graphs.trace(copy.deepcopy(model), inputs)
    right = oracle.joint_difference(model, graph, inputs, inputs, random.Random(0))[1]
    assert right["difference"] < 1e-12 and right["against"] == "user"
    name, group = next(iter(graph.free_groups.items()))
    members = tuple(m if m.produces else replace(m, index=m.index[1:] + m.index[:1]) for m in group.members)
    wrong = replace(graph, groups={**graph.groups, name: replace(group, members=members)})
    assert oracle.joint_difference(model, wrong, inputs, inputs, random.Random(0))[1]["difference"] > 1e-3


class Asks(torch.nn.Module):
    """Reads its norm's weight beside calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.inner(x).to(self.norm.weight.dtype)))


def test_the_oracle_leaves_all_that_is_read_of_a_norm(benchmark: Any) -> None:
    oracle, graphs = benchmark("zoo_oracle"), benchmark("autocompress.graph")
    torch.manual_seed(0)
    model, inputs = Asks().eval(), (torch.randn(3, 6),)
    graph = graphs.trace(copy.deepcopy(model), inputs)
    assert set(graph.free_groups) == {"inner"}
    found = oracle.joint_difference(model, graph, inputs, inputs, random.Random(0))[1]
    assert found["against"] == "user" and found["difference"] < 1e-12


@pytest.mark.parametrize(
    ("bar", "broken"),
    [
        ("trace", {"trace": {"refused": "no"}}),
        ("equal to the user's module at batch 1, 2, 3", {"equal": {"difference": {"1": 0.0, "2": 0.1}}}),
        ("export and agree", {"export": {"difference": {"1": float("inf")}}}),
        ("int8 file agrees, but for what rounding explains", {"int8": {"rms": 0.5, "explained": 0.4}}),
        ("no raw exception", {"int8": {"raised": "ValueError: x", "at": "a.py:1"}}),
        ("no hang, no crash", {"died": {"during": "trace", "exit_code": -24}}),
        ("priced kernels are the built ones", {"halved": {"kernels_differ": ["a"], "macs_gone": 0.7}}),
        ("MACs as torch counts them", {"macs": {"said": 1, "counted": 2, "lifted": 2}}),
        ("joint oracle", {"joint": {"difference": 0.1, "against": "user"}}),
        ("conv nets: 60 % of MACs gone", {"halved": {"kernels_differ": [], "macs_gone": 0.5}}),
        ("something to gain", {"halved": {"kernels_differ": [], "macs_gone": 0.0}}),
    ],
)
def test_each_bar_is_broken_by_what_it_is_about(benchmark: Any, bar: str, broken: dict[str, Any]) -> None:
    row = {
        "family": "conv",
        "made": {},
        "trace": {"seconds": 1.0, "cpu_seconds": 1.0},
        "equal": {"difference": {"1": 0.0}},
        "export": {"difference": {"1": 0.0}},
        "export_halved": {"difference": {"1": 0.0}},
        "int8": {"rms": 0.1, "explained": 0.2},
        "halved": {"kernels_differ": [], "macs_gone": 0.7},
        "macs": {"said": 2, "counted": 2, "lifted": 2},
        "joint": {"difference": 0.0, "against": "user"},
    }
    bars = benchmark("zoo_summary").bars
    assert all(verdict["kept"] for verdict in bars({"net": row}))
    kept = {verdict["bar"]: verdict["kept"] for verdict in bars({"net": row | broken})}
    assert not kept[bar]
