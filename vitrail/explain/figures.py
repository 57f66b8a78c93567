"""Figures of explanations, for files and notebooks, by matplotlib; each is a matplotlib Figure.

overlay([explain(pipeline, path) for path in paths]).savefig("maps.png", dpi=150)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from vitrail.explain.explanation import Explanation
from vitrail.models import vit
from vitrail.models.tokens import colours, filters, similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 3.2  # inches of a panel


def blank(width: float, height: float) -> "Figure":
    """A new figure of so many inches. ValueError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # not pyplot, whose state all threads share
    except ImportError:
        raise ValueError("figures need matplotlib; pip install 'vitrail[figures]'.") from None
    return Figure((width, height), layout="constrained")


def overlay(found: Sequence[Explanation], *, smooth: bool = False, most: float | None = None) -> "Figure":
    """A row for each image: the photograph, and over it the map of each class, at the photograph's shape. All maps of
    a figure have one scale, from 0 to `most`, by default what one of a hundred patches is above. smooth: bilinear
    instead of one colour a patch."""
    most = most or float(np.quantile(np.concatenate([each.maps.cpu().flatten() for each in found]), 0.99)) or 1.0
    figure, rows = _rows(found, 1 + max(len(each.maps) for each in found))
    for each, (part, (first, *panels)) in zip(found, rows, strict=True):
        _photo(first, each)
        named = each.name.rpartition("/")[2].encode("utf-8", "backslashreplace").decode()  # as fonts can draw it
        first.set_title(named, fontsize=8, parse_math=False)
        classes = zip(each.labels, each.probabilities, strict=True)
        titles = [f"{label} {chance:.1%}" for label, chance in classes if each.method in ("gradient", "legrad")]
        for panel in panels:
            _photo(panel, each, grey=True)
        for panel, scores, title in zip(panels, each.maps.cpu(), titles or ["any class"], strict=False):
            how = {"cmap": "inferno", "vmin": 0.0, "vmax": most, "alpha": 0.6}
            _over(panel, each, scores, interpolation="bilinear" if smooth else "nearest", **how)
            panel.set_title(title, fontsize=8, parse_math=False)
        part.colorbar(panels[0].images[-1], ax=[first, *panels], shrink=0.6, aspect=12, extend="max")
        part.supxlabel(each.caption, fontsize=7, wrap=True)
    return figure


def components(found: Sequence[Explanation]) -> "Figure":
    """The first three principal components of the tokens as colours, fitted over all of the images; the background
    shows the photograph."""
    figure, rows = _rows(found, 2)
    every = colours([each.tokens.cpu() for each in found])
    for each, shown, (_, panels) in zip(found, every, rows, strict=True):
        _photo(panels[0], each)
        _photo(panels[1], each, grey=True)
        _over(panels[1], each, shown)
    return figure


def sheet(found: Explanation) -> "Figure":
    """The attention of each head (columns) in each block (rows), each panel from 0 to its own maximum."""
    depth, heads, rows, columns = found.attention.shape
    figure = blank(max(3.0, heads * 0.8), max(2.0, depth * 0.8 * rows / columns))
    axes = figure.subplots()
    axes.imshow(tiles(found.attention.cpu().numpy()), cmap="inferno", interpolation="nearest")
    axes.set_xticks([(columns + 1) * (n + 0.5) for n in range(heads)], [str(n + 1) for n in range(heads)])
    axes.set_yticks([(rows + 1) * (n + 0.5) for n in range(depth)], [str(n + 1) for n in range(depth)])
    axes.set(xlabel="head", ylabel="block", title="attention that the head of the model reads")
    return figure


def inside(model: vit.ViT, distances: Float[Tensor, "L heads"]) -> "Figure":
    """The paper's Fig. 7 of a model: filters, similarity of positions, mean attention distance; what a model has not
    is left out. distances: mean over images."""
    panels = 3 if model.config.channels in (1, 3) and model.config.stem is None else 2
    panels -= model.config.positions == "none"
    figure = blank(4.2 * panels, 4.2)
    *others, last = figure.subplots(1, panels, squeeze=False)[0]
    if model.config.channels in (1, 3) and model.config.stem is None:
        shown = filters(model).permute(0, 2, 3, 1).float().cpu().numpy()
        axes = others.pop(0)
        axes.imshow(tiles(_framed(shown)), cmap="grey", interpolation="nearest")
        axes.set(title=f"patch filters, first {len(shown)} components", xticks=[], yticks=[])
    for axes in others:
        cosines = similarity(model).float().cpu().numpy()
        rows, columns = (-(-n // 14) for n in cosines.shape[:2])  # more panels could not be told apart
        panel = tiles(cosines[rows // 2 :: rows, columns // 2 :: columns], own=False)
        shown = axes.imshow(panel, vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
        axes.set(title="position similarity (cosine)", xlabel="column of the patch", ylabel="row of the patch")
        axes.set(xticks=[], yticks=[])
        figure.colorbar(shown, ax=axes, shrink=0.6)
    blocks = range(1, len(distances) + 1)
    last.plot(blocks, distances.cpu(), ".", color="tab:blue")
    last.set(title="mean attention distance", xlabel="block", ylabel="pixels of the model's input", xticks=blocks)
    last.set_ylim(0, 1.1 * float(distances.max()) or 1.0)
    return figure


def tiles(arrays: Shaped[np.ndarray, "down across h w *C"], own: bool = True) -> Shaped[np.ndarray, "H W *C"]:
    """Panels as one array, NaN between them. own: whether each is divided by its maximum."""
    if own:
        arrays = arrays / np.maximum(arrays.max((2, 3), keepdims=True), 1e-12)
    gaps = [(0, 0), (0, 0), (0, 1), (0, 1), *[(0, 0)] * (arrays.ndim - 4)]
    padded = np.pad(arrays, gaps, constant_values=np.nan).swapaxes(1, 2)
    down, h, across, w = padded.shape[:4]
    return padded.reshape(down * h, across * w, *padded.shape[4:])[:-1, :-1]


def _framed(images: Float[np.ndarray, "n h w C"]) -> Float[np.ndarray, "down across h w C"]:
    """Filters in rows of seven, each from 0 to 1, black where there is none."""
    low, high = images.min((1, 2, 3), keepdims=True), images.max((1, 2, 3), keepdims=True)
    scaled = (images - low) / np.maximum(high - low, 1e-12)
    scaled = np.concatenate([scaled, np.zeros((-len(images) % 7, *images.shape[1:]), images.dtype)])
    return scaled.reshape(-1, 7, *images.shape[1:])


def _rows(found: Sequence[Explanation], columns: int) -> tuple["Figure", list[tuple[Any, Any]]]:
    """A figure with a part of its own for each image, and (the part, its panels)."""
    tall = [min(max(0.6, WIDE * each.photo.shape[0] / each.photo.shape[1]), 2 * WIDE) + 0.7 for each in found]
    figure = blank(WIDE * columns, sum(tall))
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(found), 1, height_ratios=tall)))
    return figure, [(part, part.subplots(1, columns, squeeze=False)[0]) for part in parts]


def _photo(axes: Any, found: Explanation, grey: bool = False) -> None:
    """Shows the photograph, or its brightness, and no axes."""
    photo = found.photo if found.photo.shape[2] == 3 and not grey else found.photo[..., :3].mean(-1)
    axes.imshow(photo, cmap="grey", vmin=0, vmax=255)
    axes.set_axis_off()


def _over(axes: Any, found: Explanation, cells: Shaped[Tensor, "rows columns *C"], **how: Any) -> None:
    """Lays a value for each patch over the photograph, and keeps its frame: what the model did not see stays bare."""
    (height, width), (left, top, right, bottom) = found.photo.shape[:2], found.box
    half = 0.5  # imshow has the centres of pixels at whole numbers
    axes.imshow(cells.float().numpy(), extent=(left - half, right - half, bottom - half, top - half), **how)
    axes.set(xlim=(-half, width - half), ylim=(height - half, -half))
