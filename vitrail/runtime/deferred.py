"""Batches on their way to the device, and metrics on their way back, without anybody waiting for them.

    move = Mover(device)
    for batch in batches:
        task(move(batch))
    reading = DeferredMetrics(step, {"loss": loss, "gradient_norm": norm}, {"lr": 1e-3})
    ...                                     # the next step goes to the device meanwhile
    reading.values()                        # {"loss": 2.3, ...}

A number that is asked for at once makes the device idle: it has nothing to do until we have read it and sent more.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from vitrail.batch import Batch


class DeferredMetrics:
    """Scalars of one device, and numbers that are known already. step: from 0."""

    def __init__(self, step: int, metrics: Mapping[str, Tensor], known: Mapping[str, float]) -> None:
        self.step, self.names, self.known = step, tuple(metrics), known
        # One copy for all, into memory that the device writes by itself (torch pins it, where it is asynchronous).
        self.numbers = torch.stack([value.detach() for value in metrics.values()]).to("cpu", non_blocking=True)
        self.arrived = None
        if next(iter(metrics.values())).is_cuda:
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def values(self) -> dict[str, float]:
        """All of them, as soon as the device has come so far."""
        if self.arrived:
            self.arrived.synchronize()
        return {**dict(zip(self.names, self.numbers.tolist(), strict=True)), **self.known}


def arriving(
    made: Iterator[Batch],
    device: torch.device,
    kept: Callable[[], AbstractContextManager[object]],
    count: Callable[[int, float], object],
) -> Generator[Batch, None, None]:
    """The batches on the device. kept: what is around the reading of each. count: is told of each how many images it
    has, and how many seconds it was waited for."""
    since, move = time.perf_counter(), Mover(device)
    while True:
        with kept():
            batch = next(made, None)
        if batch is None:
            return
        moved = move(batch)
        count(len(batch), time.perf_counter() - since)
        yield moved
        since = time.perf_counter()


class Mover:
    """Puts batches on the device. On a GPU the copy has a stream of its own: it goes on while the step before computes,
    if the batch lies in pinned memory; the work that is sent after it waits for it there, and nobody waits here."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """The same batch on the device."""
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            moved = batch.to(self.device)
        if self.stream:
            here = torch.cuda.current_stream(self.device)
            here.wait_stream(self.stream)

            def keep(tensor: Tensor) -> Tensor:
                tensor.record_stream(here)  # its memory was the other stream's
                return tensor

            moved = moved.map(keep)
        return moved
