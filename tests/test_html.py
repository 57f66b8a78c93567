"""Pages are well-formed, ask for nothing outside themselves, and show any text as it is, whatever it holds."""

import base64
import math
import re
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from pages import HOSTILE, Outline
from PIL import Image

from vitrail.report.html import UNFIT, percent, render, thumbnail

IMAGE = thumbnail(np.zeros((4, 4, 3), np.uint8))


def everything(text, **changed):
    """A page with the text in eighteen places."""
    finding = SimpleNamespace(title=text, advice=text)
    case = {"finding": finding, "lines": [text], "figures": [([IMAGE], text)], "pairs": False, "more": 0}
    report = SimpleNamespace(sizes={}, small=0.0, colours={text: (0.1, 0.2, 0.3)}, splits={text: 1})
    values = {"title": text, "subtitle": text, "verdict": text, "serious": [case], "noticed": [case], "report": report}
    values |= {"kinds": "", "small": 64, "classes": [[text, "1", 0.5]], "split": text, "sample_side": 96}
    return render("data.html", **values | {"samples": [(text, [([IMAGE], text)])]} | changed)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=[]), min_size=1))
@example("".join(HOSTILE))
def test_any_text_comes_through_and_is_never_markup(text):
    outline, marked = Outline(everything(text)), Outline(everything("\ue000"))
    assert (outline.tags, outline.attributes) == (marked.tags, marked.attributes)
    assert "".join(marked.texts).count("\ue000") == 18
    assert outline.texts == [t.replace("\ue000", UNFIT.sub("\ufffd", text)) for t in marked.texts]
    assert not re.search("[\0\x1b\u202e\u2066\ud800-\udfff]", "".join(outline.texts))


def test_a_page_needs_nothing_from_outside_and_forbids_it():
    html = everything("text")
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in html
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|\bon\w+=", html.replace("</", ""))
    for part in ("prefers-color-scheme: dark", "@media print", 'name="viewport"'):
        assert part in html
    sources = {value.partition(",")[0] for name, value in Outline(html).attributes if name == "src"}
    assert sources == {"data:image/png;base64"}


def test_a_page_without_one_of_its_values_is_an_error():
    with pytest.raises(UndefinedError, match="figures"):
        everything("x", serious=[{"finding": SimpleNamespace(advice="", title=""), "lines": []}])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("size", "side", "shown"),
    [
        ((28, 20), 144, (140, 100)), ((1, 1), 144, (144, 144)), ((144, 144), 144, (144, 144)),
        ((100, 72), 144, (144, 104)), ((500, 400), 144, (144, 115)), ((600, 800), 200, (150, 200)),
        ((100, 900), 144, (16, 144)), ((900, 2), 144, (450, 1)), ((2000, 2000), 160, (160, 160)),
    ],
)  # fmt: skip
def test_a_thumbnail_fits_its_square_and_carries_no_more_than_it_shows(size, side, shown, channels):
    pixels = np.random.default_rng(0).integers(70, 80, (*size, channels), np.uint8)
    found = thumbnail(pixels, side)
    assert (found.height, found.width, found.squares) == (*shown, size[0] <= 28)
    carried = np.asarray(Image.open(BytesIO(base64.b64decode(found.src.partition(",")[2]))))
    assert carried.shape[:2] == (shown if size[1] > shown[1] else size)
    assert abs(carried.mean() - pixels.mean()) <= 1
    assert len(found.src) < 20_000
    if found.squares:
        assert np.array_equal(carried.reshape(pixels.shape), pixels)


def test_only_everything_is_a_hundred_percent():
    found = [percent(fraction) for fraction in (0.86954, 1.0, 0.99999, 0.0, 0.0004, math.nan)]
    assert [text.replace("\u202f%", "") for text in found] == ["87.0", "100.0", "99.9", "0.0", "0.0", "–"]
