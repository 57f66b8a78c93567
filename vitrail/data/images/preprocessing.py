"""What happens to images between decoding and the model: resizing, augmentation, normalisation.

    prepare(image, how)                     # any size, uint8 (H, W, C) -> uint8 (C, h, w): timm's evaluation transforms
    normalise(images, how, torch.float32)   # a batch on its device, uint8 -> float

What is random about training images is in augment.py.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Num, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Resize = Literal["squash", "crop", "pad", "native"]
Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LARGEST = 2**27  # pixels of a resized image: beyond it only lines, thousands of times longer than wide, come


@dataclass(frozen=True)
class Preprocessing:
    """From pixels to the model's input; it travels with the weights (law 3).

    image_size: (height, width) that the model was made for. mean, std: per channel, for pixels in [0, 1].
    resize: how an image of another size comes to image_size.
        squash: to that height and width, whatever its shape: the whole image, distorted (Google's code).
        crop: the shorter side to image_size / crop_fraction, then the centre (timm's "center", torchvision, DeiT).
        pad: the longer side to image_size / crop_fraction, the mean colour around it (timm's "border").
        native: it stays as it is, and the model resamples its positions.
    crop_fraction: how much of the resized image's side image_size is; 1 loses nothing that the shape does not.
    interpolation: with antialiasing, always.
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
            raise ValueError(
                f"mean has {len(self.mean)} channels and std has {len(self.std)}; they must agree, and be 1 or more."
            )
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean is {self.mean}; each must be a finite number.")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std is {self.std}; each must be above 0, and finite.")


def prepare(image: UInt8[np.ndarray, "H W C"], how: Preprocessing) -> UInt8[Tensor, "C h w"]:
    """One image at the size that the model reads, by Pillow, as timm's evaluation transforms do, to the last bit.

    ValueError where its channels are not those of the preprocessing, or its shape is too extreme to be resized.
    """
    channels = len(how.mean)
    if image.ndim != 3 or image.dtype != np.uint8 or image.shape[2] != channels or not image.size:
        raise ValueError(f"an image is {image.dtype} {image.shape}; it must be uint8 (height, width, {channels}).")
    fit = image if how.resize == "native" else _fitted(image, how)
    # A copy: torch cannot read every stride, and warns of arrays that are read-only.
    return torch.from_numpy(np.array(fit.transpose(2, 0, 1), order="C"))


def _fitted(image: NDArray[np.uint8], how: Preprocessing) -> NDArray[np.uint8]:
    """(H, W, C) of any size, with a height and width of how.image_size."""
    size, (height, width) = _resized(image.shape[:2], how), how.image_size
    fit = image if image.shape[:2] == size else _resample(image, size, how.interpolation)
    if how.resize == "pad":
        fit = _bordered(fit, how)
    # Half a pixel goes where Python's rounding to even sends it.
    top, left = round((fit.shape[0] - height) / 2), round((fit.shape[1] - width) / 2)
    return fit[top : top + height, left : left + width]


def _resized(size: tuple[int, ...], how: Preprocessing) -> tuple[int, int]:
    """(height, width) before the crop, with the roundings of timm and torchvision."""
    height, width = size
    goal = math.floor(how.image_size[0] / how.crop_fraction), math.floor(how.image_size[1] / how.crop_fraction)
    if how.resize == "squash":
        return goal
    if how.resize == "crop" and goal[0] == goal[1]:
        long = int(goal[0] * max(size) / min(size))
        return (goal[0], long) if height <= width else (long, goal[0])
    ratios = height / goal[0], width / goal[1]
    ratio = min(ratios) if how.resize == "crop" else max(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _resample(image: NDArray[np.uint8], size: tuple[int, int], interpolation: Interpolation) -> NDArray[np.uint8]:
    """(H, W, C) at another (height, width)."""
    if size[0] * size[1] > LARGEST:
        shape = f"{image.shape[0]} x {image.shape[1]}"
        raise ValueError(f"an image of {shape} would become {size[0]} x {size[1]}; cut it into less extreme shapes.")
    how = Image.Resampling[interpolation.upper()]
    parts = [image] if image.shape[2] == 3 else [image[..., c] for c in range(image.shape[2])]
    done = [np.asarray(Image.fromarray(np.ascontiguousarray(part)).resize((size[1], size[0]), how)) for part in parts]
    return done[0] if image.shape[2] == 3 else np.stack(done, -1)


def _bordered(image: NDArray[np.uint8], how: Preprocessing) -> NDArray[np.uint8]:
    """With the mean colour around it, where it is smaller than the model's image; the odd pixel below and right."""
    missing = [max(0, goal - side) for goal, side in zip(how.image_size, image.shape, strict=False)]
    size = [side + more for side, more in zip(image.shape, missing, strict=False)]
    canvas = np.empty((*size, image.shape[2]), np.uint8)
    canvas[:] = [min(255, max(0, round(255 * mean))) for mean in how.mean]
    top, left = (more // 2 for more in missing)
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def normalise(images: Num[Tensor, "B C H W"], how: Preprocessing, dtype: torch.dtype) -> Float[Tensor, "B C H W"]:
    """(images / 255 - mean) / std, as one multiply and one add per pixel, on the images' device; a half-precision
    `dtype` is rounded once, at the end. images: bytes, or, where they were mixed, numbers from 0 to 255."""
    exact = torch.promote_types(dtype, torch.float32)
    shift, scale = _affine(how.mean, how.std, exact, images.device)
    return torch.addcmul(shift, images.to(exact), scale).to(dtype)


@lru_cache(maxsize=16)
def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Float[Tensor, "C 1 1"], Float[Tensor, "C 1 1"]]:
    """-mean / std and 1 / (255 std). Kept: numbers that are copied to a GPU make it finish all its work first."""
    with torch.inference_mode(False):  # or training could not use what an evaluation made
        m, s = (torch.tensor(v, dtype=dtype, device=device).view(-1, 1, 1) for v in (mean, std))
        return -m / s, 1 / (255 * s)
