"""The CIFAR-10 ResNets, as in examples/cifar10.py, with seeds of the training data."""

from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import autocompress as ac

CALIBRATION = 1000


def _example() -> ModuleType:
    """By its path: a benchmark is called cifar10, too."""
    spec = spec_from_file_location("cifar10_example", Path(__file__).parents[2] / "examples" / "cifar10.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_EXAMPLE = _example()
Block, ResNet, Batches = _EXAMPLE.Block, _EXAMPLE.ResNet, _EXAMPLE.Batches


def make_task(data: Path, depth: int, seed: int = 0) -> ac.Task:
    """The published ResNet with its data: the official test split's first 5,000 images are for validation, the others
    for the one look at the end (the nets were trained on all of train)."""
    task = _EXAMPLE.cifar10_task(data / "cifar10", depth)
    images, labels = task.train.images, task.train.labels
    return replace(
        task,
        train=Batches(images, labels, seed=seed),
        calibration=Batches(images[:CALIBRATION], labels[:CALIBRATION], size=250),
    )
