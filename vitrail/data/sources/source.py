"""A Source: examples by number, without state, ranks or epochs; one in memory, and those made from another.

    image, target, name, size = source[17]  # an Example: a file's bytes or uint8 (H, W, C), target, name for messages
    source.target(17)                       # the same target, without reading the image
    part = Subset(source, indices)
    source = Arrays(images, labels, ("cat", "dog"), "pets")

A source knows nothing of tasks; `targets` says what its targets are.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64, Integer
from numpy.typing import NDArray

from vitrail.data.images.decode import opened
from vitrail.progress import few

Split = Literal["train", "val", "test"]
Content = bytes | NDArray[np.uint8]
Targets = Literal["none", "class", "classes", "number", "boxes", "masks"]
# What folders, files and columns call a split.
SPLITS = {
    "train": "train", "training": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "valset": "val",
    "test": "test", "testing": "test", "testset": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
WORD = re.compile(r"[^\W\d_]+|\d+")
# What the name of a folder of images may contain, besides a split, without saying anything of them.
FILLERS = {"set", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "split", "folder", "file",
           "files", "jpg", "jpeg", "png", "all", "the", "unknown", "unlabeled", "unlabelled"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Boxes:
    """The n objects of an image. corners: (left, top, right, bottom) in pixels of the original. ignored: whether an
    object is a crowd, or too hard to count."""

    corners: Float32[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, "n"]
    ignored: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Mask:
    """The class of each pixel of the original, 255 where it does not count."""

    labels: Integer[np.ndarray, "H W"]


Target = int | float | tuple[int, ...] | Boxes | Mask | None


class Example(NamedTuple):
    """One image. target: a class number, several, a float, boxes, a mask, or None where it is unknown. size: (height,
    width) of the original if the image is stored smaller, else None."""

    image: Content
    target: Target
    name: str
    size: tuple[int, int] | None = None


@runtime_checkable
class Source(Protocol):
    """`len(source)` examples, numbered from 0; IndexError outside; ValueError, naming the file, if one cannot be read.

    targets: what the targets are; "none" if all are None. Single ones may be None with any other kind, too.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def targets(self) -> Targets: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def target(self, index: int) -> Target: ...

    def name(self, index: int) -> str: ...


class Found(dict[str, Source]):
    """The sources of a place by split, or "all" where it is not divided.

    notes: sentences on how it was read. left_out: what was not, and how much of it. lost: folders that may be classes,
    but have no image that is read."""

    def __init__(
        self,
        splits: Mapping[str, Source],
        notes: Iterable[str] = (),
        left_out: Iterable[str] = (),
        lost: Iterable[str] = (),
    ) -> None:
        super().__init__(splits)
        self.notes, self.left_out, self.lost = tuple(notes), tuple(left_out), tuple(lost)

    def said(self, place: str) -> tuple[str, ...]:
        """What the place was read as, and what of it was not, in lines for people."""
        splits = ", ".join(f"{len(source):,} {name}" for name, source in self.items() if name != "all")
        whole = splits or f"{sum(map(len, self.values())):,}"
        names = list(dict.fromkeys(name for source in self.values() for name in source.class_names))
        cases = Counter(map(str.casefold, names))
        alike = [name for name in names if cases[name.casefold()] > 1]
        lines = [f"{whole} images, {many(len(names), 'class')}" + (f": {few(names)}" if names else "")]
        lines += self.notes
        lines += [f"classes that differ in case only: {few(alike)}"] if alike else []
        lines += [f"left out: {'; '.join(self.left_out)}"] if self.left_out else []
        lines += [f"folders without an image that is read: {few(self.lost)}"] if self.lost else []
        return tuple(f"{place}: {line}" for line in lines)


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images of one size, uint8 (N, H, W, C), and their labels in memory, made read-only.

    labels: int64 (N,), -1 where one is unknown; None if all are. file: the beginning of the images' names.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    class_names: tuple[str, ...]
    file: str

    def __post_init__(self) -> None:
        # A transform that writes into its input must not change the data set: see also __getitem__.
        for array in (self.images, self.labels):
            if array is not None:
                array.flags.writeable = False

    @property
    def targets(self) -> Targets:
        return "none" if self.labels is None else "class"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        """The image is a copy."""
        check_index(index, len(self), self.file)
        return Example(self.images[index].copy(), self.target(index), self.name(index))

    def target(self, index: int) -> int | None:
        number = -1 if self.labels is None else int(self.labels[index])
        return None if number < 0 else number

    def name(self, index: int) -> str:
        return f"{self.file}[{index}]"

    def coded(self) -> tuple[NDArray[np.integer], Sequence[Target]]:
        labels = np.full(len(self), -1) if self.labels is None else self.labels
        return labels, [*range(int(labels.max(initial=-1)) + 1), None]


@dataclass(frozen=True, eq=False)
class Subset:
    """The examples `indices` of another source, in that order."""

    source: Source
    indices: Sequence[int] | NDArray[np.int64]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def targets(self) -> Targets:
        return self.source.targets

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.source[self._place(index)]

    def target(self, index: int) -> Target:
        return self.source.target(self._place(index))

    def name(self, index: int) -> str:
        return self.source.name(self._place(index))

    def coded(self) -> tuple[NDArray[np.integer], Sequence[Target]]:
        codes, targets = coded(self.source)
        return codes[np.asarray(self.indices, np.int64)], targets

    def _place(self, index: int) -> int:
        check_index(index, len(self), "the subset")
        return int(self.indices[index])


@dataclass(frozen=True, eq=False)
class Renumbered:
    """Another source with its classes numbered as in class_names, which contains all of them."""

    source: Source
    class_names: tuple[str, ...]

    @property
    def targets(self) -> Targets:
        return self.source.targets

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        return example._replace(target=self._new(example.target))

    def target(self, index: int) -> Target:
        return self._new(self.source.target(index))

    def name(self, index: int) -> str:
        return self.source.name(index)

    def coded(self) -> tuple[NDArray[np.integer], Sequence[Target]]:
        codes, targets = coded(self.source)
        return codes, [self._new(target) for target in targets]

    @cached_property
    def _numbers(self) -> list[int]:
        places = {name: place for place, name in enumerate(self.class_names)}
        return [places[name] for name in self.source.class_names]

    def _new(self, target: Target) -> Target:
        numbers = self._numbers
        if isinstance(target, Boxes):
            return replace(target, labels=np.array(numbers, np.int64)[target.labels])
        if isinstance(target, Mask):
            return Mask(np.array([*numbers, *range(len(numbers), 256)])[target.labels])
        if isinstance(target, tuple):
            return tuple(numbers[number] for number in target)
        return numbers[target] if isinstance(target, int) else target


def pixels(content: Content, channels: int, name: str) -> NDArray[np.uint8]:
    """An example's image as uint8 (H, W, channels), grey as RGB or back. ValueError, naming it, if it is damaged."""
    return opened(content, name).decode(channels=channels)


def classes_of(target: Target) -> tuple[int, ...]:
    """The numbers of the classes in a target, each once; none if it is unknown."""
    if isinstance(target, int):
        return (target,)
    if target is None or isinstance(target, float):
        return ()
    if isinstance(target, Boxes):
        return tuple(np.unique(target.labels).tolist())
    if isinstance(target, Mask):
        return tuple(number for number in np.unique(target.labels).tolist() if number != 255)
    return target


def coded(source: Source) -> tuple[NDArray[np.integer], list[tuple[int, ...] | None]]:
    """(the place of each image's classes in a list, (N,); that list, with None where they are unknown).

    A source with a method of this name, which gives places, -1 for the last, and targets, is not asked image by image:
    a hundred million take seconds.
    """
    if (numbered := getattr(source, "coded", None)) is not None:
        codes, targets = numbered()
        codes = codes % len(targets) if len(codes) and codes.min() < 0 else codes
        return codes, [None if target is None else classes_of(target) for target in targets]
    return each(source)


def each(source: Source) -> tuple[NDArray[np.integer], list[tuple[int, ...] | None]]:
    """The same of any source, image by image."""
    places: dict[tuple[int, ...] | None, int] = {}
    known = (None if (target := source.target(i)) is None else classes_of(target) for i in range(len(source)))
    return np.fromiter((places.setdefault(one, len(places)) for one in known), np.int32), [*places]


def unknown(source: Source) -> NDArray[np.bool_]:
    """Whether an image has no target, (N,)."""
    if source.targets not in ("class", "classes"):  # no need to see what is in masks
        return np.fromiter((source.target(index) is None for index in range(len(source))), bool)
    codes, known = coded(source)
    return np.array([one is None for one in known], bool)[codes]


def counts(source: Source) -> NDArray[np.int64]:
    """How many images each class has, (K,); an image with several classes counts for each."""
    codes, known = coded(source)
    found = np.zeros(len(source.class_names), np.int64)
    for some, images in zip(known, np.bincount(codes, minlength=len(known)).tolist(), strict=True):
        found[list(some or ())] += images
    return found


def many(number: int, noun: str) -> str:
    """ "1 image", "2,000 images", "3 classes"."""
    return f"{number:,} {noun if number == 1 else noun + ('es' if noun[-1] == 's' else 's')}"


def check_index(index: int, length: int, place: object) -> None:
    """Raises IndexError unless 0 <= index < length."""
    if not 0 <= index < length:
        raise IndexError(f"{place} has images 0 to {length - 1}, but {index} was asked for.")


def printable(name: str) -> bool:
    """Whether a name has neither control characters nor bytes that are not UTF-8."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)


def split_in(name: str) -> str | None:
    """The split in a file's name ("train-00000-of-00002.parquet"); None if it speaks of none or two."""
    return (speaks(name) or (None,))[0]


def speaks(name: str) -> tuple[str, str] | None:
    """(split, the rest that says something) of a folder's name: "seg_train" -> ("train", "seg"), "Test Set" -> ("test",
    ""); None where it speaks of no split, or of two."""
    words = WORD.findall(re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower())
    found = [SPLITS[word] for word in words if word in SPLITS]
    rest = [word for word in words if word not in SPLITS and word not in FILLERS]
    return (found[0], "" if all(map(str.isdigit, rest)) else "_".join(rest)) if len(found) == 1 else None


def says_nothing(names: Iterable[str]) -> bool:
    """Whether folders are not classes by their names: part_1 and part_2, images, "HAM images part 2"."""
    words = [[word for word in WORD.findall(name.lower()) if word not in FILLERS] for name in names]
    texts = [[word for word in of if not word.isdigit()] for of in words]
    alike = len({tuple(of) for of in texts}) == 1 and not {"part", "batch", "chunk", "fold"}.isdisjoint(texts[0])
    return alike or (not any(texts) and not all(name.isdigit() for name in names))
