"""A CIFAR-10 ResNet to compress: copy this file and put your own model and data in it.

    CIFAR10_DATA=path/to/folder autocompress search examples/cifar10.py --max-drop 0.01 --time 1200 --out runs/cifar10

The folder holds `train_000.webp` ... and `test_000.webp` ..., each a vertical strip of 500 images of 32 x 32, beside
`train_labels.npy` and `test_labels.npy`, and the trained weights `resnet20.safetensors` (or `resnet56.safetensors` with
CIFAR10_DEPTH=56). The nets are those of He et al. 2016, section 4.2, with shortcuts that pad channels (option A). They
were trained on every training image, so validation and test split are the two halves of the official test images.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import autocompress as ac

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
DEVIATION = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
CALIBRATION = 512
"""Training images from which ranges and statistics are taken."""


class Block(nn.Module):
    """Two convolutions beside a shortcut; where the shape changes, the shortcut is subsampled and padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = outputs // 4 if stride != 1 or inputs != outputs else 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad)) if self.pad else x
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """6n + 2 layers: a stem, three stages of n blocks with 16, 32 and 64 channels, a linear layer."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        y = F.avg_pool2d(y, y.size()[3])
        logits: Tensor = self.linear(y.view(y.size(0), -1))
        return logits


class Batches:
    """(images, labels) batches of uint8 images [N, 32, 32, 3], normalised on the way out.

    With a `seed`, every pass is shuffled anew, and images are flipped and shifted by up to four pixels at random.
    """

    def __init__(self, images: Tensor, labels: Tensor, size: int = 128, seed: int | None = None) -> None:
        self.images, self.labels, self.size = images, labels, size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        order = torch.arange(count) if self.generator is None else torch.randperm(count, generator=self.generator)
        for chosen in order.split(self.size):
            images = self.images[chosen].permute(0, 3, 1, 2)
            drawn = images if self.generator is None else self._augmented(images)
            yield (drawn.float() / 255 - MEAN) / DEVIATION, self.labels[chosen]

    def _augmented(self, images: Tensor) -> Tensor:
        """Random crops of the images padded by four black pixels, half of them mirrored (He et al. 2016, section 4.2).

        Padded before they are normalised, as the published nets were trained: black is not the mean.
        """
        count = len(images)
        padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
        top, left = torch.randint(0, 9, (2, count, 1, 1), generator=self.generator)
        columns = torch.arange(32).view(1, 1, 32).expand(count, 1, 32)
        mirrored = torch.rand(count, 1, 1, generator=self.generator) < 0.5
        columns = torch.where(mirrored, 31 - columns, columns)
        rows = torch.arange(32).view(1, 32, 1)
        return padded[torch.arange(count).view(-1, 1, 1), top + rows, left + columns].permute(0, 3, 1, 2)


def cifar10_task(data: Path, depth: int = 20) -> ac.Task:
    """The trained ResNet of that depth with its data. Raises FileNotFoundError if the folder lacks a file."""
    model = ResNet(depth)
    model.load_state_dict(load_file(data / f"resnet{depth}.safetensors"))
    train_images, train_labels = images_and_labels(data, "train")
    test_images, test_labels = images_and_labels(data, "test")
    half = len(test_labels) // 2
    return ac.Task(
        model=model.eval(),
        example_inputs=torch.zeros(1, 3, 32, 32),
        train=Batches(train_images, train_labels, seed=0),
        calibration=Batches(train_images[:CALIBRATION], train_labels[:CALIBRATION]),
        validation=Batches(test_images[:half], test_labels[:half], size=250),
        test=Batches(test_images[half:], test_labels[half:], size=250),
    )


def images_and_labels(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 32, 32, 3] and int64 labels [N]."""
    strips = sorted(data.glob(f"{split}_[0-9]*.webp"))
    if not strips:
        raise FileNotFoundError(f"no {split}_000.webp in {data}; set CIFAR10_DATA to the folder that holds it")
    images = np.concatenate([np.asarray(Image.open(strip)).reshape(-1, 32, 32, 3) for strip in strips])
    labels = np.load(data / f"{split}_labels.npy", allow_pickle=False)
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))


def __getattr__(name: str) -> ac.Task:
    """`task` is made when it is asked for, so that importing this file needs no data."""
    if name != "task":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return cifar10_task(Path(os.environ.get("CIFAR10_DATA", "data")), int(os.environ.get("CIFAR10_DEPTH", "20")))
