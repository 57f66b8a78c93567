"""Rotary positions (Su et al., 2021, "RoFormer") along the two axes of an image, as in DINOv3 and in EVA-02.

Numbers of a query or key are turned in pairs by angles that grow with the patch's row and column, so that a score
depends on how far apart two patches are. [class] and registers are not turned.

    made = turning(Rotary(), (14, 14), 64, device)
    q, k = turn(q, made), turn(k, made)         # (B, heads, prefix + 196, 64)
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.models.config import Rotary


class Turn(NamedTuple):
    """Cosines and sines (N, D_h) of the patches. halves: as in Rotary."""

    cos: Tensor
    sin: Tensor
    halves: bool


def turning(
    rotary: Rotary, grid: tuple[int, int], size: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Turn:
    """For the patches of a grid (rows, columns), row by row. size: D_h. dtype: computed in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    count = size // 4
    periods = rotary.base ** (torch.arange(count, dtype=wide, device=device) / count)
    if rotary.rounded:
        periods = periods.bfloat16().to(wide)
    axes = []
    for axis, cells in enumerate(grid):
        place = torch.arange(cells, dtype=wide, device=device)
        if rotary.centred:
            axes.append(2 * math.pi * (2 * (place + 0.5) / cells - 1))
        else:
            place = place + rotary.offset
            axes.append(place if rotary.reference is None else place / cells * rotary.reference[axis])
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)  # (N, 2)
    places = places if rotary.rows_first else places.flip(1)
    angles = (places[:, :, None] / periods).flatten(1)  # (N, D_h / 2)
    angles = angles.tile(2) if rotary.halves else angles.repeat_interleave(2, -1)
    return Turn(angles.cos().to(dtype), angles.sin().to(dtype), rotary.halves)


def turn(x: Float[Tensor, "B heads T D_h"], by: Turn) -> Float[Tensor, "B heads T D_h"]:
    """Queries or keys with the last N tokens, the patches, turned; those before them as they are."""
    prefix = x.shape[2] - by.cos.shape[0]
    first, patches = x[:, :, :prefix], x[:, :, prefix:]
    if by.halves:
        left, right = patches.chunk(2, dim=-1)
        across = torch.cat([-right, left], dim=-1)
    else:
        across = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    # Under autocast queries are in 16 bits, and the table is not.
    return torch.cat([first, (patches * by.cos + across * by.sin).to(x.dtype)], dim=2)
