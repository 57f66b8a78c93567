"""Charts are well-formed, stay inside their frame, and keep what a curve has: its ends, lows and highs."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pages import HOSTILE, Outline

from vitrail.report.charts import (
    HEIGHT,
    WIDTH,
    Line,
    bars,
    columns,
    heat,
    lines,
    meter,
    shorten,
    side_by_side,
    smooth,
    thin,
    ticks,
)

numbers = st.floats(-1e12, 1e12, allow_subnormal=False)
wild = numbers | st.sampled_from([math.nan, math.inf, -math.inf])


def series(elements, largest=60):
    return st.integers(0, largest).flatmap(lambda n: arrays(np.float64, n, elements=elements))


def svg(html):
    """The picture, parsed as strictly as XML is."""
    return ElementTree.fromstring(re.search("<svg.*</svg>", html, re.S)[0])


def coordinates(html):
    """(x, y) of every point of every curve."""
    paths = [path.get("d") for path in svg(html) if path.get("class", "").startswith("line")]
    return [tuple(map(float, point.split())) for path in paths for point in path.removeprefix("M").split("L")]


@settings(deadline=None, max_examples=50)
@given(series(wild, 30), st.booleans(), st.booleans(), st.booleans())
def test_curves_stay_inside_and_leave_out_what_is_not_finite(values, percent, zero, dots):
    steps = np.arange(len(values)) * 10.0
    values = np.abs(values) / 1e12 if percent else values
    html = lines("Loss", [Line("<a>", steps, np.abs(values) if zero else values, dots=dots)], percent, zero)
    finite = np.isfinite(values).sum()
    assert (html == "") == (finite == 0)
    if finite:
        Outline(html)
        points = coordinates(html)
        assert len(points) == finite
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
        assert points == sorted(points, key=lambda point: point[0])
        assert "nan" not in html.lower()


def test_higher_values_stand_higher_and_curves_share_their_axes():
    steps = np.array([0.0, 100.0, 200.0])
    html = lines("", [Line("a", steps, np.array([1.0, 2.0, 3.0])), Line("b", steps, np.array([3.0, 2.0, 1.0]))])
    points = coordinates(html)
    assert points[0][1] > points[1][1] > points[2][1]
    assert points[3:] == [(x, points[2 - i][1]) for i, (x, _) in enumerate(points[:3])]


def test_the_key_has_names_and_last_values():
    html = lines("Accuracy", [Line("held back", np.array([1.0, 2]), np.array([0.5, 0.8275]), "b")], percent=True)
    assert Outline(html).texts[:2] == ["Accuracy", "held back 82.75\u202f%"]
    unnamed = lines("Rate", [Line("", np.array([1.0]), np.array([2e-5]))])
    assert 'class="key"' not in unnamed
    assert "1: 2e−5" in Outline(unnamed).texts  # a single point is marked, for it makes no curve


def test_shares_end_at_one():
    html = lines("", [Line("", np.arange(3.0), np.ones(3))], percent=True)
    assert "100\u202f%" in html
    assert not re.search(r"1[0-9]{1}[1-9]\u202f%|120", html)


@settings(deadline=None)
@given(series(numbers, 400), st.integers(4, 100))
def test_thinning_keeps_the_ends_and_the_extremes(values, points):
    x, y = thin(np.arange(len(values)) * 1.0, values, points)
    assert len(x) <= max(points, 0)
    assert np.array_equal(values[x.astype(int)], y)
    assert np.all(np.diff(x) > 0)
    if len(values):
        assert (y.min(), y.max()) == (values.min(), values.max())
        assert (x[0], x[-1]) == (0, len(values) - 1)


def test_a_curve_of_a_million_points_is_short():
    steps = np.arange(1e6)
    values = np.random.default_rng(0).normal(size=len(steps))
    values[123_456] = 50
    html = lines("Loss", [Line("", steps, values, faint=True), Line("mean", steps, smooth(values))])
    assert len(html) < 20_000
    assert min(y for _, y in coordinates(html)) < HEIGHT / 4


@given(series(st.floats(-1e6, 1e6)), st.floats(0.01, 1))
def test_smoothing_is_the_mean_of_the_neighbours(values, share):
    reach = max(1, round(len(values) * share / 2))
    expected = [values[max(0, i - reach) : i + reach + 1].mean() for i in range(len(values))]
    assert smooth(values, share) == pytest.approx(np.array(expected), abs=1e-6)


@given(numbers, st.floats(1e-6, 1e12))
def test_ticks_are_round_few_and_inside(low, span):
    high = low + span
    if high - low < abs(low) * 1e-9:
        return
    found = ticks(low, high)
    assert 1 <= len(found) <= 6
    slack = (high - low) * 1e-6
    assert all(low - slack <= value <= high + slack for value in found)
    if len(found) > 1:
        step = found[1] - found[0]
        digits = step / 10.0 ** math.floor(math.log10(step * (1 + 1e-6)))
        assert min(abs(digits - nice) for nice in (1, 2, 2.5, 5)) < 1e-3


def test_bars_are_as_high_as_their_shares():
    html = bars("Right", np.array([0.25, math.nan, 0, 1.0]), ["a", "b", "c", "<d>"], diagonal=True)
    drawn = [r for r in svg(html) if r.tag == "rect"]
    heights = [float(r.get("height")) for r in drawn]
    assert heights[0] * 4 == pytest.approx(heights[1], abs=0.5)
    assert [r[0].text for r in drawn] == ["a", "<d>"]
    assert html.count('class="guide"') == 1
    counts = bars("Images", np.array([3.0, 0, 6]), ["a", "b", "c"])
    assert "guide" not in counts
    assert len([r for r in svg(counts) if r.tag == "rect"]) == 2


@pytest.mark.parametrize("heights", [[], [math.nan, math.nan], [0.0, 0.0]])
def test_bars_of_nothing_are_a_whole_chart_all_the_same(heights):
    assert Outline(bars("", np.array(heights), [""] * len(heights)))


@pytest.mark.parametrize("classes", [1, 2, 10, 50])
def test_a_confusion_matrix_shows_every_count(classes):
    generator = np.random.default_rng(0)
    counts = generator.integers(0, 30, (classes, classes)) * (generator.random((classes, classes)) < 0.3)
    np.fill_diagonal(counts, 7)
    names = [f"class {i}" for i in range(classes)]
    html = heat(counts, names)
    cells = [r for r in svg(html) if r.tag == "rect" and r.get("class") is None]
    found = np.zeros_like(counts)
    for cell in cells:
        truth, count, taken = re.fullmatch(
            r"class (\d+): ([\d,]+) of [\d,]+ taken for class (\d+)", cell[0].text
        ).groups()
        found[int(truth), int(taken)] = int(count)
    assert np.array_equal(found, counts)
    right = [cell for cell in cells if "heat" in cell.get("fill")]
    assert len(right) == classes
    width, height = map(float, svg(html).get("viewBox").split()[2:])
    assert width == height <= 900


def test_a_confusion_matrix_with_hostile_names_is_only_text():
    count = len(HOSTILE)
    html = heat(np.eye(count, dtype=np.int64), HOSTILE)
    assert "script" not in Outline(html).tags
    shown = [text.text for text in svg(html) if text.get("class") == "name"]
    assert len(shown) == 2 * count
    empty = heat(np.zeros((2, 2), np.int64), ["a", "b"])
    assert [r.get("class") for r in svg(empty) if r.tag == "rect"] == ["frame"]


@given(st.text(max_size=60), st.integers(1, 40))
def test_shortened_text_is_one_line_that_fits(text, most):
    short, line = shorten(text, most), " ".join(text.split())
    assert columns(short) <= most
    assert short == line or (short.endswith("…") and line.startswith(short[:-1]) and columns(line) > most)


@pytest.mark.parametrize(("text", "width"), [("cat", 3), ("貓です", 6), ("cafe\u0301", 4), ("قطة", 3), ("", 0)])
def test_width_of_texts(text, width):
    assert columns(text) == width


def test_a_meter_is_as_long_as_its_share():
    assert "width: 83%" in meter(0.834)
    assert meter(math.nan) == ""
    assert Outline(side_by_side(meter(0.0), meter(1.0))).tags == ["div", "span", "span", "span", "span"]
