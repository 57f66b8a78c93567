"""Preprocessing: how pixels become a model's input, described once, and kept with the weights (law 3).

    how = Preprocessing((224, 224), IMAGENET_MEAN, IMAGENET_STD, resize="crop", crop_fraction=0.875)
    normalise(images, how, torch.float32)   # a batch on its device, uint8 -> float

geometry.py resizes and crops as it says; augment.py draws what is random about training images.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from jaxtyping import Float, Num
from torch import Tensor

Resize = Literal["squash", "crop", "pad", "native"]
Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """From pixels to the model's input. ValueError for a value out of its range.

    image_size: (height, width) that the model was made for. mean, std: per channel, for pixels in [0, 1].
    resize: how an image of another size is brought to image_size.
        squash: to that height and width, without regard to its shape: the whole image, distorted (Google's code).
        crop: the shorter side to image_size / crop_fraction, then the centre (timm's "center", torchvision, DeiT).
        pad: the longer side to image_size / crop_fraction, the mean colour around it (timm's "border").
        native: it stays as it is, and the model resamples its positions.
    crop_fraction: image_size as a fraction of the resized image's side; at 1, only what the shape costs is cut off.
    interpolation: always with antialiasing.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Resize = "squash"
    crop_fraction: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; height and width must be 1 or more.")
        for name, kind in (("resize", Resize), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(get_args(kind))}.")
        if not 0.01 <= self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction is {self.crop_fraction}; it must be from 0.01 to 1.")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"mean has {len(self.mean)} channels, std {len(self.std)}; both need the same, 1 or more.")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean is {self.mean}; each must be a finite number.")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std is {self.std}; each must be above 0, and finite.")


def normalise(images: Num[Tensor, "B C H W"], how: Preprocessing, dtype: torch.dtype) -> Float[Tensor, "B C H W"]:
    """(images / 255 - mean) / std, as one multiply and one add per pixel, on the images' device; a half-precision
    `dtype` is rounded once, at the end. images: bytes, or, where they were mixed, numbers from 0 to 255."""
    exact = torch.promote_types(dtype, torch.float32)
    # A tensor that is made while a graph is traced belongs to that graph.
    made = _affine.__wrapped__ if torch.compiler.is_compiling() else _affine
    shift, scale = made(how.mean, how.std, exact, images.device)
    return torch.addcmul(shift, images.to(exact), scale).to(dtype)


@lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "C 1 1"], Float[Tensor, "C 1 1"]]:
    """-mean / std and 1 / (255 std). Cached, because copying numbers to a GPU waits for all its work."""
    with torch.inference_mode(False):  # or training could not use what an evaluation made
        m, s = (torch.tensor(v, dtype=dtype, device=device).view(-1, 1, 1) for v in (mean, std))
        return -m / s, 1 / (255 * s)
