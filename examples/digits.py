"""The smallest complete task: a plain network trained on scikit-learn's digits in seconds.

autocompress search examples/digits.py --max-drop 0.01 --time 60 --out runs/digits
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

import autocompress as ac

WEIGHTS = Path(__file__).with_suffix(".safetensors")

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
    nn.Flatten(), nn.Linear(64 * 4 * 4, 10),
)  # fmt: skip

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
batches = list(zip(images[order].split(64), labels[order].split(64), strict=True))
train, validation, test = batches[:14], batches[14:21], batches[21:]

if WEIGHTS.exists():
    model.load_state_dict(load_file(WEIGHTS))
else:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(15):
        for x, y in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    save_file(model.state_dict(), WEIGHTS)

task = ac.Task(model=model.eval(), example_inputs=images[:1], train=train, validation=validation, test=test)
