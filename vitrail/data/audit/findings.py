"""What is wrong with a data set, before a model is trained on it.

    splits = find_splits(Data("photos"))
    report = check(splits)              # reads every image once
    print(text(report))                 # what matters first
    report.document()                   # the same for JSON, complete

Looked for are images that cannot be read, show nothing or are tiny; the same image, or one that looks the same, in two
splits, under two labels, or twice; classes without images, or with few. duplicates.py says what "looks the same" means.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vitrail.data.audit.duplicates import alike, copies
from vitrail.data.audit.scan import TRAITS, Record, Scan
from vitrail.data.sources.source import Source, counts

FEW = 10  # images of a class that are too few to learn it from
UNEVEN = 10  # times the images of one class in another
SMALL, TINY = 64, 8  # pixels of the shorter side
SHOWN = 5  # of a list, in the text


@dataclass(frozen=True)
class Kind:
    """What may be found: "3 images that cannot be read" are noun and what. serious: a person should look at it."""

    noun: str
    what: str
    advice: str
    serious: bool = True


COPIES = "Copies (scaled, re-compressed, brighter, mirrored) and frames of one film"
KINDS = {
    "unreadable": Kind(
        "image",
        "that cannot be read",
        "Replace or delete such files: training stops at the first, unless it is told to skip them.",
    ),
    "copies across splits": Kind(
        "image",
        "in more than one split",
        "Keep each in one split: a score on images that were trained on says nothing.",
    ),
    "copies under several labels": Kind(
        "image",
        "with different labels on its copies",
        "Find out which label is right, and delete the copies that have another.",
    ),
    "alike across splits": Kind(
        "group",
        "of look-alikes across splits",
        f"Look at the pictures. {COPIES} belong in one split, or scores are too good.",
    ),
    "alike under several labels": Kind(
        "group",
        "of look-alikes with different labels",
        "Look at the pictures, and correct the labels that are wrong.",
    ),
    "copies": Kind(
        "image",
        "more than once in a split",
        "Delete the surplus copies: they make some images count more than others.",
    ),
    "blank": Kind("image", "of one colour only", "Delete such images, or find out what became of them."),
    "tiny": Kind("image", f"with a side below {TINY} pixels", "Delete such images, or find the originals."),
    "missing": Kind("class", "without an image in a split", "Add images, or take the class out of all splits."),
    "few": Kind("class", f"with fewer than {FEW} images to train on", "Add images, or merge classes."),
    "alike": Kind(
        "group",
        "of look-alikes within a split",
        f"{COPIES} are fewer images than they seem.",
        serious=False,
    ),
    "uneven": Kind(
        "class",
        f"with a {UNEVEN}th of the largest class's images, or less",
        "Training can show every class equally often (balance); judge each class by its own score.",
        serious=False,
    ),
    "CMYK": Kind("image", "in CMYK", "Colours are converted without a profile: compare with the originals.", False),
    "16-bit": Kind("image", "of 16 bits", "The upper 8 are used: scale values that do not fill the range.", False),
    "transparent": Kind("image", "with transparency", "What is behind becomes white.", False),
    "animated": Kind("image", "with several pictures", "Only the first picture of each is read.", False),
    "turned": Kind("image", "turned by EXIF", "Such images are turned upright; other programs may not do so.", False),
    "misnamed": Kind("image", "named as another kind", "They are read by content; other programs may fail.", False),
}


@dataclass(frozen=True)
class Item:
    """One case of a finding: the images that it is about, if any, and what is to be said of them."""

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
    """All that is known of a data set. Findings are in the order in which they matter.

    splits: images in each. classes: of each class, how many images each split has; unlabelled: how many have no label.
    sizes: of width, height, aspect (width / height) and bytes the smallest, the median and the largest, where known.
    small: the share of images with a side below 64 pixels. kinds: how many are "JPEG RGB", and so on.
    colours: "mean" and "std" of R, G and B in [0, 1] over up to 2,000 images, as a preprocessing might use them.
    """

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


def check(splits: Mapping[str, Source], progress: bool = True, workers: int | None = None) -> Report:
    """Reads every image of every split once. progress: bars on standard error. workers: threads; None is one a core.

    An image that cannot be read is a finding, not an error.
    """
    scan = Scan.of(splits, progress, workers)
    classes, unlabelled = _classes(splits), _unlabelled(scan)
    cases = defaultdict[str, list[Item]](list)
    _images(scan, cases)
    _doubles(scan, cases, progress)
    if classes:
        _uneven(classes, [split for split in splits if unlabelled[split] < len(splits[split])], cases)
    seen = scan.rows[scan.rows["readable"]]
    short = np.minimum(seen["width"], seen["height"])
    mean, deviation = scan.colours.round(4).tolist()
    return Report(
        splits={split: len(source) for split, source in splits.items()},
        classes=classes,
        unlabelled=unlabelled,
        sizes=_sizes(scan),
        small=float((short < SMALL).mean()) if len(short) else 0.0,
        kinds=dict(scan.kinds.most_common()),
        colours={"mean": tuple(mean), "std": tuple(deviation)} if len(seen) else {},
        findings=tuple(_finding(kind, cases[kind]) for kind in KINDS if kind in cases),
    )


def _finding(name: str, items: Sequence[Item]) -> Finding:
    kind = KINDS[name]
    return Finding(name, kind.serious, f"{_many(len(items), kind.noun)} {kind.what}", kind.advice, tuple(items))


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun if number == 1 else noun + ('es' if noun[-1] == 's' else 's')}"


def _classes(splits: Mapping[str, Source]) -> dict[str, dict[str, int]]:
    """Of each class that a split names, its images in each split; nothing where no image has a label."""
    found: dict[str, dict[str, int]] = {}
    for split, source in splits.items():
        for name, count in zip(source.class_names, counts(source).tolist(), strict=True):
            found.setdefault(name, dict.fromkeys(splits, 0))[split] = count
    return found if any(sum(row.values()) for row in found.values()) else {}


def _unlabelled(scan: Scan) -> dict[str, int]:
    found, start = dict[str, int](), 0
    for split, source in scan.sources.items():
        found[split] = scan.labels[start : start + len(source)].count("")
        start += len(source)
    return found


def _sizes(scan: Scan) -> dict[str, tuple[float, ...]]:
    seen = scan.rows[scan.rows["readable"]]
    measured = {"width": seen["width"], "height": seen["height"], "aspect": seen["width"] / seen["height"]}
    measured["bytes"] = seen["size"][seen["size"] > 0]
    return {
        name: (float(values.min()), float(np.median(values)), float(values.max()))
        for name, values in measured.items()
        if len(values)
    }


def _images(scan: Scan, cases: dict[str, list[Item]]) -> None:
    """What single images are found to be."""
    rows = scan.rows
    for number, sentence in scan.problems.items():
        cases["unreadable"].append(Item((scan.record(number),), sentence))
    marks = {trait: rows["traits"] >> place & 1 for place, trait in enumerate(TRAITS)}
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
            item = Item(records, group.how)
            across = len({record.split for record in records}) > 1
            several = len({record.label for record in records} - {""}) > 1
            if across:
                cases[f"{name} across splits"].append(item)
            if several:
                cases[f"{name} under several labels"].append(item)
            if not across and not several:
                cases[name].append(item)


def _uneven(classes: dict[str, dict[str, int]], splits: Sequence[str], cases: dict[str, list[Item]]) -> None:
    """Classes that lack images, in the splits that have labels at all."""
    for name, row in classes.items():
        if empty := [split for split in splits if not row[split]]:
            cases["missing"].append(Item((), f"{name}: none in {' and '.join(empty)}"))
    sizes = {name: row[splits[0]] for name, row in classes.items()}  # the first is what is trained on
    largest = max(sizes.values())
    for name, size in sizes.items():
        if 0 < size < FEW:
            cases["few"].append(Item((), f"{name}: {_many(size, 'image')}"))
        if 0 < size * UNEVEN <= largest:
            cases["uneven"].append(Item((), f"{name}: {_many(size, 'image')} of {largest:,}"))


def text(report: Report) -> str:
    """The report for people: what is to be looked at, what else was noticed, and the numbers."""
    splits = " (" + ", ".join(f"{name} {count:,}" for name, count in report.splits.items()) + ")"
    classes = f" of {_many(len(report.classes), 'class')}" if report.classes else " without labels"
    images = _many(sum(report.splits.values()), "image")
    lines = [f"{images}{splits if len(report.splits) > 1 else ''}{classes}. {verdict(report.faults)}.", ""]
    for finding in report.findings:
        if finding.serious:
            more = len(finding.items) - SHOWN
            lines += [f"! {finding.title}", f"  {finding.advice}"]
            lines += [f"    {line(item)}" for item in finding.items[:SHOWN]]
            lines += [f"    ... and {more:,} more; --json lists all"] if more > 0 else []
            lines.append("")
    noticed = [f"- {finding.title}. {finding.advice}" for finding in report.findings if not finding.serious]
    lines += [*noticed, ""] if noticed else []
    lines += _table(report) + _numbers(report)
    return "\n".join(map(_plain, lines))


def verdict(faults: int) -> str:
    """The result in a few words."""
    return f"{_many(faults, 'thing')} to look at" if faults else "Nothing wrong was found"


def line(item: Item) -> str:
    """One case in one line: what is said of it, and the images with their labels."""
    names = [f"{record.name}{f' ({record.label})' if record.label else ''}" for record in item.records[:SHOWN]]
    if len(item.records) == 1:
        name = item.records[0].name
        return item.note if name in item.note else f"{names[0]}: {item.note}"
    more = len(item.records) - SHOWN
    return f"{item.note}{': ' * bool(names)}{', '.join(names)}{f' and {more:,} more' if more > 0 else ''}"


def _table(report: Report) -> list[str]:
    """Images by class and split; of many classes the largest and the smallest."""
    rows = sorted(report.classes.items(), key=lambda row: -sum(row[1].values()))
    left = len(rows) - 2 * SHOWN
    cells = [["", *report.splits]]
    cells += [[name, *(f"{count:,}" for count in row.values())] for name, row in rows]
    if left > SHOWN:
        cells[1 + SHOWN : -SHOWN] = [[f"... {left:,} classes between"] + [""] * len(report.splits)]
    if any(report.unlabelled.values()):
        cells.append(["without a label", *(f"{count:,}" for count in report.unlabelled.values())])
    return [*_columns(cells), ""] if report.classes else []


def _numbers(report: Report) -> list[str]:
    """Sizes, kinds and colours."""
    forms = {"aspect": ".2f"}
    cells = [[name, *(f"{value:{forms.get(name, ',.0f')}}" for value in row)] for name, row in report.sizes.items()]
    lines = [*_columns([["", "smallest", "median", "largest"], *cells]), ""] if cells else []
    if report.small:
        lines.append(f"{report.small:.1%} of the images have a side below {SMALL} pixels")
    lines.append("; ".join(f"{kind} {count:,}" for kind, count in report.kinds.items()))
    if report.colours:
        mean, std = (" ".join(f"{value:.3f}" for value in report.colours[name]) for name in ("mean", "std"))
        lines.append(f"colours: mean {mean}, deviation {std}")
    return lines


def _columns(cells: Iterable[Sequence[str]]) -> list[str]:
    """Cells (rows of one length) as lines, the first column to the left, the others to the right."""
    rows = [list(map(_plain, row)) for row in cells]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + row[0].ljust(widths[0]) + "".join(f"  {c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def _plain(text: str) -> str:
    """Without what a terminal would obey or could not print: file names may hold anything."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
