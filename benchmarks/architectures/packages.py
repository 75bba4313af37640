"""Architectures of timm, torchvision and segmentation_models_pytorch: their own code, fewer blocks, small inputs."""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import nn

from architectures.architecture import Architecture, Inputs, images, noise

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@cache
def _torchvision_operators() -> Any:
    """torchvision asks at import for operators that its wheel, beside a CPU build of torch, does not bring."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def package(name: str) -> Any:
    """A module of a package; raises ImportError where it is missing."""
    try:
        return import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    _torchvision_operators()
    return import_module(name)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        package("torchvision")
        return package("timm").create_model(name, pretrained=False, num_classes=10, **options)

    return build


def _torchvision(name: str, part: str = "models", **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(package(f"torchvision.{part}"), name)(**options)


def _smp(name: str, encoder: str = "resnet18", **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        package("torchvision")
        smp = package("segmentation_models_pytorch")
        return getattr(smp, name)(encoder, encoder_weights=None, classes=3, **options)

    return build


def _resnet(block: str, layers: list[int], **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = package("torchvision.models.resnet")
        return module.ResNet(getattr(module, block), layers, num_classes=10, **options)

    return build


def _classifier(inputs: int) -> nn.Sequential:
    """Two linear layers, narrower than the published ones, which would be most of the net."""
    return nn.Sequential(nn.Dropout(), nn.Linear(inputs, 128), nn.ReLU(inplace=True), nn.Linear(128, 10))


def _vgg() -> nn.Module:
    module = package("torchvision.models.vgg")
    model = module.vgg11_bn(num_classes=10, init_weights=False)
    model.features = module.make_layers([32, "M", 64, "M", 64, 64, "M"], batch_norm=True)
    model.classifier = _classifier(64 * 7 * 7)
    return model


def _alexnet() -> nn.Module:
    model = package("torchvision.models").alexnet()
    model.classifier = _classifier(256 * 6 * 6)
    return model


def _densenet() -> nn.Module:
    return package("torchvision.models.densenet").DenseNet(8, (2, 2, 2), 16, num_classes=10)


def _inverted(name: str, settings: list[list[int]]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = package("torchvision.models.mobilenetv2")
        return getattr(module, name)(num_classes=10, inverted_residual_setting=settings)

    return build


def _efficientnet() -> nn.Module:
    module = package("torchvision.models.efficientnet")
    rows = ((1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 1))
    settings = [module.MBConvConfig(*row, 1.0, 1.0) for row in rows]
    return module.EfficientNet(settings, 0.2, num_classes=10, last_channel=128)


def _swin(version: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = package("torchvision.models.swin_transformer")
        extra = {} if version == 1 else {
            "block": module.SwinTransformerBlockV2, "downsample_layer": module.PatchMergingV2
        }  # fmt: skip
        return module.SwinTransformer([2, 2], 24, [2, 2], [2, 4], [4, 4], num_classes=10, **extra)

    return build


def _maxvit() -> nn.Module:
    make = package("torchvision.models.maxvit").MaxVit
    return make((64, 64), 16, 4, [16, 32], [1, 1], 16, 0.1, num_classes=10)


def _vit() -> nn.Module:
    return package("torchvision.models.vision_transformer").VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)


def _convnext() -> nn.Module:
    module = package("torchvision.models.convnext")
    rows = ((24, 48, 1), (48, 96, 1), (96, None, 1))
    return module.ConvNeXt([module.CNBlockConfig(*row) for row in rows], num_classes=10)


def _squeezed_video(name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(package("torchvision.models.video"), name)(num_classes=10)


_TIMM: dict[str, tuple[str, Inputs, str, dict[str, Any]]] = {
    "vit_tiny": ("vit_tiny_patch16_224", images(64), "attention", {"img_size": 64, "depth": 2}),
    "vit_registers": ("vit_small_patch16_dinov3", images(64), "attention",
                      {"img_size": 64, "depth": 2, "embed_dim": 96, "num_heads": 4}),
    "deit_distilled": ("deit_tiny_distilled_patch16_224", images(64), "attention", {"img_size": 64, "depth": 2}),
    "swin": ("swin_tiny_patch4_window7_224", images(64), "attention",
             {"img_size": 64, "window_size": 4, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 32}),
    "swinv2": ("swinv2_tiny_window8_256", images(64), "attention",
               {"img_size": 64, "window_size": 4, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 32}),
    "coat_lite": ("coat_lite_tiny", images(64), "attention", {"img_size": 64}),
    "levit_128s": ("levit_128s", images(64), "attention", {"img_size": 64}),
    "efficientvit_b0": ("efficientvit_b0", images(64), "attention", {}),
    "efficientvit_m0": ("efficientvit_m0", images(224), "attention", {}),
    "mobilevit_xxs": ("mobilevit_xxs", images(64), "attention", {}),
    "mobilevitv2_050": ("mobilevitv2_050", images(64), "attention", {}),
    "edgenext_xx": ("edgenext_xx_small", images(64), "attention", {}),
    "pvt_v2_b0": ("pvt_v2_b0", images(64), "attention", {}),
    "xcit": ("xcit_nano_12_p16_224", images(64), "attention", {"depth": 2}),
    "cait": ("cait_xxs24_224", images(64), "attention", {"img_size": 64, "depth": 2}),
    "beit": ("beit_base_patch16_224", images(64), "attention",
             {"img_size": 64, "depth": 2, "embed_dim": 64, "num_heads": 4}),
    "poolformer": ("poolformer_s12", images(64), "attention", {}),
    "maxxvit_coatnet": ("coatnet_nano_rw_224", images(64), "attention", {"img_size": 64}),
    "convnext_atto": ("convnext_atto", images(64), "conv", {"depths": (1, 1, 2, 1)}),
    "convnextv2_atto": ("convnextv2_atto", images(64), "conv", {"depths": (1, 1, 1, 1)}),
    "regnetx_002": ("regnetx_002", images(64), "conv", {}),
    "regnety_002": ("regnety_002", images(64), "conv", {}),
    "mobilenetv1": ("mobilenetv1_100", images(64), "conv", {}),
    "mobilenetv4_small": ("mobilenetv4_conv_small_035", images(64), "conv", {}),
    "mobilenetv4_hybrid": ("mobilenetv4_hybrid_medium_075", images(64), "conv", {}),
    "efficientnet_lite0": ("efficientnet_lite0", images(64), "conv", {}),
    "ghostnet_050": ("ghostnet_050", images(64), "conv", {}),
    "res2net": ("res2net50_26w_4s", images(64), "conv", {"layers": (1, 1, 1, 1)}),
    "resnest": ("resnest14d", images(64), "conv", {}),
    "sknet": ("skresnet18", images(64), "conv", {"layers": (1, 1, 1, 1)}),
    "ecaresnet": ("ecaresnet26t", images(64), "conv", {"layers": (1, 1, 1, 1)}),
    "hrnet_w18_small": ("hrnet_w18_small", images(64), "conv", {}),
    "repvgg_a0": ("repvgg_a0", images(64), "conv", {}),
    "repvit_m0_9": ("repvit_m0_9", images(64), "conv", {}),
    "mobileone_s0": ("mobileone_s0", images(64), "conv", {}),
    "dpn48b": ("dpn48b", images(64), "conv", {}),
    "nf_regnet_b0": ("nf_regnet_b0", images(64), "conv", {}),
    "cspresnet": ("cspresnet50", images(64), "conv", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", images(64), "conv", {}),
    "dla34": ("dla34", images(64), "conv", {}),
    "xception": ("xception41", images(64), "conv", {}),
    "inception_v4": ("inception_v4", images(128), "conv", {}),
    "starnet_s050": ("starnet_s050", images(64), "conv", {}),
    "fastvit_t8": ("fastvit_t8", images(64), "conv", {}),
    "tinynet_e": ("tinynet_e", images(64), "conv", {}),
    "hardcorenas_a": ("hardcorenas_a", images(64), "conv", {}),
    "tresnet": ("tresnet_m", images(64), "conv", {}),
    "gernet_s": ("gernet_s", images(64), "conv", {}),
}  # fmt: skip
_WIDE = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]
_TORCHVISION: dict[str, tuple[Callable[[], nn.Module], Inputs, str]] = {
    "alexnet": (_alexnet, images(64), "conv"),
    "vgg_bn": (_vgg, images(32), "conv"),
    "resnet18": (_torchvision("resnet18", num_classes=10), images(64), "conv"),
    "resnet_bottleneck": (_resnet("Bottleneck", [1, 2, 1, 1]), images(64), "conv"),
    "resnext": (_resnet("Bottleneck", [1, 1, 1, 1], groups=32, width_per_group=4), images(64), "conv"),
    "wide_resnet": (_resnet("Bottleneck", [1, 1, 1, 1], width_per_group=96), images(64), "conv"),
    "squeezenet": (_torchvision("squeezenet1_1", num_classes=10), images(64), "conv"),
    "densenet": (_densenet, images(64), "conv"),
    "googlenet": (_torchvision("googlenet", num_classes=10, aux_logits=False, init_weights=False), images(64), "conv"),
    "inception_v3": (_torchvision("inception_v3", num_classes=10, aux_logits=False, init_weights=False), images(96),
                     "conv"),
    "mobilenet_v2": (_inverted("MobileNetV2", _WIDE), images(64), "conv"),
    "mobilenet_v3_small": (_torchvision("mobilenet_v3_small", num_classes=10), images(64), "conv"),
    "mnasnet": (_torchvision("mnasnet0_5", num_classes=10), images(64), "conv"),
    "shufflenet_v2": (_torchvision("shufflenet_v2_x0_5", num_classes=10), images(64), "conv"),
    "efficientnet": (_efficientnet, images(64), "conv"),
    "convnext": (_convnext, images(64), "conv"),
    "vit": (_vit, images(32), "attention"),
    "swin": (_swin(1), images(64), "attention"),
    "swin_v2": (_swin(2), images(64), "attention"),
    "maxvit": (_maxvit, images(64), "attention"),
    "deeplabv3": (_torchvision("deeplabv3_mobilenet_v3_large", "models.segmentation", weights_backbone=None,
                               num_classes=3), images(64), "conv"),
    "lraspp": (_torchvision("lraspp_mobilenet_v3_large", "models.segmentation", weights_backbone=None,
                            num_classes=3), images(64), "conv"),
    "fcn": (_torchvision("fcn_resnet50", "models.segmentation", weights_backbone=None, num_classes=3),
            images(32), "conv"),
    "r3d": (_squeezed_video("r3d_18"), noise(3, 4, 32, 32), "conv"),
    "r2plus1d": (_squeezed_video("r2plus1d_18"), noise(3, 4, 32, 32), "conv"),
}  # fmt: skip
_SMP = {
    "unet_resnet18": _smp("Unet"),
    "unet_mobilenet_v2": _smp("Unet", "mobilenet_v2"),
    "unet_scse": _smp("Unet", decoder_attention_type="scse"),
    "unetplusplus": _smp("UnetPlusPlus"),
    "fpn": _smp("FPN"),
    "pspnet": _smp("PSPNet"),
    "linknet": _smp("Linknet"),
    "manet": _smp("MAnet"),
    "pan": _smp("PAN"),
    "deeplabv3plus": _smp("DeepLabV3Plus"),
    "segformer": _smp("Segformer"),
    "upernet": _smp("UPerNet"),
}
NETS = {
    **{
        f"timm.{name}": Architecture(_timm(model, **options), inputs, family, "timm")
        for name, (model, inputs, family, options) in _TIMM.items()
    },
    **{
        f"torchvision.{name}": Architecture(build, inputs, family, "torchvision")
        for name, (build, inputs, family) in _TORCHVISION.items()
    },
    **{
        f"smp.{name}": Architecture(build, images(128 if name == "pan" else 64), "conv", "segmentation_models_pytorch")
        for name, build in _SMP.items()
    },
}
