"""Charts are well-formed, stay inside their frame, and keep what a curve has: its ends, lows and highs."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pages import Outline

from vitrail.report.charts import Chart, Line, bars, decades, heat, lines, smooth, thin, ticks
from vitrail.report.html import environment

numbers = st.floats(-1e12, 1e12, allow_subnormal=False)
wild = numbers | st.sampled_from([math.nan, math.inf, -math.inf])


def series(elements, largest=60):
    return st.integers(0, largest).flatmap(lambda n: arrays(np.float64, n, elements=elements))


def drawn(chart):
    """(a chart as a page has it, its SVG parsed as strictly as XML is)."""
    module = environment().get_template("charts.html").module
    html = module.side_by_side([chart]) if isinstance(chart, Chart) else module.heat(chart)
    Outline(html)
    return html, ElementTree.fromstring(re.search("<svg.*</svg>", html, re.S)[0])


def coordinates(chart):
    """(x, y) of every point of every curve."""
    paths = [path.get("d") for path in drawn(chart)[1] if path.get("class", "").startswith("line")]
    return [tuple(map(float, point.split())) for path in paths for point in path.removeprefix("M").split("L")]


@settings(deadline=None, max_examples=50)
@given(series(wild, 30), st.booleans(), st.booleans(), st.booleans())
def test_curves_stay_inside_and_leave_out_what_is_not_finite(values, percent, zero, dots):
    steps = np.arange(len(values)) * 10.0
    values = np.abs(values) / 1e12 if percent else values
    chart = lines("<a>", [Line("<a>", steps, np.abs(values) if zero else values, dots=dots)], percent, zero)
    finite = np.isfinite(values).sum()
    assert (chart is None) == (finite == 0)
    if chart:
        points = coordinates(chart)
        assert len(points) == finite
        assert all(0 <= x <= chart.width and 0 <= y <= chart.height for x, y in points)
        assert points == sorted(points, key=lambda point: point[0])


def test_higher_values_stand_higher_and_curves_share_their_axes():
    steps = np.array([0.0, 100.0, 200.0])
    points = coordinates(lines("", [Line("a", steps, np.arange(1.0, 4)), Line("b", steps, np.arange(3.0, 0, -1))]))
    assert points[0][1] > points[1][1] > points[2][1]
    assert points[3:] == [(x, points[2 - i][1]) for i, (x, _) in enumerate(points[:3])]


@settings(deadline=None)
@given(series(numbers, 400), st.integers(4, 100))
def test_thinning_keeps_the_ends_and_the_extremes(values, points):
    x, y = thin(np.arange(len(values)) * 1.0, values, points)
    assert len(x) <= points
    assert np.array_equal(values[x.astype(int)], y)
    assert np.all(np.diff(x) > 0)
    if len(values):
        assert (y.min(), y.max(), x[0], x[-1]) == (values.min(), values.max(), 0, len(values) - 1)


@given(series(st.floats(-1e6, 1e6)), st.floats(0.01, 1))
def test_smoothing_is_the_mean_of_the_neighbours(values, fraction):
    reach = max(1, round(len(values) * fraction / 2))
    expected = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))]
    assert smooth(values, fraction) == pytest.approx(np.array(expected), abs=1e-6)


@given(numbers, st.floats(1e-6, 1e12))
def test_ticks_are_round_few_and_inside(low, span):
    high = low + span
    if high - low < abs(low) * 1e-9:
        return
    found, slack = ticks(low, high), (high - low) * 1e-6
    assert 1 <= len(found) <= 6
    assert all(low - slack <= value <= high + slack for value in found)
    for step in np.diff(found):
        digits = step / 10.0 ** math.floor(math.log10(step * (1 + 1e-6)))
        assert min(abs(digits - nice) for nice in (1, 2, 2.5, 5)) < 1e-3


@given(st.floats(1e-9, 1e12), st.floats(1.5, 1e9))
def test_logarithmic_axes_have_equal_ratios_at_equal_distances_and_round_numbers_inside(low, ratio):
    x = low * ratio ** np.arange(3)
    chart = lines("", [Line("a", x, np.array([0.1, 0.3, 0.2]))], log=True)
    places = [point[0] for point in coordinates(chart)]
    assert places == pytest.approx([chart.left, (chart.left + chart.right) / 2, chart.right], abs=0.1)
    found = decades(low, low * ratio)
    assert len(found) <= 20
    assert all(low * (1 - 1e-6) <= value <= low * ratio * (1 + 1e-6) for value in found)
    assert {round(value / 10.0 ** math.floor(math.log10(value * 1.0001)), 6) for value in found} <= {1, 2, 5}
    assert len(found) >= 1 or ratio < 2.5


def test_intervals_stand_at_their_points_and_inside_the_chart():
    ends = np.array([[0.1, 0.4], [0.2, 0.9], [0.5, 0.5]])
    chart = lines("", [Line("a", np.array([1.0, 10, 100]), ends.mean(1), dots=True, spans=ends)], True, log=True)
    paths = [path.get("d") for path in drawn(chart)[1] if path.get("class") == "span"]
    spans = [tuple(map(float, re.fullmatch(r"M(.+) (.+)V(.+)", path).groups())) for path in paths]
    for (x, low, high), (at, middle) in zip(spans, coordinates(chart), strict=True):
        assert x == at
        assert chart.bottom >= low >= high >= chart.top
        assert (low + high) / 2 == pytest.approx(middle, abs=0.1)


def test_bars_are_as_high_as_their_fractions():
    html, svg = drawn(bars("Right", np.array([0.25, math.nan, 0, 1.0]), ["a", "b", "c", "<d>"], diagonal=True))
    low, high = [{name: float(r.get(name)) for name in ("x", "y", "width", "height")} for r in svg if r.tag == "rect"]
    assert low["height"] * 4 == pytest.approx(high["height"])
    assert (high["y"], high["x"] + high["width"]) == pytest.approx((Chart.top, Chart.right - 1))
    assert [r[0].text for r in svg if r.tag == "rect"] == ["a", "<d>"]
    assert html.count('class="guide"') == 1
    for heights in ([], [math.nan, math.nan], [0.0, 0.0], [3.0, 0.0]):
        html, _ = drawn(bars("Images", np.array(heights), [""] * len(heights)))
        assert (html.count("<rect"), html.count("guide")) == (heights == [3.0, 0.0], 0)


@pytest.mark.parametrize("classes", [1, 10, 50])
def test_a_confusion_matrix_shows_every_count(classes):
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 30, (classes, classes)) * (generator.random((classes, classes)) < 0.3)
    np.fill_diagonal(counts[1:, 1:], 7)  # and a class without images
    counts[0] = 0
    svg = drawn(heat(counts, [f"class {i}" for i in range(classes)]))[1]
    _, *cells = [r for r in svg if r.tag == "rect"]
    found = np.zeros_like(counts)
    for cell in cells:
        truth, count, taken = re.fullmatch(r"class (\d+): (\d+) of [\d,]+ taken for class (\d+)", cell[0].text).groups()
        found[int(truth), int(taken)] = int(count)
    assert np.array_equal(found, counts)
    assert sum("heat" in cell.get("fill") for cell in cells) == classes - 1
    shown = [t.text for t in svg if t.get("class", "").startswith("count")]
    assert shown == ([] if classes == 50 else [str(n) for n in counts.flat if n])
