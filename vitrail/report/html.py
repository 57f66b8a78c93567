"""Pages by jinja2 templates: one HTML file each, light and dark, without a network.

    page = render("data.html", title="Data check", subtitle="297 images", ...)
    page = render("run.html", document={"metrics": ...}, ...)      # with templates/page.js, and the document as JSON

Python computes values, templates/ lays them out and escapes all text: a file's name can never become markup. The only
script is ours, which sorts tables and filters images; the page's policy names it by its hash, so no other can run.
"""

import base64
import hashlib
import json
import math
import re
import shlex
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from vitrail.data.sources.source import Source, pixels

# What no HTML may hold: control characters, and the halves of characters that undecodable file names are made of. And
# what turns the text that follows around, with which "gnp.exe" can be made to look like another file.
UNFIT = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
SIDE = 144  # of the square that an image fills, in CSS pixels
HEAT = 255, 140, 0  # the colour of where a model looks
NAME = 36  # letters of a file's name below its image
EXACT = 96 * 96  # pixels up to which an image is kept without loss, as PNG


def render(template: str, document: Any = None, code: str = "page.js", allow: str = "", **values: Any) -> str:
    """The whole page, without UNFIT characters, wherever they came in. document: what the page has as JSON, in the
    element "data"; such a page has our script, `code`. allow: what its policy permits besides."""
    script = policy = data = ""
    if document is not None:
        script = (files("vitrail.report") / "templates" / code).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy = f"; script-src 'sha256-{digest}'{allow}"
        text = json.dumps(_finite(document), ensure_ascii=False).replace("<", "\\u003c")
        data = f'<script type="application/json" id="data">{text}</script>'
    values |= {"script": script, "policy": policy, "data": data}
    return UNFIT.sub("\ufffd", environment().get_template(template).render(values))


def _finite(value: Any) -> Any:
    """As JSON has it, which knows no NaN: null."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def percent(fraction: float) -> str:
    """A fraction to a tenth of a percent: 0.86954 is 87.0 %; only 1 is 100.0 %; NaN is –."""
    if math.isnan(fraction):
        return "–"
    return f"{100 * fraction if fraction == 1 else min(100 * fraction, 99.9):.1f}\u202f%"


class Thumbnail(NamedTuple):
    """An image inside the page. width, height: as it is shown, in CSS pixels. squares: whether its pixels are seen.
    alt: what it shows, where the words below it do not say so."""

    src: str
    width: int
    height: int
    squares: bool
    alt: str = ""


Box = tuple[float, float, float, float]
Figure = tuple[list[Thumbnail], Any]  # images beside each other, and what their template says below them


def thumbnail(image: UInt8[np.ndarray, "H W C"], side: int = SIDE) -> Thumbnail:
    """An image that fills a square; a small one by whole squares for its pixels. Of four or more channels the first
    three are RGB, of two the mean is grey.

    What is larger is made smaller first, so that the page carries no more than it shows.
    """
    height, width, channels = image.shape
    longer = max(height, width)
    wide = width * (side // longer) if 2 * longer <= side else max(1, round(width * side / longer))
    high = max(1, round(height * wide / width))
    plane = image.mean(2).round().astype(np.uint8) if channels < 3 else image[..., :3]
    shown = Image.fromarray(np.ascontiguousarray(plane))
    if width > wide:
        shown = shown.resize((wide, high), Image.Resampling.BICUBIC)
    kind = "png" if shown.width * shown.height <= EXACT else "jpeg"
    stream = BytesIO()
    shown.save(stream, kind, optimize=True, **({"quality": 85} if kind == "jpeg" else {}))
    data = base64.b64encode(stream.getvalue()).decode()
    return Thumbnail(f"data:image/{kind};base64,{data}", wide, high, squares=wide >= 2 * width)


def heated(
    photo: UInt8[np.ndarray, "H W C"], scores: Float[np.ndarray, "rows columns"], box: Box, side: int = SIDE
) -> Thumbnail:
    """A map of patches over the photograph in grey: the brightest 2 % are full. box: (left, top, right, bottom) of the
    map in the photograph's pixels; it may reach beyond. side: as of a thumbnail."""
    left, top, right, bottom = box
    height, width = photo.shape[:2]
    rows = np.floor((np.arange(height) + 0.5 - top) / (bottom - top) * scores.shape[0]).astype(int)
    columns = np.floor((np.arange(width) + 0.5 - left) / (right - left) * scores.shape[1]).astype(int)
    padded = np.pad(np.maximum(scores, 0), 1)  # nothing is seen beyond the map
    place = np.ix_(np.clip(rows + 1, 0, scores.shape[0] + 1), np.clip(columns + 1, 0, scores.shape[1] + 1))
    heat = np.minimum(padded[place] / max(float(np.quantile(scores, 0.98)), 1e-12), 1)[..., None]
    grey = photo.mean(2, keepdims=True) * 0.7
    return thumbnail((grey * (1 - 0.8 * heat) + np.array(HEAT) * 0.8 * heat).astype(np.uint8), side)


def of_source(source: Source, index: int, channels: int, side: int = SIDE) -> list[Thumbnail]:
    """An image of a source; none where it can no longer be read."""
    try:
        return [thumbnail(pixels(source[index].image, channels, source.name(index)), side)]
    except ValueError:
        return []


def short(name: str) -> str:
    """The end of a file's name."""
    return name if len(name) <= NAME else "…" + name[1 - NAME :]


@cache
def environment() -> Environment:
    """jinja2 with the templates in templates/ and the filters that they use; a missing value is an error."""
    made = Environment(loader=PackageLoader("vitrail.report"), autoescape=True, undefined=StrictUndefined)
    made.trim_blocks = made.lstrip_blocks = True
    made.globals["SIDE"] = SIDE
    made.filters |= {"percent": percent, "quote": shlex.quote, "thousands": "{:,.0f}".format}
    return made
