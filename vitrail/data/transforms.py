"""What happens to images between decoding and the model: augmentation, normalisation; on whole batches.

Every random choice is a function of a sample's 64-bit key (order.py), so that a batch depends on (seed, step) alone.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Preprocessing:
    """From pixels to the model's input; it travels with the weights (law 3).

    image_size: (height, width) that the model was made for. mean, std: per channel, for pixels in [0, 1].
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; height and width must be 1 or more.")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(
                f"mean has {len(self.mean)} channels and std has {len(self.std)}; they must agree, and be 1 or more."
            )
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean is {self.mean}; each must be a finite number.")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std is {self.std}; each must be above 0, and finite.")


def normalise(images: UInt8[Tensor, "B C H W"], how: Preprocessing, dtype: torch.dtype) -> Float[Tensor, "B C H W"]:
    """(images / 255 - mean) / std, as one multiply and one add per pixel, on the images' device; a half-precision
    `dtype` is rounded once, at the end."""
    exact = torch.promote_types(dtype, torch.float32)
    mean, std = (torch.tensor(v, dtype=exact, device=images.device).view(-1, 1, 1) for v in (how.mean, how.std))
    return torch.addcmul(-mean / std, images.to(exact), 1 / (255 * std)).to(dtype)


def flip(images: UInt8[Tensor, "B C H W"], keys: NDArray[np.uint64]) -> UInt8[Tensor, "B C H W"]:
    """Mirrors left and right the images whose key has its lowest bit set: half of them."""
    chosen = torch.from_numpy((keys & np.uint64(1)).astype(bool)).view(-1, 1, 1, 1)
    return torch.where(chosen, images.flip(-1), images)
