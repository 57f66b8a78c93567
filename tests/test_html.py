"""Pages are well-formed, ask for nothing outside themselves, and show any text as it is, whatever it holds."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import HOSTILE, Outline
from PIL import Image

from vitrail.report import html as page
from vitrail.report.html import Html, document, escape, gallery, image, join, section, table


def everything(text):
    """A page with the text in every place that takes one."""
    picture = np.zeros((4, 4, 3), np.uint8)
    pieces = [
        page.paragraph(text), page.code(text), page.notice(text), page.folded(text, text), page.facts([(text, text)]),
        table([text], [[text]]), image(picture, None, text), gallery([(picture, text)]), text,
    ]  # fmt: skip
    return document(text, [section(text, *pieces)], text)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_comes_through_and_is_never_markup(text):
    outline, empty = Outline(everything(text)), Outline(everything("x"))
    assert outline.tags == empty.tags
    shown = [t for t in outline.texts if t.strip()]
    clean = page.UNFIT.sub("\ufffd", text)
    # A parser reads line ends as one character.
    expected = clean.replace("\r\n", "\n").replace("\r", "\n")
    assert all(t.replace("\r\n", "\n").replace("\r", "\n").strip() == expected.strip() for t in shown)
    assert len(shown) == (15 if expected.strip() else 0)
    assert ("alt", clean) in outline.attributes


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_makes_a_page_that_can_be_written(text):
    html = everything(text)
    assert html.encode("utf-8").decode("utf-8") == html
    assert "<script" not in html
    assert not re.search("[\0\x1b\u202e]", html)


def test_what_turns_text_around_is_taken_out():
    assert escape("photo\u202egnp.exe") == "photo\ufffdgnp.exe"


def test_markup_is_not_escaped_twice():
    piece = join(Html("<b>"), "a & b", Html("</b>"))
    assert piece == "<b>a &amp; b</b>"
    assert escape(piece) is piece
    assert "<p><b>a &amp; b</b></p>" in document("t", [page.paragraph(piece)])


def test_a_page_needs_nothing_from_outside_and_forbids_it():
    html = everything("text")
    assert "default-src 'none'" in html
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|\bon\w+=", html.replace("</", ""))
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html


def pictures(html):
    """(width, height, class, pixels) of every picture in the text."""
    pattern = r'<img( class="pixels")? src="data:image/(\w+);base64,([^"]+)" width="(\d+)" height="(\d+)"'
    return [
        (int(width), int(height), bool(mark), np.asarray(Image.open(BytesIO(base64.b64decode(data)))))
        for mark, _, data, width, height in re.findall(pattern, html)
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_picture_keeps_its_pixels_and_shows_them_as_squares(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 20, channels), np.uint8)
    [(width, height, squares, shown)] = pictures(image(pixels, 100))
    assert (width, height, squares) == (100, 140, True)
    assert np.array_equal(shown.reshape(pixels.shape), pixels)
    assert pictures(image(pixels))[0][:3] == (20, 28, False)


@pytest.mark.parametrize(
    ("size", "width", "shown"),
    [((600, 800), 200, (150, 200)), ((10, 5000), 100, (1, 100)), ((300, 200), 200, (300, 200)), ((1, 1), 50, (50, 50))],
)
def test_a_page_carries_no_more_than_it_shows(size, width, shown):
    [(wide, high, _, pixels)] = pictures(image(np.full((*size, 3), 77, np.uint8), width))
    assert (high, wide) == shown
    assert pixels.shape[:2] == (shown if size[1] > width else size)
    assert abs(int(pixels.mean()) - 77) <= 1


def test_a_gallery_fits_its_pictures_into_squares():
    sizes = [(28, 28), (500, 400), (100, 900), (900, 2), (1, 1), (144, 144), (100, 72)]
    found = pictures(gallery([(np.zeros((*size, 1), np.uint8), "") for size in sizes], side=144))
    assert [(high, wide) for wide, high, _, _ in found] == [
        (140, 140), (144, 115), (16, 144), (450, 1), (144, 144), (144, 144), (144, 104)
    ]  # fmt: skip


def test_a_photograph_is_small_in_the_page():
    rows, columns = np.mgrid[:1000, :1000]
    photograph = np.stack([rows % 256, columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
    assert len(image(photograph, 160)) < 20_000


def test_tables_align_numbers_and_have_a_cell_for_each_header():
    html = table(["name", "count"], [["cat", "12"], ["dog", "7"]], numeric=[1])
    assert html.count('class="number"') == 3
    assert Outline(html).text == "name count cat 12 dog 7"
    with pytest.raises(AssertionError, match="1 cells under 2 headers"):
        table(["a", "b"], [["one"]])
