"""What `vitrail data check` found as one self-contained page with images (templates/data.html).

splits = find_splits(Data("photos"))
write(check(splits), Path("check.html"), splits)
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from vitrail.data.audit.findings import SMALL, Finding, Item, Report, line, verdict
from vitrail.data.audit.scan import Record
from vitrail.data.order import permute
from vitrail.data.sources.source import Source, classes_of
from vitrail.report.html import SIDE, Figure, of_source, render

CASES, LINES = 24, 200  # of a finding that are shown: with images, and in words
Case = tuple[list[Record], str]  # images, and what stands below them
SAMPLE_SIDE = 96  # of a sample, in CSS pixels
CLASSES, SAMPLES = 40, 80  # classes that images are shown of, and how many of all where there are few classes


def write(report: Report, path: Path, splits: Mapping[str, Source]) -> None:
    """Writes the page. splits: those that were checked; the images shown are read again."""
    counts, kinds = (", ".join(f"{n} {count:,}" for n, count in of.items()) for of in (report.splits, report.kinds))
    page = render(
        "data.html",
        title="Data check",
        subtitle=f"{sum(report.splits.values()):,} images: {counts}",
        verdict=verdict(report.faults),
        serious=[_cases(finding, splits) for finding in report.findings if finding.serious],
        noticed=[_cases(finding, splits) for finding in report.findings if not finding.serious],
        report=report,
        kinds=kinds,
        small=SMALL,
        classes=_classes(report),
        split=next(iter(splits)),
        samples=list(_samples(report, splits)),
        sample_side=SAMPLE_SIDE,
    )
    path.write_text(page, encoding="utf-8")


def _cases(finding: Finding, splits: Mapping[str, Source]) -> dict[str, Any]:
    """The cases of a finding: those with images as figures, the others in words."""
    words = finding.kind == "unreadable" or not finding.items[0].records
    shown = finding.items[: LINES if words else CASES]
    return {
        "finding": finding,
        "lines": [line(item) for item in shown] if words else [],
        "figures": [] if words else list(_figures(map(_case, shown), splits)),
        "pairs": not words and len(shown[0].records) > 1,
        "more": len(finding.items) - len(shown),
    }


def _case(item: Item) -> Case:
    """One image; or of those that are or look the same two, of different splits or labels where some are. Below them
    stand the ends of their paths, by which people know them, and their labels."""
    first, *others = item.records
    others.sort(key=lambda other: (other.split, other.label) == (first.split, first.label))
    shown = [first, *others[:1]]
    more = f", {len(item.records):,} images" if len(others) > 1 else ""
    names = ["/".join(PurePath(r.name).parts[-3:]) + (f" ({r.label})" if r.label else "") for r in shown]
    return shown, "\n".join([item.note + more, *names])


def _figures(cases: Iterable[Case], splits: Mapping[str, Source], side: int = SIDE) -> Iterator[Figure]:
    """Images with their captions; without those that can no longer be read."""
    for records, caption in cases:
        if images := [image for r in records for image in of_source(splits[r.split], r.index, 3, side)]:
            yield images, caption


def _classes(report: Report) -> list[list[str | float]]:
    """How many images each class has in each split, the largest first."""
    rows = sorted(report.classes.items(), key=lambda row: -sum(row[1].values()))
    largest = max((sum(counts.values()) for _, counts in rows), default=1)
    cells = [[name, *(f"{n:,}" for n in row.values()), sum(row.values()) / largest] for name, row in rows]
    if rows and any(report.unlabelled.values()):
        cells.append(["without a label", *(f"{count:,}" for count in report.unlabelled.values()), ""])
    return cells


def _samples(report: Report, splits: Mapping[str, Source]) -> Iterator[tuple[str, list[Figure]]]:
    """Some images of each class in the first split, or of all without labels; always the same ones."""
    split, source = next(iter(splits.items()))
    members = defaultdict[str, list[int]](list)
    for index in range(len(source)):
        labels = [source.class_names[number] for number in classes_of(source.target(index))] if report.classes else [""]
        for name in labels:
            members[name].append(index)
    places = np.linspace(0, len(members) - 1, min(CLASSES, len(members)), dtype=int).tolist()
    each = max(4, min(24, SAMPLES // max(1, len(places))))
    for number, (name, images) in enumerate(list(members.items())[place] for place in places):
        chosen = permute(np.arange(min(each, len(images))), len(images), seed=0, epoch=number).tolist()
        records = [Record(split, images[place], source.name(images[place]), name) for place in chosen]
        yield name, list(_figures((([r], PurePath(r.name).name) for r in records), splits, SAMPLE_SIDE))
