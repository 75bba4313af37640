"""A vision transformer of timm on CIFAR-10, trained here: 6 blocks of width 96 with 3 heads over patches of 4 x 4.

It learns from the labels and from the published ResNet-20 (hard distillation, Touvron et al. 2021), on the first 45,000
training images. The other 5,000 are the validation split; the test split is the official one.
"""

import math
import time
from pathlib import Path

import torch
from architectures.packages import package
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import autocompress as ac
from tasks import cifar

EPOCHS = 12
RATE = 1e-3
WEIGHT_DECAY = 0.05
WARM_UP = 0.1
HELD_OUT = 5000


def make_task(data: Path, out: Path, seed: int = 0) -> ac.Task:
    """The trained net with its data; its weights are kept in `out`, and trained where they are not there yet."""
    resnet = cifar.make_task(data, 20, seed)
    images, labels = resnet.train.images, resnet.train.labels
    train = cifar.Batches(images[:-HELD_OUT], labels[:-HELD_OUT], seed=seed)
    torch.manual_seed(seed)
    package("torchvision")
    model = package("timm").models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=4, embed_dim=96, depth=6, num_heads=3, mlp_ratio=2, num_classes=10
    )
    weights = out / f"vit-seed{seed}.safetensors"
    if not weights.exists():
        trained(model, resnet.model, train)
        out.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), weights)
    model.load_state_dict(load_file(weights))
    test_images = torch.cat([resnet.validation.images, resnet.test.images])
    test_labels = torch.cat([resnet.validation.labels, resnet.test.labels])
    return ac.Task(
        model=model.eval(),
        example_inputs=torch.zeros(1, 3, 32, 32),
        train=train,
        calibration=cifar.Batches(images[: cifar.CALIBRATION], labels[: cifar.CALIBRATION], size=250),
        validation=cifar.Batches(images[-HELD_OUT:], labels[-HELD_OUT:], size=250),
        test=cifar.Batches(test_images, test_labels, size=250),
    )


def trained(model: nn.Module, teacher: nn.Module, train: cifar.Batches) -> None:
    """AdamW with a cosine after a linear warm-up."""
    steps = EPOCHS * len(train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(step / (WARM_UP * steps), (1 + math.cos(math.pi * step / steps)) / 2)
    )
    model.train()
    started = time.time()
    for epoch in range(EPOCHS):
        losses = []
        for images, labels in train:
            loss = _loss(model, teacher, images, labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {sum(losses) / len(losses):.3f}, {time.time() - started:.0f} s")
    model.eval()


def _loss(model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        told = teacher(images).argmax(1)
    logits = model(images)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits, told)) / 2
