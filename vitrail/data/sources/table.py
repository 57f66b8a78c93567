"""Tables of images and labels: CSV, TSV and JSONL; Parquet is in huggingface.py.

    image,label                 found = splits(Path("photos.csv"), None, None)          # {"all": source}
    cats/1.jpg,cat              content, target, name, _ = found["all"][1]              # bytes, 1, "dogs/2.jpg"
    dogs/2.jpg,dog

A place is one file, which may have a column "split"; a folder of files with their split in their names, as on the
Hugging Face Hub: train.csv and val.csv, data/train-0.jsonl; or a folder of images with a table beside them. Paths are
relative to the table, and are looked for when an image is read. Where there are no such files, the ends of paths count,
with or without suffix: "1" may be part_2/1.jpg. If any label of a CSV has "|" or ";" in it, all images have lists of
labels. Columns of 0 and 1 are labels where no other column is.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from vitrail.data.sources.fingerprint import spread
from vitrail.data.sources.records import LEFT_OUT, Labels, Paths, Texts, divide, find_column, hot, hot_columns, tables
from vitrail.data.sources.source import SPLITS, Found, many, says_nothing
from vitrail.data.sources.walk import scan
from vitrail.progress import few

SUFFIXES = (".csv", ".tsv", ".jsonl")
SEPARATORS = "|;"
TRIED = 100  # rows whose images are looked for beforehand

Numbered = Iterator[tuple[int, dict[str, Any] | None]]  # (line, row, or None if it is damaged)


def splits(path: Path, image_column: str | None, label_column: str | None) -> Found:
    """The splits of a table or of a folder of them, else {"all": source}. ValueError names the file and the line."""
    base = path if path.is_dir() else path.parent
    files, groups, notes = _Files(base), {}, []
    found, left_out = tables(path, SUFFIXES)
    for split, some in found.items():
        groups[split] = _group(some, files, image_column, label_column)
        notes += _once(some[0], *groups[split])
    return Found(divide(path, groups), notes, [f"{file.name}, which is of no split" for file in left_out])


def beside(
    path: Path, names: Sequence[str], image_column: str | None, label_column: str | None
) -> tuple[Found | None, str]:
    """(the images of a folder, by the table among `names` that gives them labels; else a note why their folders do).

    (None, "") where no table speaks of the images. ValueError where two do, or neither table nor folders say what the
    classes are."""
    files = _Files(path)
    fewest = min(sum(map(bool, files.images.values())), TRIED - 1)  # a list of classes has a row for each folder
    speaking = [name for name in sorted(names) if max(files.named(path / name).values(), default=0) > fewest]
    if len(speaking) > 1:
        both = f"{path} has several tables that name its images, {few(speaking)}"
        raise ValueError(f"{both}; name the one that is meant.")
    if not speaking:
        return None, ""
    table = path / speaking[0]
    images, labels = _group([table], files, image_column, label_column)
    pairs = {(os.path.basename(os.path.dirname(images.texts[row])), code) for row, code in enumerate(labels.codes)}
    folders = {folder for folder, _ in pairs}
    if any(labels.keys):
        notes = _once(table, images, labels)
        found = divide(path, {"all": (images, labels)})
        if len(found) == 1 < len(folders) == len(pairs) == len({code for _, code in pairs}):
            return None, f"{table.name} names the same classes as the folders"
        without = sum(map(len, files.images.values())) - len({images.texts[row] for row in range(len(images))})
        left_out = [f"{many(without, 'image')} without a row in {table.name}"] if without > 0 else []
        return Found(found, [f"images and labels are those of {table.name}", *notes], left_out), ""
    if len(folders) < 2 or says_nothing(folders):
        where = f"{table} names the images in {few(sorted(folders))}, but no column is known to hold their labels"
        raise ValueError(f"{where}; name one as label_column: {few(next(_rows(table))[1] or ())}.")
    return None, f"{table.name} is not read: no column is known to hold labels"


class _Files:
    """The image files in a folder and below, which are looked for only where rows do not say where they are."""

    def __init__(self, base: Path) -> None:
        self.base = base

    @cached_property
    def images(self) -> dict[str, list[str]]:
        return scan(self.base)[0]

    @cached_property
    def ends(self) -> dict[str, str]:
        """A path by each of its ends, with and without suffix; "" where several have it."""
        found: dict[str, str] = {}
        for file in (file for files in self.images.values() for file in files):
            parts = file.split("/")
            for end in ("/".join(parts[place:]) for place in range(len(parts))):
                for key in (end, os.path.splitext(end)[0]):
                    found[key] = file if found.setdefault(key, file) == file or end == file else ""
        return found

    def find(self, text: object) -> str | None:
        """The only file whose path ends so; "" where there are several, None where there is none."""
        return self.ends.get(os.path.normpath(str(text).strip().replace("\\", "/")))

    def named(self, table: Path) -> dict[str, int]:
        """How many image files the first rows name in each column, TRIED more where with suffixes; {} for a table that
        cannot be read."""
        found = dict[str, set[str]]()
        with suppress(ValueError, csv.Error):
            for (_, row), _ in zip(_rows(table), range(TRIED), strict=False):
                for column, cell in (row or {}).items():
                    found.setdefault(column, set()).update([str(cell)] * (self.find(cell) is not None))
        return {column: len(s) + TRIED * any(os.path.splitext(c)[1] for c in s) for column, s in found.items()}

    def placed(self, table: Path, texts: Texts) -> Texts:
        """The paths as they are where all that are tried exist; else those of the files that end so."""
        if all(os.path.exists(self.base / texts[row]) for row in spread(len(texts), TRIED)):
            return texts
        placed = Texts()
        for row in range(len(texts)):
            found = None if os.path.exists(self.base / texts[row]) else self.find(texts[row])
            if found == "":
                raise ValueError(f"{table}: {texts[row]} may be several files below {self.base}; give whole paths.")
            placed.append(found or texts[row])
        return placed


def _group(files: Sequence[Path], known: _Files, image: str | None, label: str | None) -> tuple[Paths, Labels]:
    """The rows of CSV or JSONL files; image, label: the columns that were named."""
    json_lines, base = files[0].suffix.lower() == ".jsonl", known.base
    texts, labels, ones, others = Texts(), Labels("" if json_lines else SEPARATORS), None, list[str]()
    for file in files:
        below, columns, places, line = os.path.relpath(file.parent, base), {}, (None, None, None), 1
        try:
            for line, row in _rows(file):  # noqa: B007
                if row is None:
                    raise ValueError("it is not a JSON object" if json_lines else "its fields are not those of line 1")
                if not row.keys() <= columns.keys():  # lines of JSON may differ
                    columns |= dict.fromkeys(row)
                    asked = ("label", label), ("split", None)
                    places = _image([*columns], file, image, known), *(find_column(columns, *one) for one in asked)
                    others = [column for column in columns if column not in places]
                    if places[2] is None and (found := _split_column(file, others)):
                        places = *places[:2], found
                        others.remove(found)
                    if places[1] is None and ones is None:
                        labels.classes = ones = hot_columns((row for one in files for _, row in _rows(one)), others)
                path, value, split = (row.get(place) if place else None for place in places)
                if not isinstance(path, str) or not path.strip():
                    raise ValueError(f"the image is {str(path)[:60]!r}, which is not a path")
                labels.add(hot(row, ones) if ones else value, split)
                texts.append(os.path.join("" if below == "." else below, path.strip()))
        except UnicodeDecodeError:
            raise ValueError(f"{file} is not UTF-8, somewhere after line {line}; save it as UTF-8.") from None
        except csv.Error as error:
            raise ValueError(f"{file} is damaged after line {line} ({error}); mend the line.") from None
        except ValueError as error:
            raise ValueError(f"{file}, line {line}: {error}.") from None
    labels.unread = tuple(column for column in others if column not in (ones or ()))
    return Paths(base, files[0].name, known.placed(files[0], texts)), labels


def _split_column(table: Path, columns: Sequence[str]) -> str | None:
    """The column in which all of the first rows have a split, not all the same."""
    rows = [row for (_, row), _ in zip(_rows(table), range(TRIED), strict=False) if row]
    said = {c: {SPLITS.get(str(row.get(c)).strip().lower()) for row in rows} for c in columns}
    return next((column for column, splits in said.items() if None not in splits and len(splits) > 1), None)


def _image(columns: Sequence[str], table: Path, given: str | None, known: _Files) -> str:
    """The column with the images: by its name, or because most of the files there are named in it."""
    try:
        return find_column(columns, "image", given) or ""
    except ValueError:
        if line := [column for column in columns if known.find(column)]:
            raise ValueError(
                f"the first line names the image {line[0]}; put the names of the columns before it"
            ) from None
        fitting = known.named(table)
        best = max(columns, key=lambda column: fitting.get(column, 0))
        if given is not None or [fitting.get(column) for column in columns].count(fitting.get(best)) > 1:
            raise
        return best


def _once(table: Path, images: Paths, labels: Labels) -> list[str]:
    """Leaves out rows that name an image again; says how many, how many images are in two splits, and which columns
    are not read. ValueError where an image has two labels."""
    first, again, across = dict[int, int](), 0, 0
    for row in range(len(images)):
        text = images.texts[row]
        other = first.setdefault(hash(text), row)
        if other == row or images.texts[other] != text:
            continue
        if labels.codes[row] != labels.codes[other]:
            keys = list(labels.keys)
            both = f"{keys[labels.codes[other]]} and {keys[labels.codes[row]]}"
            raise ValueError(f"{table}: {text} has two labels, {both}; leave one, or write both into one row.")
        if labels.marks[row] == labels.marks[other]:
            labels.marks[row], again = LEFT_OUT, again + 1
        else:
            across += 1
    said = (again, "name an image again and do not count"), (across, "name an image of another split")
    unread = [f"columns of {table.name} that are not read: {few(labels.unread)}"] if labels.unread else []
    return [f"{count:,} rows of {table.name} {what}" for count, what in said if count] + unread


def _rows(file: Path) -> Numbered:
    rows: Callable[[Path], Numbered] = _jsonl if file.suffix.lower() == ".jsonl" else _csv
    return rows(file)


def _csv(file: Path) -> Numbered:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        first = lines.readline()
        lines.seek(0)
        marks = "\t,;" if file.suffix.lower() == ".tsv" else ",\t;"
        rows = csv.DictReader(lines, delimiter=next((mark for mark in marks if mark in first), ","), strict=True)
        for row in rows:
            yield rows.line_num, None if None in row or None in row.values() else row


def _jsonl(file: Path) -> Numbered:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield number, row if isinstance(row, dict) else None
