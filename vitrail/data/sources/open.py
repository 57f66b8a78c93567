"""The door to the data: which Source reads a path, and which of its images are held back.

    train, val = open_splits(Data("photos"))
    print(describe(Data("photos")))                     # 1,350 images to train on, 150 held back: a tenth of each ...

Read are: class folders (folder.py), MNIST's idx files (idx.py), CIFAR's batches (cifar.py), CSV, JSONL and Parquet
tables (table.py), Hugging Face data sets saved to disk (arrow.py), tar and webdataset shards (shards.py), and what
`vitrail data pack` wrote (packed.py). Which of them a place is, its files tell, not its name.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources import arrow, cifar, folder, mnist, packed, table
from vitrail.data.sources import tar as shards
from vitrail.data.sources.source import Renumbered, Source, Split, counts
from vitrail.data.sources.split import balanced, stratified

PACKAGED = "fashion"
ARROW = {"dataset_info.json", "dataset_dict.json", "state.json"}
SPLIT_TABLE = re.compile(rf"({'|'.join(folder.SPLITS)})\b.*\.(csv|tsv|jsonl)")
SHOWN = 5  # classes in a message


@dataclass(frozen=True)
class Data:
    """What a run reads, and which part of it is held back. ValueError for values that no data could fit."""

    path: str = PACKAGED
    """"fashion" for the images in the package, or a folder or file of any kind that is read."""
    val: str | None = None
    """Held-back images, where they lie at another place."""
    hold_back: float | None = None
    """The share of the training images that is held back, of each class alike; None: only where there is no val or
    test split, and then a tenth."""
    split_seed: int = 0
    """Decides which images are held back."""
    image_column: str | None = None
    """Of a table: the column with paths or bytes; None finds it."""
    label_column: str | None = None
    """Of a table: the column with labels; None finds it."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """What becomes of an image that cannot be read: the run stops, or another takes its place."""
    balance: bool = False
    """Whether every class is seen equally often in training."""

    block: int = 0
    """Images that lie next to each other and are read together, such as 1000: for tars on slow disks, of which few are
    then read at a time; sixteen blocks are mixed. 0 mixes all images."""

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ValueError(f"block is {self.block}; it is a number of images, or 0.")
        if self.hold_back is not None and not 0 < self.hold_back <= 0.9:
            raise ValueError(f"hold_back is {self.hold_back}; it is a share above 0 and up to 0.9.")
        if self.hold_back is not None and self.val is not None:
            raise ValueError(f"val ({self.val}) and hold_back ({self.hold_back}) both name held-back images; give one.")
        if not 0 <= self.split_seed < 2**64:
            raise ValueError(f"split_seed is {self.split_seed}; it must be at least 0 and below 2^64.")


@dataclass(frozen=True, eq=False)
class Parts:
    """The images to train on, those held back, and a sentence that says which these are."""

    train: Source
    val: Source
    words: str


def open_splits(data: Data) -> tuple[Source, Source]:
    """(the images to train on, those held back). Raises ValueError as open_parts does."""
    parts = open_parts(data)
    return parts.train, parts.val


def open_source(data: Data, split: Split) -> Source:
    """The images of one split; "test" is what "val" is where the place has no labelled test images.

    Raises ValueError as open_parts does.
    """
    splits = find_splits(data)
    parts = _parts(data, splits)
    if split == "test" and "test" in splits and _labelled(splits["test"]):
        return _agreed(splits["test"], f"the test images of {data.path}", parts.train, data.path)
    return parts.train if split == "train" else parts.val


def describe(data: Data) -> str:
    """How many images there are, and which of them are held back. Raises ValueError as open_parts does."""
    return open_parts(data).words


def open_parts(data: Data) -> Parts:
    """The images to train on and those held back, under the same class numbers.

    Held back are the images at data.val; or the share data.hold_back of each class; or the place's own val or else
    test images; or a tenth of each class.
    ValueError, naming place and remedy, where they cannot be read, have no labels, less than two classes, or classes
    that were not trained on.
    """
    return _parts(data, find_splits(data))


def find_splits(data: Data) -> dict[str, Source]:
    """What lies at data.path: its splits, among "train", "val" and "test", or "all" where it is not divided.

    ValueError, naming the file and what to do, where it is missing, damaged, or nothing that is read.
    """
    if data.path == PACKAGED:
        return {"train": mnist.fashion("train"), "test": mnist.fashion("test")}
    path = Path(data.path)
    try:
        if not path.exists():
            raise ValueError(f"{path} does not exist; name a folder or file of images.")
        if not path.is_dir():
            return _read_file(path, data)
        # An archive often unpacks to a folder in a folder.
        inner = folder.listing(path)[0]
        for place in (path, path / inner[0]) if len(inner) == 1 else (path,):
            if (found := _read_folder(place, data)) is not None:
                return found
        return folder.splits(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check its name and permissions.") from None


def _read_file(path: Path, data: Data) -> dict[str, Source]:
    if path.name.lower().endswith(shards.SUFFIXES) and path.is_file():
        return cifar.splits(path) if cifar.is_cifar(path) else shards.splits(path)
    if path.name.lower().endswith(table.SUFFIXES) and path.is_file():
        return table.splits(path, data.image_column, data.label_column)
    kinds = ", ".join(shards.SUFFIXES + table.SUFFIXES)
    raise ValueError(f"{path} is no file of images ({kinds}); name one, or a folder, and unpack other archives.")


def _read_folder(path: Path, data: Data) -> dict[str, Source] | None:
    """The splits of a folder whose files tell what it is; None where it has nothing but images and folders."""
    columns = data.image_column, data.label_column
    divided = folder.split_folders(path)
    names, below = _names(path), [name for place in divided.values() for name in _names(place)]
    hub = _names(path / "data") if (path / "data").is_dir() else []  # where the Hugging Face Hub has them
    if mnist.is_mnist(path):
        return mnist.splits(path)
    if packed.FILE in names:
        return packed.splits(path)
    if cifar.is_cifar(path):
        return cifar.splits(path)
    if ARROW & set(names):
        return arrow.splits(path, *columns)
    if any(name.endswith(shards.SUFFIXES) for name in below + hub):
        return shards.splits(path)
    tars = [name for name in os.listdir(path) if name.lower().endswith(shards.SUFFIXES) and name[0] != "."]
    # Tars beside folders are often where these came from.
    if tars and not folder.listing(path)[0]:
        whole = path / tars[0]
        return cifar.splits(whole) if len(tars) == 1 and cifar.is_cifar(whole) else shards.splits(path)
    if any(name.endswith(".parquet") for name in names + below + hub) or any(map(SPLIT_TABLE.fullmatch, names + hub)):
        return table.splits(path, *columns)
    return folder.splits(path) if divided else None


def _names(path: Path) -> list[str]:
    return [name.lower() for name in os.listdir(path) if not name.startswith(".")]


def _parts(data: Data, splits: dict[str, Source]) -> Parts:
    whole = splits.get("train", splits.get("all"))
    if whole is None:
        raise ValueError(f"{data.path} has only {' and '.join(splits)} images; name a place with some to train on.")
    present = np.flatnonzero(_check(whole, data.path))
    if len(present) == 1 and not whole.multi_label:
        raise ValueError(
            f"{data.path} has one class only ({whole.class_names[present[0]]}); a classifier needs two or more: put"
            " each class's images into a folder of its own."
        )
    train, val, how = _divided(data, splits, whole)
    val = _agreed(val, how, train, data.path)
    even = ", each class equally often" if data.balance else ""
    words = f"{len(train):,} images to train on{even}, {len(val):,} held back: {how}"
    return Parts(balanced(train) if data.balance else train, val, words)


def _divided(data: Data, splits: dict[str, Source], whole: Source) -> tuple[Source, Source, str]:
    """(train, val, which images val are), by the rules of open_parts."""
    if data.val is not None:
        found = find_splits(replace(data, path=data.val, val=None))
        name = next((name for name in ("val", "test", "all") if name in found), None)
        if name is None:
            raise ValueError(f"{data.val} has only images to train on; name a place with a val or test split, or none.")
        return whole, found[name], data.val if name == "all" else f"the {name} images of {data.val}"
    if data.hold_back is None:
        for name in ("val", "test"):
            if name in splits and _labelled(splits[name]):
                return whole, splits[name], f"the {name} images of {data.path}"
    share = data.hold_back or 0.1
    train, val = stratified(whole, share, data.split_seed)
    part = "a tenth" if share == 0.1 else f"{share:.4g}"
    return train, val, f"{part} of each class, by seed {data.split_seed}"


def _labelled(source: Source) -> bool:
    return any(source.target(index) != -1 for index in range(len(source)))


def _check(source: Source, where: str) -> NDArray[np.int64]:
    """How many images each class has, (K,). ValueError where there are none, or some of unknown class."""
    if not len(source):
        raise ValueError(f"{where}: there are no images; check the path.")
    found = counts(source)
    if source.multi_label:
        unknown = sum(source.target(index) == -1 for index in range(len(source)))
    else:
        unknown = len(source) - int(found.sum())
    if unknown:
        raise ValueError(
            f"{where}: {unknown:,} of the {len(source):,} images have no label; put each class's images into a folder"
            " of its own, or give a table a column of labels."
        )
    return found


def _agreed(source: Source, where: str, train: Source, place: str) -> Source:
    """Held-back images under the class numbers of those that are trained on."""
    _check(source, where)
    if source.multi_label != train.multi_label:
        raise ValueError(f"{where}: images have one label each, and those of {place} several, or the reverse; use one.")
    theirs, ours = set(source.class_names), set(train.class_names)
    if theirs - ours:
        instead = f", which has {_some(ours - theirs)} instead" if ours - theirs else ""
        raise ValueError(
            f"{where}: the classes {_some(theirs - ours)} are not in {place}{instead}; give both the same classes."
        )
    return source if source.class_names == train.class_names else Renumbered(source, train.class_names)


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:SHOWN]) or "none"
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
