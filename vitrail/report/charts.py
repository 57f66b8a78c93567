"""Charts as SVG inside a page, in the page's colours, so that they follow it into the dark; they need its style.

    lines("Loss", [Line("training", steps, losses, faint=True), Line("held back", at, values, colour="b", dots=True)])
    bars("Right, by confidence", calibration.accuracy, remarks, diagonal=True)
    heat(confusion, class_names)

There is no script: what is shown under the pointer is a <title>.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from vitrail.report.html import Html, escape, join

WIDTH, HEIGHT = 460.0, 230.0  # of a chart, in its own units, which are CSS pixels on a wide screen
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 10, 24  # around the plot
POINTS = 500  # that a curve is thinned to: more than it has pixels
STEPS = (1, 2, 2.5, 5, 10)  # between ticks, times a power of ten

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Line:
    """One curve. colour: a, b, c or d of the page. faint: it lies behind the others. dots: every point is marked."""

    name: str
    x: Float[np.ndarray, "n"]
    y: Float[np.ndarray, "n"]
    colour: Literal["a", "b", "c", "d"] = "a"
    faint: bool = False
    dots: bool = False


def lines(title: str, curves: Sequence[Line], percent: bool = False, zero: bool = False) -> Html:
    """Curves over steps from 0 on; nothing where they have no point. percent: y is a share. zero: y begins at 0, too.

    Values that are not finite are left out. Of long curves every low and high remains. The key has the names, with the
    last values.
    """
    clear = [_thinned(curve) for curve in curves]
    x, y = np.concatenate([np.empty((2, 0)), *((curve.x, curve.y) for curve in clear)], axis=1)
    if not len(x):
        return Html("")
    plot = _Plot((0.0, x.max()), (0.0 if zero else y.min(), y.max()), most=1.0 if percent else math.inf)
    named = [curve for curve in clear if curve.name and len(curve.y)]
    key = [(curve.colour, f"{curve.name} {_number(curve.y[-1], percent)}") for curve in named]
    return _figure(title, key, plot.axes(percent), *(_curve(curve, plot, percent) for curve in clear))


def bars(title: str, heights: Float[np.ndarray, "n"], remarks: Sequence[str], diagonal: bool = False) -> Html:
    """Bars over [0, 1], n of equal width; NaN is none. remarks: what the pointer shows. diagonal: heights are shares,
    and a line shows where each would equal its place."""
    top = 1.0 if diagonal else float(np.nanmax(heights, initial=0)) or 1.0
    plot = _Plot((0.0, 1.0), (0.0, top), most=top)
    drawn = []
    for place, (height, remark) in enumerate(zip(heights.tolist(), remarks, strict=True)):
        if height > 0:
            (left, upper), (right, lower) = (
                plot.at(place / len(heights), height),
                plot.at((place + 1) / len(heights), 0.0),
            )
            size = f'x="{left + 1:.1f}" y="{upper:.1f}" width="{right - left - 2:.1f}" height="{lower - upper:.1f}"'
            drawn.append(f'<rect {size} fill="var(--a)"><title>{escape(remark)}</title></rect>')
    if diagonal:
        (left, lower), (right, upper) = plot.at(0.0, 0.0), plot.at(1.0, 1.0)
        drawn.append(f'<path class="guide" d="M{left:.1f} {lower:.1f}L{right:.1f} {upper:.1f}"/>')
    return _figure(title, [], plot.axes(diagonal, True), *drawn)


def heat(counts: Int64[np.ndarray, "K K"], names: Sequence[str]) -> Html:
    """A confusion matrix: rows are the truth. What is right is in one colour, mistakes in another, each the deeper the
    larger its share of the row is (by its square root, so that rare mistakes are seen)."""
    classes = len(names)
    cell = min(44, max(13, 620 // classes))
    short = [shorten(name, 22) for name in names]
    margin = 16 + 6.6 * max(map(columns, short))
    drawn = []
    for place, name in enumerate(short):
        middle, title = margin + (place + 0.5) * cell, f"<title>{escape(names[place])}</title>{escape(name)}</text>"
        drawn.append(f'<text class="name" x="{margin - 8:.1f}" y="{middle + 4:.1f}" text-anchor="end">{title}')
        drawn.append(f'<text class="name" transform="translate({middle + 4:.1f} {margin - 8:.1f}) rotate(-90)">{title}')
    for row, column in np.argwhere(counts).tolist():
        count, whole = int(counts[row, column]), int(counts[row].sum())
        colour, depth = "heat" if row == column else "miss", math.sqrt(count / whole)
        x, y = margin + column * cell, margin + row * cell
        said = f"{names[row]}: {count:,} of {whole:,} taken for {names[column]}"
        drawn.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{cell - 1}" height="{cell - 1}" '
            f'fill="rgba(var(--{colour}), {depth:.2f})"><title>{escape(said)}</title></rect>'
        )
        if cell >= 28:
            dark = " deep" if depth > 0.6 else ""
            at = f'x="{x + cell / 2 - 0.5:.1f}" y="{y + cell / 2 + 4:.1f}"'
            drawn.append(f'<text class="count{dark}" {at} text-anchor="middle">{count}</text>')
    side = margin + classes * cell
    frame = f'<rect class="frame" x="{margin - 1:.1f}" y="{margin - 1:.1f}" width="{classes * cell + 1}" '
    frame += f'height="{classes * cell + 1}"/>'
    return Html(f'<div class="scroll">{_svg("Confusion matrix", side + 1, side + 1, [frame, *drawn])}</div>\n')


def meter(share: float) -> Html:
    """A bar as long as a share, for a table's cell; nothing for NaN."""
    if math.isnan(share):
        return Html("")
    return Html(f'<span class="meter"><span style="width: {100 * share:.0f}%"></span></span>')


def side_by_side(*figures: Html) -> Html:
    """Charts in rows of two, or one on a narrow screen."""
    return join(Html('<div class="charts">\n'), *figures, Html("</div>\n"))


def smooth(values: Numbers, share: float = 0.04) -> Numbers:
    """The mean of each value and its neighbours, `share` of all of them together; fewer at the ends."""
    reach = max(1, round(len(values) * share / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - reach, 0), np.minimum(places + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def thin(x: Numbers, y: Numbers, points: int = POINTS) -> tuple[Numbers, Numbers]:
    """Up to `points` of the points: the lowest and the highest of each stretch, in their order, and the two ends."""
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
    step = next(step * power for step in STEPS if step * power >= raw * (1 - 1e-9))
    return [step * place for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def columns(text: str) -> int:
    """How wide a text is, in letters: those of Chinese, Japanese and Korean are two wide, accents nothing."""
    return sum((unicodedata.east_asian_width(c) in "WF") + (not unicodedata.combining(c)) for c in text)


def shorten(text: str, most: int) -> str:
    """The text in one line of at most `most` columns."""
    text = " ".join(text.split())
    if columns(text) <= most:
        return text
    end = max(end for end in range(len(text)) if columns(text[:end]) < most)
    return text[:end].rstrip() + "…"


class _Plot:
    """Where values lie in a chart. x, y: their ranges; one of no width is widened. most: the highest end of y's."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], most: float = math.inf) -> None:
        self.x, (low, high) = _range(*x), _range(*y)
        margin = (high - low) / 20
        self.y = (low if low == 0 else low - margin, min(most, high + margin))

    def at(self, x: Numbers | float, y: Numbers | float) -> tuple:
        """The place of one point, or of many."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)
        up = (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    def axes(self, percent: bool, shares: bool = False) -> str:
        """Lines across at round values, and the words at both axes. shares: x are shares, too."""
        drawn = []
        for value in ticks(*self.y):
            _, y = self.at(self.x[0], value)
            drawn.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            drawn.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(value, percent)}</text>')
        for value in ticks(*self.x):
            x, _ = self.at(value, self.y[0])
            drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{_number(value, shares)}</text>')
        return "".join(drawn)


def _thinned(curve: Line) -> Line:
    kept = np.isfinite(curve.x) & np.isfinite(curve.y)
    x, y = thin(curve.x[kept], curve.y[kept])
    return replace(curve, x=x, y=y)


def _curve(curve: Line, plot: _Plot, percent: bool) -> str:
    places = list(zip(*(axis.tolist() for axis in plot.at(curve.x, curve.y)), strict=True))
    if not places:
        return ""
    path = "L".join(f"{across:.1f} {up:.1f}" for across, up in places)
    drawn = f'<path class="line{" faint" if curve.faint else ""}" stroke="var(--{curve.colour})" d="M{path}"/>'
    if curve.dots or len(places) == 1:
        for (across, up), step, value in zip(places, curve.x.tolist(), curve.y.tolist(), strict=True):
            said = f"<title>{_number(step)}: {_number(value, percent)}</title>"
            drawn += f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3" fill="var(--{curve.colour})">{said}</circle>'
    return drawn


def _figure(title: str, key: Sequence[tuple[str, str]], *drawn: str) -> Html:
    """key: (colour, name) of what is in it."""
    names = "".join(f'<span class="key" style="--key: var(--{colour})">{escape(name)}</span>' for colour, name in key)
    head = f'<figcaption><span class="title">{escape(title)}</span>{names}</figcaption>'
    return Html(f'<figure class="chart">{head}{_svg(title, WIDTH, HEIGHT, drawn)}</figure>\n')


def _svg(title: str, width: float, height: float, drawn: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return f'<svg {size} role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'


def _range(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - (abs(low) or 1) / 2, low + (abs(low) or 1) / 2)


def _number(value: float, percent: bool = False) -> str:
    if percent:
        return f"{100 * value:.4g}\u202f%"
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g}\u202f{letter}"
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}".replace("e-0", "e-").replace("-", "−")
