"""The demonstration: a small residual network trained on scikit-learn's digits, as a task to compress.

The digits (1,797 images of 8 x 8; Alpaydin and Kaynak 1998, UCI repository) come with scikit-learn, so nothing is
downloaded. They are enlarged to 16 x 16, where the network's time on a CPU is that of its convolutions.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.report import write_report
from autocompress.search import Progress, Snapshot, Study, search
from autocompress.search.config import FineTuning, Samples, Settings, Shares
from autocompress.task.task import Task

SETTINGS = Settings(
    shares=Shares(setup=0.15, trials=0.2, fine_tuning=0.5, measuring=0.15),
    fine_tuning=FineTuning(candidates=10, finalists=4, first_share=0.6),
    samples=Samples(calibration=256, sensitivity=128),
)
"""A net this small learns in seconds, so many candidates are fine-tuned, each for a short time."""

TRAINING = Snapshot(
    "training", "a small residual network on handwritten digits", 0, None, 0, 0, 0.0, None, None, (), None
)
"""What a watcher sees before the search begins."""

Batches = list[tuple[Tensor, Tensor]]

SIZE = 16
WIDTHS = (32, 64, 64)
BLOCKS = 3
CLASSES = 10
PASSES, RATE = 8, 0.05
TRAIN, VALIDATION, TEST = slice(0, 897), slice(897, 1347), slice(1347, 1797)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, figure 2), which is projected where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A stem, three stages of residual blocks at sizes 16, 8 and 4, a global average and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        blocks = []
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for i in range(BLOCKS):
                blocks.append(Block(inputs, width, 2 if stage and not i else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.linear(y.mean((2, 3)))
        return logits


def run_demo(out: Path, time_s: float, progress: Progress | None = None) -> Study:
    """Trains the network unless `out` holds it, searches for `time_s` seconds and reports; `out/run` resumes."""
    if progress:
        progress(TRAINING)
    task = digits_task(out / "original.safetensors")
    study = search(task, out=out / "run", settings=SETTINGS, time_s=time_s, progress=progress)
    write_report(study.path)
    return study


def digits_task(weights: Path) -> Task:
    """The network with its data; trained, in about 20 seconds on two cores, unless `weights` holds it already."""
    task = untrained_task()
    if weights.exists():
        task.model.load_state_dict(load_file(weights))
    else:
        train_net(task.model, *digits_of(TRAIN))
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_file(task.model.state_dict(), weights)
    return task


def untrained_task() -> Task:
    """The same with the weights it begins with, which is enough where only time matters."""
    torch.manual_seed(0)
    return Task(
        model=DigitsNet().eval(),
        example_inputs=torch.zeros(1, 1, SIZE, SIZE),
        train=ShiftedBatches(*digits_of(TRAIN)),
        calibration=batches(*digits_of(TRAIN)),
        validation=batches(*digits_of(VALIDATION)),
        test=batches(*digits_of(TEST)),
    )


def digits_of(split: slice) -> tuple[Tensor, Tensor]:
    """Images [n, 1, 16, 16] and labels [n] of a split."""
    images, labels = digits()
    return images[split], labels[split]


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 16, 16] with mean 0 and deviation 1, and labels [1797], in a fixed shuffled order."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32)[order, None]
    large = F.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return (large - large.mean()) / large.std(), torch.tensor(found.target, dtype=torch.int64)[order]


def batches(images: Tensor, labels: Tensor, size: int = 64) -> Batches:
    return list(zip(images.split(size), labels.split(size), strict=True))


class ShiftedBatches:
    """Shuffled training batches of images moved by up to one pixel; every pass draws anew from one seeded generator."""

    def __init__(self, images: Tensor, labels: Tensor, size: int = 64, seed: int = 0) -> None:
        self.images, self.labels, self.size = images, labels, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.images) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self.generator)
        for chosen in order[: len(self) * self.size].split(self.size):
            dx, dy = torch.randint(-1, 2, (2,), generator=self.generator).tolist()
            yield torch.roll(self.images[chosen], (dx, dy), (2, 3)), self.labels[chosen]


def train_net(model: nn.Module, images: Tensor, labels: Tensor, passes: int = PASSES) -> None:
    """SGD with momentum and a one-cycle rate, in place; channels last, which is twice as fast on a CPU."""
    loader = ShiftedBatches(images, labels)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=passes * len(loader))
    for _ in range(passes):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(memory_format=torch.channels_last)), y).backward()
            optimizer.step()
            schedule.step()
    model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
