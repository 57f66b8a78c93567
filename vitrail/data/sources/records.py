"""Records: images and their labels side by side; the Source that tables, data sets and tars become.

    labels = Labels()                               # as they are read, one record after the other
    labels.add("cat"), labels.add(3, split="val")
    found = divide(Path("photos.csv"), {"all": (images, labels)})       # {"train": source, "val": source}

Labels are texts: 3 is "3". A split's classes are the different ones in it, sorted, as numbers if they all are.
Millions of records take a few flat arrays, and only different targets are Python objects: worker processes that are
forked share them all.
"""

import re
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vitrail.data.images.decode import read
from vitrail.data.sources.source import SPLITS, Example, Source, Target, Targets, check_index, printable, split_in
from vitrail.progress import few

SHARD_INDEX = ".index.npz"  # behind the name of a split: what `vitrail data pack --to tar` says of its shards
# In such an index, an entry for each image. key: its number where it came from, which names it in the tar.
SHARD_COLUMNS = {"shard": np.int32, "offset": np.int64, "size": np.int32, "crc32": np.uint32, "label": np.int32,
                 "key": np.uint32}  # fmt: skip
NUMBER = re.compile(r"-?[0-9]{1,18}")
MARKS = {"train": 0, "val": 1, "test": 2, "": -1}
LEFT_OUT = -2
# What columns are called, in lower case and with "_" for all but letters and digits.
COLUMNS = {
    "image": ("image", "images", "file", "path", "filename", "file_name", "filepath", "file_path", "img", "img_path",
              "image_path", "image_file", "image_name", "jpg", "png"),
    "label": ("label", "labels", "cls", "class", "classes", "class_name", "target", "targets", "category",
              "categories", "species", "breed", "diagnosis", "dx", "disease", "label_name"),
    "split": ("split",),
}  # fmt: skip
VECTOR = re.compile(r"\[\s*[01](\.0*)?([\s,;]+[01](\.0*)?)+\s*\]|[01](\s*[\s,;|]\s*[01])+")
HOT = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
SHOWN = 20  # columns in a message

# As it was read: a name, several of them, or "" if it is unknown.
Label = str | tuple[str, ...]
Rows = range | NDArray[np.int64]


@runtime_checkable
class Images(Protocol):
    """Encoded images by the number of their row. ValueError, naming one, if it cannot be read."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes: ...

    def name(self, row: int) -> str: ...


class Texts:
    """A list of strings as one array of bytes: each takes its UTF-8 and 8 bytes."""

    def __init__(self, content: bytes = b"", ends: Iterable[int] = ()) -> None:
        self.content, self.ends = bytearray(content), array("q", ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.content[start : self.ends[index]].decode("utf-8", "surrogateescape")

    def append(self, text: str) -> None:
        """Appends a string. UnicodeEncodeError, a ValueError, if no file can have it as its name."""
        self.content += text.encode("utf-8", "surrogateescape")
        self.ends.append(len(self.content))


@dataclass(frozen=True, eq=False)
class Paths:
    """Image files by the number of their row. folder: what the paths are relative to. table: the file they are in."""

    folder: Path
    table: str = ""
    texts: Texts = field(default_factory=Texts)

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, row: int) -> bytes:
        try:
            return read(self.folder / self.texts[row])
        except ValueError as error:
            raise ValueError(f"{self.table}: {error}" if self.table else str(error)) from None

    def name(self, row: int) -> str:
        return str(self.folder / self.texts[row])


class Labels:
    """Labels and splits as they are read: for each record the number of its label among the different ones. separators:
    what stands between several labels in one text. classes: all class names, if known. unread: columns of a table."""

    def __init__(self, separators: str = "", classes: tuple[str, ...] = ()) -> None:
        self.separators, self.classes, self.unread = separators, classes, tuple[str, ...]()
        self.keys: dict[Label, int] = {}
        self.codes, self.marks = array("i"), array("b")

    def add(self, value: Any, split: Any = None) -> None:
        """Appends what `label` takes, and a split under any of its names or None. ValueError for anything else."""
        key, name = label(value), None if split is None else SPLITS.get(str(split).strip().lower(), "")
        if name == "":
            raise ValueError(f"the split is {str(split)[:60]!r}, which is none of train, val and test")
        self.codes.append(self.keys.setdefault(key, len(self.keys)))
        self.marks.append(MARKS[name or ""])

    def extend(self, keys: Iterable[Label], codes: NDArray[np.int32], marks: NDArray[np.int8]) -> None:
        """Appends records (N,) by the numbers of their labels in `keys`, and their splits' MARKS."""
        own = np.array([self.keys.setdefault(key, len(self.keys)) for key in keys], np.int32)
        self.codes.frombytes(own[codes].tobytes())
        self.marks.frombytes(marks.tobytes())

    @property
    def several(self) -> bool:
        """Whether any record has a list of labels, even of one or none."""
        return any(isinstance(key, tuple) or any(mark in key for mark in self.separators) for key in self.keys)

    def names(self, key: Label, several: bool) -> tuple[str, ...]:
        """The class names in one label."""
        if isinstance(key, tuple):
            return tuple(dict.fromkeys(key))
        if several and self.separators:
            parts = (part.strip() for part in re.split(f"[{re.escape(self.separators)}]", key))
            return tuple(dict.fromkeys(filter(None, parts)))
        return (key,) if key else ()


@dataclass(frozen=True, eq=False)
class Records:
    """The records `rows` (N,) of some images; a Source. codes: (N,), the place of each one's target in `known`."""

    images: Images
    rows: Rows
    codes: NDArray[np.int32]
    known: Sequence[Target] = field(repr=False)
    class_names: tuple[str, ...]
    targets: Targets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        check_index(index, len(self), "the source")
        row = int(self.rows[index])
        return Example(self.images.read(row), self.target(index), self.images.name(row))

    def target(self, index: int) -> Target:
        return self.known[self.codes[index]]

    def name(self, index: int) -> str:
        return self.images.name(int(self.rows[index]))

    def coded(self) -> tuple[NDArray[np.integer], Sequence[Target]]:
        return self.codes, self.known


def divide(place: Path, groups: Mapping[str, tuple[Images, Labels]]) -> dict[str, Source]:
    """The sources of a place: its groups if they are splits; the only group "all" by the split of each record.

    If one record has a list of labels, all records of the place have one. ValueError if there is no image, or a
    record's split is unknown although others' are known.
    """
    _decode(place, [labels for _, labels in groups.values()])
    several = any(labels.several for _, labels in groups.values())
    found: dict[str, Source] = {}
    for split, (images, labels) in groups.items():
        marks = np.frombuffer(labels.marks, np.int8)
        if split != "all" or not (marks >= 0).any():
            kept = marks != LEFT_OUT
            rows = range(len(images)) if kept.all() else np.flatnonzero(kept)
            found[split] = _records(place, images, labels, rows, several)
            continue
        if (marks == MARKS[""]).any():
            name = images.name(int((marks == MARKS[""]).argmax()))
            raise ValueError(f"{place}: {name} is in none of train, val and test, though others are; give it a split.")
        for name in ("train", "val", "test"):
            if len(rows := np.flatnonzero(marks == MARKS[name])):
                found[name] = _records(place, images, labels, rows, several)
    return found


def _decode(place: Path, every: Sequence[Labels]) -> None:
    """Replaces labels that are vectors of 0 and 1 by the classes that these mean, one or several. ValueError where they
    do not fit the classes."""
    keys = {key for labels in every for key in labels.keys if key != ""}
    if not keys or not all(isinstance(key, tuple) and set(key) <= {"0", "1"} for key in keys):
        return
    widths, repeat = sorted({len(key) for key in keys}), any(len(set(key)) < len(key) for key in keys)
    if max(widths) < 2 or not (repeat or len(widths) == 1):  # [0], [1] and [0, 1] are lists of classes
        return
    classes = next((labels.classes for labels in every if labels.classes), tuple(map(str, range(widths[-1]))))
    if widths != [len(classes)]:
        lengths = f"lists of {few(widths)} numbers 0 and 1, but there are {len(classes)} classes"
        raise ValueError(f"{place}: the labels are {lengths}; give one number for each class, or names.")
    meant = {key: tuple(name for bit, name in zip(key, classes, strict=True) if bit == "1") for key in keys}
    single = all(len(names) == 1 for names in meant.values())
    for labels in every:
        new = {(meant[key][0] if single else meant[key]) if key else "": code for key, code in labels.keys.items()}
        labels.keys, labels.classes, labels.separators = new, classes, ""


def hot_columns(rows: Iterable[Mapping[str, Any] | None], columns: Sequence[str]) -> tuple[str, ...]:
    """The columns that are 0 or 1 in every row, two or more; () where they are not all, unless each row has one 1."""
    left, seen = tuple(columns), set[tuple[str, ...]]()  # the columns that are 1 in some row
    for row in filter(None, rows):
        left = tuple(column for column in left if str(row.get(column)).strip().lower() in HOT)
        if len(left) < 2:
            return ()
        seen.add(tuple(column for column, bit in zip(left, hot(row, left), strict=True) if bit))
    one = all(sum(column in left for column in ones) == 1 for ones in seen)
    return left if one or len(left) == len(columns) else ()


def hot(row: Mapping[str, Any], columns: Iterable[str]) -> list[int]:
    """The 0 and 1 in the columns of a row."""
    return [HOT[str(row[column]).strip().lower()] for column in columns]


def _records(place: Path, images: Images, labels: Labels, rows: Rows, several: bool) -> Records:
    """The given records, with the classes that occur among them, or all if they are known beforehand."""
    if not len(rows):
        raise ValueError(f"{place} has no images; check the path.")
    keys, codes = list(labels.keys), np.frombuffer(labels.codes, np.int32)
    codes = codes if isinstance(rows, range) else codes[rows]
    named = {code: labels.names(keys[code], several) for code in np.flatnonzero(np.bincount(codes)).tolist()}
    classes = labels.classes or tuple(ordered({name for names in named.values() for name in names}))
    for name in classes:
        if not printable(name):
            raise ValueError(f"{place} has a class with an unreadable name, {name[:60]!a}; rename it.")
    numbers = {name: number for number, name in enumerate(classes)}
    targets: list[Target] = [None] * len(keys)
    for code, names in named.items():
        targets[code] = tuple(numbers[n] for n in names) if several else numbers[names[0]] if names else None
    kind = "classes" if several else "class" if any(named.values()) else "none"
    return Records(images, rows, codes, targets, classes, kind)


def label(value: Any) -> Label:
    """A label as it is kept: "cat", 3 -> "3", [1, 4] -> ("1", "4"), "[0, 1]" -> ("0", "1"), None -> "". ValueError for
    anything else."""
    if isinstance(value, str):
        text = value.strip()
        if VECTOR.fullmatch(text):
            return tuple(re.findall(r"(?<!\.)[01]", text))
        return text if text.isascii() else unicodedata.normalize("NFC", text)  # macOS writes "é" as two characters
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(value if isinstance(value, bool) else int(value))
    if isinstance(value, list | tuple):
        parts = [label(int(part) if isinstance(part, bool) else part) for part in value]
        if all(isinstance(part, str) and part for part in parts):
            return tuple(map(str, parts))
    if value is None:
        return ""
    raise ValueError(f"the label is {str(value)[:60]}; labels are names, whole numbers, or lists of them")


def ordered(names: Iterable[str]) -> list[str]:
    """Class names in their order: as numbers if they all are, else by their letters."""
    found = sorted(names)
    return sorted(found, key=int) if all(NUMBER.fullmatch(name) for name in found) else found


def find_column(columns: Iterable[str], what: str, given: str | None = None, typed: Sequence[str] = ()) -> str | None:
    """The column with the images, labels or splits (`what`): the given one, or the only one of a known name or type.

    None if there is none. ValueError, listing the columns, if several could be it, or the given one is not there.
    """
    columns = list(columns)
    if given is not None and given not in columns:
        raise ValueError(f"there is no column {given!r}, but {_shown(columns)}")
    named = [column for column in columns if re.sub("[^a-z0-9]+", "_", column.strip().lower()) in COLUMNS[what]]
    for found in ([given] if given else [], [column for column in named if column in typed], named, typed):
        if len(found) > 1:
            raise ValueError(f"the {what}s could be in the columns {_shown(found)}; name one as {what}_column")
        if found:
            return found[0]
    if what == "image":
        raise ValueError(f"no column is known to contain the images; name one as image_column: {_shown(columns)}")
    return None


def _shown(columns: Iterable[str]) -> str:
    return few((column if column.isprintable() else ascii(column) for column in columns), SHOWN)


def tables(path: Path, suffixes: Sequence[str]) -> tuple[dict[str, list[Path]], list[Path]]:
    """(the tables of each split in a folder, or in the folders below if it has none itself; "all": the file itself;
    those that are of no split although others are)."""
    if path.is_file():
        return {"all": [path]}, []
    found: list[Path] = []
    for patterns in (("*", "data/*"), ("**/*",)):
        files = sorted(file for pattern in patterns for file in path.glob(pattern))
        found = found or [f for f in files if f.suffix.lower() in suffixes and f.name[0] != "." and f.is_file()]
    groups: dict[str, list[Path]] = {}
    for file in found:
        split = split_in(file.stem) or split_in(str(file.parent.relative_to(path))) or "all"
        groups.setdefault(split, []).append(file)
    # Class names, or a sample of what is to be handed in, beside train and test.
    left_out = groups.pop("all", []) if len(groups) > 1 else []
    for files in groups.values():
        if other := [file for file in files if file.suffix.lower() != files[0].suffix.lower()]:
            raise ValueError(f"{path} has both {files[0].name} and {other[0].name}; name the one that is meant.")
    if not groups:
        raise ValueError(f"{path} has no tables ({', '.join(suffixes)}); check the path.")
    return groups, left_out
