"""Makes a profile that ships: one device, calibrated on nets of several families, with its error on held-out plans.

python benchmarks/profiles.py ort:cpu --name intel-xeon-amx-ort --out hardware_profiles
"""

import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from environment import environment
from nets import NETS
from rich.console import Console

from autocompress.cli import terminal
from autocompress.devices import open_device
from autocompress.export.onnx import plain_onnx
from autocompress.graph import trace
from autocompress.profiles import Profile
from autocompress.profiles.accuracy import Accuracy, accuracy_of
from autocompress.profiles.merge import merge
from autocompress.search.profiling import Bench, profile_bench

console = Console()


def calibrated(net: str, device: str, plans: int) -> Profile:
    model, inputs = NETS[net].make()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        original = folder / "original.onnx"
        plain_onnx(model, (inputs,), original)
        bench = Bench(trace(model, inputs), open_device(device), original, [inputs.numpy()], folder)
        with terminal.counting(f"steps of {net}", quiet=False) as count:
            return profile_bench(bench, plans, progress=count)


def main(
    device: Annotated[str, typer.Argument(help="Such as ort:cpu; `autocompress devices` lists them.")],
    name: Annotated[str, typer.Option(help="What the profile is called.")],
    net: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(NETS)}; all by default.")] = None,
    plans: Annotated[int, typer.Option(help="Plans of each net to measure; a third judge and calibrate.")] = 45,
    processor: Annotated[str, typer.Option(help="What the hardware is, where the device's own word says less.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of profiles.")] = Path("hardware_profiles"),
) -> None:
    found: dict[str, Profile] = {}
    judged: dict[str, Accuracy] = {}
    seconds: dict[str, float] = {}
    for key in net or NETS:
        started = time.time()
        found[key] = calibrated(key, device, plans)
        judged[key], seconds[key] = accuracy_of(found[key]), time.time() - started
        console.print(f"{key}: {judged[key]}, {seconds[key]:.0f} s")
    source = f"calibrated on {plans} plans each of {', '.join(found)}, random weights, batch 1, one thread"
    merged = merge(name, found, source)
    told = merged.description.environment | ({"processor": processor} if processor else {})
    merged = Profile(merged.description.model_copy(update={"environment": told}), merged.kernels, merged.models)
    merged.save(out / name)
    console.print(f"{name}: {accuracy_of(merged)}")
    accuracies = {"by_net": {key: asdict(a) for key, a in judged.items()}, "merged": asdict(accuracy_of(merged))}
    document = {
        "benchmark": "profiles", "environment": environment(), "device": device, "name": name, "plans": plans,
        "seconds": seconds, **accuracies,
    }  # fmt: skip
    path = Path(__file__).parent / "results" / f"profile_{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
