"""ONNX files as other tools write them, made by hand; and nets that are exported."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

Node = onnx.NodeProto


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 0.5


def write(
    path: Path, nodes: Sequence[Node], inputs: dict[str, Any], outputs: Sequence[str], constants: dict[str, np.ndarray],
    opset: int = 17, domains: Sequence[str] = ("com.microsoft",),
) -> Path:  # fmt: skip
    """`inputs` are shapes of floats, or (element type, shape)."""
    kinds = {name: kind if isinstance(kind, tuple) else (TensorProto.FLOAT, kind) for name, kind in inputs.items()}
    values = [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    graph = helper.make_graph(
        list(nodes), "g", values, [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


make = helper.make_node


def channels_last(path: Path) -> Path:
    """As TensorFlow's converter writes images: transposed to the convolution and back, sizes read off the shape."""
    constants = {
        "w1": floats(8, 3, 3, 3), "b1": floats(8), "w2": floats(8, 8, 3, 3, seed=1), "dense": floats(8, 5),
        "bias": floats(5), "axes": np.array([1, 2]), "zero": np.array([0]),
        "one": np.array([1]), "eight": np.array([8]),
    }  # fmt: skip
    nodes = [
        make("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2]),
        make("Conv", ["nchw", "w1", "b1"], ["c1"], name="model/conv/Conv2D", auto_pad="SAME_UPPER", strides=[2, 2]),
        make("Transpose", ["c1"], ["t1"], perm=[0, 2, 3, 1]),
        make("Relu", ["t1"], ["r1"]),
        make("Transpose", ["r1"], ["t2"], perm=[0, 3, 1, 2]),
        make("Conv", ["t2", "w2"], ["c2"], name="model/conv_1/Conv2D", auto_pad="SAME_UPPER"),
        make("Transpose", ["c2"], ["t3"], perm=[0, 2, 3, 1]),
        make("Add", ["t3", "r1"], ["sum"]),
        make("ReduceMean", ["sum"], ["pooled"], axes=[1, 2], keepdims=0),
        make("Shape", ["pooled"], ["shape"]),
        make("Slice", ["shape", "zero", "one"], ["batch"]),
        make("Concat", ["batch", "eight"], ["wanted"], axis=0),
        make("Reshape", ["pooled", "wanted"], ["flat"]),
        make("MatMul", ["flat", "dense"], ["product"]),
        make("Add", ["product", "bias"], ["logits"]),
        make("Softmax", ["logits"], ["probabilities:0"]),
    ]
    return write(path, nodes, {"image": ["unk__1", 8, 8, 3]}, ["probabilities:0"], constants, 12)


def switching(path: Path) -> Path:
    """One of two layers, by an input that tells the sampling rate, as a voice detector has it."""
    branches = {}
    for name, weight in (("then", "w16"), ("else", "w8")):
        made = helper.make_node("MatMul", ["audio", weight], [f"{name}_out"])
        branches[f"{name}_branch"] = helper.make_graph([made], name, [], [onnx.ValueInfoProto(name=f"{name}_out")])
    nodes = [
        make("Equal", ["sr", "rate"], ["is16"]),
        make("If", ["is16"], ["y"], name="choice", **branches),
        make("Relu", ["y"], ["speech"]),
    ]
    constants = {"w16": floats(6, 4), "w8": floats(6, 4, seed=1), "rate": np.array(16000)}
    return write(path, nodes, {"audio": ["batch", 6], "sr": (TensorProto.INT64, [])}, ["speech"], constants)


class Bert(nn.Module):
    """A text encoder with a mask: positions and the mask's form are made in forward, heads by view."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.positions = nn.Embedding(30, width), nn.Embedding(12, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.1, 0.3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        batch, length = input_ids.shape
        x = self.norm1(self.words(input_ids) + self.positions(torch.arange(length)[None]))
        q, k, v = (f(x).view(batch, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        mask = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        weights = torch.softmax(q @ k.transpose(-1, -2) / (q.shape[-1] ** 0.5) + mask, -1)
        x = self.norm2(x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, -1)))
        x = self.norm3(x + self.down(nn.functional.gelu(self.up(x))))
        kept = attention_mask[:, :, None].float()
        return x, (x * kept).sum(1) / kept.sum(1).clamp(min=1e-9)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.lstm = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(10, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).transpose(1, 2)
        return self.head(self.gru(self.lstm(x)[0])[0][:, -1])
