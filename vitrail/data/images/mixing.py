"""Mixup and CutMix on the device: sample 2i is mixed with sample 2i + 1, so that half a batch mixes as the whole does.

    lam, box = draws(keys, how, (224, 224))                  # by the loader: it travels as batch["lam"], batch["box"]
    images, targets = mix(images, targets, lam, box)         # by the task: no loop, no waiting for the device

A pair has one draw, a function of its first sample's key (order.py); a last odd sample is not mixed. Mixup is
Zhang et al., arXiv 1710.09412; CutMix is Yun et al., arXiv 1905.04899.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Num
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.images.augment import Augment, philox
from vitrail.data.order import MIX_SALT


def draws(
    keys: NDArray[np.uint64], how: Augment, image_size: tuple[int, int]
) -> tuple[Float32[Tensor, "B"], Int64[Tensor, "B 4"]]:
    """The fraction of itself that each sample keeps, 1 if it is not mixed, and the (top, left, bottom, right) that its
    partner fills, zeros if it is not cut. keys: of an even place of the batch onwards."""
    lam, box = np.ones(len(keys), np.float32), np.zeros((len(keys), 4), np.int64)
    if how.mixup or how.cutmix:
        for first in range(0, len(keys) - 1, 2):
            lam[first : first + 2], box[first : first + 2] = _pair(int(keys[first]), how, image_size)
    return torch.from_numpy(lam), torch.from_numpy(box)


def mix(
    images: Num[Tensor, "B C H W"], targets: Float[Tensor, "B K"], lam: Float[Tensor, "B"], box: Int64[Tensor, "B 4"]
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
    """Images, bytes or normalised, and targets, each mixed with its partner; images as float32 or wider. lam, box: of
    draws(), on the images' device."""
    count, _, height, width = images.shape
    partner = (torch.arange(count, device=images.device) ^ 1).clamp(max=count - 1)
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    top, left, bottom, right = box.view(-1, 4, 1, 1, 1).unbind(1)
    inside = (top <= rows[:, None]) & (rows[:, None] < bottom) & (left <= columns) & (columns < right)
    cut = (top < bottom) & (left < right)
    weight = torch.where(cut, inside.to(images.dtype), 1 - lam.to(images.dtype).view(-1, 1, 1, 1))
    return images.lerp(images[partner], weight), targets.lerp(targets[partner], (1 - lam).to(targets.dtype)[:, None])


def _pair(key: int, how: Augment, size: tuple[int, int]) -> tuple[float, tuple[int, int, int, int]]:
    """(lam, box) of two samples."""
    generator = philox(key, MIX_SALT)
    mixed, cut, down, across = generator.random(4).tolist()
    if mixed >= how.mix:
        return 1.0, (0, 0, 0, 0)
    if not how.cutmix or (how.mixup and cut >= 0.5):
        return generator.beta(how.mixup, how.mixup), (0, 0, 0, 0)
    # The paper's box: its sides are sqrt(1 - lam) of the image's, its middle lies anywhere, its overhang is lost.
    side = math.sqrt(1 - generator.beta(how.cutmix, how.cutmix))
    top, bottom = _span(int(down * size[0]), int(side * size[0]), size[0])
    left, right = _span(int(across * size[1]), int(side * size[1]), size[1])
    return 1 - (bottom - top) * (right - left) / (size[0] * size[1]), (top, left, bottom, right)


def _span(middle: int, length: int, stop: int) -> tuple[int, int]:
    return max(0, middle - length // 2), min(stop, middle + (length + 1) // 2)
