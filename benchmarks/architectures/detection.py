"""Detectors and nets with several heads, in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.architecture import Architecture, images
from architectures.images import ResidualBlock, conv_bn


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


class Bottleneck(nn.Module):
    def __init__(self, channels: int, first: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv(channels, channels, first), conv(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class Split(nn.Module):
    """YOLOv8's block: chunks, a running list of bottlenecks' outputs, one concatenation."""

    def __init__(self, inputs: int, outputs: int, count: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2 = conv(inputs, outputs), conv((2 + count) * half, outputs)
        self.inner = nn.ModuleList(Bottleneck(half, 3) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        for block in self.inner:
            parts.append(block(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


class CrossStage(nn.Module):
    """YOLOv5's block: two paths side by side, bottlenecks in one."""

    def __init__(self, inputs: int, outputs: int, count: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2, self.cv3 = conv(inputs, half), conv(inputs, half), conv(outputs, outputs)
        self.inner = nn.Sequential(*(Bottleneck(half, 1) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat([self.inner(self.cv1(x)), self.cv2(x)], 1))


class PyramidPool(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv(channels, channels // 2), conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(F.max_pool2d(parts[-1], 5, 1, 2))
        return self.cv2(torch.cat(parts, 1))


class Backbone(nn.Module):
    """Stem, three stages, and a neck down and up again (Liu et al., PANet, CVPR 2018) over the last two."""

    def __init__(self, block: type[nn.Module], width: int = 16) -> None:
        super().__init__()
        w = width
        self.stem, self.stage1 = conv(3, w, 3, 2), nn.Sequential(conv(w, 2 * w, 3, 2), block(2 * w, 2 * w))
        self.stage2 = nn.Sequential(conv(2 * w, 4 * w, 3, 2), block(4 * w, 4 * w, 2))
        self.stage3 = nn.Sequential(conv(4 * w, 4 * w, 3, 2), block(4 * w, 4 * w), PyramidPool(4 * w))
        self.up, self.lateral = block(8 * w, 4 * w), conv(4 * w, 4 * w, 3, 2)
        self.down = block(8 * w, 4 * w)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stage2(self.stage1(self.stem(x)))
        coarse = self.stage3(fine)
        near = self.up(torch.cat([F.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine], 1))
        return near, self.down(torch.cat([self.lateral(near), coarse], 1))


def _grid(x: Tensor) -> Tensor:
    """Cell indices (x, y) of a map, made in forward."""
    ys, xs = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
    return torch.stack([xs, ys]).float()


class AnchorHead(nn.Module):
    """Boxes from anchors, decoded (YOLOv5)."""

    def __init__(self, channels: int, classes: int, stride: int) -> None:
        super().__init__()
        self.outputs, self.stride = classes + 5, stride
        self.conv = nn.Conv2d(channels, 3 * self.outputs, 1)
        self.register_buffer("anchors", torch.tensor([[10.0, 13.0], [16.0, 30.0], [33.0, 23.0]]))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        y = self.conv(x).view(batch, 3, self.outputs, height, width).permute(0, 1, 3, 4, 2).sigmoid()
        grid = _grid(x).permute(1, 2, 0)
        places = (y[..., :2] * 2 - 0.5 + grid) * self.stride
        sizes = (y[..., 2:4] * 2) ** 2 * self.anchors[:, None, None]
        return torch.cat([places, sizes, y[..., 4:]], -1).reshape(batch, -1, self.outputs)


class DistributionHead(nn.Module):
    """Distances to the four sides as distributions, no anchors (YOLOv8)."""

    def __init__(self, channels: int, classes: int, stride: int, bins: int = 8) -> None:
        super().__init__()
        self.bins, self.stride = bins, stride
        self.box = nn.Sequential(conv(channels, 32, 3), nn.Conv2d(32, 4 * bins, 1))
        self.scores = nn.Sequential(conv(channels, 32, 3), nn.Conv2d(32, classes, 1))
        self.register_buffer("steps", torch.arange(bins).float())

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        shares = self.box(x).view(batch, 4, self.bins, -1).softmax(2)
        sides = (shares * self.steps[:, None]).sum(2)
        centres = _grid(x).flatten(1) + 0.5
        low, high = centres - sides[:, :2], centres + sides[:, 2:]
        boxes = torch.cat([(low + high) / 2, high - low], 1) * self.stride
        return torch.cat([boxes, self.scores(x).flatten(2).sigmoid()], 1)


class YoloV5(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.backbone = Backbone(CrossStage)
        self.near, self.far = AnchorHead(64, classes, 8), AnchorHead(64, classes, 16)

    def forward(self, x: Tensor) -> Tensor:
        near, far = self.backbone(x)
        return torch.cat([self.near(near), self.far(far)], 1)


class YoloV8(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.backbone = Backbone(Split)
        self.near, self.far = DistributionHead(64, classes, 8), DistributionHead(64, classes, 16)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        near, far = self.backbone(x)
        return torch.cat([self.near(near), self.far(far)], 2)


class YoloV3Tiny(nn.Module):
    """Max pooling, leaky ReLU, two raw maps (Redmon and Farhadi, 2018)."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
            layer = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, bias=False)
            return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1))

        pool = nn.MaxPool2d(2)
        self.first = nn.Sequential(block(3, 16), pool, block(16, 32), pool, block(32, 64))
        self.second = nn.Sequential(nn.MaxPool2d(2), block(64, 96), nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1))
        self.neck, self.up = block(96, 64, 1), block(64, 32, 1)
        self.far = nn.Sequential(block(64, 96), nn.Conv2d(96, 3 * (classes + 5), 1))
        self.near = nn.Sequential(block(96, 64), nn.Conv2d(64, 3 * (classes + 5), 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.first(x)
        coarse = self.neck(self.second(fine))
        up = F.interpolate(self.up(coarse), scale_factor=2.0)
        return [self.far(coarse), self.near(torch.cat([up, fine], 1))]


class Pyramid(nn.Module):
    """Three levels with lateral connections (Lin et al., FPN, CVPR 2017)."""

    def __init__(self, width: int = 16, channels: int = 32) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, 3, 2)
        self.stages = nn.ModuleList(ResidualBlock(width << i, width << i + 1, 2) for i in range(3))
        self.laterals = nn.ModuleList(nn.Conv2d(width << i + 1, channels, 1) for i in range(3))
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        levels = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            x = stage(x)
            levels.append(lateral(x))
        for i in (1, 0):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], size=levels[i].shape[-2:], mode="nearest")
        return [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]


class RetinaNet(nn.Module):
    """One head, its convolutions shared by all levels (Lin et al., ICCV 2017); scores and boxes as a dict."""

    def __init__(self, channels: int = 32, anchors: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.classes, self.pyramid = classes, Pyramid(channels=channels)
        self.scores, self.boxes = (
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU(), nn.Conv2d(channels, anchors * outputs, 3, 1, 1)
            )
            for outputs in (classes, 4)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        levels = self.pyramid(x)
        return {
            "scores": torch.cat([self._rows(self.scores(level), self.classes) for level in levels], 1),
            "boxes": torch.cat([self._rows(self.boxes(level), 4) for level in levels], 1),
        }

    @staticmethod
    def _rows(x: Tensor, size: int) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, size)


class CenterNet(nn.Module):
    """Heat map, size and offset of objects' centres, local maxima kept (Zhou et al., 2019)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 16, 3, 2), conv_bn(16, width, 3, 2), ResidualBlock(width, 2 * width, 2))
        self.up = nn.Sequential(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.heat, self.size, self.offset = (
            nn.Sequential(nn.Conv2d(width, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, n, 1)) for n in (4, 2, 2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.up(self.body(x))
        heat = torch.sigmoid(self.heat(x))
        peaks = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
        return peaks, self.size(x), self.offset(x)


class SsdLite(nn.Module):
    """Depthwise heads over two maps, an L2 norm with a learnt scale on the first (Liu et al., ECCV 2016)."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(conv_bn(3, 16, 3, 2), conv_bn(16, 32, 3, 2)), conv_bn(32, 64, 3, 2)
        self.scale = nn.Parameter(torch.full((1, 32, 1, 1), 20.0))
        self.heads = nn.ModuleList(
            nn.Sequential(conv_bn(c, c, 3, 1, c), nn.Conv2d(c, 3 * (classes + 4), 1)) for c in (32, 64)
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        maps = (F.normalize(a) * self.scale, self.second(a))
        return torch.cat([head(m).permute(0, 2, 3, 1).flatten(1) for head, m in zip(self.heads, maps, strict=True)], 1)


class MultiTask(nn.Module):
    """One trunk, three heads of different kinds in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv_bn(3, 32), nn.MaxPool2d(2), conv_bn(32, 64), conv_bn(64, 64))
        self.label, self.angle, self.mask = nn.Linear(64, 10), nn.Linear(64, 2), nn.Conv2d(64, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.trunk(x)
        pooled = x.mean((2, 3))
        mask = F.interpolate(self.mask(x), scale_factor=2.0, mode="bilinear")
        return {"label": self.label(pooled), "angle": F.normalize(self.angle(pooled)), "mask": torch.sigmoid(mask)}


NETS = {
    "yolo_v3_tiny": Architecture(YoloV3Tiny, images(), "yolo"),
    "yolo_v5": Architecture(YoloV5, images(64), "yolo"),
    "yolo_v8": Architecture(YoloV8, images(64), "yolo"),
    "retinanet": Architecture(RetinaNet, images()),
    "centernet": Architecture(CenterNet, images()),
    "ssd_lite": Architecture(SsdLite, images()),
    "multitask_dict": Architecture(MultiTask, images()),
}
