"""What one float convolution in between does to the time of an int8 model, on ONNX Runtime's CPU provider.

    python benchmarks/clock.py

A chain of int8 convolutions is run by itself, then in turn with a float convolution in a session of its own, of various
shapes; only the chain is timed. Beside it the same for a float chain.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from environment import environment
from rich.console import Console
from rich.table import Table
from torch import nn

from autocompress.compression.build import build
from autocompress.compression.methods import methods
from autocompress.compression.methods.quantize import Quantize
from autocompress.devices import open_device
from autocompress.devices.base import Session
from autocompress.devices.measure import undisturbed
from autocompress.export.onnx import plain_onnx, to_onnx
from autocompress.graph import trace
from autocompress.search.space import find_space

SHAPES = ((3, 16, 32), (4, 4, 32), (4, 16, 32), (8, 8, 32), (12, 12, 32), (16, 16, 32), (20, 20, 16), (64, 64, 8))
"""Input channels, output channels, height and width of the float convolution, 3x3."""

DEPTH, WIDTHS = 12, ((12, 16), (12, 12), (16, 16))
"""Layers of a chain, and their channels by turns; ONNX Runtime makes 12 on tiles, 16 by another kernel."""

ROUNDS, RUNS = 9, 40

console = Console()


def chain(widths: Sequence[int], int8: bool, path: Path) -> None:
    channels = [3, *(widths[i % len(widths)] for i in range(DEPTH))]
    layers = [layer for i, o in pairwise(channels) for layer in (nn.Conv2d(i, o, 3, 1, 1), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval(), torch.randn(1, 3, 32, 32)
    graph = trace(model, x)
    space = find_space(graph, methods(), open_device("ort:cpu").capabilities())
    plan = space.plan({decision.name: int(int8) for decision in space.of(Quantize)})
    to_onnx(build(plan, graph, None), path, plan.key)


def float_convolution(inputs: int, outputs: int, size: int, path: Path) -> torch.Tensor:
    x = torch.randn(1, inputs, size, size)
    plain_onnx(nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False).eval(), (x,), path)
    return x


def seconds(timed: Callable[[], None], between: Callable[[], None] | None) -> float:
    found = []
    for _ in range(RUNS):
        if between is not None:
            between()
        begun = time.perf_counter()
        timed()
        found.append(time.perf_counter() - begun)
    return median(found[RUNS // 4 :])


def runner(session: Session, x: torch.Tensor) -> Callable[[], None]:
    return lambda: session.time([x.numpy()], 1) and None


def ratios(timed: Callable[[], None], between: Callable[[], None]) -> list[float]:
    """Time with the other in between over time alone, one of each after the other."""
    return [seconds(timed, between) / seconds(timed, None) for _ in range(ROUNDS)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 4], median(ordered), ordered[-1 - len(ordered) // 4]


def main() -> None:
    device = open_device("ort:cpu")
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as name, undisturbed():
        folder = Path(name)
        image = torch.randn(1, 3, 32, 32)
        for widths in WIDTHS:
            for int8 in (True, False):
                key = f"{'int8' if int8 else 'float'} chain of {' and '.join(map(str, dict.fromkeys(widths)))} channels"
                chain(widths, int8, folder / "chain.onnx")
                timed = runner(device.open(folder / "chain.onnx"), image)
                found[key] = {}
                for inputs, outputs, size in SHAPES:
                    x = float_convolution(inputs, outputs, size, folder / "float.onnx")
                    between = runner(device.open(folder / "float.onnx"), x)
                    found[key][f"{inputs} to {outputs} at {size}x{size}"] = ratios(timed, between)
    table = Table("float convolution in between", *found, box=None, title="time relative to the chain by itself")
    for shape in next(iter(found.values())):
        cells = [quartiles(rows[shape]) for rows in found.values()]
        table.add_row(shape, *(f"{middle:.3f} ({low:.3f} to {high:.3f})" for low, middle, high in cells))
    console.print(table)
    document = {"environment": environment(), "device": device.runtime, "rounds": ROUNDS, "runs": RUNS, "ratios": found}
    (Path(__file__).parent / "results" / "clock.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
