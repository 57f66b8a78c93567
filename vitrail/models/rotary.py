"""Rotary positions (Su et al., 2021, "RoFormer") along the two axes of an image, as in DINOv3 and in EVA-02.

Numbers of a query or key are turned in pairs by angles that grow with the patch's row and column, so that a score
depends on how far apart two patches are. [class] and registers are not turned.

    made = Rotary().turn((14, 14), 64, device)
    q, k = turn(q, made), turn(k, made)         # (B, heads, prefix + 196, 64)
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Turn(NamedTuple):
    """Cosines and sines (N, D_h) of the patches. halves: as in Rotary."""

    cos: Tensor
    sin: Tensor
    halves: bool


@dataclass(frozen=True)
class Rotary:
    """How patches are turned: by place / base^(i / n) for the n = D_h / 4 pairs of each axis, rows first.

    base: 100 in DINOv3, 10,000 in EVA-02.
    centred: a patch's place is its centre, from -1 to 1 along each axis, times 2 pi (DINOv3); otherwise its row and
        column plus `offset`, as if the image had the grid `reference` where there is one (EVA-02).
    rows_first: whether the first half of the pairs is the row's, or the column's (RoPE-ViT).
    halves: whether the two numbers of a pair are half a head apart (DINOv3), or neighbours (EVA-02).
    rounded: whether the periods base^(i / n) are rounded to bfloat16, as in DINOv3's own files.
    """

    base: float = 100.0
    centred: bool = True
    reference: tuple[int, int] | None = None
    offset: float = 0.0
    rows_first: bool = True
    halves: bool = True
    rounded: bool = False

    def turn(self, grid: tuple[int, int], size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Turn:
        """For the patches of a grid (rows, columns), row by row. size: D_h. dtype: computed in float32 at least."""
        wide = torch.promote_types(dtype, torch.float32)
        count = size // 4
        periods = self.base ** (torch.arange(count, dtype=wide, device=device) / count)
        if self.rounded:
            periods = periods.bfloat16().to(wide)
        axes = []
        for axis, cells in enumerate(grid):
            place = torch.arange(cells, dtype=wide, device=device)
            if self.centred:
                axes.append(2 * math.pi * (2 * (place + 0.5) / cells - 1))
            else:
                place = place + self.offset
                axes.append(place if self.reference is None else place / cells * self.reference[axis])
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)  # (N, 2)
        places = places if self.rows_first else places.flip(1)
        angles = (places[:, :, None] / periods).flatten(1)  # (N, D_h / 2)
        angles = angles.tile(2) if self.halves else angles.repeat_interleave(2, -1)
        return Turn(angles.cos().to(dtype), angles.sin().to(dtype), self.halves)


def turn(x: Float[Tensor, "B heads T D_h"], by: Turn) -> Float[Tensor, "B heads T D_h"]:
    """Queries or keys with the last N tokens, the patches, turned; those before them as they are."""
    first, patches = x.split((x.shape[2] - len(by.cos), len(by.cos)), dim=2)
    if by.halves:
        left, right = patches.chunk(2, dim=-1)
        across = torch.cat([-right, left], dim=-1)
    else:
        across = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    # Under autocast queries are in 16 bits, and the table is not.
    return torch.cat([first, (patches * by.cos + across * by.sin).to(x.dtype)], dim=2)
