"""Images and their labels side by side: the Source that tables, Arrow files and tar shards are read into.

    column = Column()                               # labels as they are read, one record after the other
    column.add("cat"), column.add(3)
    found = divide("photos.csv", {"all": Group(images, column, marks)})         # {"train": source, "val": source}

Labels are texts: 3 is "3". A split's classes are the different ones in it, sorted, as numbers where they all are.
Millions of records lie in a few flat arrays, and those of different targets only are Python objects: worker processes
that are forked share them all.
"""

import os
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
from vitrail.data.sources.folder import SPLITS
from vitrail.data.sources.source import Example, Source, Target, Targets

NUMBER = re.compile(r"-?[0-9]{1,18}")
MARKS = {"train": 0, "val": 1, "test": 2}
# What columns of tables are called, the letters in lower case and the rest as "_".
IMAGE_COLUMNS = ("image", "images", "file", "path", "filename", "file_name", "filepath", "file_path", "img", "img_path",
                 "image_path", "image_file", "image_name", "jpg", "png")  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "cls", "class", "classes", "class_name", "target", "targets", "category",
                 "categories", "species")  # fmt: skip
SHOWN = 20  # columns in a message

# As it was read: a name, several of them, or None where it is not known.
Label = str | tuple[str, ...] | None
Rows = range | NDArray[np.int64]


@runtime_checkable
class Images(Protocol):
    """Images by the number of their row."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes:
        """The encoded image. ValueError, naming it, where it cannot be read."""
        ...

    def name(self, row: int) -> str: ...


class Texts:
    """A list of strings that is only appended to, as one array of bytes: it takes 8 bytes each, and those of UTF-8."""

    def __init__(self, content: bytes = b"", ends: Iterable[int] = ()) -> None:
        self.content, self.ends = bytearray(content), array("q", ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.content[start : self.ends[index]].decode("utf-8", "surrogateescape")

    def append(self, text: str) -> None:
        """UnicodeEncodeError, a ValueError, for what can be in no file's name."""
        self.content += text.encode("utf-8", "surrogateescape")
        self.ends.append(len(self.content))

    def extend(self, other: "Texts") -> None:
        """Appends all of another list."""
        shifted = np.frombuffer(other.ends, np.int64) + len(self.content)
        self.content += other.content
        self.ends.frombytes(shifted.tobytes())


class Paths:
    """Image files by the number of their row; Images.

    folder: what the paths are relative to. table: what names them.
    """

    def __init__(self, folder: Path, table: str) -> None:
        self.folder, self.table, self.texts = folder, table, Texts()

    def __len__(self) -> int:
        return len(self.texts)

    def append(self, path: Any, below: str) -> None:
        """Appends a path that is relative to `below`, a folder in the own one. ValueError where it is none."""
        if not isinstance(path, str) or not path.strip():
            raise ValueError(f"the image is {str(path)[:60]!r}, which is no path")
        self.texts.append(os.path.join(below, path.strip()))

    def read(self, row: int) -> bytes:
        try:
            return read(self.folder / self.texts[row])
        except ValueError as error:
            raise ValueError(f"{self.table} names what cannot be read: {error}") from None

    def name(self, row: int) -> str:
        return str(self.folder / self.texts[row])


class Column:
    """Labels as they are read: of each record the number of its label among the different ones.

    separators: what stands between several labels in one text. classes: all class names, where they are known.
    blank: where the first record without a label is, in words.
    """

    def __init__(self, separators: str = "", classes: tuple[str, ...] | None = None) -> None:
        self.separators, self.classes, self.blank = separators, classes, ""
        self.keys: dict[Label, int] = {}
        self.codes = array("i")

    def __len__(self) -> int:
        return len(self.codes)

    def add(self, value: Any) -> bool:
        """Appends a text, a whole number, a list of them or nothing (None); tells whether there was something.

        ValueError for anything else.
        """
        key = label(value)
        self.codes.append(self._code(key))
        return bool(key)

    def extend(self, keys: Sequence[Label], codes: NDArray[np.int32]) -> None:
        """Appends records by the numbers of their labels in `keys`, (N,)."""
        own = np.array([self._code(key) for key in keys], np.int32)
        self.codes.frombytes(own[codes].tobytes())

    def _code(self, key: Label) -> int:
        return self.keys.setdefault(key, len(self.keys))

    @property
    def multi_label(self) -> bool:
        """Whether any record has a list of labels, be it of one or none."""
        return any(
            isinstance(key, tuple) or (key is not None and any(mark in key for mark in self.separators))
            for key in self.keys
        )

    def names(self, key: Label, multi_label: bool) -> tuple[str, ...]:
        """The class names in one label."""
        if isinstance(key, tuple):
            return key
        if multi_label and key and self.separators:
            parts = re.split(f"[{re.escape(self.separators)}]", key)
            return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
        return (key,) if key else ()


@dataclass(frozen=True, eq=False)
class Group:
    """What was read of one place or split: images, their labels, and the split that each record says it is of.

    marks: int8 (N,), MARKS or -1.
    """

    images: Images
    column: Column
    marks: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Records:
    """The records `rows` (N,) of a group of images; a Source.

    codes: (N,), the place of each record's target in `known`, which has each once.
    """

    images: Images
    rows: Rows
    codes: NDArray[np.int32]
    known: Sequence[Target] = field(repr=False)
    class_names: tuple[str, ...]
    targets: Targets

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self._row(index)
        return Example(self.images.read(row), self.target(index), self.images.name(row))

    def target(self, index: int) -> Target:
        return self.known[self.codes[index]]

    def name(self, index: int) -> str:
        return self.images.name(self._row(index))

    def _row(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"there are images 0 to {len(self) - 1}, but {index} was asked for.")
        return int(self.rows[index])


def divide(place: str, groups: Mapping[str, Group]) -> dict[str, Source]:
    """The sources of a place: its groups, where they are splits; the one group "all" as its records' marks say.

    Where one record has a list of labels, all records of the place have one. ValueError where there is no image, a
    record has no label that should, or a record's split is not known although others' are.
    """
    multi_label = any(group.column.multi_label for group in groups.values())
    found: dict[str, Source] = {}
    for split, group in groups.items():
        if len(group.images) != len(group.column):
            raise ValueError(
                f"{place} has {len(group.images):,} images, but {len(group.column):,} labels; it is damaged."
            )
        if not multi_label and group.column.blank:
            raise ValueError(f"{group.column.blank} has no label; add it, or take the row out.")
        marked = group.marks >= 0 if split == "all" else np.zeros(0, bool)
        if not marked.any():
            found[split] = _records(place, group, range(len(group.column)), multi_label)
            continue
        if not marked.all():
            name = group.images.name(int(marked.argmin()))
            raise ValueError(f"{place}: {name} is in none of train, val and test, though others are; give it a split.")
        for name, mark in MARKS.items():
            rows = np.flatnonzero(group.marks == mark)
            if len(rows):
                found[name] = _records(place, group, rows, multi_label)
    return found


def _records(place: str, group: Group, rows: Rows, multi_label: bool) -> Records:
    """The given records, with the classes that occur among them, or all where they are known beforehand."""
    if not len(rows):
        raise ValueError(f"{place} has no images; check the path.")
    column, keys = group.column, list(group.column.keys)
    codes = np.frombuffer(column.codes, np.int32)
    codes = codes if isinstance(rows, range) else codes[rows]
    named = {code: column.names(keys[code], multi_label) for code in np.flatnonzero(np.bincount(codes)).tolist()}
    classes = column.classes or tuple(ordered({name for names in named.values() for name in names}))
    for name in classes:
        if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise ValueError(f"{place} has a class of an unreadable name, {name[:60]!a}; rename it.")
    numbers = {name: number for number, name in enumerate(classes)}
    targets: list[Target] = [None] * len(keys)
    for code, names in named.items():
        targets[code] = tuple(numbers[n] for n in names) if multi_label else numbers[names[0]] if names else None
    kind = "classes" if multi_label else "class" if any(map(len, named.values())) else "none"
    return Records(group.images, rows, codes, targets, classes, kind)


def label(value: Any) -> Label:
    """A label as it is kept: "cat", 3 -> "3", [1, 4] -> ("1", "4"), None -> "". ValueError for anything else."""
    if isinstance(value, str):
        text = value.strip()
        return text if text.isascii() else unicodedata.normalize("NFC", text)  # macOS writes "é" as two characters
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(value if isinstance(value, bool) else int(value))
    if isinstance(value, list | tuple):
        parts = [label(part) for part in value]
        if all(isinstance(part, str) and part for part in parts):
            return tuple(dict.fromkeys(str(part) for part in parts))
    if value is None:
        return ""
    raise ValueError(f"the label is {str(value)[:60]}; labels are names, whole numbers, or lists of them")


def ordered(names: Iterable[str]) -> list[str]:
    """Class names in their order: as numbers where they all are, else by their letters."""
    found = sorted(names)
    return sorted(found, key=int) if all(NUMBER.fullmatch(name) for name in found) else found


def split_in(name: str) -> str | None:
    """The split that a file's name speaks of ("train-00000-of-00002.parquet"); None where it speaks of none or two."""
    found = {SPLITS[word] for word in re.split("[^a-z]+", name.lower()) if word in SPLITS}
    return found.pop() if len(found) == 1 else None


def mark(word: Any) -> int:
    """The number of a split, under any of its names. ValueError where it is none."""
    split = SPLITS.get(str(word).strip().lower())
    if split is None:
        raise ValueError(f"its split is {str(word)[:60]!r}, which is none of train, val and test")
    return MARKS[split]


def split_columns(columns: Sequence[str]) -> list[str]:
    """The column with the split of each row, or none."""
    return [column for column in columns if column.strip().lower() == "split"][:1]


def find_column(place: str, columns: Sequence[str], what: str, given: str | None, typed: Sequence[str] = ()) -> str:
    """The column with the images or the labels (`what`): the given one, or the only one of a known name or type.

    ValueError, listing the columns, where it is not there, or several could be it.
    """
    names = [column if column.isprintable() else ascii(column) for column in columns[:SHOWN]]
    shown = (", ".join(names) or "none") + ", ..." * (len(columns) > SHOWN)
    if given is not None:
        if given not in columns:
            raise ValueError(f"{place} has no column {given!r}; it has {shown}.")
        return given
    words = {"image": IMAGE_COLUMNS, "label": LABEL_COLUMNS}[what]
    named = [column for column in columns if re.sub("[^a-z0-9]+", "_", column.strip().lower()) in words]
    for found in ([column for column in named if column in typed], named, typed):
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{place}: {what}s could be in the columns {', '.join(found)}; name one as {what}_column.")
    raise ValueError(f"{place}: no column is known to hold the {what}s; name one of these as {what}_column: {shown}.")
