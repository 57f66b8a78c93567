"""The patch projection's kernel for other images than it was trained on: other channels, and another patch size.

    kernel = for_channels(model.patch_embed.proj.weight, 4)     # (D, 3, P, P) -> (D, 4, P, P)
    kernel = for_patch_size(kernel, (32, 32))                   # (D, 4, P, P) -> (D, 4, 32, 32)

Both are a start for fine-tuning: what a model says of other images than its own, only training tells.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def for_channels(kernel: Float[Tensor, "D C h w"], channels: int) -> Float[Tensor, "D K h w"]:
    """One channel is read by the sum of the kernel's, as if it were the grey of each of them; n by the kernel's in
    turn, times C / n, so that what they give together stays as large (timm's `adapt_input_conv`).

    ValueError where channels is below 1.
    """
    found = kernel.shape[1]
    if channels < 1:
        raise ValueError(f"channels is {channels}; it must be 1 or more.")
    if channels == found:
        return kernel
    exact = kernel.double()
    if channels == 1:
        return exact.sum(1, keepdim=True).to(kernel.dtype)
    turns = torch.arange(channels, device=kernel.device) % found
    return (exact[:, turns] * (found / channels)).to(kernel.dtype)


def for_patch_size(kernel: Float[Tensor, "D C h w"], size: tuple[int, int]) -> Float[Tensor, "D C H W"]:
    """The kernel that gives for resized patches what this one gives for the patches themselves, or comes nearest to
    it: by the pseudo-inverse of resizing, bicubic with antialiasing (FlexiViT: Beyer et al., 2023, arXiv 2212.08013,
    section 3.4). Exact where patches grow.

    ValueError where a side is below 1.
    """
    old: tuple[int, int] = (kernel.shape[2], kernel.shape[3])
    if min(size) < 1:
        raise ValueError(f"the patch size is {size}; height and width must be 1 or more.")
    if size == old:
        return kernel
    # Row i of `resized` is what resizing makes of a patch that is 1 at place i, and 0 elsewhere.
    ones = torch.eye(old[0] * old[1], dtype=torch.float64, device=kernel.device).view(-1, 1, *old)
    resized = F.interpolate(ones, size, mode="bicubic", antialias=True).flatten(1)
    found = kernel.double().flatten(2) @ torch.linalg.pinv(resized.T)
    return found.unflatten(2, size).to(kernel.dtype)
