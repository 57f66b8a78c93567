"""Work done ahead by threads or processes, in order: batches for training and evaluation, images for everything else.

for batch in stream(training, training.keys(0, 100), workers=2): ...
for item in prefetch(make, keys, ahead=8): ...
"""

import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from vitrail.batch import Batch

K = TypeVar("K")
T = TypeVar("T")

Unreadable = Literal["refuse", "skip"]  # what happens where an image cannot be read
STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Loaded:
    """A batch, None without any readable image, and what is wrong with the images that should have been in it."""

    batch: Batch | None
    problems: tuple[str, ...] = ()

    def pin_memory(self) -> "Loaded":
        """The same, in memory that the device can read by itself; the DataLoader's thread calls it."""
        return Loaded(self.batch and self.batch.pin_memory(), self.problems)


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
        # A generator of its own: it would draw from torch's. More processes than cores have a reason.
        options = {"num_workers": workers, "pin_memory": pin, "worker_init_fn": _deaf, "generator": torch.Generator()}
        # A worker that is asked to stop before it is deaf would die; the signal waits for the parent instead.
        waiting = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            results = iter(DataLoader(_Carried(made), batch_size=None, sampler=keys, **options))
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)
    try:
        for loaded in results:
            if isinstance(loaded, ValueError):
                raise loaded
            for problem in loaded.problems:
                if skipped:
                    skipped(problem)
            if loaded.batch is not None:
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
    """Ctrl-C, and a stop that is sent to the whole group of processes, are for the parent, which saves, and then ends
    its workers; they end by themselves where it is gone."""
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
