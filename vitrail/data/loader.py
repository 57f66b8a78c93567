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
from vitrail.data.transforms import flip

T = TypeVar("T")


def collate(source: Source, indices: Iterable[int]) -> Batch:
    """The records `indices` as one batch: images uint8 (B, C, H, W), targets int64 (B,).

    ValueError, naming both, where two images differ in size.
    """
    images: list[NDArray[np.uint8]] = []
    targets: list[int] = []
    first = ""
    for index in indices:
        image, target, name = source[index]
        if images and image.shape != images[0].shape:
            raise ValueError(f"{name} is {image.shape}, {first} is {images[0].shape}; one batch needs one size.")
        first = first or name
        images.append(image)
        targets.append(target)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return {"images": pixels, "targets": torch.tensor(targets, dtype=torch.int64)}


def training_batch(source: Source, step: int, batch: int, seed: int) -> Batch:
    """The augmented batch of one step: which samples, their order and their flips depend on (seed, step) alone."""
    out = collate(source, samples(step, batch, len(source), seed).tolist())
    out["images"] = flip(out["images"], sample_seeds(step, batch, seed))
    return out


def training(
    source: Source, *, batch: int, seed: int, start: int, stop: int, ahead: int = 2
) -> Iterator[tuple[int, Batch]]:
    """(step, batch) for the steps start .. stop - 1, `ahead` of them prepared while the device works."""
    return _ahead(lambda step: (step, training_batch(source, step, batch, seed)), range(start, stop), ahead)


def evaluation(source: Source, *, batch: int, ahead: int = 2) -> Iterator[Batch]:
    """Every sample once, in order; the last batch may be smaller."""
    starts = range(0, len(source), batch)
    return _ahead(lambda i: collate(source, range(i, min(i + batch, len(source)))), starts, ahead)


def _ahead(make: Callable[[int], T], keys: Iterable[int], ahead: int) -> Iterator[T]:
    """make(key) for each key in turn, up to `ahead` of them computed beforehand by threads."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="loader") as pool:
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
