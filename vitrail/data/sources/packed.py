"""A packed data set: images made small once and for all, in one file that is mapped into memory.

    splits(Path("photos-256"))      # {"train": source, "val": source}: the images of the original, in its order

`vitrail data pack` (pack.py) writes such a folder: pack.json says what is in it; each split has SPLIT.images (pixels,
uint8 (h, w, C) one after another, or JPEG files), SPLIT.names, SPLIT.targets, int64, and SPLIT.index, int64 (N + 1, 8):
the beginnings of an image, its name and its targets, which end in the next row; its height, width and channels; and the
height and width that it had, for which random crops are drawn (0 in the last row). Numbers are little-endian. Nothing
is read before it is needed, so that it opens at once at any size.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources.source import Example, Source, Target, Targets, check_index, each

FILE = "pack.json"
INT64 = np.dtype("<i8")
VERSION = 2
CONTENT, NAME, TARGET, HEIGHT, WIDTH, CHANNELS, WHOLE_HEIGHT, WHOLE_WIDTH = range(8)
FILES = {"images": np.dtype(np.uint8), "names": np.dtype(np.uint8), "targets": INT64}  # in the index's order
Kind = Literal["raw", "jpeg"]


@dataclass(frozen=True, eq=False)
class Packed:
    """One split of a packed data set; its files are mapped when it is made, and again in every process."""

    folder: Path
    split: str
    kind: Kind
    count: int
    class_names: tuple[str, ...]
    targets: Targets

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        """The image is uint8 (h, w, C), which cannot be written to, or a JPEG's bytes."""
        row, end = self._rows(index)
        content = self._files["images"][row[CONTENT] : end[CONTENT]]
        target, name = self._target(row, end), self._name(row, end)
        small = row[HEIGHT:CHANNELS] != row[WHOLE_HEIGHT:]
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

    def coded(self) -> tuple[NDArray[np.integer], Sequence[Target]]:
        labels, classes = self._files["targets"], len(self.class_names)
        if self.targets != "class" or len(labels) != self.count:
            return each(self)
        low, high = labels.min(initial=-1), labels.max(initial=-1)
        if low < -1 or high >= classes:  # -1 is None
            what = f"{self._path('targets')} is damaged: it has labels from {low} to {high} for {classes} classes"
            raise ValueError(f"{what}; pack the images again.")
        return labels, [*range(classes), None]

    def _target(self, row: list[int], end: list[int]) -> Target:
        found = self._files["targets"][row[TARGET] : end[TARGET]].tolist()
        if found == [-1]:
            return None
        return tuple(found) if self.targets == "classes" else found[0]

    def _name(self, row: list[int], end: list[int]) -> str:
        return self._files["names"][row[NAME] : end[NAME]].tobytes().decode("utf-8", "surrogateescape")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def _rows(self, index: int) -> tuple[list[int], list[int]]:
        check_index(index, self.count, self.folder)
        row, end = self._index[index : index + 2].tolist()
        return row, end

    def __post_init__(self) -> None:
        """Raises ValueError, naming the file, if one is missing or not as long as the others say."""
        if len(self._index) != self.count + 1:
            raise ValueError(f"{self._path('index')} is not of {self.count:,} images; copy it or pack them again.")
        for (what, entries), end in zip(self._files.items(), self._index[-1], strict=False):
            if len(entries) != end:
                what = f"{self._path(what)} is damaged: it has {len(entries):,} entries, not {end:,}"
                raise ValueError(f"{what}; copy it again, or pack the images again.")

    @cached_property
    def _index(self) -> NDArray[np.int64]:
        whole = self._mapped("index", INT64)
        return whole[: len(whole) // 8 * 8].reshape(-1, 8)

    @cached_property
    def _files(self) -> dict[str, NDArray[Any]]:
        return {what: self._mapped(what, dtype) for what, dtype in FILES.items()}

    def _path(self, what: str) -> Path:
        return self.folder / f"{self.split}.{what}"

    def _mapped(self, what: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A whole file; as a plain array, because NumPy's class of mapped ones is slow to slice."""
        path = self._path(what)
        count = path.stat().st_size // dtype.itemsize
        # An empty file cannot be mapped.
        return np.asarray(np.memmap(path, dtype, "r", shape=count)) if count else np.empty(0, dtype)


def splits(folder: Path) -> dict[str, Source]:
    """The splits of a packed data set."""
    file = folder / FILE
    try:
        found = json.loads(file.read_text())
        if found["version"] != VERSION:
            raise ValueError(f"{file} is of version {found['version']}, but {VERSION} is read; pack the images again.")
        return {
            split: Packed(folder, split, found["kind"], one["images"], tuple(one["classes"]), one["targets"])
            for split, one in found["splits"].items()
        }
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{file} does not describe a packed data set; pack the images again.") from None
