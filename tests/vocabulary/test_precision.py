"""The precision rule, case by case and as properties of random graphs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.vocabulary.formats import FP32, INT8
from autocompress.vocabulary.precision import (
    FIXED_SUFFIX,
    QUANTISABLE_PASSIVE,
    boundaries,
    lower,
    quantised_tensors,
    resolve,
)
from autocompress.vocabulary.workload import WEIGHTED_OPS, Kernel, Workload


def _graph(*rows: str) -> dict[str, Kernel]:
    """Kernels from rows "name op[8][+activation] input input ...": `8` marks an int8 decision."""
    kernels = {}
    for row in rows:
        name, op, *inputs = row.split()
        op, _, fused = op.partition("+")
        dtype = INT8 if op.endswith("8") else FP32
        size = () if op.startswith("linear") else (8, 8)
        workload = Workload(op.removesuffix("8"), 16, 16, size, size, dtype=dtype, fused=(fused,) if fused else ())
        kernels[name] = Kernel(name, name, tuple(inputs), workload)
    return kernels


def _int8(kernels: dict[str, Kernel]) -> set[str]:
    return {name for name, kernel in resolve(kernels).items() if kernel.workload.dtype == INT8}


SHORTCUT = "pad" + FIXED_SUFFIX

CASES = {
    "nothing quantised": (("a conv x", "b add a x"), set(), set()),
    "one conv between fp32": (("a conv x", "b conv8 a", "c conv b"), {"b"}, {"a>q", "b>dq"}),
    "first layer": (("a conv8 x", "b conv a"), {"a"}, {"x>q", "a>dq"}),
    "chain": (("a conv8 x", "b conv8 a", "c linear8 b"), {"a", "b", "c"}, {"x>q"}),
    "residual add of two int8": (("a conv8 x", "b conv8 a", "s add b a", "c conv8 s"), {"a", "b", "s", "c"}, {"x>q"}),
    "residual add over an fp32 stem": (
        ("a conv x", "b conv8 a", "c conv8 b", "s add+relu c a", "d conv8 s"),
        {"b", "c", "s", "d"},
        {"a>q"},
    ),
    "add of int8 and fp32": (("a conv8 x", "b conv x", "s add a b"), {"a"}, {"x>q", "a>dq"}),
    "add with a constant": (("a conv8 x", "s add a", "b conv8 s"), {"a", "b"}, {"x>q", "a>dq", "s>q"}),
    "add with an activation that must be computed": (
        ("a conv8 x", "b conv8 x", "s add+gelu a b"),
        {"a", "b"},
        {"x>q", "a>dq", "b>dq"},
    ),
    "pooling follows its producer": (("a conv8 x", "p max_pool a", "b conv p"), {"a", "p"}, {"x>q", "p>dq"}),
    "pooling of an fp32 tensor": (("a conv x", "p max_pool a", "b conv8 p"), {"b"}, {"p>q", "b>dq"}),
    "pooling of a tensor quantised for others, read by int8": (
        ("a conv x", "b conv8 a", "p avg_pool a", "c conv8 p"),
        {"b", "p", "c"},
        {"a>q", "b>dq", "c>dq"},
    ),
    "an fp32 reader of an fp32 tensor costs nothing": (
        ("a conv x", "b conv8 a", "c conv a", "s add b c"),
        {"b"},
        {"a>q", "b>dq"},
    ),
    "softmax stays fp32": (("a linear8 x", "s softmax a"), {"a"}, {"x>q"}),
    "a linear read by int8 and fp32": (
        ("a linear8 x", "s softmax a", "b linear8 a"),
        {"a", "b"},
        {"x>q", "a>dq"},
    ),
    "a computed activation is in float": (
        ("a conv8+silu x", "s softmax a", "b conv8+silu x", "c conv8 b"),
        {"a", "b", "c"},
        {"x>q", "c>dq"},
    ),
    "the shortcut's fixed convolution follows": (
        ("a conv x", "b conv8 a", "c conv8 b", f"{SHORTCUT} conv a", f"s add c {SHORTCUT}", "d conv8 s"),
        {"b", "c", SHORTCUT, "s", "d"},
        {"a>q", "d>dq"},
    ),
    "the shortcut's fixed convolution stays fp32 with its add": (
        ("a conv x", "b conv8 a", "c conv b", f"{SHORTCUT} conv a", f"s add c {SHORTCUT}"),
        {"b"},
        {"a>q", "b>dq"},
    ),
    "the shortcut's fixed convolution in an fp32 net": (
        ("a conv x", "b conv a", f"{SHORTCUT} conv a", f"s add b {SHORTCUT}"),
        set(),
        set(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rule(case: str) -> None:
    rows, int8, conversions = CASES[case]
    kernels = _graph(*rows)
    assert _int8(kernels) == int8
    last = [k for k in kernels.values() if all(k.name not in other.inputs for other in kernels.values())]
    expected = conversions | {f"{k.name}>dq" for k in last if k.name in int8 and k.workload.op != "linear"}
    assert {k.name for k in boundaries(resolve(kernels))} == expected


def test_conversion_carries_the_tensor_it_converts() -> None:
    kernels = _graph("a conv8 x")
    kernels["a"] = kernels["a"].with_workload(in_channels=3, out_channels=24, size=(9, 9), out_size=(5, 5))
    to_int8, to_float = boundaries(resolve(kernels))
    assert (to_int8.workload.op, to_int8.workload.in_channels, to_int8.workload.size) == ("quantize", 3, (9, 9))
    assert (to_float.workload.op, to_float.workload.in_channels, to_float.workload.size) == ("dequantize", 24, (5, 5))


@st.composite
def _random_graphs(draw: st.DrawFn) -> dict[str, Kernel]:
    ops = ("conv", "conv8", "linear8", "add", "concat", "max_pool", "softmax", "mul+relu", "mean", "relu")
    rows = []
    for i in range(draw(st.integers(1, 12))):
        earlier = ["x", *(f"k{j}" for j in range(i))]
        op = draw(st.sampled_from(ops))
        count = 2 if op in ("add", "concat", "mul+relu") else 1
        rows.append(" ".join((f"k{i}", op, *(draw(st.sampled_from(earlier)) for _ in range(count)))))
    return _graph(*rows)


@given(_random_graphs())
def test_every_change_of_format_has_one_conversion(kernels: dict[str, Kernel]) -> None:
    resolved = resolve(kernels)
    dtype = {name: kernel.workload.dtype for name, kernel in resolved.items()}
    conversions = [k.name for k in boundaries(resolved)]
    assert len(conversions) == len(set(conversions))
    for name, kernel in resolved.items():
        for source in kernel.inputs:
            if dtype[name] == INT8 and dtype.get(source, FP32) == FP32:
                assert f"{source}>q" in conversions
                assert source in quantised_tensors(resolved)


@given(_random_graphs())
def test_resolving_keeps_decisions_and_is_idempotent(kernels: dict[str, Kernel]) -> None:
    resolved = resolve(kernels)
    assert list(resolved) == list(kernels)
    assert resolve(resolved) == resolved
    for name, kernel in kernels.items():
        if kernel.workload.op in WEIGHTED_OPS:
            assert resolved[name] is kernel
        elif kernel.workload.op not in QUANTISABLE_PASSIVE:
            assert resolved[name].workload.dtype == FP32


@given(_random_graphs())
def test_without_int8_decisions_everything_is_float(kernels: dict[str, Kernel]) -> None:
    floats = {name: kernel.with_workload(dtype=FP32) for name, kernel in kernels.items()}
    assert lower(floats) == list(floats.values())
