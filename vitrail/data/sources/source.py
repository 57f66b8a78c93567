"""A Source: records by number, without state, ranks or epochs; one in memory, and those that are made of another.

    image, target, name = source[17]        # bytes of a file, or uint8 (H, W, C); a class number; a name for messages
    source.target(17)                       # the same target, without reading the image
    part = Subset(source, indices)
    source = Arrays(images, labels, ("cat", "dog"), "pets")

A target is a class number, or, where images may have several labels, a tuple of class numbers; -1 is unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vitrail.data.images.decode import Choose, Part, decode_part

Split = Literal["train", "val", "test"]
Content = bytes | NDArray[np.uint8]
Target = int | tuple[int, ...]
# What a place holds: its splits by name, or {"all": ...} where it is not divided.
Splits = Mapping[str, "Source"]


class SmallPixels(np.ndarray):
    """An image that was made smaller, and the (height, width) that it had."""

    whole: tuple[int, int]


class SmallFile(bytes):
    """The same as a file's bytes."""

    whole: tuple[int, int]


@runtime_checkable
class Source(Protocol):
    """`len(source)` records, numbered from 0; IndexError outside."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def multi_label(self) -> bool:
        """Whether targets are tuples of class numbers."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Content, Target, str]:
        """(encoded bytes, or uint8 (H, W, C); target; name). ValueError, naming the file, where it cannot be read."""
        ...

    def target(self, index: int) -> Target: ...

    def name(self, index: int) -> str: ...


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images of one size and their labels in memory, made read-only.

    images: uint8 (N, H, W, C). labels: int64 (N,), -1 where unknown. file: what the images' names begin with.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    file: str

    def __post_init__(self) -> None:
        # A transform that writes into its input must not change the data set: see also __getitem__.
        self.images.flags.writeable = False
        self.labels.flags.writeable = False

    @property
    def multi_label(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int, str]:
        """(image uint8 (H, W, C), a copy; target; name). IndexError outside 0 .. len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.file} has images 0 to {len(self) - 1}, but {index} was asked for.")
        return self.images[index].copy(), self.target(index), self.name(index)

    def target(self, index: int) -> int:
        return int(self.labels[index])

    def name(self, index: int) -> str:
        return f"{self.file}[{index}]"


@dataclass(frozen=True, eq=False)
class Subset:
    """The records `indices` of another source, in that order."""

    source: Source
    indices: Sequence[int] | NDArray[np.int64]

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def multi_label(self) -> bool:
        return self.source.multi_label

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Content, Target, str]:
        return self.source[self._place(index)]

    def target(self, index: int) -> Target:
        return self.source.target(self._place(index))

    def name(self, index: int) -> str:
        return self.source.name(self._place(index))

    def _place(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"there are images 0 to {len(self) - 1}, but {index} was asked for.")
        return int(self.indices[index])


@dataclass(frozen=True, eq=False)
class Renumbered:
    """Another source with its classes under the numbers that they have in class_names, which holds them all."""

    source: Source
    class_names: tuple[str, ...]

    @property
    def multi_label(self) -> bool:
        return self.source.multi_label

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Content, Target, str]:
        content, target, name = self.source[index]
        return content, self._new(target), name

    def target(self, index: int) -> Target:
        return self._new(self.source.target(index))

    def name(self, index: int) -> str:
        return self.source.name(index)

    @cached_property
    def _numbers(self) -> list[int]:
        places = {name: place for place, name in enumerate(self.class_names)}
        return [places[name] for name in self.source.class_names]

    def _new(self, target: Target) -> Target:
        if isinstance(target, tuple):
            return tuple(self._numbers[number] for number in target)
        return self._numbers[target] if target >= 0 else target


def pixels(content: Content, channels: int, name: str) -> NDArray[np.uint8]:
    """A record's content as uint8 (H, W, channels): decoded, or brought from grey to RGB or back.

    ValueError, naming the image, where it is damaged or no image.
    """
    return part_pixels(content, lambda size: None, channels, name)[0]


def part_pixels(
    content: Content, choose: Choose, channels: int, name: str
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """(the part that `choose` names, as decode_part has it; (height, width) of the whole). Arrays come whole.

    Of an image that was made smaller, `choose` and the whole mean the size that it had: a random crop shows what it
    would show of the original.
    """
    if not isinstance(content, (SmallPixels, SmallFile)):
        if isinstance(content, bytes):
            return decode_part(content, choose, channels, name)
        return _channels(content, channels, name), (content.shape[0], content.shape[1])
    whole = content.whole

    def chosen(size: tuple[int, int]) -> Part | None:
        part = choose(whole)
        return part and part.within(size, whole)

    if isinstance(content, SmallFile):
        return decode_part(content, chosen, channels, name)[0], whole
    part = chosen((content.shape[0], content.shape[1]))
    seen = content.view(np.ndarray)
    return _channels(part.of(seen) if part else seen, channels, name), whole


def _channels(content: NDArray[np.uint8], channels: int, name: str) -> NDArray[np.uint8]:
    found = content.shape[2]
    if found == 1 != channels:
        return np.repeat(content, channels, axis=2)
    if found == 3 and channels == 1:  # Pillow's weights of L: ITU-R 601-2
        return (content @ np.array([19595, 38470, 7471]) + 0x8000 >> 16).astype(np.uint8)[:, :, None]
    if found != channels:
        raise ValueError(f"{name} has {found} channels, but {channels} are wanted.")
    return content


def counts(source: Source) -> NDArray[np.int64]:
    """How many images each class has, (K,); those with several labels count for each."""
    targets = map(source.target, range(len(source)))
    numbers = chain.from_iterable(target if isinstance(target, tuple) else (target,) for target in targets)
    found = np.fromiter(numbers, np.int64)
    return np.bincount(found[found >= 0], minlength=len(source.class_names))
