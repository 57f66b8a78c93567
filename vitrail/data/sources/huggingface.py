"""Hugging Face data sets saved to disk, and Parquet tables, by the library `datasets`: pip install 'vitrail[data]'.

    found = splits(Path("food101"), None, None)             # by save_to_disk: {"train": source, "val": source}
    found = parquet(Path("food101-hub"), None, None)        # data/train-00000-of-00008.parquet, ...
    content, target, name, _ = found["train"][17]           # bytes, 6, "food101/train/data-00000-of-00008.arrow[17]"

Images are bytes, paths, or structs of both. The library's tables are mapped into memory: an image costs the reading of
its own bytes, which are taken from the table's columns, in an eighth of the time of `dataset[i]`. In columns of
ClassLabel, -1 is no label.

Parquet packs values into blocks, and reads no single one: with 1,000 images in a block, each image drawn at random
would cost all 1,000. So the columns that are needed are written once as an Arrow stream into the cache folder
(cache.py); it takes as much room as the images, and one reading of the file.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from vitrail.data.images.decode import read
from vitrail.data.sources.cache import unpacked
from vitrail.data.sources.records import Labels, divide, find_column, hot, hot_columns, tables
from vitrail.data.sources.source import SPLITS, Found, Source
from vitrail.progress import few

END = b"\xff\xff\xff\xff\0\0\0\0"  # https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format
ROWS = 64  # of Parquet in a batch of Arrow
NUMBERS = ("bool", "int", "uint", "float", "double")  # the types of 0 and 1
PARTS = {"bytes": ("binary", "large_binary"), "path": ("string", "large_string")}  # of an image, by their types


def splits(path: Path, image_column: str | None, label_column: str | None) -> Found:
    """The splits of a saved DatasetDict, without those of other names; {"all": source} for a single Dataset."""
    root, rows = Path(os.path.abspath(path)), dict[Path, int]()
    with _reading(path) as datasets:
        for file in sorted([*root.glob("*.*"), *root.glob("*/*.*")]):
            if file.suffix == ".json":
                with _reading(file):
                    json.loads(file.read_bytes())
            # The library leaves others beside a data set.
            elif file.suffix == ".arrow" and not file.name.startswith(("cache-", "tmp")):
                rows[file] = _checked(file)
        if not rows:
            raise ValueError(f"{path} has no images; check the path.")
        found = datasets.load_from_disk(str(root), keep_in_memory=False)
    groups, chosen = {}, _chosen(found, path)
    others = [name for name in found if SPLITS.get(name.lower()) not in chosen] if isinstance(found, dict) else []
    for split, dataset in chosen.items():
        files = [Path(file["filename"]) for file in dataset.cache_files]
        if strange := [file for file in files if file not in rows]:
            raise ValueError(f"{path} names the file {strange[0]}, which is not in it; save the data set again.")
        shown = [(path / file.relative_to(root), rows[file]) for file in files]
        groups[split] = _group(dataset, shown, image_column, label_column)
    return Found(divide(path, groups), (), [f"the split {name}" for name in others if "all" not in chosen])


def parquet(path: Path, image_column: str | None, label_column: str | None) -> dict[str, Source]:
    """The splits of a Parquet file or of a folder of them, else {"all": source}."""
    groups = {}
    for split, files in tables(path, (".parquet",))[0].items():
        with _reading(files[0]) as datasets:
            features, schema = {}, _opened(files[0])[1]
            for name in schema.names:
                with suppress(ValueError):  # a type that the library does not know
                    features |= datasets.Features.from_arrow_schema(schema.empty_table().select([name]).schema)
        places = _columns(files[0], features, image_column, label_column)
        columns = [*filter(None, places), *_numbers(features, places)]
        laid = [_laid_out(file, columns) for file in files]
        with _reading(path):
            shown = [(file, _checked(place)) for file, place in zip(files, laid, strict=True)]
            whole = datasets.concatenate_datasets([datasets.Dataset.from_file(str(place)) for place in laid])
        groups[split] = _group(whole, shown, image_column, label_column)
    return divide(path, groups)


def _chosen(found: Any, path: Path) -> dict[str, Any]:
    """The data sets of a dict under our names of the splits; a single one of any name as "all"."""
    named = found if isinstance(found, dict) else {"": found}
    chosen: dict[str, str] = {}
    for name in named:
        if (split := SPLITS.get(name.lower())) is not None and chosen.setdefault(split, name) != name:
            raise ValueError(f"{path} has both {chosen[split]} and {name}; remove one of them.")
    if not chosen and len(named) > 1:
        raise ValueError(f"{path} has the splits {few(named)}, none of which is train, val or test; rename one.")
    return {split: named[name] for split, name in chosen.items()} or {"all": next(iter(named.values()))}


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """The library; its absence, and all that it raises for damaged files, become a ValueError that names the file."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{path} needs `datasets`, which is not installed: pip install 'vitrail[data]'.") from None
    datasets.disable_progress_bars()
    try:
        yield datasets
    except Exception as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and str(path) in reason:
            raise ValueError(reason) from error
        raise ValueError(f"{path} cannot be read ({reason[:200].rstrip('.')}); copy or download it again.") from error


def _checked(file: Path) -> int:
    """The number of rows in an Arrow stream. ValueError if it is damaged, cut short or compressed: after that, nothing
    in it leads outside the file, which would crash the process."""
    import pyarrow as pa

    rows = 0
    with _reading(file):
        whole = pa.memory_map(str(file)).read_buffer()
        # A stream that was cut between two batches reads as one that ends there.
        if whole.size < len(END) or whole.slice(whole.size - len(END)).to_pybytes() != END:
            raise ValueError(f"{file} is cut short: it has no end mark; copy or download it again.")
        for batch in pa.ipc.open_stream(whole):
            batch.validate(full=True)
            parts = [part for column in batch.columns for part in column.buffers() if part is not None and part.size]
            if any(not whole.address <= part.address < whole.address + whole.size for part in parts):
                raise ValueError(f"{file} is compressed, so that images cannot be read singly; save it without.")
            rows += batch.num_rows
    return rows


def _opened(file: Path) -> tuple[Any, Any]:
    """A Parquet file, and the types in it; for a dictionary, those of its values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file, memory_map=True)
    plain = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in table.schema_arrow]
    return table, pa.schema(plain, table.schema_arrow.metadata)


def _laid_out(file: Path, columns: list[str]) -> Path:
    """The columns of a Parquet file as an Arrow stream in the cache folder."""
    import pyarrow as pa

    def write(target: BinaryIO) -> Iterator[int]:
        (table, whole), done = _opened(file), 0
        schema = pa.schema([whole.field(column) for column in columns], whole.metadata)
        with pa.ipc.new_stream(target, schema) as writer:
            for batch in table.iter_batches(ROWS, columns=columns, use_threads=False):
                batch.validate(full=True)
                writer.write_batch(batch.select(columns).cast(schema))
                done += batch.nbytes
                yield done

    with _reading(file):
        return unpacked(file, f"{' '.join(columns)}.arrow", file.stat().st_size, write)


def _columns(file: Path, features: Mapping[str, Any], image: str | None, label: str | None) -> list[str | None]:
    """The columns of the images, the labels and the splits."""
    import datasets

    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    images += [c for c, feature in features.items() if str(getattr(feature, "dtype", "")).endswith("binary")]
    images += [c for c, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
    labels = [column for column, feature in features.items() if _class_names(feature)]
    try:
        asked = ("image", image, images), ("label", label, labels), ("split", None, ())
        return [find_column(features, *what) for what in asked]
    except ValueError as error:
        raise ValueError(f"{file}: {error}.") from None


def _numbers(features: Mapping[str, Any], places: Sequence[str | None]) -> list[str]:
    """The columns that may be a class each, of 0 and 1, where there is no column of labels."""
    kinds = {column: str(getattr(feature, "dtype", "")) for column, feature in features.items()}
    return [c for c, kind in kinds.items() if not (places[1] or c in places) and kind.startswith(NUMBERS)]


def _class_names(feature: Any) -> tuple[str, ...]:
    """The names of a ClassLabel, or of a list of them."""
    import datasets

    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
    return tuple(inner.names or ()) if isinstance(inner, datasets.ClassLabel) else ()


def _group(
    dataset: Any, files: Sequence[tuple[Path, int]], image_column: str | None, label_column: str | None
) -> tuple["Embedded", Labels]:
    """The images and labels of a data set that lies in `files`, with so many rows in each."""
    image, label, split = places = _columns(files[0][0], dataset.features, image_column, label_column)
    images = Embedded(dataset.select_columns([image]).data, files)
    names = _class_names(dataset.features[label]) if label else ()
    batches, numbers = dataset.data.to_batches(), _numbers(dataset.features, places)
    ones = hot_columns((row for batch in batches for row in batch.select(numbers).to_pylist()), numbers)
    labels = Labels(classes=names or ones)
    # Lists as long as there are classes, of 0 and 1 only, say for each class whether it is there.
    said = [v for batch in batches for v in batch.column(label).to_pylist() if v is not None] if len(names) > 1 else []
    vectors = bool(said) and all(isinstance(v, list) and len(v) == len(names) and {*v} <= {0, 1} for v in said)
    for batch in batches:
        values, words = (batch.column(c).to_pylist() if c else [None] * len(batch) for c in (label, split))
        values = [hot(row, ones) for row in batch.select(ones).to_pylist()] if ones else values
        for value, word in zip(values, words, strict=True):
            try:
                labels.add(_named(value, names) if names and not vectors else value, word)
            except ValueError as error:
                raise ValueError(f"{images.name(len(labels.codes))}: {error}.") from None
    return images, labels


def _named(value: Any, names: Sequence[str]) -> Any:
    """The class name or names of a label, None if it is unknown."""
    if isinstance(value, list):
        return [_named(number, names) for number in value]
    if value is not None and not -1 <= value < len(names):
        raise ValueError(f"the label is {value}, but there are {len(names)} class names")
    return None if value is None or value == -1 else names[value]


class Embedded:
    """The images in the only column of a table of the library's, by the number of their row; Images. files: with so
    many rows in each. It may be pickled: the table's files are then opened again."""

    def __init__(self, table: Any, files: Sequence[tuple[Path, int]]) -> None:
        self.table, self.files = table, files
        self.starts = list(accumulate((rows for _, rows in files), initial=0))
        column = table.column(0)
        parts = {"bytes": column, "path": column}
        if str(column.type).startswith("struct<"):
            parts = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
        found = [parts[p] if p in parts and str(parts[p].type) in kinds else None for p, kinds in PARTS.items()]
        self._contents, self._paths = found
        if found == [None, None]:
            name, kind = table.column_names[0], str(column.type)[:60]
            raise ValueError(f"{files[0][0]}: the column {name} holds {kind}; images are bytes or paths.")

    def __len__(self) -> int:
        return len(self.table)

    def __reduce__(self) -> tuple[Any, ...]:
        return Embedded, (self.table, self.files)

    def read(self, row: int) -> bytes:
        content = self._contents and self._contents[row].as_py()
        if content is not None:
            return content
        file, _, path = self._place(row)
        if path is None:
            raise ValueError(f"{self.name(row)} has neither bytes nor a path; take the row out.")
        try:
            return read(file.parent / path)
        except ValueError as error:
            raise ValueError(f"{file.name}: {error}") from None

    def name(self, row: int) -> str:
        file, place, path = self._place(row)
        return f"{file}[{place}]" + (f" ({path})" if path else "")

    def _place(self, row: int) -> tuple[Path, int, str | None]:
        """(file, row in it, path of the image)."""
        number = bisect_right(self.starts, row) - 1
        return self.files[number][0], row - self.starts[number], self._paths and self._paths[row].as_py()
