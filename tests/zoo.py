"""Small models that between them use every operator the table promises to understand."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OptionABlock(nn.Module):
    """A CIFAR basic block whose shortcut pads channels with zeros (He et al. 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pads = outputs // 4 if stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.pads is not None:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pads, self.pads))
        return F.relu(x + y)


class OptionAResNet(nn.Module):
    """The CIFAR ResNet of depth 6n+2; `width` channels in stage 1, doubled per stage."""

    def __init__(self, n: int = 1, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage in range(3):
            outputs = width * 2**stage
            blocks = []
            for i in range(n):
                blocks.append(OptionABlock(inputs, outputs, 2 if stage and i == 0 else 1))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.shape[3])
        return self.linear(x.view(x.shape[0], -1))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 4, 1)
        self.excite = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))


class MobileNet(nn.Module):
    """Inverted residual with a depthwise convolution, squeeze-and-excite, and a flatten into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.expand = nn.Conv2d(16, 48, 1)
        self.depthwise = nn.Conv2d(48, 48, 3, 1, 1, groups=48)
        self.norm = nn.BatchNorm2d(48)
        self.se = SqueezeExcite(48)
        self.project = nn.Conv2d(48, 16, 1)
        self.head = nn.Linear(16 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        y = self.project(self.se(F.hardswish(self.norm(self.depthwise(F.silu(self.expand(x)))))))
        return self.head(F.max_pool2d(x + y, 2).flatten(1))


class ShuffleNet(nn.Module):
    """Grouped 1x1 convolutions around a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.first = nn.Conv2d(16, 32, 1, groups=4)
        self.shuffle = nn.ChannelShuffle(4)
        self.depthwise = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.second = nn.Conv2d(32, 16, 1, groups=4)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.second(self.depthwise(self.shuffle(F.relu(self.first(x)))))
        return self.head(x.mean((2, 3)))


class DenseDecoder(nn.Module):
    """Concatenation, chunk, transposed convolution and group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.a = nn.Conv2d(8, 12, 3, 1, 1)
        self.b = nn.Conv2d(20, 12, 3, 1, 1)
        self.up = nn.ConvTranspose2d(32, 8, 2, 2)
        self.norm = nn.GroupNorm(2, 4)
        self.out = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(x)
        z = self.b(torch.cat([x, y], 1))
        gate, value = self.up(F.avg_pool2d(torch.cat([x, y, z], 1), 2)).chunk(2, 1)
        return self.out(self.norm(torch.sigmoid(gate) * value)).mean((2, 3))


class Transformer(nn.Module):
    """Embedding, learnt positions, hand-written attention, an MLP branch, and PyTorch's own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.positions = nn.Parameter(torch.randn(1, 7, 32))
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.merge = nn.Linear(32, 32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions
        batch, length = x.shape[:2]
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        attention = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
        x = x + self.merge(attention.transpose(1, 2).reshape(batch, length, 32))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(self.encoder(x).mean(1))


IMAGES = torch.Size((2, 3, 8, 8))
MODELS: dict[str, type[nn.Module]] = {
    "resnet": OptionAResNet,
    "mobilenet": MobileNet,
    "shufflenet": ShuffleNet,
    "dense": DenseDecoder,
    "transformer": Transformer,
}


def make(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A seeded model in eval mode with running statistics that are not the initial ones, and inputs for it."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    inputs = torch.randint(0, 50, (2, 7)) if name == "transformer" else torch.randn(IMAGES)
    return model.eval(), inputs
