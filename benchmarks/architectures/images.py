"""Convolutional nets that classify or embed images and clips, in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.architecture import Architecture, images, noise, several


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layers = (
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )
    return nn.Sequential(*layers, nn.ReLU())


class SqueezeExcite(nn.Module):
    """Hu et al., CVPR 2018."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(channels, channels // 4), nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class EfficientChannelAttention(nn.Module):
    """A convolution along the channels (Wang et al., ECA-Net, CVPR 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
        return x * torch.sigmoid(self.conv(pooled).transpose(-1, -2).unsqueeze(-1))


class ConvolutionalAttention(nn.Module):
    """Channel attention from mean and maximum, then a one-channel spatial map (Woo et al., CBAM, ECCV 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // 4, 1), nn.ReLU(), nn.Conv2d(channels // 4, channels, 1)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(gate)
        maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return x * torch.sigmoid(self.spatial(maps))


class ResidualBlock(nn.Module):
    """A basic block; `attention` acts on the branch, `padded` takes option A of He et al. for its shortcut."""

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, attention: type[nn.Module] = nn.Identity, padded: bool = False
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.attention = attention() if attention is nn.Identity else attention(outputs)
        self.stride, self.grown = stride, outputs - inputs
        self.project = nn.Conv2d(inputs, outputs, 1, stride) if self.grown and not padded else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        if self.project is not None:
            x = self.project(x)
        elif self.grown:
            half = self.grown // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(x + y)


class ResNet(nn.Module):
    """Three stages of basic blocks (He et al., CVPR 2016, section 4.2)."""

    def __init__(
        self, depth: int = 1, width: int = 16, attention: type[nn.Module] = nn.Identity, padded: bool = False
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inputs = width
        for stage in range(3):
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                blocks.append(ResidualBlock(inputs, width << stage, stride, attention, padded))
                inputs = width << stage
        self.stem, self.blocks = conv_bn(3, width), nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class GroupNormBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.GroupNorm(8, channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def resnet_groupnorm() -> nn.Module:
    """Wu and He, Group Normalization, ECCV 2018."""
    down = nn.Sequential(nn.Conv2d(32, 64, 3, 2, 1), nn.GroupNorm(8, 64), nn.ReLU())
    body = (nn.Conv2d(3, 32, 3, 1, 1), GroupNormBlock(32), down, GroupNormBlock(64))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Highway(nn.Module):
    """y = gate * H(x) + (1 - gate) * x (Srivastava et al., 2015)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.transform, self.gate = nn.Conv2d(channels, channels, 3, 1, 1), nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * F.relu(self.transform(x)) + (1 - gate) * x


def highway() -> nn.Module:
    body = (conv_bn(3, 32), Highway(32), nn.MaxPool2d(2), Highway(32))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


class Capsules(nn.Module):
    """Primary capsules squashed and routed once (Sabour et al., NeurIPS 2017, with a single iteration)."""

    def __init__(self, capsules: int = 8, size: int = 8, classes: int = 10, out: int = 16) -> None:
        super().__init__()
        self.shape = (capsules, size)
        self.stem, self.primary = conv_bn(3, 32, 3, 2), nn.Conv2d(32, capsules * size, 3, 2, 1)
        self.votes = nn.Parameter(torch.randn(capsules, classes, size, out) * size**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        poses = self.primary(self.stem(x)).mean((2, 3)).view(x.shape[0], *self.shape)
        squared = (poses**2).sum(-1, keepdim=True)
        poses = poses * squared / (1 + squared) / torch.sqrt(squared + 1e-6)
        routed = torch.einsum("bcs,cnso->bno", poses, self.votes)
        return torch.linalg.vector_norm(routed, dim=-1)


def conv_mixer() -> nn.Module:
    """Trockman and Kolter, Patches Are All You Need?, 2022."""

    def block(width: int) -> nn.Module:
        depthwise = nn.Sequential(nn.Conv2d(width, width, 5, 1, 2, groups=width), nn.GELU(), nn.BatchNorm2d(width))
        return nn.Sequential(Residual(depthwise), nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

    body = (nn.Conv2d(3, 48, 4, 4), nn.GELU(), nn.BatchNorm2d(48), block(48), block(48))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


class Residual(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class FaceBottleneck(nn.Module):
    """Inverted residual with PReLU (Chen et al., MobileFaceNets, 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = 2 * inputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.PReLU(hidden),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.PReLU(hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class FaceNet(nn.Module):
    """A normalised embedding behind a global depthwise convolution (the same)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.PReLU(32))
        self.body = nn.Sequential(FaceBottleneck(32, 32, 1), FaceBottleneck(32, 64, 2), FaceBottleneck(64, 64, 1))
        self.pool = nn.Sequential(nn.Conv2d(64, 64, 8, groups=64, bias=False), nn.BatchNorm2d(64))
        self.embed = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.embed(self.pool(self.body(self.stem(x))).flatten(1)))


class Siamese(nn.Module):
    """One backbone over two images, their distance (Bromley et al., 1993)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv_bn(3, 32), nn.MaxPool2d(2), conv_bn(32, 64), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(64, 16)

    def embed(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).flatten(1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.embed(x) - self.embed(y)).abs().sum(1)


class Trident(nn.Module):
    """One weight at three dilations (Li et al., TridentNet, ICCV 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = conv_bn(3, 16), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branches = [F.conv2d(x, self.conv.weight, self.conv.bias, padding=d, dilation=d) for d in (1, 2, 3)]
        return self.head(sum(F.relu(self.norm(y)) for y in branches).mean((2, 3)))


class CoordConv(nn.Module):
    """Coordinates made in forward, beside the image (Liu et al., NeurIPS 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(5, 32), nn.MaxPool2d(2), conv_bn(32, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        grid = torch.stack([ys, xs]).expand(batch, 2, height, width)
        return self.head(self.body(torch.cat([x, grid], 1)).mean((2, 3)))


def c3d() -> nn.Module:
    """Tran et al., ICCV 2015."""
    body = (nn.Conv3d(3, 16, 3, 1, 1), nn.ReLU(), nn.MaxPool3d((1, 2, 2)), nn.Conv3d(16, 32, 3, 1, 1), nn.ReLU(),
            nn.MaxPool3d(2), nn.Conv3d(32, 64, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool3d(1))  # fmt: skip
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(64, 10))


class TemporalSegments(nn.Module):
    """Frames folded into the batch, their predictions averaged (Wang et al., TSN, ECCV 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Sequential(conv_bn(3, 16), nn.MaxPool2d(2), conv_bn(16, 32), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames = x.shape[:2]
        y = self.head(self.frames(x.flatten(0, 1)).flatten(1))
        return y.view(batch, frames, -1).mean(1)


class SpatialTransformer(nn.Module):
    """A predicted affine map resamples the image (Jaderberg et al., NeurIPS 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.localise = nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 16, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.theta = nn.Linear(16, 6)
        self.body, self.head = nn.Sequential(conv_bn(3, 32), nn.MaxPool2d(2), conv_bn(32, 32)), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        theta = 0.1 * self.theta(self.localise(x)).view(-1, 2, 3) + torch.eye(2, 3)
        x = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)
        return self.head(self.body(x).mean((2, 3)))


def lenet() -> nn.Module:
    """LeCun et al., 1998."""
    body = (nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2))
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Linear(84, 10))


def network_in_network() -> nn.Module:
    """Lin et al., ICLR 2014, with local response normalisation behind its stem."""
    body = (nn.Conv2d(3, 32, 5, 1, 2), nn.ReLU(), nn.LocalResponseNorm(5), nn.Conv2d(32, 32, 1), nn.ReLU(),
            nn.MaxPool2d(3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 10, 1))  # fmt: skip
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def selu_net() -> nn.Module:
    """Self-normalising: no norms, SELU (Klambauer et al., NeurIPS 2017), and non-factor adaptive pooling."""
    body = (nn.Conv2d(3, 24, 3, 1, 1), nn.SELU(), nn.MaxPool2d(2), nn.Conv2d(24, 48, 3, 1, 1), nn.SELU())
    return nn.Sequential(
        *body, nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Linear(1200, 32), nn.SELU(), nn.Linear(32, 10)
    )


NETS = {
    "lenet": Architecture(lenet, images(32, 1)),
    "resnet20_option_a": Architecture(lambda: ResNet(3, padded=True), images()),
    "resnet_projection": Architecture(lambda: ResNet(2), images()),
    "resnet_se": Architecture(lambda: ResNet(attention=SqueezeExcite), images()),
    "resnet_cbam": Architecture(lambda: ResNet(attention=ConvolutionalAttention), images()),
    "resnet_eca": Architecture(lambda: ResNet(attention=EfficientChannelAttention), images()),
    "resnet_groupnorm": Architecture(resnet_groupnorm, images()),
    "highway": Architecture(highway, images()),
    "capsules": Architecture(Capsules, images()),
    "conv_mixer": Architecture(conv_mixer, images()),
    "mobilefacenet": Architecture(FaceNet, images()),
    "siamese": Architecture(Siamese, several(images(), images())),
    "trident": Architecture(Trident, images()),
    "coordconv": Architecture(CoordConv, images()),
    "c3d": Architecture(c3d, noise(3, 8, 16, 16)),
    "tsn": Architecture(TemporalSegments, noise(4, 3, 16, 16)),
    "spatial_transformer": Architecture(SpatialTransformer, images()),
    "network_in_network": Architecture(network_in_network, images()),
    "selu_net": Architecture(selu_net, images()),
}
