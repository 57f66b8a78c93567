"""Charts as values: where everything lies in an SVG, which templates/charts.html draws in the page's colours.

    lines("Loss", [Line("training", steps, losses, faint=True), Line("validation", at, values, colour="b", dots=True)])
    bars("Accuracy by confidence", calibration.accuracy, remarks, diagonal=True)
    heat(confusion, class_names)

Places are in CSS pixels from the upper left corner. There are no scripts: what the pointer shows is a <title>.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from rich.cells import cell_len

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Line:
    """One curve. colour: of the page. faint: it lies behind the others. dots: every point is marked. spans: (low, high)
    of each point's interval."""

    name: str
    x: Float[np.ndarray, "n"]
    y: Float[np.ndarray, "n"]
    colour: Literal["a", "b", "c", "d"] = "a"
    faint: bool = False
    dots: bool = False
    spans: Float[np.ndarray, "n 2"] | None = None


@dataclass(frozen=True)
class Chart:
    """across, below: (place, text) of the lines across, and of the words below. key: (colour, text) of the curves with
    names. curves: (line, path, dots), a dot being (x, y, remark). spans: (colour, x, y, y) of intervals. bars:
    (fraction of the height, remark), of one width. diagonal: whether a line shows where y is x."""

    title: str
    across: Sequence[tuple[float, str]]
    below: Sequence[tuple[float, str]]
    key: Sequence[tuple[str, str]] = ()
    curves: Sequence[tuple[Line, str, list[tuple[float, float, str]]]] = ()
    spans: Sequence[tuple[str, float, float, float]] = ()
    bars: Sequence[tuple[float, str]] = ()
    diagonal: bool = False
    width, height, left, right, top, bottom = 460, 230, 58, 440, 10, 206  # the plot lies between the last four


def lines(
    title: str, curves: Sequence[Line], percent: bool = False, zero: bool = False, log: bool = False
) -> Chart | None:
    """Curves over steps from 0 on; None where they have no point. percent: y is a fraction. zero: y begins at 0, too.
    log: x, above 0, is drawn by its logarithm, from its lowest on.

    Values that are not finite are left out. Of long curves every low and high remains. The key has the names, with the
    last values.
    """
    drawn = [replace(curve, x=x, y=y) for curve in curves for x, y in [thin(curve.x, curve.y)] if len(x)]
    if not drawn:
        return None
    x, y = np.concatenate([(curve.x, curve.y) for curve in drawn], axis=1)
    y = np.concatenate([y, *(curve.spans.ravel() for curve in curves if curve.spans is not None)])
    across = (float(x.min()) if log else 0.0, float(x.max()))
    plot = _Plot(across, (0.0 if zero else y.min(), y.max()), most=1.0 if percent else math.inf, log=log)
    key = [(curve.colour, f"{curve.name} {_number(curve.y[-1], percent)}") for curve in drawn if curve.name]
    spans = [span for curve in curves for span in _spans(curve, plot)]
    return Chart(title, *plot.axes(percent), key, [_curve(curve, plot, percent) for curve in drawn], spans)


def bars(title: str, heights: Float[np.ndarray, "n"], remarks: Sequence[str], diagonal: bool = False) -> Chart:
    """Bars over [0, 1], n of equal width; none for NaN. diagonal: heights are fractions, to be compared with places."""
    top = 1.0 if diagonal else float(np.nanmax(heights, initial=0)) or 1.0
    plot = _Plot((0.0, 1.0), (0.0, top), most=top)
    drawn = list(zip((heights / top).tolist(), remarks, strict=True))
    return Chart(title, *plot.axes(diagonal, True), bars=drawn, diagonal=diagonal)


def heat(counts: Int64[np.ndarray, "K K"], names: Sequence[str]) -> dict[str, Any]:
    """A confusion matrix, rows being the truth. rows: (class, short, images) of each. cells: (row, column, images)."""
    short = [name if len(name) <= 22 else f"{name[:21]}…" for name in names]
    margin = round(16 + 6.6 * max(map(cell_len, short)))
    rows = list(zip(names, short, counts.sum(1).tolist(), strict=True))
    cells = [(row, column, int(counts[row, column])) for row, column in np.argwhere(counts).tolist()]
    return {"margin": margin, "cell": min(44, max(13, 620 // len(names))), "rows": rows, "cells": cells}


def smooth(values: Numbers, fraction: float = 0.04) -> Numbers:
    """The mean of each value and its neighbours, `fraction` of all of them together; fewer at the ends."""
    reach = max(1, round(len(values) * fraction / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def thin(x: Numbers, y: Numbers, points: int = 500) -> tuple[Numbers, Numbers]:
    """Up to `points` of the finite points (more than a chart has pixels): both ends, and the lowest and the highest of
    each stretch, in their order."""
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points // 2).astype(int).tolist()
    extremes = (a + int(place) for a, b in pairwise(edges) for place in (y[a:b].argmin(), y[a:b].argmax()))
    kept = sorted({0, len(x) - 1, *extremes})
    return x[kept], y[kept]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Up to `most` + 1 round numbers between two others."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * (1 - 1e-9))
    return [step * place for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two numbers above 0, or only powers of ten where those are many."""
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [step * power for power in powers for step in steps if low <= step * power * (1 + 1e-9) <= high * (1 + 2e-9)]


class _Plot:
    """Where values lie in a chart. x, y: their ranges; one of no width is widened. most: the highest end of y's. log:
    whether x are drawn by their logarithms."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], most: float = math.inf, log: bool = False
    ) -> None:
        self.ends, self.log = x, log
        low, high = (math.log(end) for end in x) if log else x
        self.x, (low, high) = _range(low, high), _range(*y)
        margin = (high - low) / 20
        self.y = (low if low == 0 else low - margin, min(most, high + margin))

    def at(self, x: Numbers | Sequence[float], y: Numbers | Sequence[float]) -> tuple[list[float], list[float]]:
        """The places of many points, to a tenth."""
        x = np.log(x) if self.log else np.asarray(x)
        across = (x - self.x[0]) / (self.x[1] - self.x[0]) * (Chart.right - Chart.left)
        up = (np.asarray(y) - self.y[0]) / (self.y[1] - self.y[0]) * (Chart.bottom - Chart.top)
        return (Chart.left + across).round(1).tolist(), (Chart.bottom - up).round(1).tolist()

    def axes(self, percent: bool, fractions: bool = False) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
        """A chart's `across` and `below`, at round values. percent: y are fractions; fractions: x are."""
        below, across = decades(*self.ends) if self.log else ticks(*self.x), ticks(*self.y)
        x, y = self.at(below, across)
        rows = [(place, _number(value, percent)) for place, value in zip(y, across, strict=True)]
        return rows, [(place, _number(value, fractions)) for place, value in zip(x, below, strict=True)]


def _curve(curve: Line, plot: _Plot, percent: bool) -> tuple[Line, str, list[tuple[float, float, str]]]:
    places = list(zip(*plot.at(curve.x, curve.y), strict=True))
    values = zip(places, curve.x.tolist(), curve.y.tolist(), strict=True)
    dots = [(*place, f"{_number(x)}: {_number(y, percent)}") for place, x, y in values]
    return curve, "L".join(f"{x} {y}" for x, y in places), dots if curve.dots or len(places) == 1 else []


def _spans(curve: Line, plot: _Plot) -> Iterator[tuple[str, float, float, float]]:
    if curve.spans is not None:
        (places, low), (_, high) = (plot.at(curve.x, ends) for ends in curve.spans.T)
        yield from zip(repeat(curve.colour), places, low, high, strict=False)


def _range(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, low + (abs(low) or 1) / 2)


def _number(value: float, percent: bool = False) -> str:
    if percent:
        return f"{100 * value:.4g}\u202f%"
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.4g}\u202fM"
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}".replace("e-0", "e-").replace("-", "−")
