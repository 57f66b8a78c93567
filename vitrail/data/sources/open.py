"""The door to the data: which Source reads a path, and which of its images are for validation.

    splits = open_splits(Data("photos"))
    print(splits.words)                 # 1,350 images to train on, 150 for validation: a tenth of each class, by seed 0
    splits.train, splits.val

There are readers for class folders (folder.py), MNIST's idx files (mnist.py), CIFAR's batches (cifar.py), CSV and JSONL
(table.py), Parquet and Hugging Face data sets saved to disk (huggingface.py), tar and webdataset shards (tar.py), and
what `vitrail data pack` wrote (packed.py; remote.py, if it is in a store). The files of a place decide which one reads
it, not its name. Readers raise ValueError, naming the file and what to do, for one that is missing, damaged or hostile,
and let an OSError through.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from vitrail.config import attribute
from vitrail.data.sources import cifar, folder, huggingface, mnist, packed, remote, table, tar
from vitrail.data.sources.source import SPLITS, Found, Renumbered, Source, Split, counts, many, speaks, unknown
from vitrail.data.sources.split import balanced, drawn, stratified
from vitrail.data.sources.walk import listing, scan
from vitrail.data.stream import Unreadable
from vitrail.progress import few

PACKAGED = "fashion"
SAVED = {"dataset_info.json", "dataset_dict.json", "state.json"}  # by `save_to_disk`
SPLIT_TABLE = re.compile(rf"({'|'.join(SPLITS)})\b.*\.(csv|tsv|jsonl)")
WRAPPERS = 8  # folders in folders, as archives unpack
TABLES = (*table.SUFFIXES, ".parquet")
Needs = Literal["none", "classes", "number", "boxes", "masks"]


@dataclass(frozen=True)
class Data:
    """What a run reads, and which images it validates on. ValueError for values that do not fit any data."""

    path: str = PACKAGED
    """"fashion" for the images in the package, a folder or file of any kind that is read, the URL of a folder of shards
    in a store, or FILE.py:NAME, a function of yours that returns a Source or a dict of them by split."""
    val: str | None = None
    """The validation images, if they are in another place."""
    val_fraction: float | None = None
    """Fraction of the training set used for validation, of each class alike. Default: 0.1 if the data has no val or
    test split, otherwise none."""
    split_seed: int = 0
    """Decides which images are used for validation."""
    examples: int | None = None
    """How many of the training images are used, equally many of each class; more add to fewer. None: all."""
    examples_seed: int = 0
    """Decides which those are."""
    image_column: str | None = None
    """Of a table: the column with paths or bytes; None finds it."""
    label_column: str | None = None
    """Of a table: the column with labels; None finds it."""
    unreadable: Unreadable = "refuse"
    """What happens at an image that cannot be read: the run stops, or another image takes its place."""
    balance: bool = False
    """Whether every class is seen equally often in training."""
    block: int = 0
    """Number of neighbouring images that are read together, such as 1000: for tars on slow disks, of which few are then
    read at a time; sixteen blocks are mixed. 0 mixes all images."""

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ValueError(f"block is {self.block}; it is a number of images, or 0.")
        if self.examples is not None and self.examples < 1:
            raise ValueError(f"examples is {self.examples}; it must be 1 or more.")
        fraction = self.val_fraction
        if fraction is not None and not 0 < fraction <= 0.9:
            raise ValueError(f"val_fraction is {fraction}; it must be above 0 and at most 0.9.")
        if fraction is not None and self.val is not None:
            raise ValueError(f"val ({self.val}) and val_fraction ({fraction}) both name validation images; give one.")
        for name in ("split_seed", "examples_seed"):
            if not 0 <= getattr(self, name) < 2**64:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 2^64.")


@dataclass(frozen=True, eq=False)
class Splits:
    """The images to train on, those to validate on, and a sentence that says which these are. said: lines on what the
    places were read as, and what was left out."""

    train: Source
    val: Source
    words: str
    said: tuple[str, ...] = ()


def open_splits(data: Data, needs: Needs = "classes") -> Splits:
    """The images to train and to validate on, under the same class numbers.

    Validation images are those at data.val; or the fraction data.val_fraction of each class; or the place's own val or
    else test images; or a tenth of each class. needs: what the task needs of the data.
    ValueError, naming place and remedy, if they cannot be read, or lack what is needed: a label each, of two classes or
    more, boxes, masks; and if validation images have classes that are not trained on.
    """
    return _divided(data, find_splits(data), needs)


def open_source(data: Data, split: Split, needs: Needs = "classes") -> Source:
    """The images of one split; "test" is the same as "val" if the place has no labelled test images."""
    found = find_splits(data)
    splits = _divided(data, found, needs)
    if split == "test" and "test" in found and _has(found["test"], needs):
        return _agreed(found["test"], f"the test images of {data.path}", splits.train, data.path, needs)
    return splits.train if split == "train" else splits.val


def find_splits(data: Data) -> Found:
    """What lies at data.path: its splits, among "train", "val" and "test", or "all" if it is not divided.

    ValueError, naming the file and what to do, if it is missing, damaged, or of a kind that is not read.
    """
    if ".py:" in data.path:
        found = attribute(data.path)()
        return Found(found if isinstance(found, Mapping) else {"all": found})
    if data.path == PACKAGED:
        return Found({"train": mnist.fashion("train"), "test": mnist.fashion("test")})
    if "://" in data.path:
        return remote.splits(data.path)
    path = Path(data.path)
    try:
        if not path.exists():
            raise ValueError(f"{path} does not exist; name a folder or file of images.")
        if not path.is_dir():
            return _found(_read_file(path, data))
        place = path
        for _ in range(WRAPPERS):
            if (found := _read_folder(place, data)) is not None:
                return _whole(place, _found(found))
            inner, images, _ = listing(place)
            if images or len(inner) != 1:
                break
            place /= inner[0]
        return folder.splits(path)
    except OSError as error:
        file = error.filename or path
        raise ValueError(f"{file} cannot be read ({error.strerror}); check its name and permissions.") from None


def _found(splits: dict[str, Source]) -> Found:
    return splits if isinstance(splits, Found) else Found(splits)


def _whole(place: Path, found: Found) -> Found:
    """With what is said of image files beside what was read."""
    files = {str(place / file) for files in scan(place)[0].values() for file in files}
    if not files or found.left_out:  # what counts itself
        return found
    names = [source.name(index) for source in found.values() for index in range(len(source))]
    # Rows of Parquet have the path of their image in brackets.
    inner = [os.path.join(os.path.dirname(name), name.rpartition(" (")[2].rstrip(")")) for name in names]
    if loose := files.difference(map(os.path.normpath, names), map(os.path.normpath, inner)):
        found.left_out += (f"{many(len(loose), 'image')} beside them, such as {min(loose)}",)
    return found


def _read_file(path: Path, data: Data) -> dict[str, Source]:
    name, columns = path.name.lower(), (data.image_column, data.label_column)
    if not path.is_file() or not name.endswith(tar.SUFFIXES + TABLES):
        kinds = ", ".join(tar.SUFFIXES + TABLES)
        raise ValueError(f"{path} is not a file of images ({kinds}); name one or a folder, and unpack other archives.")
    if name.endswith(tar.SUFFIXES):
        return cifar.splits(path) if cifar.is_cifar(path) else tar.splits(path)
    return huggingface.parquet(path, *columns) if name.endswith(".parquet") else table.splits(path, *columns)


def _read_folder(path: Path, data: Data) -> dict[str, Source] | None:
    """The splits of a folder whose files say what it is; None if it has only images and folders."""
    columns = data.image_column, data.label_column
    names, inner = _names(path), listing(path)[0]
    below = [name for place in inner if speaks(place) for name in _names(path / place)]
    hub = _names(path / "data") if (path / "data").is_dir() else []  # where the Hugging Face Hub has them
    if found := mnist.splits(path):
        return found
    if packed.FILE in names:
        return packed.splits(path)
    if cifar.is_cifar(path):
        return cifar.splits(path)
    if SAVED & set(names):
        return huggingface.splits(path, *columns)
    if any(name.endswith(tar.SUFFIXES) for name in below + hub):
        return tar.splits(path)
    files = [name for name in os.listdir(path) if name[0] != "."]
    tars = [name for name in files if name.lower().endswith(tar.SUFFIXES)]
    # Tars beside folders are often where these came from.
    if tars and not inner:
        whole = path / tars[0]
        return cifar.splits(whole) if len(tars) == 1 and cifar.is_cifar(whole) else tar.splits(path)
    if any(name.endswith(".parquet") for name in names + below + hub):
        return huggingface.parquet(path, *columns)
    if any(map(SPLIT_TABLE.fullmatch, names + hub)):
        return table.splits(path, *columns)
    named = [name for name in files if name.lower().endswith(table.SUFFIXES) and (path / name).is_file()]
    found, note = table.beside(path, named, *columns)
    if note:
        found = folder.splits(path)
        found.notes += (note,)
    return found


def _names(path: Path) -> list[str]:
    return [name.lower() for name in os.listdir(path) if not name.startswith(".")]


def _divided(data: Data, splits: Found, needs: Needs) -> Splits:
    whole = splits.get("train", splits.get("all"))
    if whole is None:
        raise ValueError(f"{data.path} has only {' and '.join(splits)} images; name a place with some to train on.")
    _check(whole, data.path, needs)
    if needs == "classes" and whole.targets == "class":
        present = np.flatnonzero(counts(whole))
        if len(present) == 1:
            name = whole.class_names[present[0]]
            raise ValueError(f"{data.path} has one class only ({name}); put each class's images into its own folder.")
    train, val, how, said = _validation(data, splits, whole, needs)
    val = _agreed(val, how, train, data.path, needs)
    of = f" of {len(train):,}" if data.examples else ""
    train = drawn(train, data.examples, data.examples_seed) if data.examples else train
    even = ", each class equally often" if data.balance else ""
    words = f"{len(train):,}{of} images to train on{even}, {len(val):,} for validation: {how}"
    return Splits(balanced(train) if data.balance else train, val, words, splits.said(data.path) + said)


def _validation(
    data: Data, splits: dict[str, Source], whole: Source, needs: Needs
) -> tuple[Source, Source, str, tuple[str, ...]]:
    """(train, val, which images val are, what another place was read as), by the rules of open_splits."""
    if data.val is not None:
        found = find_splits(replace(data, path=data.val, val=None))
        name = next((name for name in ("val", "test", "all") if name in found), None)
        if name is None:
            raise ValueError(f"{data.val} has only images to train on; name a place with a val or test split, or none.")
        how = data.val if name == "all" else f"the {name} images of {data.val}"
        return whole, found[name], how, found.said(data.val)
    if data.val_fraction is None:
        for name in ("val", "test"):
            if name in splits and _has(splits[name], needs):
                return whole, splits[name], f"the {name} images of {data.path}", ()
    fraction = data.val_fraction or 0.1
    train, val = stratified(whole, fraction, data.split_seed)
    part = "a tenth" if fraction == 0.1 else f"{fraction:.4g}"
    return train, val, f"{part} of {'each class' if whole.class_names else 'them'}, by seed {data.split_seed}", ()


def _has(source: Source, needs: Needs) -> bool:
    """Whether any image has what is needed."""
    return needs == "none" or not unknown(source).all()


def _check(source: Source, where: str, needs: Needs) -> None:
    """Raises ValueError if there are no images, or some lack what is needed."""
    if not len(source):
        raise ValueError(f"{where}: there are no images; check the path.")
    if needs == "none":
        return
    if source.targets != needs and (needs != "classes" or source.targets == "number"):
        raise ValueError(f"{where}: the task needs {needs}, but the targets are {source.targets!r}.")
    if len(places := np.flatnonzero(unknown(source))):
        some = f"{len(places):,} of the {len(source):,} images have no label, such as {source.name(int(places[0]))}"
        raise ValueError(f"{where}: {some}; put each class into a folder of its own, or name a table's label_column.")


def _agreed(source: Source, where: str, train: Source, place: str, needs: Needs) -> Source:
    """Validation images under the class numbers of those that are trained on."""
    _check(source, where, needs)
    if needs == "none":
        return source
    if source.targets != train.targets:
        kinds = f"the targets are {source.targets!r}, and those of {place} {train.targets!r}"
        raise ValueError(f"{where}: {kinds}; give both the same.")
    theirs, ours = set(source.class_names), set(train.class_names)
    if new := sorted(theirs - ours):
        instead = f", which has {few(sorted(ours - theirs))} instead" if ours - theirs else ""
        raise ValueError(f"{where}: the classes {few(new)} are not in {place}{instead}; give both the same.")
    return source if source.class_names == train.class_names else Renumbered(source, train.class_names)
