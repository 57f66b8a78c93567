"""order + source + transforms -> batches. The batch of step t is a pure function of (seed, t).

    for step, batch in training(source, batch=64, seed=0, start=1200, stop=2000): ...
    for batch in evaluation(source, batch=500): ...

Threads prepare the batches ahead, each batch whole, in the order of the steps: how many there are cannot change one.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.batch import Batch
from vitrail.data.order import sample_seeds, samples
from vitrail.data.source import Source
from vitrail.data.transforms import Preprocessing, flip, prepare

K = TypeVar("K")
T = TypeVar("T")


def collate(source: Source, indices: Iterable[int], how: Preprocessing | None = None) -> Batch:
    """The records `indices` as one batch: images uint8 (B, C, H, W), targets int64 (B,).

    how: brings every image to the model's size, exactly as `predict` does; without it, images stay as they are.
    ValueError, naming the image, where it cannot be, or where two images differ in size.
    """
    images: list[NDArray[np.uint8]] = []
    targets: list[int] = []
    first = ""
    for index in indices:
        image, target, name = source[index]
        if how is not None and image.shape != (*how.image_size, len(how.mean)):
            image = _prepared(image, how, name)
        if images and image.shape != images[0].shape:
            raise ValueError(f"{name} is {image.shape}, {first} is {images[0].shape}; one batch needs one size.")
        first = first or name
        images.append(image)
        targets.append(target)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return {"images": pixels, "targets": torch.tensor(targets, dtype=torch.int64)}


def _prepared(image: NDArray[np.uint8], how: Preprocessing, name: str) -> NDArray[np.uint8]:
    try:
        return prepare(image, how).permute(1, 2, 0).numpy()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def training_batch(source: Source, step: int, batch: int, seed: int, how: Preprocessing | None = None) -> Batch:
    """The augmented batch of one step: which samples, their order and their flips depend on (seed, step) alone."""
    out = collate(source, samples(step, batch, len(source), seed).tolist(), how)
    out["images"] = flip(out["images"], sample_seeds(step, batch, seed))
    return out


def training(
    source: Source, *, batch: int, seed: int, start: int, stop: int, how: Preprocessing | None = None, ahead: int = 2
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for the steps start .. stop - 1, `ahead` of them prepared while the device works."""
    return prefetch(lambda step: (step, training_batch(source, step, batch, seed, how)), range(start, stop), ahead)


def evaluation(source: Source, *, batch: int, how: Preprocessing | None = None, ahead: int = 2) -> Iterator[Batch]:
    """Every sample once, in order; the last batch may be smaller."""
    starts = range(0, len(source), batch)
    return prefetch(lambda i: collate(source, range(i, min(i + batch, len(source))), how), starts, ahead)


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
