"""Pieces of HTML, and the page that they make: one file, light and dark, without scripts, without a network.

    page = document("My run", [section("Result", paragraph("87 % are right."), table(["class", "F1"], rows, [1]))])
    path.write_text(page, encoding="utf-8")

A piece is Html. Any other string is text, and is escaped wherever it goes in: a file's name can never become markup.
"""

import base64
import html
import re
from collections.abc import Collection, Iterable, Sequence
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

EXACT = 96 * 96  # pixels up to which a picture is kept without loss, as PNG
# What no HTML may hold: control characters, and the halves of characters that undecodable file names are made of. And
# what turns the text that follows around, with which "gnp.exe" can be made to look like another file.
UNFIT = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def escape(text: str) -> Html:
    """Html as it is; any other text with all that means something to HTML made harmless, inside quotes, too."""
    return text if isinstance(text, Html) else Html(html.escape(UNFIT.sub("\ufffd", text)))


def join(*pieces: str) -> Html:
    """The pieces one after the other."""
    return Html("".join(map(escape, pieces)))


def document(title: str, body: Iterable[str], subtitle: str = "") -> str:
    """The whole page. Its policy forbids scripts and any fetching, should a piece ever ask for it."""
    below = join(Html('<p class="subtitle">'), subtitle, Html("</p>")) if subtitle else ""
    header = join(Html("<header>"), PANES, Html("<h1>"), title, Html("</h1>"), below, Html("</header>"))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n{header}\n<main>\n"
        + "\n".join(map(escape, body))
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *body: str) -> Html:
    """A part of the page under its own heading."""
    return join(Html("<section>\n<h2>"), title, Html("</h2>\n"), *body, Html("\n</section>"))


def paragraph(*text: str) -> Html:
    """A paragraph of text and pieces of markup."""
    return join(Html("<p>"), *text, Html("</p>\n"))


def code(text: str) -> Html:
    """Lines to be typed or copied."""
    return join(Html("<pre><code>"), text, Html("</code></pre>\n"))


def notice(text: str) -> Html:
    """A remark that must not be overlooked."""
    return join(Html('<p class="notice" role="note">'), text, Html("</p>\n"))


def folded(title: str, *body: str) -> Html:
    """What is shown after a click on the title."""
    return join(Html("<details>\n<summary>"), title, Html("</summary>\n"), *body, Html("\n</details>\n"))


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """A list of names and what is to be said of each."""
    rows = (join(Html("<div><dt>"), name, Html("</dt><dd>"), text, Html("</dd></div>\n")) for name, text in pairs)
    return join(Html('<dl class="facts">\n'), *rows, Html("</dl>\n"))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], numeric: Collection[int] = ()) -> Html:
    """A table that scrolls by itself where it is wider than the page. numeric: the columns that are aligned right."""
    marks = [' class="number"' if column in numeric else "" for column in range(len(headers))]

    def row(kind: str, cells: Sequence[str]) -> str:
        assert len(cells) == len(headers), f"{len(cells)} cells under {len(headers)} headers"
        inside = "".join(f"<{kind}{m}>{escape(c)}</{kind}>" for m, c in zip(marks, cells, strict=True))
        return f"<tr>{inside}</tr>\n"

    body = "".join(row("td", cells) for cells in rows)
    head = row("th", headers)
    return Html(f'<div class="scroll"><table>\n<thead>\n{head}</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n')


def image(pixels: UInt8[np.ndarray, "H W C"], width: int | None = None, alt: str = "") -> Html:
    """A picture, RGB or grey, inside the page. width: as it is shown, in CSS pixels; None is its own.

    What is larger is made smaller first, so that the page carries no more than it shows; what is much smaller shows its
    pixels as squares.
    """
    height, own, channels = pixels.shape
    wide = own if width is None else width
    high = max(1, round(height * wide / own))
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    if own > wide:
        picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
    kind = "png" if picture.width * picture.height <= EXACT else "jpeg"
    stream = BytesIO()
    picture.save(stream, kind, optimize=True, **({"quality": 85} if kind == "jpeg" else {}))
    data = base64.b64encode(stream.getvalue()).decode()
    mark = ' class="pixels"' if wide >= 2 * own else ""
    return Html(f'<img{mark} src="data:image/{kind};base64,{data}" width="{wide}" height="{high}" alt="{escape(alt)}">')


def gallery(items: Iterable[tuple[NDArray[np.uint8], str]], side: int = 144) -> Html:
    """Pictures (H, W, 1 or 3) in rows, as many as the page has room for, each above its caption, of one line or more.

    side: of the square in CSS pixels that each fills; a small picture by whole squares for its pixels.
    """
    figures = []
    for pixels, caption in items:
        height, width = pixels.shape[:2]
        long = max(height, width)
        shown = width * (side // long) if 2 * long <= side else max(1, round(width * side / long))
        picture = image(pixels, shown)
        inside = join(Html("<div>"), picture, Html("</div><figcaption>"), caption, Html("</figcaption>"))
        figures.append(f"<figure>{inside}</figure>\n")
    return Html(f'<div class="gallery" style="--side: {side}px">\n{"".join(figures)}</div>\n')


# The mark of the house: one picture, made of panes.
PANES = Html(
    '<svg class="panes" viewBox="0 0 34 34" width="34" height="34" aria-hidden="true">'
    '<rect width="16" height="16" fill="var(--a)"/><rect x="18" width="16" height="16" fill="var(--b)"/>'
    '<rect y="18" width="16" height="16" fill="var(--c)"/><rect x="18" y="18" width="16" height="16" fill="var(--d)"/>'
    "</svg>"
)

STYLE = """
:root {
  color-scheme: light dark; --paper: #ffffff; --panel: #f5f6f8; --line: #e1e4e8; --ink: #1b1f24; --muted: #5c646e;
  --a: #2b62c9; --b: #c4541a; --c: #23805a; --d: #b8860b; --heat: 43, 98, 201; --miss: 196, 84, 26;
  --warn: #fff6e0; --warn-line: #d99a1c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --panel: #1c2026; --line: #323840; --ink: #e4e7eb; --muted: #9aa3ae;
    --a: #7ba9ff; --b: #f0935a; --c: #5fc598; --d: #e0b84e; --heat: 123, 169, 255; --miss: 240, 147, 90;
    --warn: #2c2515; --warn-line: #c08a1e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
  overflow-wrap: anywhere; -webkit-text-size-adjust: 100%;
}
header { display: grid; grid-template-columns: auto 1fr; align-items: center; column-gap: .9rem; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; letter-spacing: -.01em; unicode-bidi: isolate; }
h2 { margin: 0 0 .8rem; font-size: 1.15rem; line-height: 1.3; }
h3 { margin: 1.4rem 0 .5rem; font-size: .95rem; }
.subtitle { grid-column: 2; margin: .15rem 0 0; color: var(--muted); unicode-bidi: isolate; }
section { margin-top: 2.75rem; }
p { margin: 0 0 .8rem; max-width: 46rem; }
b { font-weight: 600; }
.file { font-size: .75rem; }
.small, figcaption, dt { color: var(--muted); font-size: .85rem; }
.lead { font-size: 1.1rem; }
.big { font-size: 3.2rem; line-height: 1.1; font-weight: 650; letter-spacing: -.03em; margin: 0 0 .3rem; }
.notice {
  background: var(--warn); border-left: 4px solid var(--warn-line); border-radius: 4px; padding: .6rem .9rem;
  max-width: none;
}
pre {
  background: var(--panel); border-radius: 6px; padding: .8rem 1rem; margin: 0 0 .8rem; overflow-x: auto;
  overflow-wrap: normal; line-height: 1.6;
}
code { font: .87rem/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--a); padding: .2rem 0; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .9rem 1.5rem; margin: 1.3rem 0;
}
.facts div { border-top: 1px solid var(--line); padding-top: .45rem; }
dd { margin: 0; unicode-bidi: isolate; }
.scroll { overflow-x: auto; margin: 0 0 .8rem; }
table { border-collapse: collapse; font-size: .9rem; min-width: 50%; }
th, td {
  text-align: left; padding: .32rem .9rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  max-width: 24rem; overflow-wrap: break-word;
}
th { color: var(--muted); font-weight: 500; font-size: .85rem; white-space: nowrap; border-bottom-color: var(--muted); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--side), 1fr)); gap: 1.1rem .9rem; }
figure { margin: 0; min-width: 0; }
.gallery figure div {
  height: var(--side); display: flex; align-items: center; justify-content: center; background: var(--panel);
  border-radius: 4px; overflow: hidden;
}
figcaption { margin-top: .3rem; line-height: 1.4; white-space: pre-line; unicode-bidi: isolate; }
img { max-width: 100%; height: auto; vertical-align: middle; }
img.pixels { image-rendering: pixelated; }
svg { display: block; max-width: 100%; height: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.4rem 1.5rem; }
.chart figcaption { margin: 0 0 .2rem; }
.title { color: var(--ink); font-weight: 600; margin-right: 1rem; }
.key { margin-right: .9rem; white-space: nowrap; }
.key::before {
  content: ""; display: inline-block; width: .8rem; height: .2rem; border-radius: 2px; background: var(--key);
  vertical-align: middle; margin-right: .35rem;
}
svg text { fill: var(--muted); font-size: 11.5px; }
svg .name { fill: var(--ink); }
svg .count { fill: var(--ink); }
svg .deep { fill: var(--paper); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.faint { opacity: .35; stroke-width: 1; }
.grid { stroke: var(--line); }
.guide { stroke: var(--ink); stroke-dasharray: 4 4; opacity: .6; }
.frame { fill: none; stroke: var(--line); }
.scroll > svg { max-width: none; }
.meter { display: inline-block; width: 5rem; height: .5rem; border-radius: 2px; background: var(--line); }
.meter span { display: block; height: 100%; border-radius: 2px; background: var(--a); }
@media (max-width: 40rem) {
  body { padding: 1.5rem 1rem 3rem; }
  .big { font-size: 2.6rem; }
  th, td { max-width: 12rem; }
}
@media print { body { max-width: none; padding: 0; } section, figure { break-inside: avoid; } }
"""
