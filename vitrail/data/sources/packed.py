"""A packed data set: images made small once and for all, in one file that is mapped into memory.

    splits(Path("photos-256"))      # {"train": source, "val": source}: the images of the original, in its order

`vitrail data pack` (pack.py) writes such a folder: pack.json says what is in it; each split has SPLIT.images (pixels,
uint8 (h, w, C) one after another, or JPEG files), SPLIT.names, SPLIT.targets, int64, and SPLIT.index, int64 (N + 1, 8):
where an image, its name and its targets begin, which the next row ends, its height, width and channels, and the height
and width that it had, for which random crops are drawn (0 in the last row; version 1 has no such two, and crops are
drawn for the small image). Whole numbers have their lowest byte first. Nothing is read before it is needed, so that it
opens at once at any size.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources.source import Example, Source, Target, Targets

FILE = "pack.json"
INT64 = np.dtype("<i8")
CONTENT, NAME, TARGET, HEIGHT, WIDTH, CHANNELS, WHOLE_HEIGHT, WHOLE_WIDTH = range(8)
COLUMNS = {1: 6, 2: 8}  # of the index, by version
Kind = Literal["raw", "jpeg"]


@dataclass(frozen=True, eq=False)
class Packed:
    """One split of a packed data set; opened when it is first read, and again in every process."""

    folder: Path
    split: str
    kind: Kind
    count: int
    class_names: tuple[str, ...]
    targets: Targets
    columns: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        """The image is uint8 (h, w, C), which cannot be written to, or a JPEG's bytes."""
        row, end = self._rows(index)
        content = self._images[row[CONTENT] : end[CONTENT]]
        target, name = self._target(row, end), self._name(row, end)
        small = self.columns > WHOLE_WIDTH and row[HEIGHT:CHANNELS] != row[WHOLE_HEIGHT:]
        size = (row[WHOLE_HEIGHT], row[WHOLE_WIDTH]) if small else None
        if self.kind == "jpeg":
            return Example(content.tobytes(), target, name, size)
        if len(content) != row[HEIGHT] * row[WIDTH] * row[CHANNELS]:
            raise ValueError(f"{self._path('index')} is damaged at image {index}; pack the images again.")
        return Example(content.reshape(row[HEIGHT], row[WIDTH], row[CHANNELS]), target, name, size)

    def target(self, index: int) -> Target:
        return self._target(*self._rows(index))

    def name(self, index: int) -> str:
        return self._name(*self._rows(index))

    def _target(self, row: list[int], end: list[int]) -> Target:
        found = self._targets[row[TARGET] : end[TARGET]].tolist()
        if found == [-1]:
            return None
        return tuple(found) if self.targets == "classes" else found[0]

    def _name(self, row: list[int], end: list[int]) -> str:
        return self._names[row[NAME] : end[NAME]].tobytes().decode("utf-8", "surrogateescape")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def _rows(self, index: int) -> tuple[list[int], list[int]]:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.folder} has images 0 to {self.count - 1}, but {index} was asked for.")
        row, end = self._index[index : index + 2].tolist()
        return row, end

    def _path(self, what: str) -> Path:
        return self.folder / f"{self.split}.{what}"

    def check(self) -> None:
        """ValueError, naming the file, where one is missing or is not as long as the others say."""
        index = self._index
        if len(index) != self.count + 1:
            raise ValueError(f"{self._path('index')} is not of {self.count:,} images; copy it or pack them again.")
        lengths = {"images": len(self._images), "names": len(self._names), "targets": len(self._targets)}
        for column, (what, found) in enumerate(lengths.items()):
            if found != index[-1, column]:
                raise ValueError(
                    f"{self._path(what)} is cut short or damaged: it has {found:,} entries, not {index[-1, column]:,};"
                    " copy it again, or pack the images again."
                )

    @cached_property
    def _index(self) -> NDArray[np.int64]:
        whole = self._mapped("index", INT64)
        return whole[: len(whole) // self.columns * self.columns].reshape(-1, self.columns)

    @cached_property
    def _targets(self) -> NDArray[np.int64]:
        return self._mapped("targets", INT64)

    @cached_property
    def _images(self) -> NDArray[np.uint8]:
        return self._mapped("images", np.dtype(np.uint8))

    @cached_property
    def _names(self) -> NDArray[np.uint8]:
        return self._mapped("names", np.dtype(np.uint8))

    def _mapped(self, what: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A whole file; as a plain array, for NumPy's class of mapped ones is slow to slice."""
        path = self._path(what)
        try:
            count = path.stat().st_size // dtype.itemsize
            # An empty file cannot be mapped.
            return np.asarray(np.memmap(path, dtype, "r", shape=count)) if count else np.empty(0, dtype)
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error.strerror or error}); pack the images again.") from None


def splits(folder: Path) -> dict[str, Source]:
    """The splits of a packed data set. ValueError where it is damaged, cut short or of another version."""
    file = folder / FILE
    try:
        found = json.loads(file.read_text())
        if found["version"] not in COLUMNS:
            raise ValueError(f"{file} is of version {found['version']}, which this vitrail does not read; update it.")
        sources = {
            str(split): Packed(
                folder,
                str(split),
                found["kind"],
                int(one["images"]),
                tuple(one["classes"]),
                one.get("targets", "classes" if one.get("multi_label") else "class"),
                COLUMNS[found["version"]],
            )
            for split, one in found["splits"].items()
        }
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{file} does not describe a packed data set; pack the images again.") from None
    for source in sources.values():
        source.check()
    return dict(sources)
