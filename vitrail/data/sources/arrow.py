"""Hugging Face data sets as `save_to_disk` writes them: folders of Arrow streams, read where they lie on the disk.

    found = splits(Path("food101"), None, None)             # {"train": source, "val": source}
    content, target, name = found["train"][17]              # bytes, 6, "food101/train/data-00000-of-00008.arrow[17]"

The library `datasets` is not needed, pyarrow is: pip install 'vitrail[data]'. The files are mapped into memory: an
image costs the reading of its own bytes. Class names come from dataset_info.json, where -1 stands for no label.
Records are in the order of the files, those of one file side by side.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.images.decode import read
from vitrail.data.sources.folder import SPLITS
from vitrail.data.sources.records import Column, Group, Label, divide, find_column, label
from vitrail.data.sources.source import Source

END = (
    b"\xff\xff\xff\xff\0\0\0\0"  # of a stream, https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format
)


def splits(path: Path, image_column: str | None, label_column: str | None) -> dict[str, Source]:
    """The splits of a saved DatasetDict, those of other names left out; {"all": source} of a single Dataset.

    ValueError where a file is missing or damaged, or the columns cannot be told.
    """
    groups = {split: _group(folder, image_column, label_column) for split, folder in _folders(path).items()}
    return divide(str(path), groups)


def _folders(path: Path) -> dict[str, Path]:
    if not (path / "dataset_dict.json").is_file():
        return {"all": path}
    names = _names(_json(path / "dataset_dict.json").get("splits"), path / "dataset_dict.json")
    found: dict[str, Path] = {}
    for name in names:
        split = SPLITS.get(name.lower())
        if split in found:
            raise ValueError(f"{path} has both {found[split].name} and {name}; remove one of them.")
        if split is not None:
            found[split] = path / name
    if not found and len(names) == 1:
        return {"all": path / names[0]}
    if not found:
        raise ValueError(f"{path} has the splits {', '.join(names)}, none of which is train, val or test; rename one.")
    return found


def _group(folder: Path, image_column: str | None, label_column: str | None) -> Group:
    """The images and labels of one Dataset."""
    state = folder / "state.json"
    entries = _json(state).get("_data_files")
    entries = entries if isinstance(entries, list) else [None]
    names = _names([entry.get("filename") if isinstance(entry, dict) else None for entry in entries], state)
    if not names:
        raise ValueError(f"{folder} has no images; check the path.")
    info = folder / "dataset_info.json"
    features = _json(info).get("features") if info.is_file() else None
    features = features if isinstance(features, dict) else {}
    files = [folder / name for name in names]
    with reading(files[0], "an Arrow stream"):
        schema = _stream(files[0]).schema
        image, label, classes = columns_of(schema, features, str(files[0]), image_column, label_column)
    column, images = Column(classes=classes), Embedded([(file, str(file)) for file in files], image, folder)
    for file in files:
        done = 0
        for batch in batches(file, [label]):
            add_labels(column, batch.column(0), file, done)
            done += batch.num_rows
    return Group(images, column, np.full(len(column), -1, np.int8))


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); save the data set again.") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged; save the data set again.")
    return found


def _names(names: Any, file: Path) -> list[str]:
    """Names of files or folders beside `file`, which it gives. ValueError for anything else."""
    if isinstance(names, list) and all(isinstance(name, str) and Path(name).name == name != "" for name in names):
        return names
    raise ValueError(f"{file} does not name the files beside it; save the data set again.")


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turns pyarrow's absence, and what it raises of a damaged file, into a ValueError."""
    try:
        import pyarrow as pa
    except ImportError:
        raise ValueError(f"{path} is read by pyarrow, which is not installed: pip install 'vitrail[data]'.") from None
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")[:120]
        raise ValueError(f"{path} cannot be read as {what} ({reason}); copy or download it again.") from error


def _stream(file: Path) -> Any:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(str(file)))


def batches(file: Path, columns: Sequence[str]) -> list[Any]:
    """The record batches of an Arrow stream with these columns only; what they hold stays on the disk until it is read.

    ValueError where the file is damaged, cut short or compressed.
    """
    with reading(file, "an Arrow stream"):
        import pyarrow as pa

        whole = pa.memory_map(str(file)).read_buffer()
        # A stream that was cut between two batches reads as one that ends there.
        if whole.size < len(END) or whole.slice(whole.size - len(END)).to_pybytes() != END:
            raise ValueError(f"{file} is cut short: it has no end mark; copy or download it again.")
        schema = pa.ipc.open_stream(whole).schema
        places = [schema.get_field_index(column) for column in columns]
        if min(places) < 0:
            raise ValueError(f"{file} has no column {columns[places.index(-1)]!r}, as the files beside it have.")
        options = pa.ipc.IpcReadOptions(included_fields=places)
        found = []
        for batch in pa.ipc.open_stream(whole, options=options):
            batch.validate(full=True)  # offsets that lead out of the file would crash the process
            parts = [part for column in batch.columns for part in column.buffers() if part is not None and part.size]
            if any(not whole.address <= part.address < whole.address + whole.size for part in parts):
                raise ValueError(f"{file} is compressed, so that images cannot be read singly; save it without.")
            found.append(batch)
        return found


def columns_of(
    schema: Any, features: Mapping[str, Any], place: str, image_column: str | None, label_column: str | None
) -> tuple[str, str, tuple[str, ...] | None]:
    """(column of the images, column of the labels, class names where they are known) by Hugging Face's features,
    types and names."""
    kinds = {field.name: str(field.type) for field in schema}
    images = [c for c, kind in kinds.items() if _type(features.get(c)) == "Image" or kind.endswith("binary")]
    images += [c for c, kind in kinds.items() if kind.startswith("struct<bytes: ") and c not in images]
    classes = {column: names for column in kinds if (names := class_names(features.get(column)))}
    image = find_column(place, list(kinds), "image", image_column, images)
    label = find_column(place, list(kinds), "label", label_column, list(classes))
    return image, label, classes.get(label)


def features_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The features that Hugging Face wrote into a schema's metadata; none where it did not."""
    try:
        found = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a ClassLabel, or of a list of them."""
    if isinstance(feature, list) and len(feature) == 1:  # as older files write a list
        return class_names(feature[0])
    if isinstance(feature, dict) and "feature" in feature:
        return class_names(feature["feature"])
    names = feature.get("names") if isinstance(feature, dict) and _type(feature) == "ClassLabel" else None
    return tuple(names) if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def _type(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, dict) else None


def add_labels(column: Column, values: Any, file: Path, first: int) -> None:
    """Appends an Arrow array of labels, of which the first belongs to the row `first` of a file.

    ValueError, naming the row, for what is no label, or has no class name.
    """
    import pyarrow as pa

    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    listed = str(values.type).startswith(("list", "large_list", "fixed_size_list"))
    inner = values.type.value_type if listed else values.type
    if pa.types.is_nested(inner) or "binary" in str(inner):
        kind = str(values.type)[:60]
        raise ValueError(f"{file}: the column of the labels holds {kind}; labels are names, whole numbers, or lists.")
    if listed:
        places: dict[Any, int] = {}
        codes = np.array([places.setdefault(tuple(value or ()), len(places)) for value in values.to_pylist()], np.int32)
        different = list(places)
    else:
        with reading(file, "labels"):
            encoded = values.dictionary_encode(null_encoding="encode")
        codes, different = encoded.indices.to_numpy().astype(np.int32), encoded.dictionary.to_pylist()
    keys = []
    for code, value in enumerate(different):
        try:
            keys.append(_key(value, column.classes))
        except ValueError as error:
            raise ValueError(f"{file}[{first + int((codes == code).argmax())}]: {error}.") from None
    if "" in keys and not column.blank:
        column.blank = f"{file}[{first + int((codes == keys.index('')).argmax())}]"
    column.extend(keys, codes)


def _key(value: Any, classes: tuple[str, ...] | None) -> Label:
    if classes is None:
        return label(value)
    if isinstance(value, tuple):
        names = [_key(number, classes) for number in value]
        if None in names:
            raise ValueError(f"the label is {str(list(value))[:60]}; a list names classes only")
        return tuple(dict.fromkeys(str(name) for name in names))
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or not 0 <= value < len(classes):
        raise ValueError(f"the label is {str(value)[:60]}, but there are {len(classes)} class names")
    return classes[value]


class Embedded:
    """The images in a column of Arrow streams, by the number of their row: bytes, paths, or structs of both.

    streams: (file, what it is called). folder: what paths are relative to. It may be pickled: files are opened again.
    """

    def __init__(self, streams: Sequence[tuple[Path, str]], column: str, folder: Path) -> None:
        self.streams, self.column, self.folder = streams, column, folder
        self._parts: list[list[tuple[Any, Any]]] | None = self._open()
        lengths = [[len(paths if contents is None else contents) for contents, paths in some] for some in self._parts]
        # The first row of each file, and within the files that of each batch.
        self.files = np.cumsum([0] + [sum(rows) for rows in lengths]).tolist()
        self.batches = [np.cumsum([0, *rows]).tolist() for rows in lengths]

    def __len__(self) -> int:
        return self.files[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}

    def _open(self) -> list[list[tuple[Any, Any]]]:
        """For each file, for each batch: the arrays of bytes and of paths, None where there are none."""
        found = []
        for file, name in self.streams:
            arrays = [batch.column(0) for batch in batches(file, [self.column])]
            found.append([parts(array, f"{name}: the column {self.column}") for array in arrays])
        return found

    def _at(self, row: int) -> tuple[Any, Any, int, int]:
        """(bytes, paths, place of the row in them, file)."""
        if self._parts is None:
            self._parts = self._open()
        file = bisect_right(self.files, row) - 1
        row -= self.files[file]
        batch = bisect_right(self.batches[file], row) - 1
        return *self._parts[file][batch], row - self.batches[file][batch], file

    def read(self, row: int) -> bytes:
        contents, paths, place, _ = self._at(row)
        content = contents[place].as_py() if contents is not None else None
        if content is not None:
            return content
        path = paths[place].as_py() if paths is not None else None
        if path is None:
            raise ValueError(f"{self.name(row)} has neither bytes nor a path; take the row out.")
        return read(self.folder / path)

    def name(self, row: int) -> str:
        _, paths, place, file = self._at(row)
        path = paths[place].as_py() if paths is not None else None
        return f"{self.streams[file][1]}[{row - self.files[file]}]" + (f" ({path})" if path else "")


def parts(array: Any, what: str) -> tuple[Any, Any]:
    """The bytes and the paths in an array of images, None where it has none."""
    kind = str(array.type)
    if kind in ("binary", "large_binary"):
        return array, None
    if kind in ("string", "large_string"):
        return None, array
    if kind.startswith(("struct<bytes: ", "struct<path: ")):
        fields = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
        contents = parts(fields["bytes"], what)[0] if "bytes" in fields else None
        paths = parts(fields["path"], what)[1] if "path" in fields else None
        if contents is not None or paths is not None:
            return contents, paths
    raise ValueError(f"{what} holds {kind[:60]}; images are bytes or paths.")
