"""order + source + views -> batches. The batch of step t is a pure function of (seed, t).

    training = Training(source, preprocessing, (Augment(flip=0.5),), collate, batch=64, seed=0)
    for batch in stream(training, training.keys(start=1200, stop=2000), workers=2): ...
    for batch in evaluation(source, preprocessing, collate, batch=16): ...

For each image the header is opened, a View is drawn (augment.py, geometry.py), what that shows is decoded, and the view
is applied; the task's `collate` puts the samples together. Threads or processes prepare the batches ahead, each batch
whole, in the order of the steps: how many there are changes none. Processes are for machines whose device is faster
than Python's global lock lets threads be.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray

from vitrail.batch import Batch
from vitrail.data.images.augment import Augment, draw
from vitrail.data.images.decode import Opened, opened
from vitrail.data.images.geometry import Crop, Misfit, View, centred
from vitrail.data.images.mixing import draws
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.order import sample_seeds, samples, view_keys
from vitrail.data.sources.remote import shards
from vitrail.data.sources.source import Example, Source, Target
from vitrail.data.stream import Expecting, Keys, Loaded, Unread, Unreadable, stream

TRIES = 100  # unreadable images in a row, after which something else must be wrong
DRAWN = 4096  # samples whose order is worked out at once
AHEAD = 512  # images in a store that are asked for before their batch is made
REMEMBERED = 2**30  # bytes of decoded images that are kept: all of CIFAR, none of what would fill the memory


class Sample(NamedTuple):
    """An example as the model sees it: in each of its views an image, uint8 (h, w, C). number: its index in the source.
    key: of its random choices, 0 in evaluation."""

    images: tuple[UInt8[np.ndarray, "h w C"], ...]
    views: tuple[View, ...]
    target: Target
    name: str
    number: int
    key: int = 0


Collate = Callable[[Sequence[Sample]], Batch]


class Images:
    """A source's images as the model sees them; the first that fit into `remember` bytes are decoded only once. views:
    how each view is drawn; without any there is one, that of evaluation. Threads may share one."""

    def __init__(self, source: Source, how: Preprocessing, views: Sequence[Augment] = (), remember: int = 0) -> None:
        self.source, self.how, self.views, self.left = source, how, views, remember
        self.known: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int, key: int = 0) -> Sample:
        """What the key shows of an image. ValueError, naming it, where it is damaged; Misfit where it does not fit."""
        example, drawn = self.known.get(index) or self.source[index], []
        image = opened(example.image, example.name)
        try:
            for number, how in enumerate(self.views):
                drawn.append(draw(image.size, how, self.how, view_keys(key, number), example.size))
            if not drawn:
                drawn.append((centred(image.size, self.how, example.size), lambda pixels: pixels))
            alone, seen = len(drawn) == 1, []
            pixels = self._decoded(index, example, image, drawn[0][0].crop if alone else None)
            for view, paint in drawn:
                seen.append(paint(view.apply(pixels if alone or not view.crop else view.crop.of(pixels))))
        except Misfit as error:
            raise Misfit(f"{example.name}: {error}") from None
        return Sample(tuple(seen), tuple(view for view, _ in drawn), example.target, example.name, index, key)

    def _decoded(self, index: int, example: Example, image: Opened, crop: Crop | None) -> NDArray[np.uint8]:
        """What the crop shows, uint8 (h, w, C), not to be written to."""
        channels = len(self.how.mean)
        # What is shrunk differs each time; whether it is shrunk depends on its size alone (augment.draw).
        if not self.left or not isinstance(example.image, bytes) or (crop and crop.wanted):
            return image.decode(crop, channels)
        whole = image.decode(None, channels)
        if whole.nbytes <= self.left:
            self.known[index] = example._replace(image=whole)
        self.left = max(0, self.left - whole.nbytes)
        return crop.of(whole) if crop else whole


class _Batches(Expecting):
    """Batches of at most `size` images, the `numbers`, which may be in a store."""

    images: Images
    size: int

    def numbers(self, number: int) -> Sequence[int]:
        """The images of a batch."""
        raise IndexError(number)

    @property
    def ahead(self) -> int:  # type: ignore[override]
        return -(-AHEAD // self.size) if shards(self.images.source) else 0

    def expect(self, number: int) -> None:
        fresh = [index for index in self.numbers(number) if index not in self.images.known]
        if found := shards(self.images.source, fresh):
            found[0].expect(found[1])

    def forget(self, number: int) -> None:
        if found := shards(self.images.source, self.numbers(number)):
            found[0].forget(found[1])


class Training(_Batches):
    """The micro-batches of the global batches by number: step t has `count` of them, t * count to (t + 1) * count - 1.

    views: how each view of an image is drawn; most tasks want one. Of several, each has a key of its own, and the image
    is decoded once and whole. micro_batch: images in one, the last of a step may be smaller; None is the whole batch.
    What a step sees does not depend on it. remember: as in Images. block: as in order.samples. share: (rank, world) of
    the processes among which each step is divided, `parts` for this one: in micro-batches as even as can be, or, where
    they are `fixed`, in those that one process would have. ValueError where images are mixed in pairs and a micro-batch
    would separate one, and where there is nothing for some process."""

    def __init__(
        self,
        source: Source,
        how: Preprocessing,
        views: Sequence[Augment],
        collate: Collate,
        *,
        batch: int,
        seed: int,
        micro_batch: int | None = None,
        unreadable: Unreadable = "refuse",
        remember: int = 0,
        block: int = 0,
        share: tuple[int, int] = (0, 1),
        fixed: bool = False,
    ) -> None:
        self.images, self.collate = Images(source, how, views, remember), collate
        self.batch, self.seed, self.block = batch, seed, block
        size = self.size = min(micro_batch or batch, batch)
        self.unreadable, (rank, world) = unreadable, share
        self.mixes = bool(views[0].mixup or views[0].cutmix)
        if self.mixes and size % 2 and size < batch:
            raise ValueError(f"micro_batch is {size}; images are mixed in pairs: choose an even number.")
        self.cuts = [*range(0, batch, size), batch]  # where a micro-batch begins
        if world > 1 and not fixed:
            unit = 2 if self.mixes else 1  # what stays together
            units, count = -(-batch // unit), world * -(-batch // (world * size))
            self.cuts = [min(batch, unit * (units * place // count)) for place in range(count + 1)]
        self.count = len(self.cuts) - 1
        if self.count < world or 0 in np.diff(self.cuts):
            what = f"a batch of {batch} images in micro-batches of {size}" if fixed else f"a batch of {batch} images"
            raise ValueError(f"{what} cannot be divided among {world} processes; use fewer, or a larger --batch.")
        first = range(rank * self.count // world, (rank + 1) * self.count // world)
        self.mine = first if not fixed else range(rank, self.count, world)
        self.parts = len(self.mine)

    def keys(self, start: int, stop: int) -> Keys:
        """The numbers of this process's micro-batches of the steps start .. stop - 1."""
        return _Numbers(start, stop, self.count, self.mine)

    def numbers(self, number: int) -> list[int]:
        step, part = divmod(number, self.count)
        return self._drawn(step)[0][slice(*self.cuts[part : part + 2])].tolist()

    def indices(self, step: int) -> NDArray[np.int64]:
        """The samples of a step, int64 (batch,)."""
        return self._drawn(step)[0]

    def _drawn(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """The samples of a step, and their keys."""
        steps = max(1, DRAWN // self.batch)
        group, place = divmod(step, steps)
        drawn = _draw(group, self.batch * steps, len(self.images), self.seed, self.block)
        piece = slice(place * self.batch, (place + 1) * self.batch)
        return drawn[0][piece], drawn[1][piece]

    def __getitem__(self, number: int) -> Loaded:
        step, part = divmod(number, self.count)
        piece = slice(*self.cuts[part : part + 2])
        indices, keys = self._drawn(step)
        indices, keys = indices[piece], keys[piece]
        problems: list[str] = []
        found = [self._sample(i, key, problems) for i, key in zip(indices.tolist(), keys.tolist(), strict=True)]
        batch = self.collate(found)
        if self.mixes:
            lam, box = draws(keys, self.images.views[0], found[0].views[0].output)
            batch = batch.plus(lam=lam, box=box)
        return Loaded(batch, tuple(problems))

    def _sample(self, index: int, key: int, problems: list[str]) -> Sample:
        """What the key shows of the image, or, where it cannot be read and may be skipped, of the next one: always the
        same."""
        for attempt in range(TRIES):
            try:
                return self.images.sample((index + attempt) % len(self.images), key)
            except Misfit:  # which no other image would mend
                raise
            except ValueError as error:
                if self.unreadable == "refuse":
                    raise Unread(f"{error} --data.unreadable skip trains without such images.") from None
                problems.append(str(error))
        raise ValueError(f"{TRIES} images in a row cannot be read, the last because {problems[-1]}")


@dataclass(frozen=True)
class _Numbers:
    """step * count + part for the steps start .. stop - 1 and, in each, the parts `mine`."""

    start: int
    stop: int
    count: int
    mine: range

    def __len__(self) -> int:
        return (self.stop - self.start) * len(self.mine)

    def __iter__(self) -> Iterator[int]:
        return (step * self.count + part for step in range(self.start, self.stop) for part in self.mine)


class Evaluation(_Batches):
    """The batches of every example once, in order; the last may be smaller, and images that are skipped are missing."""

    def __init__(
        self, source: Source, how: Preprocessing, collate: Collate, *, batch: int, unreadable: Unreadable = "refuse"
    ) -> None:
        self.images, self.collate, self.size, self.unreadable = Images(source, how), collate, batch, unreadable

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def numbers(self, number: int) -> range:
        return range(number * self.size, min((number + 1) * self.size, len(self.images)))

    def __getitem__(self, number: int) -> Loaded:
        problems, found = [], []
        for index in self.numbers(number):
            try:
                found.append(self.images.sample(index))
            except ValueError as error:
                if self.unreadable == "refuse":
                    raise Unread(str(error)) from None
                problems.append(str(error))
        return Loaded(self.collate(found) if found else None, tuple(problems))


def stacked(found: Sequence[Sample]) -> Batch:
    """Samples as one batch: "images", uint8 (B, C, h, w), or (B, V, C, h, w) where there are V views; "indices" and
    "keys", int64 (B,). ValueError, naming both, where two images differ in size."""
    shape, views = found[0].images[0].shape, len(found[0].images)
    out = np.empty((len(found), views, shape[2], *shape[:2]), np.uint8)
    for sample, row in zip(found, out, strict=True):
        for image, planes in zip(sample.images, row, strict=True):
            if image.shape != shape:
                sizes = f"{sample.name} is {image.shape}, {found[0].name} is {shape}"
                raise ValueError(f"{sizes}; one batch needs one size.")
            for channel, plane in enumerate(planes):  # all channels at once would be an inner loop of three bytes
                plane[:] = image[..., channel]
    images = torch.from_numpy(out[:, 0] if views == 1 else out)
    keys = np.array([sample.key for sample in found], np.uint64).view(np.int64)
    return Batch(images=images, indices=torch.tensor([s.number for s in found]), keys=torch.from_numpy(keys))


def evaluation(
    source: Source,
    how: Preprocessing,
    collate: Collate = stacked,
    *,
    batch: int,
    workers: int = 0,
    skipped: Callable[[str], None] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Every example once, in order, as `predict` prepares it. skipped: is told of each image that cannot be read and is
    left out; without it, such an image is a ValueError. share: (rank, world), where each process takes its batches."""
    batches = Evaluation(source, how, collate, batch=batch, unreadable="skip" if skipped else "refuse")
    yield from stream(batches, range(share[0], len(batches), share[1]), workers, skipped=skipped)


@lru_cache(maxsize=4)
def _draw(step: int, batch: int, length: int, seed: int, block: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Samples and keys of many small batches as one large one, which costs little more than one of them."""
    return samples(step, batch, length, seed, block), sample_seeds(step, batch, seed)
