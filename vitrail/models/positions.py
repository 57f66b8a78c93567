"""Positions of patches: resampling a learned grid to another size, and the fixed 2-D sines and cosines.

Each library resamples in its own way, and a model agrees with its authors only under theirs, so the kinds have names:

    bicubic_antialias   timm, and the default here
    bicubic             Hugging Face
    bicubic_corners     torchvision (align_corners=True)
    bilinear_corners    Google: scipy.ndimage.zoom(order=1)
    bilinear, bilinear_antialias
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitrail.models.config import Resample


def resample(
    table: Float[Tensor, "N D"], old: tuple[int, int], new: tuple[int, int], kind: Resample
) -> Float[Tensor, "M D"]:
    """Positions of a grid `old` = (rows, columns), row by row, at the grid `new`; without the rows of [class].

    Computed in float32 at least, returned in the table's dtype. ValueError where the table has not rows * columns rows.
    """
    if table.shape[0] != old[0] * old[1]:
        raise ValueError(f"{table.shape[0]} positions do not make a grid of {old[0]} rows x {old[1]} columns.")
    if old == new:
        return table
    mode, _, detail = kind.partition("_")
    image = table if table.dtype == torch.float64 else table.float()
    image = image.reshape(1, *old, -1).permute(0, 3, 1, 2)
    # The size and never a scale factor: a factor rounds, and shifts the grid by a fraction of a cell.
    corners, antialias = detail == "corners", detail == "antialias"
    image = F.interpolate(image, size=new, mode=mode, align_corners=corners, antialias=antialias)
    return image.permute(0, 2, 3, 1).reshape(new[0] * new[1], -1).to(table.dtype)


def sincos(grid: tuple[int, int], width: int, mae: bool, device: torch.device | None = None) -> Float[Tensor, "N D"]:
    """Fixed positions of a grid (rows, columns), float64: [sin(x w), cos(x w), sin(y w), cos(y w)].

    The width / 4 frequencies w run from 1 to 1 / 10000, the last included as in big_vision (after MoCo v3), or, with
    `mae`, excluded as in MAE's code.
    """
    count = width // 4
    omega = torch.arange(count, dtype=torch.float64, device=device) / (count if mae else max(1, count - 1))
    omega = 10000.0**-omega
    y, x = (torch.arange(cells, dtype=torch.float64, device=device)[:, None] * omega for cells in grid)
    y, x = y[:, None].expand(*grid, count), x.expand(*grid, count)
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=2).flatten(0, 1)
