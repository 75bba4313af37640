"""The whole search on the trained CIFAR ResNets, beside baselines that had the same data and the same time.

python benchmarks/cifar10.py --data DIR --depth 20 --minutes 20
"""

from pathlib import Path
from typing import Annotated

import typer
from systems import Contest, Folder, Minutes, RandomToo, UniformToo
from tasks import cifar


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds cifar10/.")],
    depth: Annotated[int, typer.Option(help="20 or 56.")] = 20,
    minutes: Minutes = 20,
    out: Folder = Path("runs/cifar10"),
    seed: int = 0,
    uniform_too: UniformToo = True,
    random_too: RandomToo = True,
) -> None:
    contest = Contest(cifar.make_task(data, depth, seed), out / f"resnet{depth}-seed{seed}", minutes, seed)
    contest.run(uniform_too, random_too)
    results = Path(__file__).parent / "results" / f"cifar10_resnet{depth}_seed{seed}.json"
    contest.report(f"ResNet-{depth}, {minutes:g} minutes", results, {"benchmark": "cifar10", "depth": depth})


if __name__ == "__main__":
    typer.run(main)
