"""Nets from image to image (segmentation, restoration, generation), in plain torch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.architecture import Architecture, images, noise, several
from architectures.images import Residual, conv_bn


class UNet(nn.Module):
    """Ronneberger et al., MICCAI 2015, two levels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv_bn(3, width), conv_bn(width, width))
        self.down2 = nn.Sequential(conv_bn(width, 2 * width), conv_bn(2 * width, 2 * width))
        self.middle = nn.Sequential(conv_bn(2 * width, 4 * width), conv_bn(4 * width, 2 * width))
        self.up2, self.up1 = nn.ConvTranspose2d(2 * width, 2 * width, 2, 2), nn.ConvTranspose2d(width, width, 2, 2)
        self.join2 = nn.Sequential(conv_bn(4 * width, 2 * width), conv_bn(2 * width, width))
        self.join1, self.out = conv_bn(2 * width, width), nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        b = self.join2(torch.cat([b, self.up2(c)], 1))
        return self.out(self.join1(torch.cat([a, self.up1(b)], 1)))


def _volume(inputs: int, outputs: int, norm: str) -> nn.Sequential:
    normed = nn.GroupNorm(4, outputs) if norm == "group" else nn.InstanceNorm3d(outputs, affine=True)
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, 1, 1), normed, nn.LeakyReLU(0.01))


class UNet3d(nn.Module):
    """Cicek et al., MICCAI 2016; with GroupNorm, or with InstanceNorm as nnU-Net has it."""

    def __init__(self, norm: str = "group") -> None:
        super().__init__()
        self.down1 = nn.Sequential(_volume(1, 16, norm), _volume(16, 16, norm))
        self.down2 = nn.Sequential(_volume(16, 32, norm), _volume(32, 32, norm))
        self.up, self.join = nn.ConvTranspose3d(32, 16, 2, 2), _volume(32, 16, norm)
        self.out = nn.Conv3d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.up(self.down2(F.max_pool3d(a, 2)))
        return self.out(self.join(torch.cat([a, b], 1)))


class Pix2Pix(nn.Module):
    """U-shaped generator of strided convolutions (Isola et al., CVPR 2017)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.e1, self.e2, self.e3 = (
            nn.Conv2d(i, o, 4, 2, 1) for i, o in ((3, width), (width, 2 * width), (2 * width, 4 * width))
        )
        self.n2, self.n3 = nn.BatchNorm2d(2 * width), nn.BatchNorm2d(4 * width)
        self.d3, self.d2 = (
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1),
            nn.ConvTranspose2d(4 * width, width, 4, 2, 1),
        )
        self.m3, self.m2 = nn.BatchNorm2d(2 * width), nn.BatchNorm2d(width)
        self.d1 = nn.ConvTranspose2d(2 * width, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu(self.e1(x), 0.2)
        b = F.leaky_relu(self.n2(self.e2(a)), 0.2)
        c = F.relu(self.m3(self.d3(F.leaky_relu(self.n3(self.e3(b)), 0.2))))
        c = F.relu(self.m2(self.d2(torch.cat([c, b], 1))))
        return torch.tanh(self.d1(torch.cat([c, a], 1)))


def cyclegan_generator() -> nn.Module:
    """Reflection padding, instance norm, residual blocks (Zhu et al., ICCV 2017)."""

    def norm(channels: int) -> list[nn.Module]:
        return [nn.InstanceNorm2d(channels), nn.ReLU()]

    def block(c: int) -> nn.Module:
        first = (nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), *norm(c))
        return Residual(nn.Sequential(*first, nn.ReflectionPad2d(1), nn.Conv2d(c, c, 3), nn.InstanceNorm2d(c)))

    down = (nn.ReflectionPad2d(3), nn.Conv2d(3, 16, 7), *norm(16), nn.Conv2d(16, 32, 3, 2, 1), *norm(32))
    up = (nn.ConvTranspose2d(32, 16, 3, 2, 1, output_padding=1), *norm(16))
    return nn.Sequential(*down, block(32), block(32), *up, nn.ReflectionPad2d(3), nn.Conv2d(16, 3, 7), nn.Tanh())


def dcgan_generator() -> nn.Module:
    """Radford et al., ICLR 2016."""

    def up(inputs: int, outputs: int, stride: int, pad: int) -> list[nn.Module]:
        layer = nn.ConvTranspose2d(inputs, outputs, 4, stride, pad, bias=False)
        return [layer, nn.BatchNorm2d(outputs), nn.ReLU()]

    last = nn.ConvTranspose2d(16, 3, 4, 2, 1, bias=False)
    return nn.Sequential(*up(32, 64, 1, 0), *up(64, 32, 2, 1), *up(32, 16, 2, 1), last, nn.Tanh())


def dcgan_discriminator() -> nn.Module:
    def down(inputs: int, outputs: int) -> list[nn.Module]:
        layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False))
        return [layer, nn.LeakyReLU(0.2)]

    return nn.Sequential(*down(3, 16), *down(16, 32), *down(32, 64), nn.Conv2d(64, 1, 4), nn.Flatten(), nn.Sigmoid())


def espcn() -> nn.Module:
    """Shi et al., CVPR 2016."""
    layers = (nn.Conv2d(1, 32, 5, 1, 2), nn.Tanh(), nn.Conv2d(32, 16, 3, 1, 1), nn.Tanh(), nn.Conv2d(16, 9, 3, 1, 1))
    return nn.Sequential(*layers, nn.PixelShuffle(3))


def fsrcnn() -> nn.Module:
    """Dong et al., ECCV 2016."""
    first = (nn.Conv2d(1, 56, 5, padding=2), nn.PReLU(56), nn.Conv2d(56, 12, 1), nn.PReLU(12))
    middle = [layer for _ in range(4) for layer in (nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12))]
    last = (nn.Conv2d(12, 56, 1), nn.PReLU(56), nn.ConvTranspose2d(56, 1, 9, 3, 4, output_padding=2))
    return nn.Sequential(*first, *middle, *last)


class ChannelAttentionBlock(nn.Module):
    """Residual block with channel attention (Zhang et al., RCAN, ECCV 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1)
        )
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))


class SuperResolution(nn.Module):
    """Head, blocks with a long skip, pixel shuffle (Lim et al., EDSR, CVPRW 2017)."""

    def __init__(self, *blocks: nn.Module, width: int = 32) -> None:
        super().__init__()
        self.head, self.body = nn.Conv2d(3, width, 3, 1, 1), nn.Sequential(*blocks, nn.Conv2d(width, width, 3, 1, 1))
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, 1, 1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(x + self.body(x))


def edsr() -> nn.Module:
    def block() -> nn.Module:
        return Residual(nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1)))

    return SuperResolution(block(), block())


class DnCNN(nn.Module):
    """Predicts the noise and takes it away (Zhang et al., TIP 2017)."""

    def __init__(self) -> None:
        super().__init__()
        first = (nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU())
        self.noise = nn.Sequential(*first, conv_bn(32, 32), conv_bn(32, 32), nn.Conv2d(32, 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.noise(x)


def fast_style() -> nn.Module:
    """Johnson et al., ECCV 2016, upsampling by resizing."""
    first = (nn.Conv2d(3, 16, 9, 1, 4), nn.InstanceNorm2d(16, affine=True), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1))
    block = Residual(nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.InstanceNorm2d(32, affine=True), nn.ReLU(),
                                   nn.Conv2d(32, 32, 3, 1, 1)))  # fmt: skip
    up = (nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(32, 16, 3, 1, 1), nn.InstanceNorm2d(16, affine=True))
    return nn.Sequential(*first, block, *up, nn.ReLU(), nn.Conv2d(16, 3, 9, 1, 4))


class ConvAutoencoder(nn.Module):
    """The mean path of a convolutional variational autoencoder (Kingma and Welling, ICLR 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(conv_bn(3, 16, 3, 2), conv_bn(16, 32, 3, 2), nn.Flatten(), nn.Linear(2048, 64))
        self.decode = nn.Linear(32, 2048)
        self.up = nn.Sequential(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(x).chunk(2, 1)
        return torch.sigmoid(self.up(F.relu(self.decode(mean)).view(-1, 32, 8, 8))), mean, log_variance


class TimedBlock(nn.Module):
    """Residual block of a denoiser: GroupNorm, SiLU, and the time step's embedding added in between."""

    def __init__(self, inputs: int, outputs: int, embedded: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.time = nn.Linear(embedded, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(y)))


class SpatialAttention(nn.Module):
    """Self-attention over the positions of a map (the same)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv = nn.GroupNorm(8, channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, 3, channels, height * width).unbind(1)
        weights = torch.softmax(q.transpose(1, 2) @ k * channels**-0.5, -1)
        return x + self.out((v @ weights.transpose(1, 2)).view(batch, channels, height, width))


class DiffusionUNet(nn.Module):
    """Denoiser with sinusoidal time embedding (Ho et al., NeurIPS 2020)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.stem, self.down1 = nn.Conv2d(3, width, 3, 1, 1), TimedBlock(width, width, 4 * width)
        self.shrink, self.down2 = nn.Conv2d(width, width, 3, 2, 1), TimedBlock(width, 2 * width, 4 * width)
        self.attention, self.grow = SpatialAttention(2 * width), nn.Conv2d(2 * width, 2 * width, 3, 1, 1)
        self.up, self.norm = TimedBlock(3 * width, width, 4 * width), nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        half = self.width // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half) / half)
        angles = step[:, None].float() * frequencies[None]
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        a = self.down1(self.stem(x), time)
        b = self.attention(self.down2(self.shrink(a), time))
        b = self.grow(F.interpolate(b, scale_factor=2, mode="nearest"))
        return self.out(F.silu(self.norm(self.up(torch.cat([a, b], 1), time))))


class FoldedPatches(nn.Module):
    """Patches taken apart by unfold, denoised by an MLP, and put back by fold."""

    def __init__(self, size: int = 32, patch: int = 4) -> None:
        super().__init__()
        self.size, self.patch = size, patch
        self.mlp = nn.Sequential(nn.Linear(3 * patch**2, 64), nn.GELU(), nn.Linear(64, 3 * patch**2))

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)
        return F.fold(self.mlp(patches).transpose(1, 2), (self.size, self.size), self.patch, stride=self.patch)


def _steps(batch: int) -> tuple[Tensor]:
    """Time steps among 1000, as a denoiser is called."""
    return (torch.randint(0, 1000, (batch,)),)


NETS = {
    "unet2d": Architecture(UNet, images()),
    "unet3d_groupnorm": Architecture(UNet3d, noise(1, 8, 8, 8)),
    "unet3d_instancenorm": Architecture(lambda: UNet3d("instance"), noise(1, 8, 8, 8)),
    "pix2pix": Architecture(Pix2Pix, images()),
    "cyclegan_generator": Architecture(cyclegan_generator, images()),
    "dcgan_generator": Architecture(dcgan_generator, noise(32, 1, 1)),
    "dcgan_discriminator_spectral": Architecture(dcgan_discriminator, images()),
    "espcn": Architecture(espcn, images(16, 1)),
    "fsrcnn": Architecture(fsrcnn, images(16, 1)),
    "edsr": Architecture(edsr, images(16)),
    "rcan": Architecture(lambda: SuperResolution(ChannelAttentionBlock(32), ChannelAttentionBlock(32)), images(16)),
    "dncnn": Architecture(DnCNN, images(32, 1)),
    "fast_style": Architecture(fast_style, images()),
    "conv_vae": Architecture(ConvAutoencoder, images()),
    "diffusion_unet": Architecture(DiffusionUNet, several(images(16), _steps)),
    "folded_patches": Architecture(FoldedPatches, images(), "other"),
}
