"""The CIFAR-10 task that the benchmarks share: data as delivered, the published option-A ResNets, splits kept apart."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import autocompress as ac

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
STRIP = 500
"""Images per file."""


class Block(nn.Module):
    """Basic block with the parameter-free shortcut of He et al. (2016), option A."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.padding = outputs // 4 if stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding is not None:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class ResNet(nn.Module):
    """The CIFAR ResNet of depth 6n + 2."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, (depth - 2) // 6)
        self.layer2 = self._stage(16, 32, 2, (depth - 2) // 6)
        self.layer3 = self._stage(32, 64, 2, (depth - 2) // 6)
        self.linear = nn.Linear(64, 10)

    def _stage(self, inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.shape[3])
        return self.linear(x.view(x.shape[0], -1))


def _normalised(images: Tensor) -> Tensor:
    return (images.float() / 255 - MEAN) / STD


def _read(folder: Path, split: str, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) uint8 and labels (n,) of strips `first` to `last`, the last not counted."""
    strips = [np.asarray(Image.open(folder / f"{split}_{i:03d}.webp").convert("RGB")) for i in range(first, last)]
    images = np.concatenate([strip.reshape(-1, 32, 32, 3) for strip in strips])
    labels = np.load(folder / f"{split}_labels.npy")[first * STRIP : last * STRIP]
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))


@dataclass(slots=True)
class Batches:
    """Images in order, in batches, normalised when drawn."""

    images: Tensor
    labels: Tensor
    size: int = 250

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.images), self.size):
            part = slice(start, start + self.size)
            yield _normalised(self.images[part]), self.labels[part]


@dataclass(slots=True)
class Augmented:
    """Images in a new random order each time, each shifted by up to 4 pixels and perhaps mirrored."""

    images: Tensor
    labels: Tensor
    size: int = 128
    seed: int = 0
    epoch: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.images), generator=generator)
        for chosen in order.split(self.size):
            yield _normalised(self._augment(self.images[chosen], generator)), self.labels[chosen]

    def _augment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n = len(images)
        padded = F.pad(images, (4, 4, 4, 4))
        shift = torch.randint(0, 9, (n, 2), generator=generator)
        rows = (shift[:, :1] + torch.arange(32))[:, :, None]
        columns = (shift[:, 1:] + torch.arange(32))[:, None, :]
        mirrored = torch.rand(n, generator=generator) < 0.5
        columns = torch.where(mirrored[:, None, None], columns.flip(2), columns)
        return padded[torch.arange(n)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def make_task(data: Path, depth: int, seed: int = 0) -> ac.Task:
    """The published ResNet with its data: the official test split's first 5,000 images are for validation, the others
    for the one look at the end (the nets were trained on all of train)."""
    folder = data / "cifar10"
    model = ResNet(depth)
    model.load_state_dict(load_file(folder / f"resnet{depth}.safetensors"))
    images, labels = _read(folder, "train", 0, 100)
    return ac.Task(
        model=model.eval(),
        example_inputs=torch.zeros(1, 3, 32, 32),
        train=Augmented(images, labels, seed=seed),
        calibration=Batches(images[:1000], labels[:1000]),
        validation=Batches(*_read(folder, "test", 0, 10)),
        test=Batches(*_read(folder, "test", 10, 20)),
    )
