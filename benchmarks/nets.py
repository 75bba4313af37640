"""The nets whose latency is predicted: five families, with random weights, on which no time depends."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tasks.cifar import ResNet
from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection (Sandler et al., MobileNetV2, CVPR 2018, table 1)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        ]  # fmt: skip
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Table 2 of the same; `small` keeps strides at 1 until the third stage, as is usual for images of 32 pixels."""

    def __init__(self, *, small: bool, classes: int = 10) -> None:
        super().__init__()
        strides = (1, 1, 2, 2, 1, 2, 1) if small else (1, 2, 2, 2, 1, 2, 1)
        stages = zip((1, 6, 6, 6, 6, 6, 6), (16, 24, 32, 64, 96, 160, 320), (1, 2, 3, 4, 3, 3, 1), strides, strict=True)
        layers: list[nn.Module] = [
            nn.Conv2d(3, 32, 3, 1 if small else 2, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
        ]
        inputs = 32
        for expansion, outputs, count, stride in stages:
            for i in range(count):
                layers.append(InvertedResidual(inputs, outputs, stride if i == 0 else 1, expansion))
                inputs = outputs
        layers += [nn.Conv2d(inputs, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class DenseLayer(nn.Module):
    """Batch norm, ReLU, convolution; its output is put behind its input (Huang et al., CVPR 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, y], 1)


class DenseNet(nn.Module):
    """DenseNet-BC for images of 32 pixels: three dense blocks with a halving of channels and sizes between them."""

    def __init__(self, growth: int = 16, layers: int = 6, classes: int = 10) -> None:
        super().__init__()
        channels = 2 * growth
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 3, 1, 1, bias=False)]
        for block in range(3):
            for _ in range(layers):
                parts.append(DenseLayer(channels, growth))
                channels += growth
            parts += [nn.BatchNorm2d(channels), nn.ReLU()]
            if block < 2:
                parts += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
                channels //= 2
        self.layers = nn.Sequential(*parts)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class EncoderLayer(nn.Module):
    """Attention and MLP, each followed by its layer norm (Devlin et al., BERT, 2019)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width, 1e-12)
        self.up, self.down, self.norm2 = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.LayerNorm(width, 1e-12)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5, -1)
        x = self.norm1(x + self.output((weights @ v).transpose(1, 2).reshape(batch, length, width)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class MiniLM(nn.Module):
    """The sentence encoder MiniLM-L6: 6 layers, width 384, 12 heads; mean of the last layer."""

    def __init__(self, length: int = 64, vocabulary: int = 30522) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocabulary, 384), nn.Parameter(torch.randn(1, length, 384))
        self.norm = nn.LayerNorm(384, 1e-12)
        self.layers = nn.Sequential(*(EncoderLayer(384, 12, 1536) for _ in range(6)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(self.norm(self.words(tokens) + self.positions)).mean(1)


@dataclass(frozen=True, slots=True)
class Net:
    """`size` is the side of its images, or the tokens of its sentences."""

    build: Callable[[], nn.Module]
    size: int
    tokens: bool = False

    def make(self, seed: int = 0) -> tuple[nn.Module, Tensor]:
        """A seeded model in eval mode with inputs for it."""
        torch.manual_seed(seed)
        model = self.build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 2.0)
        inputs = torch.randint(0, 30522, (1, self.size)) if self.tokens else torch.randn(1, 3, self.size, self.size)
        return model.eval(), inputs


NETS = {
    "resnet20": Net(lambda: ResNet(20), 32),
    "resnet56": Net(lambda: ResNet(56), 32),
    "mobilenetv2-32": Net(lambda: MobileNetV2(small=True), 32),
    "mobilenetv2-224": Net(lambda: MobileNetV2(small=False, classes=1000), 224),
    "densenet": Net(DenseNet, 32),
    "minilm": Net(MiniLM, 64, tokens=True),
}
