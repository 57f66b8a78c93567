"""Tables of images and labels: CSV, TSV and JSONL; Parquet is in huggingface.py.

    image,label                 found = splits(Path("photos.csv"), None, None)          # {"all": source}
    cats/1.jpg,cat              content, target, name, _ = found["all"][1]              # bytes, 1, "dogs/2.jpg"
    dogs/2.jpg,dog

A place is one file, which may have a column "split", or a folder of files with their split in their names, as on the
Hugging Face Hub: train.csv and val.csv, data/train-0.jsonl. Paths are relative to the table, and are looked for when an
image is read. If any label of a CSV has "|" or ";" in it, all images have lists of labels.
"""

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vitrail.data.sources.records import Labels, Paths, divide, find_column, tables
from vitrail.data.sources.source import Source

SUFFIXES = (".csv", ".tsv", ".jsonl")
SEPARATORS = "|;"

Numbered = Iterator[tuple[int, dict[str, Any] | None]]  # (line, row, or None if it is damaged)


def splits(path: Path, image_column: str | None, label_column: str | None) -> dict[str, Source]:
    """The splits of a table or of a folder of them, else {"all": source}. ValueError names the file and the line."""
    base = path if path.is_dir() else path.parent
    groups = {split: _group(files, base, image_column, label_column) for split, files in tables(path, SUFFIXES).items()}
    return divide(path, groups)


def _group(files: Sequence[Path], base: Path, image: str | None, label: str | None) -> tuple[Paths, Labels]:
    """The rows of CSV or JSONL files; image, label: the columns that were named."""
    json_lines = files[0].suffix.lower() == ".jsonl"
    rows: Callable[[Path], Numbered] = _jsonl if json_lines else _csv
    paths, labels = Paths(base, files[0].name), Labels("" if json_lines else SEPARATORS)
    for file in files:
        below, columns, places, line = os.path.relpath(file.parent, base), {}, (None, None, None), 1
        try:
            for line, row in rows(file):  # noqa: B007
                if row is None:
                    raise ValueError("it is not a JSON object" if json_lines else "its fields are not those of line 1")
                if not row.keys() <= columns.keys():  # lines of JSON may differ
                    columns |= dict.fromkeys(row)
                    asked = ("image", image), ("label", label), ("split", None)
                    places = tuple(find_column(columns, what, given) for what, given in asked)
                path, value, split = (row.get(place) if place else None for place in places)
                if not isinstance(path, str) or not path.strip():
                    raise ValueError(f"the image is {str(path)[:60]!r}, which is not a path")
                labels.add(value, split)
                paths.texts.append(os.path.join(below, path.strip()))
        except UnicodeDecodeError:
            raise ValueError(f"{file} is not UTF-8, somewhere after line {line}; save it as UTF-8.") from None
        except csv.Error as error:
            raise ValueError(f"{file} is damaged after line {line} ({error}); mend the line.") from None
        except ValueError as error:
            raise ValueError(f"{file}, line {line}: {error}.") from None
    return paths, labels


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
