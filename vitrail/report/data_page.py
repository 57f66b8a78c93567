"""What `vitrail data check` found as one self-contained page with pictures.

    splits = find_splits(Data("photos"))
    write(check(splits), Path("check.html"), splits)

What is wrong comes first, copies side by side; then the numbers, and some images of each class.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from vitrail.data.audit.findings import SMALL, Finding, Item, Report, line, verdict
from vitrail.data.audit.scan import Record
from vitrail.data.order import permute
from vitrail.data.sources.source import Source, classes_of, pixels
from vitrail.report.charts import meter
from vitrail.report.html import Html, document, facts, folded, gallery, image, join, paragraph, section, table

CASES, LINES = 24, 200  # of a finding that are shown: with pictures, and in words
SIDE, SAMPLE_SIDE = 144, 96  # of a picture, in CSS pixels
CLASSES, SAMPLES = 40, 80  # classes that images are shown of, and how many of all where there are few classes
PROMISE = (
    "Every image was read. Looked for were images that cannot be read, show nothing or are tiny; the same image, or "
    "one that looks the same, in two splits, under two labels, or twice; and classes with too few images."
)
ROWS = 20  # of the table of classes, before the rest is folded away


def write(report: Report, path: Path, splits: Mapping[str, Source]) -> Path:
    """Writes the page and returns its path. splits: those that were checked; what is shown of them is read again.

    ValueError where the page cannot be written.
    """
    noticed = [folded(f.title, *_cases(f, splits)) for f in report.findings if not f.serious]
    body = [
        section(verdict(report.faults), paragraph(PROMISE)),
        *(section(f.title, *_cases(f, splits)) for f in report.findings if f.serious),
        *([section("Also noticed", *noticed)] if noticed else []),
        section("In numbers", facts(_numbers(report))),
        *_classes(report),
        *_samples(report, splits),
    ]
    parts = ", ".join(f"{split} {count:,}" for split, count in report.splits.items())
    try:
        page = document("Data check", body, f"{sum(report.splits.values()):,} images: {parts}")
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); name another place.") from None
    return path


def _numbers(report: Report) -> Iterator[tuple[str, str]]:
    """Sizes, kinds and colours."""
    for name, (least, median, most) in report.sizes.items():
        form, unit = (".2f", "") if name == "aspect" else (",.0f", " bytes" if name == "bytes" else " pixels")
        spread = f"{least:{form}} to {most:{form}}{unit}, half of them up to {median:{form}}"
        what = {"aspect": "width / height", "bytes": "file"}.get(name, name)
        yield what, f"{least:{form}}{unit}" if least == most else spread
    if report.small:
        yield f"side below {SMALL} pixels", f"{report.small:.1%} of the images"
    yield "kinds", ", ".join(f"{kind} {count:,}" for kind, count in report.kinds.items()) or "none"
    for name, values in report.colours.items():
        yield f"{name} of red, green, blue", ", ".join(f"{value:.3f}" for value in values)


def _cases(finding: Finding, splits: Mapping[str, Source]) -> Iterator[Html]:
    """What to do, and the cases: pairs side by side, single images in rows, and what has no picture in words."""
    items, most = finding.items, CASES
    yield paragraph(finding.advice)
    if finding.kind == "unreadable" or not items[0].records:
        most = LINES
        yield from (paragraph(line(item)) for item in items[:most])
    elif len(items[0].records) > 1:
        pairs = (_pair(item, splits) for item in items[:most])
        yield join(Html(f'<div class="gallery" style="--side: {2 * SIDE + 8}px">\n'), *pairs, Html("</div>\n"))
    else:
        captions = [f"{item.note}\n{_caption(item.records[0])}" for item in items[:most]]
        yield _gallery(zip((item.records[0] for item in items), captions, strict=False), splits)
    if len(items) > most:
        yield paragraph(f"... and {len(items) - most:,} more; --json lists all.")


def _pair(item: Item, splits: Mapping[str, Source]) -> Html:
    """Two images that are or look the same beside each other, of different splits or labels where some are."""
    first, *others = item.records
    other = next((r for r in others if (r.split, r.label) != (first.split, first.label)), others[0])
    pictures = [shown for record in (first, other) if (shown := _picture(record, splits)) is not None]
    widths = [max(1, round(SIDE * p.shape[1] / max(p.shape[:2]))) for p in pictures]
    inside = join(*(image(shown, width) for shown, width in zip(pictures, widths, strict=True)))
    more = f", {len(item.records):,} images" if len(others) > 1 else ""
    caption = f"{item.note}{more}\n{_caption(first)}\n{_caption(other)}"
    frame = f'<figure><div style="height: {SIDE}px; gap: 8px">'
    return join(Html(frame), inside, Html("</div><figcaption>"), caption, Html("</figcaption></figure>\n"))


def _gallery(records: Iterable[tuple[Record, str]], splits: Mapping[str, Source], side: int = SIDE) -> Html:
    """Images with their captions."""
    pictures = ((_picture(record, splits), caption) for record, caption in records)
    return gallery([(picture, caption) for picture, caption in pictures if picture is not None], side)


def _picture(record: Record, splits: Mapping[str, Source]) -> NDArray[np.uint8] | None:
    """Its pixels; None where it cannot be read any more."""
    try:
        return pixels(splits[record.split][record.index][0], 3, record.name)
    except ValueError:
        return None


def _caption(record: Record) -> str:
    """The end of its path, by which people know it, and its label."""
    name = "/".join(PurePath(record.name).parts[-3:])
    return f"{name} ({record.label})" if record.label else name


def _classes(report: Report) -> Iterator[Html]:
    """How many images each class has, the largest first."""
    totals = {name: sum(row.values()) for name, row in report.classes.items()}
    names, largest = sorted(totals, key=lambda name: -totals[name]), max(totals.values(), default=0)
    rows = [
        [name, *(f"{count:,}" for count in report.classes[name].values()), meter(totals[name] / largest)]
        for name in names
    ]
    if rows and any(report.unlabelled.values()):
        rows.append(["without a label", *(f"{count:,}" for count in report.unlabelled.values()), ""])
    headers, numeric = ["class", *report.splits, ""], range(1, len(report.splits) + 1)
    if rows:
        first, rest = table(headers, rows[:ROWS], numeric), rows[ROWS:]
        more = folded(f"{len(rest):,} more", table(headers, rest, numeric)) if rest else ""
        yield section("Images of each class", first, more)


def _samples(report: Report, splits: Mapping[str, Source]) -> Iterator[Html]:
    """Some images of each class in the first split, or of all without labels; always the same ones."""
    split, source = next(iter(splits.items()))
    members = _members(source) if report.classes else {"": range(len(source))} if len(source) else {}
    chosen = [list(members)[place] for place in np.linspace(0, len(members) - 1, min(CLASSES, len(members)), dtype=int)]
    each = max(4, min(24, SAMPLES // max(1, len(chosen))))
    parts = []
    for number, name in enumerate(chosen):
        of_class = members[name]
        places = permute(np.arange(min(each, len(of_class))), len(of_class), seed=0, epoch=number).tolist()
        records = [Record(split, of_class[place], source.name(of_class[place]), name) for place in places]
        pictures = _gallery(((record, PurePath(record.name).name) for record in records), splits, SAMPLE_SIDE)
        parts.append(join(Html("<h3>"), name, Html("</h3>\n"), pictures))
    if parts:
        yield section(f"Some images of {split}", *parts)


def _members(source: Source) -> dict[str, list[int]]:
    """The images of each class that has any."""
    found = defaultdict[str, list[int]](list)
    for index in range(len(source)):
        for number in classes_of(source.target(index)):
            found[source.class_names[number]].append(index)
    return found
