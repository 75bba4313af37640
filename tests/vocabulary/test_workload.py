"""Workloads count what is multiplied and stored; kernels know whose weights they have."""

import pytest
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule

from autocompress.compression.methods.lowrank import LowRank, LowRankMethod
from autocompress.graph import Graph
from autocompress.vocabulary.workload import Kernel, Workload, distinct_weights, layer_of, total_macs

WORKLOADS = [
    (Workload("conv", 8, 16, (10, 10), (8, 8), (3, 3), (1, 1)), 64 * 8 * 16 * 9),
    (Workload("conv", 8, 16, (10, 10), (8, 8), (3, 3), (1, 1), 4), 64 * 8 * 16 * 9 // 4),
    (Workload("conv_transpose", 8, 16, (5, 5), (10, 10), (2, 2), (2, 2)), 25 * 8 * 16 * 4),
    (Workload("linear", 8, 16, (7,), (7,)), 7 * 8 * 16),
    (Workload("matmul", 12, 12, (64, 32), (64, 48)), 12 * 64 * 32 * 48),
    (Workload("matmul", 32, 48, (64,), (64,)), 64 * 32 * 48),
    (Workload("matmul", 3, 3, (12, 64, 32), (12, 64, 48)), 3 * 12 * 64 * 32 * 48),
    (Workload("attention", 12, 12, (64, 32), (64, 48), (80,)), 12 * 64 * 80 * (32 + 48)),
    (Workload("attention", 32, 48, (64,), (64,), (80,)), 64 * 80 * (32 + 48)),
    (Workload("lstm", 6, 8, (7,), (7,), (1, 1)), 7 * 4 * 8 * (6 + 8)),
    (Workload("gru", 6, 16, (7,), (7,), (2, 2)), 7 * 2 * 3 * 8 * ((6 + 8) + (16 + 8))),
    (Workload("lstm", 6, 5, (7,), (7,), (1, 1, 8)), 7 * (4 * 8 * (6 + 5) + 8 * 5)),
    (Workload("add", 8, 8, (7,), (7,)), 0),
    (Workload("cumsum", 8, 8, (7,), (7,)), 0),
]


@pytest.mark.parametrize(("workload", "macs"), WORKLOADS)
def test_multiplications(workload: Workload, macs: int) -> None:
    assert workload.macs == macs


def test_calls_of_a_layer_share_its_weights_and_its_parts_do_not() -> None:
    work = Workload("linear", 8, 8, (), ())
    names = ("a.f", "a.f@2", "a.f@10", "b#1", "b#2", "b@2#1", "b@2#2")
    kernels = [Kernel(name, layer_of(name.partition("#")[0]), ("x",), work) for name in names]
    assert {kernel.layer for kernel in kernels} == {"a.f", "b"}
    assert list(distinct_weights(kernels)) == ["a.f", "b#1", "b#2"]
    assert total_macs(kernels) == 7 * 64, "multiplications count at every call"


def test_low_rank_replaces_every_call_of_a_layer() -> None:
    graph = Graph("", GraphModule({}, FxGraph()), (), {}, {}, {})
    work = Workload("linear", 32, 32, (), ())
    chain = [("a", "x"), ("f", "a"), ("f@2", "f"), ("h", "f@2")]
    kernels = {name: Kernel(name, layer_of(name), (source,), work) for name, source in chain}
    LowRankMethod().rewrite(kernels, "f", LowRank("svd", 4), graph)
    assert [(name, *kernel.inputs) for name, kernel in kernels.items()] == [
        ("a", "x"), ("f#1", "a"), ("f#2", "f#1"), ("f@2#1", "f#2"), ("f@2#2", "f@2#1"), ("h", "f@2#2"),
    ]  # fmt: skip
    assert kernels["f@2#1"].layer == "f" and kernels["f@2#1"].workload == kernels["f#1"].workload
