"""Work done ahead by threads or processes, in order: batches for training and evaluation, images for everything else.

for batch in stream(training, training.keys(0, 100), workers=2): ...
for item in prefetch(make, keys, ahead=8): ...
"""

import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import active_children, get_start_method, parent_process
from multiprocessing.process import BaseProcess
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch.utils.data import DataLoader, Dataset

from vitrail.batch import Batch
from vitrail.data.quiet import quiet

K = TypeVar("K")
T = TypeVar("T")

_Due = tuple[int, tuple[int, ...]]  # the key of a batch, and keys of some that come later
Unreadable = Literal["refuse", "skip"]  # what happens where an image cannot be read
STOPS = (signal.SIGINT, signal.SIGTERM, *(() if sys.platform == "win32" else (signal.SIGHUP,)))


@runtime_checkable
class Keys(Protocol):
    """Numbers in order, and how many there are."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]: ...


class Unread(ValueError):
    """An image cannot be read, and is not to be skipped."""


class Lost(ValueError):
    """A process that prepares images has died."""


@dataclass(frozen=True)
class Loaded:
    """A batch, or None where no image can be read, and what is wrong with the images that are missing in it."""

    batch: Batch | None
    problems: tuple[str, ...] = ()

    def pin_memory(self) -> "Loaded":
        """The same in pinned memory; the DataLoader's thread calls it."""
        return Loaded(self.batch and self.batch.pin_memory(), self.problems)


class Expecting(Dataset[Loaded]):
    """Batches that are made of what is fetched from afar: `ahead` of them are expected before they are asked for."""

    ahead: int

    def expect(self, number: int) -> None:
        """Begins to fetch what a batch is made of."""

    def forget(self, number: int) -> None:
        """A batch that was expected will not be asked for."""


def stream(
    made: Dataset[Loaded],
    keys: Keys,
    workers: int,
    *,
    pin: bool = False,
    skipped: Callable[[str], None] | None = None,
) -> Iterator[Batch]:
    """The batch of made[key] for each key in turn, prepared ahead by `workers` processes; 0 is two threads.

    Ctrl-C, and a stop that is sent to all processes, are for this one, which may save its state, then ends the workers.
    """
    carried, processes = _Carried(made), list[BaseProcess]()
    far = made if isinstance(made, Expecting) and made.ahead else None
    due = _coming(keys, -(-far.ahead // max(workers, 1)), max(workers, 1)) if far else keys
    if workers == 0:
        results: Iterator[Loaded | ValueError] = prefetch(carried.__getitem__, due, 2)
    else:
        # It would draw from torch's own generator. More processes than cores, of which it warns, have a reason.
        options = {"num_workers": workers, "pin_memory": pin, "worker_init_fn": begin, "generator": torch.Generator()}
        with postponed(), quiet():
            others = active_children()
            results = iter(DataLoader(carried, batch_size=None, sampler=due, **options))
            processes = [process for process in active_children() if process not in others]
    try:
        while (loaded := _next(results, processes)) is not None:
            if isinstance(loaded, ValueError):
                raise loaded
            for problem in loaded.problems:
                if skipped:
                    skipped(problem)
            if loaded.batch is not None:
                yield loaded.batch
    finally:
        del results  # ends its threads or processes now, although a traceback may keep this frame
        if far:
            for number in carried.expected:
                far.forget(number)


def _next(results: Iterator[Loaded | ValueError], processes: Sequence[BaseProcess]) -> Loaded | ValueError | None:
    """The next result; None at the end; Lost where one of the processes has died, whatever error that shows itself by.
    It is a value, so that no traceback keeps the others."""
    try:
        return next(results, None)
    except (RuntimeError, OSError, EOFError):
        deadline = time.monotonic() + 1  # the end of its pipes comes a little before its own
        while processes and all(process.is_alive() for process in processes) and time.monotonic() < deadline:
            time.sleep(0.02)
        dead = next((process for process in processes if process.exitcode), None)
        if dead is None:
            raise
        code = dead.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        why = {-9: ", as the system does where memory runs out", -7: ": shared memory (/dev/shm) is full"}.get(code, "")
        return Lost(f"process {dead.pid}, which prepared images, {how}{why}.")


def workers_for(device: torch.device, asked: int | None) -> int:
    """How many processes prepare batches: as asked, else one a core up to 16 with a GPU, and none but threads on a
    CPU, which needs the cores itself."""
    automatic = min(16, os.cpu_count() or 1) if device.type == "cuda" else 0
    return automatic if asked is None else asked


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


def _coming(keys: Keys, ahead: int, processes: int) -> Iterator[_Due]:
    """Each key with those new ones that come up to `ahead` turns of the same process later; processes take turns."""
    waiting, places = deque[int](), iter(keys)
    for place in range(len(keys)):
        new = list(islice(places, ahead * processes + 1 - len(waiting)))
        waiting.extend(new)
        # The first of each process brings all that it knows of, a later one the last.
        coming = tuple(islice(waiting, 0, None, processes) if place < processes else new[-1:])
        yield waiting.popleft(), coming


class _Carried(Dataset["Loaded | ValueError"]):
    """Returns an error as a value: one that a worker process raises would arrive with its traceback as its text."""

    def __init__(self, made: Dataset[Loaded]) -> None:
        self.made, self.expected = made, set[int]()

    def __getitem__(self, key: int | _Due) -> Loaded | ValueError:
        try:
            key, coming = key if isinstance(key, tuple) else (key, ())
            if isinstance(self.made, Expecting):
                for number in coming:
                    self.made.expect(number)
                    self.expected.add(number)  # then: another thread may have made it meanwhile
            self.expected.discard(key)
            return self.made[key]
        except Unread as error:
            return Unread(str(error))
        except ValueError as error:
            return ValueError(str(error))
        except MemoryError:
            return ValueError("the memory does not suffice to prepare images; fewer processes or threads need less.")
        except OSError as error:
            return ValueError(f"{error.filename or 'the data'} cannot be read ({error.strerror or error}).")


@contextmanager
def postponed() -> Iterator[None]:
    """Signals to stop arrive afterwards: a worker that is not deaf to them yet would end. And torch's handler, which
    raises at any moment when a worker dies, is taken off again: in the middle of a step it would cost the weights."""
    if sys.platform == "win32":
        yield
        return
    before, handler = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS), signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGCHLD) is not handler:
            signal.signal(signal.SIGCHLD, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin(worker: int) -> None:
    """Makes a worker deaf to the signals that are for its parent, and lets it end where that is gone."""
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    above = parent_process()  # it may be gone by now, and another the parent
    parent = above.pid if above and above.pid and get_start_method() == "fork" else os.getppid()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent. torch's own watch leaves a worker that waits until its batch is read."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
