"""Any free axis and any arithmetic on sizes: written as integer operators, cheap where one axis alone is free."""

import math

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.export.exported import Functions, Written, assert_same

FREE = [{0: "batch", 1: "length"}]
MOVES = {
    "merge": lambda x: x.reshape(x.shape[0] * x.shape[1], 8) * 2,
    "flatten": lambda x: [x.flatten(0, 1), x.flatten(1), x.flatten(1, 2), x.unsqueeze(1).flatten(2)],
    "heads": lambda x: x.view(x.shape[0], x.shape[1], 2, 4).transpose(1, 2).reshape(-1, x.shape[1], 4),
    "unflatten": lambda x: [x.unflatten(2, (2, 4)), x.unflatten(-1, (-1, 2))],
    "squeeze": lambda x: [x[..., :1].squeeze(-1), x.unsqueeze(0), x.unsqueeze(2), x[..., :1].squeeze(2)],
    "expand": lambda x: [torch.ones(1, 1, 3).expand(x.shape[0], x.shape[1], 3), x.unsqueeze(1).expand(-1, 3, -1, -1)],
    "halves": lambda x: [x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :], x[:, :-1], x[:, ::2]],
    "cat": lambda x: torch.cat([x, x[:, :1]], 1),
    "positions": lambda x: x + torch.arange(x.shape[1], dtype=torch.float32).view(1, -1, 1),
    "table": lambda x: x + F.embedding(torch.arange(x.shape[1]), torch.linspace(0, 1, 160).view(20, 8)),
    "sliced table": lambda x: x + torch.linspace(0, 1, 160).view(1, 20, 8)[:, : x.shape[1]],
    "filled": lambda x: [x.new_zeros(x.shape[1], x.shape[0]), torch.zeros_like(x), torch.full(x.shape[:2], 3.5)],
    "padded": lambda x: [F.pad(x, (0, 0, 1, 2)), F.pad(x, (0, 0, 0, 12 - x.shape[1]))],
    "repeat": lambda x: [x.repeat(1, 2, 1), x.repeat_interleave(2, 1), x.repeat(2, 1, 1, 1)],
    "roll": lambda x: [x.roll(1, 1), x.flip(1)],
    "windows": lambda x: x.unfold(1, 3, 1),
}
COMPUTED = {
    "causal": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "relative": lambda x: (torch.arange(x.shape[1])[None] - torch.arange(x.shape[1])[:, None]).clamp(-2, 2),
    "mean": lambda x: [x.mean(1), x.sum(1) / x.shape[1], x.var(1), x.var((0, 1)), x.std(1, correction=0)],
    "root": lambda x: x / math.sqrt(x.shape[2]),
    "extremes": lambda x: [*x.max(1), *x.sort(1), x.argmax(1)],
    "convolution": lambda x: F.conv1d(x.transpose(1, 2), torch.ones(3, 8, 3), padding=1),
    "pooled": lambda x: [F.adaptive_avg_pool2d(x.unsqueeze(1), 1), F.max_pool2d(x.unsqueeze(1), (1, 2))],
}
NORMS = {
    "norm": lambda x: [F.layer_norm(x, (8,)), F.normalize(x, dim=1), F.group_norm(x.transpose(1, 2), 2)],
}
ARITHMETIC = {
    "mask": lambda x: (x @ x.mT).masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), -9.0).softmax(-1),
    "resized": lambda x: [F.interpolate(x.transpose(1, 2), scale_factor=2),
                          F.interpolate(x.transpose(1, 2), size=x.shape[1] * 3, mode="linear")],
    "numbers": lambda x: [x * x.shape[1], x + x.shape[0] * x.shape[1], x / x.numel()],
    "sizes": lambda x: [torch.zeros(x.shape[0] + x.shape[1]), torch.zeros(max(x.shape[0], x.shape[1])),
                        torch.zeros(x.shape[1] // 2 * 2 + 1), torch.zeros(x.shape[1] % 4, x.shape[0])],
    "pick": lambda x: [x[:, x.shape[1] // 2], x[torch.arange(x.shape[0]), (x[..., 0] > 0).sum(1).clamp(max=2)]],
    "linear": lambda x: F.linear(x, torch.ones(3, 8)),
}  # fmt: skip


FAMILIES = {"moves": MOVES, "computed": COMPUTED, "norms": NORMS, "arithmetic": ARITHMETIC}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_axes_are_free(family: str) -> None:
    written = Written(Functions(list(FAMILIES[family].values())), (torch.randn(3, 7, 8),), FREE)
    for batch, length in ((1, 7), (2, 5), (3, 11), (4, 6)):
        x = torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(batch))
        for found, expected in zip(written.run(x), written.expected(x), strict=True):
            assert_same(found, expected)


def test_free_axes_are_named_in_the_file() -> None:
    written = Written(Functions([lambda x: x * 2, lambda x: x.flatten(0, 1)]), (torch.randn(3, 7, 8),), FREE)
    graph = written.proto.graph
    assert _sizes(graph.input[0]) == ["batch", "length", 8]
    assert [output.name for output in graph.output] == ["output_0", "output_1"]
    assert _sizes(graph.output[0])[0] == "batch"
    assert _sizes(graph.output[0])[2] == 8


def test_one_free_axis_is_a_constant_shape() -> None:
    """No size is computed at run time, and a result that is another one too is written."""
    written = Written(Functions([lambda x: x.flatten(1), lambda x: x.view(-1, 4, 2), lambda x: x]),
                      (torch.randn(3, 8),))  # fmt: skip
    assert not {node.op_type for node in written.proto.graph.node} & {"Shape", "Concat", "Gather"}


def test_size_is_computed_once() -> None:
    functions = [lambda x: x.new_zeros(x.shape[0] * 3), lambda x: x.new_ones(x.shape[0] * 3), lambda x: x + x.shape[0]]
    written = Written(Functions(functions), (torch.randn(3, 8),))
    assert [node.op_type for node in written.proto.graph.node].count("Shape") == 1


class _Windows(nn.Module):
    """An input whose first axis is four windows of every sample."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        windows, x = inputs
        merged = windows.reshape(-1, 4, 5).mean(1)
        return merged + x, torch.zeros(x.shape[0], 2), windows.new_zeros(windows.shape[0])


def test_input_of_several_rows_for_every_sample() -> None:
    from autocompress.export.lowering import lower
    from tests.export.exported import graph_of, refuse, run

    graph = graph_of(_Windows(), (torch.randn(12, 5), torch.randn(3, 5)), [{0: "batch"}, {0: "batch"}])
    first, second = (node for node in graph.graph.nodes if node.op == "placeholder")
    for node, factor in ((first, 4), (second, 1)):
        del node.meta["axes"]
        node.meta["val"], node.meta["one"] = (torch.empty(factor * n, 5, device="meta") for n in (2, 1))
    with torch.no_grad():
        proto = lower(graph, {}, refuse)
    onnx.checker.check_model(proto, full_check=True)
    for batch in (1, 2, 3):
        inputs = torch.randn(4 * batch, 5), torch.randn(batch, 5)
        for found, expected in zip(run(proto, *inputs), _Windows()(*inputs), strict=True):
            assert_same(found, expected)


def _sizes(info: onnx.ValueInfoProto) -> list:
    return [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]
