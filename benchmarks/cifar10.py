"""The whole search on the trained CIFAR ResNets, beside baselines that had the same data and the same time.

python benchmarks/cifar10.py --data DIR --depth 20 --minutes 20
"""

from pathlib import Path
from typing import Annotated

import typer
from systems import Contest
from tasks import cifar


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds cifar10/.")],
    depth: Annotated[int, typer.Option(help="20 or 56.")] = 20,
    minutes: Annotated[float, typer.Option(help="Time of the search, everything in.")] = 20,
    out: Annotated[Path, typer.Option(help="Where runs and models go.")] = Path("runs/cifar10"),
    seed: int = 0,
    uniform_too: Annotated[
        bool, typer.Option("--uniform/--no-uniform", help="Uniform pruning, trained as long.")
    ] = True,
    random_too: Annotated[bool, typer.Option("--random/--no-random", help="Random search for as long.")] = True,
) -> None:
    contest = Contest(cifar.make_task(data, depth, seed), out / f"resnet{depth}-seed{seed}", minutes, seed)
    contest.run(uniform_too, random_too)
    results = Path(__file__).parent / "results" / f"cifar10_resnet{depth}_seed{seed}.json"
    contest.report(f"ResNet-{depth}, {minutes:g} minutes", results, {"benchmark": "cifar10", "depth": depth})


if __name__ == "__main__":
    typer.run(main)
