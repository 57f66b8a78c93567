"""Relative positions (Shaw et al., 2018), as in BEiT: a bias of each score, learned for every distance of two patches.

A table has a row for each distance (rows -(h - 1) to h - 1, columns likewise) of a grid of h x w patches, and three
more: from [class] to a patch, from a patch to [class], from [class] to itself. At another grid it is resampled:

    geometric   distances that grow by a factor are interpolated linearly: timm's rule, after BEiT's own code
    bilinear    Hugging Face
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.models.config import Relative


def relative_count(grid: tuple[int, int]) -> int:
    """Rows of the table of a grid (rows, columns)."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


class RelativePositions(nn.Module):
    """A table that all blocks share."""

    def __init__(self, grid: tuple[int, int], heads: int, device: torch.device | None) -> None:
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.empty(relative_count(grid), heads, device=device))

    def forward(self, grid: tuple[int, int], kind: Relative) -> Float[Tensor, "1 heads T T"]:
        return relative_bias(self.relative_position_bias_table, self.grid, grid, kind)


def relative_bias(
    table: Float[Tensor, "rows heads"], old: tuple[int, int], new: tuple[int, int], kind: Relative
) -> Float[Tensor, "1 heads T T"]:
    """What is added to the scores of [class] and the patches of the grid `new`, T = 1 + N. old: of the table."""
    table = resample_relative(table, old, new, kind)
    return table[_index(new, table.device)].permute(2, 0, 1)[None]


def resample_relative(
    table: Float[Tensor, "rows heads"], old: tuple[int, int], new: tuple[int, int], kind: Relative
) -> Float[Tensor, "rows2 heads"]:
    """The table of another grid, computed in float32 at least; the three rows of [class] stay. ValueError where the
    table is not of the grid `old`."""
    if len(table) != relative_count(old):
        raise ValueError(
            f"{len(table)} relative positions are not those of a grid of {old[0]} rows x {old[1]} columns."
        )
    if old == new:
        return table
    before, after = ([2 * side - 1 for side in grid] for grid in (old, new))
    wide = table if table.dtype == torch.float64 else table.float()
    distances, of_class = wide[:-3].T.reshape(1, -1, *before), wide[-3:]
    if kind == "bilinear":
        distances = F.interpolate(distances, size=after, mode="bilinear")
    else:
        rows, columns = (_linear(a, b).to(distances) for a, b in zip(before, after, strict=True))
        distances = rows @ distances @ columns.T
    return torch.cat([distances.flatten(2)[0].T, of_class]).to(table.dtype)


def _index(grid: tuple[int, int], device: torch.device) -> Int64[Tensor, "T T"]:
    """The row of the table for each pair of tokens, [class] first."""
    rows, columns = grid
    y, x = torch.arange(rows, device=device), torch.arange(columns, device=device)
    apart_y, apart_x = (places[:, None] - places + len(places) - 1 for places in (y, x))
    pairs = apart_y[:, None, :, None] * (2 * columns - 1) + apart_x[None, :, None, :]
    index = F.pad(pairs.reshape(rows * columns, -1), (1, 0, 1, 0))
    last = relative_count(grid)
    index[0, :], index[:, 0], index[0, 0] = last - 3, last - 2, last - 1
    return index


def _linear(before: int, after: int) -> Float[Tensor, "after before"]:
    """Linear interpolation of a table of `before` distances to `after`: of distance d the old one is at
    sign(d) (1 + q + ... + q^(|i| - 1)), with the q that makes both end at one place, as BEiT's code searches it."""
    if before == 1:
        return torch.ones(after, 1, dtype=torch.float64)
    low, high, q = 1.01, 1.5, 1.25
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q ** (before // 2)) / (1 - q) > after // 2:
            high = q
        else:
            low = q
    steps = torch.tensor([q ** max(i, 0) for i in range(before // 2)], dtype=torch.float64).cumsum(0)
    places: Sequence[float] = [*(-steps.flip(0)).tolist(), 0.0, *steps.tolist()]
    found = torch.zeros(after, before, dtype=torch.float64)
    for row in range(after):
        place = min(max(row - after // 2, places[0]), places[-1])
        right = min(max(sum(p < place for p in places), 1), before - 1)
        share = (place - places[right - 1]) / (places[right] - places[right - 1])
        found[row, right - 1], found[row, right] = 1 - share, share
    return found
