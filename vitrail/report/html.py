"""Pages by jinja2 templates: one HTML file each, light and dark, without scripts, without a network.

    page = render("data.html", title="Data check", subtitle="297 images", ...)

Python computes values, templates/ lays them out and escapes all text: a file's name can never become markup.
"""

import base64
import math
import re
import shlex
from functools import cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vitrail.data.sources.source import Source, pixels

# What no HTML may hold: control characters, and the halves of characters that undecodable file names are made of. And
# what turns the text that follows around, with which "gnp.exe" can be made to look like another file.
UNFIT = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
SIDE = 144  # of the square that an image fills, in CSS pixels
EXACT = 96 * 96  # pixels up to which an image is kept without loss, as PNG


def render(template: str, **values: Any) -> str:
    """The whole page, without UNFIT characters, wherever they came in."""
    return UNFIT.sub("\ufffd", environment().get_template(template).render(values))


def percent(fraction: float) -> str:
    """A fraction to a tenth of a percent: 0.86954 is 87.0 %; only 1 is 100.0 %; NaN is –."""
    if math.isnan(fraction):
        return "–"
    return f"{100 * fraction if fraction == 1 else min(100 * fraction, 99.9):.1f}\u202f%"


class Thumbnail(NamedTuple):
    """An image inside the page. width, height: as it is shown, in CSS pixels. squares: whether its pixels are seen."""

    src: str
    width: int
    height: int
    squares: bool


Figure = tuple[list[Thumbnail], Any]  # images beside each other, and what their template says below them


def thumbnail(image: UInt8[np.ndarray, "H W C"], side: int = SIDE) -> Thumbnail:
    """An image, RGB or grey, that fills a square; a small one by whole squares for its pixels.

    What is larger is made smaller first, so that the page carries no more than it shows.
    """
    height, width, channels = image.shape
    longer = max(height, width)
    wide = width * (side // longer) if 2 * longer <= side else max(1, round(width * side / longer))
    high = max(1, round(height * wide / width))
    shown = Image.fromarray(image[..., 0] if channels == 1 else image)
    if width > wide:
        shown = shown.resize((wide, high), Image.Resampling.BICUBIC)
    kind = "png" if shown.width * shown.height <= EXACT else "jpeg"
    stream = BytesIO()
    shown.save(stream, kind, optimize=True, **({"quality": 85} if kind == "jpeg" else {}))
    data = base64.b64encode(stream.getvalue()).decode()
    return Thumbnail(f"data:image/{kind};base64,{data}", wide, high, squares=wide >= 2 * width)


def of_source(source: Source, index: int, channels: int, side: int = SIDE) -> list[Thumbnail]:
    """An image of a source; none where it can no longer be read."""
    try:
        return [thumbnail(pixels(source[index].image, channels, source.name(index)), side)]
    except ValueError:
        return []


@cache
def environment() -> Environment:
    """jinja2 with the templates in templates/ and the filters that they use; a missing value is an error."""
    made = Environment(loader=PackageLoader("vitrail.report"), autoescape=True, undefined=StrictUndefined)
    made.trim_blocks = made.lstrip_blocks = True
    made.globals["SIDE"] = SIDE
    made.filters |= {"percent": percent, "quote": shlex.quote, "thousands": "{:,.0f}".format}
    return made
