"""order + source + transforms -> batches. The batch of step t is a pure function of (seed, t).

    training = Training(source, preprocessing, Augment(flip=0.5), batch=64, seed=0)
    for batch in stream(training, training.keys(start=1200, stop=2000), workers=2): ...
    for batch in evaluation(source, how=preprocessing, batch=500): ...

Threads or processes prepare the batches ahead, each batch whole, in the order of the steps: how many there are cannot
change one. Processes are for machines whose device is faster than Python's one lock lets threads be.
"""

import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from vitrail.batch import Batch
from vitrail.data.images.augment import Augment, augment, part_seen
from vitrail.data.images.decode import Choose, Part
from vitrail.data.images.mixing import draws
from vitrail.data.images.preprocessing import Preprocessing, prepare
from vitrail.data.order import sample_seeds, samples
from vitrail.data.sources.source import SmallFile, Source, Target, part_pixels

K = TypeVar("K")
T = TypeVar("T")

Unreadable = Literal["refuse", "skip"]
Record = tuple[NDArray[np.uint8], Target, str]
TRIES = 100  # unreadable images in a row, after which something else must be wrong
DRAWN = 4096  # samples whose order is worked out at once
REMEMBERED = 2**30  # bytes of decoded images that are kept: all of CIFAR, none of what would fill the memory


@dataclass(frozen=True)
class Loaded:
    """A batch, and what is wrong with the images that should have been in it."""

    batch: Batch
    problems: tuple[str, ...] = ()

    def pin_memory(self) -> "Loaded":
        """The same, in memory that the device can read by itself; the DataLoader's thread calls it."""
        pinned = {name: tensor.pin_memory() for name, tensor in self.batch.items() if isinstance(tensor, torch.Tensor)}
        return Loaded(Batch(**pinned), self.problems)  # type: ignore[typeddict-item]


class Images:
    """A source's images as pixels, of which the first that fit into `remember` bytes are decoded once only.

    ValueError, naming the image, where it is damaged. Threads may share one.
    """

    def __init__(self, source: Source, channels: int, remember: int = 0) -> None:
        self.source, self.channels, self.left = source, channels, remember
        self.known: dict[int, tuple[Record, tuple[int, int]]] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        """(uint8 (H, W, channels), not to be written to; target; name)."""
        return self.part(index, lambda size: None)[0]

    def part(self, index: int, choose: Choose) -> tuple[Record, tuple[int, int]]:
        """The same of the part that `choose` names, as decode_part has it, or of the whole where that is remembered and
        has the same pixels; and the (height, width) of the whole."""
        if index in self.known:
            record, whole = self.known[index]
            return _cut(record, whole, choose), whole
        content, target, name = self.source[index]
        keeping, as_it_is = isinstance(content, bytes) and self.left > 0, True

        def chosen(size: tuple[int, int]) -> Part | None:
            nonlocal as_it_is
            part = choose(size)
            # What is shrunk is another image each time; part_seen decides by the size alone whether it is.
            as_it_is = part is None or part.wanted is None or isinstance(content, SmallFile)
            return None if as_it_is else part

        found, whole = part_pixels(content, chosen if keeping else choose, self.channels, name)
        record = found, target, name
        if not keeping or not as_it_is:
            return record, whole
        if found.nbytes <= self.left:
            self.left -= found.nbytes
            self.known[index] = record, whole
        else:
            self.left = 0
        return _cut(record, whole, choose), whole


class Training(Dataset[Loaded]):
    """The parts of the global batches by number: step t has `parts` of them, t * parts to (t + 1) * parts - 1.

    part: images in one, the last of a step may be smaller; None is the whole batch. What a step sees does not depend on
    it. remember: as Images has it. block: as order.samples has it.
    ValueError where images are to be mixed in pairs and a part would tear one.
    """

    def __init__(
        self,
        source: Source,
        how: Preprocessing,
        augment: Augment,
        *,
        batch: int,
        seed: int,
        part: int | None = None,
        unreadable: Unreadable = "refuse",
        remember: int = 0,
        block: int = 0,
    ) -> None:
        self.images = Images(source, len(how.mean), remember)
        self.how, self.augment, self.batch, self.seed, self.block = how, augment, batch, seed, block
        self.part, self.unreadable = min(part or batch, batch), unreadable
        self.parts = -(-batch // self.part)
        self.mixes = bool(augment.mixup or augment.cutmix)
        if self.mixes and self.part % 2 and self.parts > 1:
            raise ValueError(f"micro_batch is {self.part}, but images are mixed in pairs; choose an even number.")

    def keys(self, start: int, stop: int) -> range:
        """The numbers of the parts of the steps start .. stop - 1."""
        return range(start * self.parts, stop * self.parts)

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
        step, part = divmod(number, self.parts)
        piece = slice(part * self.part, (part + 1) * self.part)
        indices, keys = self._drawn(step)
        keys = keys[piece]
        records, problems = [], []
        for index, key in zip(indices[piece].tolist(), keys.tolist(), strict=True):
            (image, target, name), whole = self._readable(index, key, problems)
            records.append((_named(name, augment, image, self.augment, self.how, key, whole), target, name))
        batch = collate(records, self.images.source)
        if self.mixes:
            height, width = batch["images"].shape[-2:]
            batch["lam"], batch["box"] = draws(keys, self.augment, (height, width))
        return Loaded(batch, tuple(problems))

    def _readable(self, index: int, key: int, problems: list[str]) -> tuple[Record, tuple[int, int]]:
        """What the key shows of the image, or, where it cannot be read and may be skipped, of the next one: the same at
        every time; and the size of the whole."""

        def choose(size: tuple[int, int]) -> Part | None:
            return part_seen(size, self.augment, self.how, key)

        for attempt in range(TRIES):
            try:
                return self.images.part((index + attempt) % len(self.images), choose)
            except ValueError as error:
                if self.unreadable == "refuse":
                    raise ValueError(f"{error} --data.unreadable skip trains without such images.") from None
                problems.append(str(error))
        raise ValueError(f"{TRIES} images in a row cannot be read, the last because {problems[-1]}")


class Evaluation(Dataset[Loaded]):
    """The batches of every sample once, in order; the last may be smaller, and images that are skipped are missing."""

    def __init__(
        self, source: Source, how: Preprocessing, *, batch: int, unreadable: Unreadable = "refuse", remember: int = 0
    ) -> None:
        self.images, self.how = Images(source, len(how.mean), remember), how
        self.batch, self.unreadable = batch, unreadable

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch)

    def __getitem__(self, number: int) -> Loaded:
        first = number * self.batch
        records, problems = [], []
        for index in range(first, min(first + self.batch, len(self.images))):
            try:
                image, target, name = self.images[index]
                records.append((_named(name, _prepared, image, self.how), target, name))
            except ValueError as error:
                if self.unreadable == "refuse":
                    raise
                problems.append(str(error))
        return Loaded(collate(records, self.images.source, self.how), tuple(problems))


def collate(records: Sequence[Record], source: Source, how: Preprocessing | None = None) -> Batch:
    """Records as one batch; without any, an empty one of the size that `how` says.

    ValueError, naming both, where two images differ in size.
    """
    images = [image for image, _, _ in records]
    for image, _, name in records:
        if image.shape != images[0].shape:
            raise ValueError(
                f"{name} is {image.shape}, {records[0][2]} is {images[0].shape}; one batch needs one size."
            )
    if images:
        height, width, channels = images[0].shape
    else:
        assert how is not None
        (height, width), channels = how.image_size, len(how.mean)
    out = np.empty((len(images), channels, height, width), np.uint8)
    for planes, image in zip(out, images, strict=True):
        for channel, plane in enumerate(planes):  # all channels at once would be an inner loop of three bytes
            plane[:] = image[..., channel]
    numbers = [target for _, target, _ in records]
    if not source.multi_label:
        return {"images": torch.from_numpy(out), "targets": torch.tensor(numbers, dtype=torch.int64)}
    targets = torch.zeros(len(numbers), len(source.class_names))
    for row, several in enumerate(numbers):
        assert isinstance(several, tuple)
        targets[row, list(several)] = 1
    return {"images": torch.from_numpy(out), "targets": targets}


def evaluation(
    source: Source,
    *,
    how: Preprocessing,
    batch: int = 500,
    workers: int = 0,
    skipped: Callable[[str], None] | None = None,
) -> Iterator[Batch]:
    """Every sample once, in order, as `predict` prepares it.

    skipped: is told of each image that cannot be read and is left out; without it, such an image is a ValueError.
    """
    batches = Evaluation(source, how, batch=batch, unreadable="skip" if skipped else "refuse")
    yield from stream(batches, range(len(batches)), workers, skipped=skipped)


def stream(
    made: Dataset[Loaded],
    keys: Sequence[int],
    workers: int,
    *,
    pin: bool = False,
    skipped: Callable[[str], None] | None = None,
) -> Iterator[Batch]:
    """made[key] for each key in turn, prepared ahead by `workers` processes; 0 is two threads."""
    if workers == 0:
        results: Iterator[Loaded | ValueError] = prefetch(made.__getitem__, keys, 2)
    else:
        with warnings.catch_warnings():  # more processes than cores: whoever asks for them has a reason
            warnings.simplefilter("ignore", UserWarning)
            # A generator of its own: it would draw from the one that seeds the step's dropout.
            options = {"num_workers": workers, "pin_memory": pin, "worker_init_fn": _deaf}
            options["generator"] = torch.Generator()
            results = iter(DataLoader(_Carried(made), batch_size=None, sampler=keys, **options))
    try:
        for loaded in results:
            if isinstance(loaded, ValueError):
                raise loaded
            for problem in loaded.problems:
                if skipped:
                    skipped(problem)
            yield loaded.batch
    finally:
        del results  # which ends its threads or processes now, though a traceback may keep this frame


def workers_for(device: torch.device, asked: int | None) -> int:
    """How many processes prepare batches: as asked, else one a core up to 16 beside a GPU, and threads beside a CPU,
    which has the cores to itself."""
    if asked is not None:
        return asked
    return min(16, os.cpu_count() or 1) if device.type == "cuda" else 0


def prefetch(make: Callable[[K], T], keys: Iterable[K], ahead: int, workers: int | None = None) -> Iterator[T]:
    """make(key) for each key in turn, up to `ahead` of them computed beforehand by `workers` threads, or `ahead`."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(workers or ahead, thread_name_prefix="loader") as pool:
        try:
            for key in keys:
                waiting.append(pool.submit(make, key))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@lru_cache(maxsize=4)
def _draw(step: int, batch: int, length: int, seed: int, block: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Samples and keys of many small batches as one large one, which they only split: it costs little more than one."""
    return samples(step, batch, length, seed, block), sample_seeds(step, batch, seed)


def _cut(record: Record, whole: tuple[int, int], choose: Choose) -> Record:
    """What `choose` names of an image that was made smaller; one as large as the whole is cropped when it is seen."""
    image, target, name = record
    size = image.shape[0], image.shape[1]
    part = choose(whole) if size != whole else None
    return (part.within(size, whole).of(image), target, name) if part else record


def _named(name: str, make: Callable[..., NDArray[np.uint8]], *arguments: Any) -> NDArray[np.uint8]:
    """make(*arguments), whose ValueError gets the image's name."""
    try:
        return make(*arguments)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _prepared(image: NDArray[np.uint8], how: Preprocessing) -> NDArray[np.uint8]:
    if image.shape == (*how.image_size, len(how.mean)):
        return image
    return prepare(image, how).permute(1, 2, 0).numpy()


class _Carried(Dataset["Loaded | ValueError"]):
    """A ValueError as a value: one that is raised in a worker process comes with the worker's traceback as its text."""

    def __init__(self, made: Dataset[Loaded]) -> None:
        self.made = made

    def __getitem__(self, key: int) -> Loaded | ValueError:
        try:
            return self.made[key]
        except ValueError as error:
            return ValueError(str(error))


def _deaf(worker: int) -> None:
    """Ctrl-C is for the parent, which ends its workers when it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
