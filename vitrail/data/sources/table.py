"""Tables that name images and their labels: CSV, TSV and JSONL here, Parquet in parquet.py.

    image,label                 found = splits(Path("photos.csv"), None, None)          # {"all": source}
    cats/1.jpg,cat              content, target, name = found["all"][1]                 # bytes, 1, "dogs/2.jpg"
    dogs/2.jpg,dog

A place is one file, which may have a column "split", or a folder of files whose names tell their split, as on the
Hugging Face Hub: train.csv and val.csv, data/train-00000-of-00002.parquet. Paths are relative to the table, and are
looked for when an image is read. Where any text of a CSV has "|" or ";" in it, all images have lists of labels.
"""

import csv
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.sources import parquet
from vitrail.data.sources.folder import SPLITS
from vitrail.data.sources.records import Column, Group, Paths, divide, find_column, mark, split_columns, split_in
from vitrail.data.sources.source import Source

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SEPARATORS = "|;"

# (line, [image, label, and the split where there is such a column]), as they stand there.
Row = tuple[int, list[Any]]


def splits(path: Path, image_column: str | None, label_column: str | None) -> dict[str, Source]:
    """The splits of a table or of a folder of them, else {"all": source}.

    ValueError, naming file and line, where a row is damaged, the columns cannot be told, or nothing is there.
    """
    groups = {}
    for split, files in _files(path).items():
        read = parquet.group if files[0].suffix.lower() == ".parquet" else _group
        groups[split] = read(files, path if path.is_dir() else path.parent, image_column, label_column)
    return divide(str(path), groups)


def _files(path: Path) -> dict[str, list[Path]]:
    """The tables of each split in a folder, or in the folders below it where it has none itself; the file itself."""
    try:
        if path.is_file():
            return {"all": [path]}
        if not path.is_dir():
            raise ValueError(f"{path} {'is no regular file' if path.exists() else 'does not exist'}; check the path.")
        found = _tables(path, "*", "data/*") or _tables(path, "**/*.parquet")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    groups: dict[str, list[Path]] = {}
    for file in found:
        parts = [part.lower() for part in file.relative_to(path).parent.parts]
        folders = [SPLITS[part] for part in parts if part in SPLITS]
        groups.setdefault(split_in(file.stem) or (folders[-1] if folders else "all"), []).append(file)
    if len(groups) > 1:
        groups.pop("all", None)  # class names, or a sample of what is to be handed in, beside train and test
    for files in groups.values():
        if other := [file for file in files if file.suffix.lower() != files[0].suffix.lower()]:
            raise ValueError(f"{path} has both {files[0].name} and {other[0].name}; name the one that is meant.")
    if not groups:
        raise ValueError(f"{path} has no tables ({', '.join(SUFFIXES)}); check the path.")
    return groups


def _tables(path: Path, *patterns: str) -> list[Path]:
    files = sorted(file for pattern in patterns for file in path.glob(pattern))
    return [f for f in files if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and f.is_file()]


def _group(files: Sequence[Path], base: Path, image_column: str | None, label_column: str | None) -> Group:
    """The rows of CSV or JSONL files."""
    column = Column("" if files[0].suffix.lower() == ".jsonl" else SEPARATORS)
    paths, marks = Paths(base, files[0].name), array("b")
    for file in files:
        rows = _jsonl if file.suffix.lower() == ".jsonl" else _csv
        below = os.path.relpath(file.parent, base)
        for line, (image, label, *split) in rows(file, image_column, label_column):
            try:
                paths.append(image, below)
                marks.append(mark(split[0]) if split else -1)
                if not column.add(label) and not column.blank:
                    column.blank = f"{file}, line {line}"
            except ValueError as error:
                raise ValueError(f"{file}, line {line}: {error}.") from None
    return Group(paths, column, np.frombuffer(marks, np.int8))


def _csv(file: Path, image_column: str | None, label_column: str | None) -> Iterator[Row]:
    line = 1
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            first = lines.readline()
            lines.seek(0)
            marks = "\t,;" if file.suffix.lower() == ".tsv" else ",\t;"
            rows = csv.reader(lines, delimiter=next((mark for mark in marks if mark in first), ","), strict=True)
            header = next(rows, [])
            places = [header.index(name) for name in _columns(file, header, image_column, label_column)]
            for row in rows:
                line = rows.line_num
                if len(row) == len(header):
                    yield line, [row[place] for place in places]
                elif row:
                    raise ValueError(
                        f"{file}, line {line} has {len(row)} fields, but the header has {len(header)}; mend the line."
                    )
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8, somewhere after line {line}; save it as UTF-8.") from None
    except csv.Error as error:
        raise ValueError(f"{file} is damaged after line {line} ({error}); mend the line.") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); check its permissions.") from None


def _jsonl(file: Path, image_column: str | None, label_column: str | None) -> Iterator[Row]:
    columns: list[str] = []
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict):
                    raise ValueError(f"{file}, line {number} is no JSON object; mend the line.")
                columns = columns or _columns(file, list(row), image_column, label_column)
                if missing := [name for name in columns if name not in row]:
                    raise ValueError(f"{file}, line {number} has no {missing[0]!r}, as the lines before have; add it.")
                yield number, [row[name] for name in columns]
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); check its permissions.") from None


def _columns(file: Path, names: list[str], image: str | None, label: str | None) -> list[str]:
    """The columns with the images, the labels and, where there is one, the splits."""
    found = [find_column(str(file), names, "image", image), find_column(str(file), names, "label", label)]
    return found + split_columns(names)
