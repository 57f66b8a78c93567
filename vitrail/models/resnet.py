"""The BiT ResNet: the paper's convolutional baseline, and the stem of its hybrids.

A ResNet (He et al., 2016) whose batch norms became group norms and whose convolutions standardise their
weights (section 3.1, "ResNet (BiT)"), following `vit_jax/models_resnet.py` and `big_vision/models/bit.py`:
bottlenecks with the stride on the 3x3, SAME padding, the last scale of a bottleneck initialised to 0.
Parameter names are timm's ResNetV2 (with `preact=False`), so that its hybrids load as they are.

    stem = ResNet(Config(blocks=(3, 4, 9), classes=0))      # the stem of R50+ViT-B/16
    feature_map = stem.features(images)                     # (B, 1024, H / 16, W / 16)
    logits = ResNet(Config(blocks=(3, 4, 6, 3)))(images)    # BiT-R50x1
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.models.config import ResNetFields, symbolic
from vitrail.models.init import initialise

Device = torch.device | None


@dataclass(frozen=True)
class Config(ResNetFields):
    """A BiT ResNet."""

    kind: ClassVar[str] = "resnet"

    def build(self, device: torch.device | str | None = None) -> "ResNet":
        """The model, with its initial values (none on the meta device)."""
        return ResNet(self, None if device is None else torch.device(device))


def same_padding(images: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """Pad (B, C, H, W) as TensorFlow's SAME does: ceil(size / stride) outputs, the odd pixel at the far end. The kernel
    is 1 or not smaller than the stride."""
    if kernel == 1:  # it reads the first pixel of each stride, and the last one has it
        return images
    height, width = ((n - 1) // stride * stride + kernel - n for n in (images.shape[-2], images.shape[-1]))
    if not (symbolic(height, width) or height or width):
        return images
    return F.pad(images, (width // 2, width - width // 2, height // 2, height - height // 2), value=value)


class StdConv2d(nn.Conv2d):
    """Convolution with SAME padding, no bias, and weights standardised over their input: (w - mean) / (std + 1e-5), or,
    with timm's numerics, / sqrt(var + 1e-8), which differs by up to 1e-3 in the logits."""

    def __init__(
        self, config: ResNetFields, inputs: int, outputs: int, kernel: int, stride: int, device: Device
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False, device=device)
        self.inside = config.numerics == "timm"

    def standardised(self) -> Float[Tensor, "D C k k"]:
        """The kernel that is used."""
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        return (self.weight - mean) / ((std.square() + 1e-8).sqrt() if self.inside else std + 1e-5)

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        input = same_padding(input, self.kernel_size[0], self.stride[0])
        return F.conv2d(input, self.standardised().to(input.dtype), None, self.stride)


class GroupNormReLU(nn.GroupNorm):
    """Group norm with 32 groups and eps 1e-6 (flax's defaults), followed by ReLU unless `relu` is False."""

    def __init__(self, config: ResNetFields, channels: int, relu: bool, device: Device) -> None:
        super().__init__(32, channels, eps=1e-6 if config.numerics == "google" else 1e-5, device=device)
        self.relu = relu

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        y = super().forward(input)
        return F.relu(y) if self.relu else y


class Bottleneck(nn.Module):
    """y = relu(shortcut(x) + gn3(conv1x1(relu(gn2(conv3x3(relu(gn1(conv1x1(x))))))))), the stride on the 3x3."""

    def __init__(self, config: ResNetFields, inputs: int, outputs: int, stride: int, device: Device) -> None:
        super().__init__()
        middle = outputs // 4
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:  # the shortcut's projection
            norm = GroupNormReLU(config, outputs, False, device)
            conv = StdConv2d(config, inputs, outputs, 1, stride, device)
            self.downsample = nn.Sequential(OrderedDict(conv=conv, norm=norm))
        self.conv1 = StdConv2d(config, inputs, middle, 1, 1, device)
        self.norm1 = GroupNormReLU(config, middle, True, device)
        self.conv2 = StdConv2d(config, middle, middle, 3, stride, device)
        self.norm2 = GroupNormReLU(config, middle, True, device)
        self.conv3 = StdConv2d(config, middle, outputs, 1, 1, device)
        self.norm3 = GroupNormReLU(config, outputs, False, device)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = self.norm1(self.conv1(x))
        y = self.norm2(self.conv2(y))
        y = self.norm3(self.conv3(y))
        return F.relu(self.downsample(x) + y)


class Root(nn.Module):
    """7x7 convolution with stride 2, group norm, ReLU, 3x3 max-pool with stride 2: a quarter of the size."""

    def __init__(self, config: ResNetFields, device: Device) -> None:
        super().__init__()
        self.conv = StdConv2d(config, config.channels, config.root, 7, 2, device)
        self.norm = GroupNormReLU(config, config.root, True, device)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        x = self.norm(self.conv(x))
        return F.max_pool2d(same_padding(x, 3, 2, value=-math.inf), 3, 2)


class ResNet(nn.Module):
    """Images -> feature map -> logits. With `device="meta"` nothing is allocated; `init_weights` comes later."""

    def __init__(self, config: ResNetFields, device: torch.device | None = None) -> None:
        super().__init__()
        self.config = cast(Config, config)
        inputs = config.root
        self.stem = Root(config, device)
        stages = []
        for s, depth in enumerate(config.blocks):
            outputs = 4 * config.root * 2**s
            shapes = [(inputs, 1 if s == 0 else 2)] + [(outputs, 1)] * (depth - 1)
            blocks = nn.Sequential(*(Bottleneck(config, i, outputs, stride, device) for i, stride in shapes))
            stages.append(nn.Sequential(OrderedDict(blocks=blocks)))
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, config.classes, device=device) if config.classes else nn.Identity()
        if self.stem.conv.weight.device.type != "meta":
            self.init_weights()

    def init_weights(self, seed: int | None = None, only: set[str] | None = None) -> None:
        """As ViT.init_weights."""
        initialise(self, seed=seed, only=only)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """(B, C, H, W) -> (B, D, ceil(H / stride), ceil(W / stride)); nothing of the image is lost (SAME padding)."""
        return self.stages(self.stem(images))

    def represent(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """(B, C, H, W) -> the mean of the feature map, which the head reads."""
        return self.features(images).mean(dim=(2, 3))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """(B, C, H, W) -> logits (B, K); the representation itself where classes is 0."""
        return self.head(self.represent(images))
