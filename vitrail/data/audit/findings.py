"""What is wrong with a data set, before a model is trained on it.

    splits = find_splits(Data("photos"))
    report = check(splits)              # reads every image once
    print(text(report))                 # what matters first
    report.document()                   # the same for JSON, complete

It looks for images that cannot be read, show nothing or are tiny; the same image, or one that looks the same, in two
splits, under two labels, or twice; classes without images, or with few. duplicates.py says what "looks the same" means.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from textwrap import wrap
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vitrail.data.audit.duplicates import alike, copies
from vitrail.data.audit.scan import TRAITS, Record, Scan
from vitrail.data.sources.source import Found, Source, classes_of, counts, many
from vitrail.progress import few

FEW = 10  # images of a class that are too few to learn it from
UNEVEN = 10  # times the images of one class in another
SMALL, TINY = 64, 8  # pixels of the shorter side
SHOWN = 5  # of a list, in the text
WIDTH = 80  # of the tables in the text


@dataclass(frozen=True)
class Kind:
    """A kind of finding: "3 images that cannot be read" are noun and what. serious: a person should look at it."""

    noun: str
    what: str
    advice: str
    serious: bool = True


LOOK = "Copies (scaled, re-compressed, brighter, mirrored) and frames of one film"
KINDS = {
    "unreadable": Kind("image", "that cannot be read", "Replace or delete them: training stops at the first."),
    "copies across splits": Kind("image", "in more than one split",
        "Keep each in one split: a score on images that were trained on says nothing."),
    "copies under several labels": Kind("image", "with different labels on its copies",
        "Find out which label is right, and delete the copies that have another."),
    "alike across splits": Kind("group", "of look-alikes across splits",
        f"Look at the images. {LOOK} belong in one split, or scores are too good."),
    "alike under several labels": Kind("group", "of look-alikes with different labels", "Correct the wrong labels."),
    "copies": Kind("image", "more than once in a split", "Delete the surplus, by which some count more."),
    "blank": Kind("image", "of one colour only", "Delete such images, or find out what happened to them."),
    "tiny": Kind("image", f"with a side below {TINY} pixels", "Delete such images, or find the originals."),
    "lost": Kind("folder", "without an image that is read",
        "If it is a class, convert its images to JPEG or PNG: without them it is missing."),
    "missing": Kind("class", "without an image in a split", "Add images, or take the class out of all splits."),
    "few": Kind("class", f"with fewer than {FEW} images to train on", "Add images, or merge classes."),
    "alike": Kind("group", "of look-alikes within a split", f"{LOOK} are fewer images than they seem.", False),
    "uneven": Kind("class", f"with a {UNEVEN}th of the largest class's images, or less",
        "Training can show every class equally often (balance); judge each class by its own score.", False),
    "CMYK": Kind("image", "in CMYK", "Colours are converted without a profile: compare with the originals.", False),
    "16-bit": Kind("image", "of 16 bits", "The upper 8 are used: scale values that do not fill the range.", False),
    "transparent": Kind("image", "with transparency", "What is behind becomes white.", False),
    "animated": Kind("image", "with several frames", "Only the first frame of each is read.", False),
    "turned": Kind("image", "turned by EXIF", "Such images are turned upright; other programs may not do so.", False),
    "misnamed": Kind("image", "named as another kind", "They are read by content; other programs may fail.", False),
}  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One case of a finding: the images that it is about, if any, and a note on them."""

    records: tuple[Record, ...]
    note: str


@dataclass(frozen=True)
class Finding:
    """All cases of one kind. title: how many there are. advice: what to do. serious: a person should look at it."""

    kind: str
    serious: bool
    title: str
    advice: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Report:
    """All that is known of a data set. Findings are sorted by importance.

    read: what the place was read as, and what was left out. splits: images in each. classes: for each class, how many
    images each split has; unlabelled: how many have no label.
    sizes: the smallest, the median and the largest width, height, aspect (width / height) and bytes, if known.
    small: the fraction of images with a side below 64 pixels. kinds: how many are "JPEG RGB", and so on.
    colours: "mean" and "std" of R, G and B in [0, 1] over up to 2,000 images, as a preprocessing might use them.
    """

    read: tuple[str, ...]
    splits: dict[str, int]
    classes: dict[str, dict[str, int]]
    unlabelled: dict[str, int]
    sizes: dict[str, tuple[float, ...]]
    small: float
    kinds: dict[str, int]
    colours: dict[str, tuple[float, ...]]
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> int:
        """The number of findings that a person should look at."""
        return sum(finding.serious for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {"images": sum(self.splits.values()), "faults": self.faults, **asdict(self)}


def check(splits: Mapping[str, Source], progress: bool = True, place: str = "the data") -> Report:
    """Reads every image of every split once; one that cannot be read is a finding, not an error. progress: bars on
    standard error. place: what it is called."""
    found = splits if isinstance(splits, Found) else Found(splits)
    scan = Scan.of(splits, progress)
    classes = dict[str, dict[str, int]]()
    for split, source in splits.items():
        for name, count in zip(source.class_names, counts(source).tolist(), strict=True):
            classes.setdefault(name, dict.fromkeys(splits, 0))[split] = count
    unlabelled = {split: sum(not classes_of(s.target(i)) for i in range(len(s))) for split, s in splits.items()}
    if not any(sum(row.values()) for row in classes.values()):
        classes = {}
    cases = defaultdict[str, list[Item]](list)
    _images(scan, cases)
    _doubles(scan, cases, progress)
    cases |= {"lost": [Item((), folder) for folder in found.lost]} if found.lost else {}
    if classes:
        _uneven(classes, [split for split in splits if unlabelled[split] < len(splits[split])], cases)
    seen = scan.rows[scan.rows["readable"]]
    measured = {"width": seen["width"], "height": seen["height"], "aspect": seen["width"] / seen["height"]}
    measured["bytes"] = seen["size"][seen["size"] > 0]
    mean, std = (tuple(values) for values in scan.colours.round(4).tolist())
    return Report(
        read=found.said(place),
        splits={split: len(source) for split, source in splits.items()},
        classes=classes,
        unlabelled=unlabelled,
        sizes={name: (float(v.min()), float(np.median(v)), float(v.max())) for name, v in measured.items() if len(v)},
        small=float((np.minimum(seen["width"], seen["height"]) < SMALL).mean()) if len(seen) else 0.0,
        kinds=dict(scan.kinds.most_common()),
        colours={"mean": mean, "std": std} if len(seen) else {},
        findings=tuple(
            Finding(name, of.serious, f"{many(len(cases[name]), of.noun)} {of.what}", of.advice, tuple(cases[name]))
            for name, of in KINDS.items()
            if name in cases
        ),
    )


def _images(scan: Scan, cases: dict[str, list[Item]]) -> None:
    """Findings about single images."""
    rows = scan.rows
    for number, sentence in scan.problems.items():
        cases["unreadable"].append(Item((scan.record(number),), sentence))
    marks = dict(zip(TRAITS, rows["traits"].T, strict=True))
    marks |= {"blank": rows["blank"], "tiny": rows["readable"] & (np.minimum(rows["width"], rows["height"]) < TINY)}
    for kind, marked in marks.items():
        for number in np.flatnonzero(marked).tolist():
            size = f"{rows['width'][number]} x {rows['height'][number]} pixels"
            cases[kind].append(Item((scan.record(number),), size))


def _doubles(scan: Scan, cases: dict[str, list[Item]], progress: bool) -> None:
    """Images that are the same, or look it; blank ones all would."""
    shown = np.flatnonzero(scan.rows["readable"] & ~scan.rows["blank"])
    rows = scan.rows[shown]
    same = copies(rows["file"], rows["pixels"])
    look = alike(rows["grey"], rows["colour"], rows["pixels"], progress)
    for name, groups in (("copies", same), ("alike", look)):
        for group in groups:
            records = tuple(scan.record(int(shown[member])) for member in group.members)
            across = len({record.split for record in records}) > 1
            several = len({record.label for record in records} - {""}) > 1
            kinds = [f"{name} across splits"] * across + [f"{name} under several labels"] * several
            for kind in kinds or [name]:
                cases[kind].append(Item(records, group.how))


def _uneven(classes: dict[str, dict[str, int]], splits: Sequence[str], cases: dict[str, list[Item]]) -> None:
    """Classes that lack images, in the splits that have labels at all."""
    largest = max(row[splits[0]] for row in classes.values())  # the first split is what is trained on
    for name, row in classes.items():
        size, images = row[splits[0]], many(row[splits[0]], "image")
        if empty := [split for split in splits if not row[split]]:
            cases["missing"].append(Item((), f"{name}: none in {' and '.join(empty)}"))
        if 0 < size < FEW:
            cases["few"].append(Item((), f"{name}: {images}"))
        if 0 < size * UNEVEN <= largest:
            cases["uneven"].append(Item((), f"{name}: {images} of {largest:,}"))


def text(report: Report) -> str:
    """The report for people: what a person should look at, what else was noticed, and the numbers."""
    splits = " (" + ", ".join(f"{name} {count:,}" for name, count in report.splits.items()) + ")"
    classes = f" of {many(len(report.classes), 'class')}" if report.classes else " without labels"
    images = many(sum(report.splits.values()), "image")
    lines = [f"{images}{splits if len(report.splits) > 1 else ''}{classes}. {verdict(report.faults)}."]
    lines += [part for read in report.read for part in wrap(read, WIDTH, subsequent_indent="  ")]
    lines.append("")
    for finding in filter(lambda finding: finding.serious, report.findings):
        more = len(finding.items) - SHOWN
        lines += [f"! {finding.title}", f"  {finding.advice}"]
        lines += [f"    {line(item)}" for item in finding.items[:SHOWN]]
        lines += [f"    ... and {more:,} more; --json lists all", ""] if more > 0 else [""]
    noticed = [f"- {finding.title}. {finding.advice}" for finding in report.findings if not finding.serious]
    lines += [*noticed, ""] if noticed else []
    return "\n".join([*map(_plain, lines), *_classes(report), *_numbers(report)])


def verdict(faults: int) -> str:
    """The result in a few words."""
    return f"{many(faults, 'thing')} to look at" if faults else "Nothing wrong was found"


def line(item: Item) -> str:
    """One case in one line: the note, and the images with their labels."""
    names = [f"{record.name}{f' ({record.label})' if record.label else ''}" for record in item.records]
    if len(names) == 1:
        return item.note if item.records[0].name in item.note else f"{names[0]}: {item.note}"
    return f"{item.note}: {few(names, SHOWN)}" if names else item.note


def _classes(report: Report) -> list[str]:
    """Images by class and split; of many classes the largest and the smallest."""
    rows = [[name, *row.values()] for name, row in report.classes.items()]
    rows.sort(key=lambda row: -sum(row[1:]))
    left = len(rows) - 2 * SHOWN
    if left > SHOWN:
        rows[SHOWN:-SHOWN] = [[f"... {left:,} classes between"]]
    if any(report.unlabelled.values()):
        rows.append(["without a label", *report.unlabelled.values()])
    return _table(["", *report.splits], rows) if report.classes else []


def _numbers(report: Report) -> list[str]:
    """Sizes, kinds and colours."""
    forms = {"aspect": ".2f"}
    rows = [[name, *(f"{value:{forms.get(name, ',.0f')}}" for value in row)] for name, row in report.sizes.items()]
    lines = _table(["", "smallest", "median", "largest"], rows) if rows else []
    if report.small:
        lines.append(f"{report.small:.1%} of the images have a side below {SMALL} pixels")
    lines.append("; ".join(f"{kind} {count:,}" for kind, count in report.kinds.items()))
    values = {name: " ".join(f"{value:.3f}" for value in row) for name, row in report.colours.items()}
    return [*lines, "colours: " + ", ".join(f"{name} {row}" for name, row in values.items())] if values else lines


def _table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Cells as lines of at most WIDTH characters, and an empty line."""
    table = Table(box=None, header_style="")
    for place, header in enumerate(headers):
        table.add_column(header, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else _plain(str(cell)) for cell in row))
    out = StringIO()
    Console(file=out, width=WIDTH, markup=False, emoji=False, highlight=False, color_system=None).print(table)
    return [*(row.rstrip() for row in out.getvalue().splitlines()), ""]


def _plain(text: str) -> str:
    """Without what a terminal would obey or could not print: file names may contain anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
