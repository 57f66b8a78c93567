"""Requests become batches: images wait in a queue in front of one thread, which computes those that are there together.

    queue = Queue(pipeline, batch=16, wait=0.002, depth=256)
    async with queue.working():
        with queue.room(2):                                 # Full where so many more may not wait
            answers = await queue.answers([item, item], {"top": 5})

One model has one thread: torch and the other runtimes use all cores for one batch, and let the event loop go on.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from vitrail.pipeline import Item, Pipeline


class Full(Exception):
    """So many images may not wait."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    item: Item
    options: dict[str, Any]
    answer: "asyncio.Future[Any]"


class Queue:
    """Of one model. batch: images at most that are computed together. wait: seconds that the first of them waits for
    others, where the thread has nothing to do. depth: images that may be on their way. told: is told the size of each
    batch."""

    def __init__(
        self, pipeline: Pipeline, batch: int, wait: float, depth: int, told: Callable[[int], object] = lambda _: None
    ) -> None:
        self.pipeline, self.batch, self.wait, self.depth, self.told = pipeline, batch, wait, depth, told
        self.under_way = 0

    @contextmanager
    def room(self, count: int) -> Iterator[None]:
        """For images from before they are decoded until they are answered."""
        if self.under_way + count > self.depth:
            raise Full
        self.under_way += count
        try:
            yield
        finally:
            self.under_way -= count

    async def answers(self, items: Sequence[Item], options: dict[str, Any]) -> list[Any]:
        """What the pipeline answers to each: a ValueError in its place where it refuses it. When the caller is
        cancelled, what has not begun is not computed."""
        loop = asyncio.get_running_loop()
        asked = [_Waiting(item, options, loop.create_future()) for item in items]
        for one in asked:
            self.waiting.put_nowait(one)
        try:
            return [await one.answer for one in asked]
        finally:
            for one in asked:
                one.answer.cancel()  # nothing, where it is done

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """While it lasts, answers are computed; at its end nothing is under way, because requests end before."""
        self.waiting: asyncio.Queue[_Waiting] = asyncio.Queue()
        with ThreadPoolExecutor(1) as thread:
            work = asyncio.create_task(self._work(thread))
            try:
                yield
            finally:
                work.cancel()
                with suppress(asyncio.CancelledError):
                    await work

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            found = [one for one in await self._together() if not one.answer.done()]
            if not found:
                continue
            self.told(len(found))
            try:
                results = await loop.run_in_executor(thread, self._computed, found)
            except Exception as error:  # of this batch; the next one may be better
                results = [error] * len(found)
            for one, result in zip(found, results, strict=True):
                if one.answer.done():
                    continue
                if isinstance(result, Exception) and not isinstance(result, ValueError):
                    one.answer.set_exception(result)
                else:
                    one.answer.set_result(result)

    async def _together(self) -> list[_Waiting]:
        """The next images: those that are there, and those that come within `wait`."""
        loop = asyncio.get_running_loop()
        found = [await self.waiting.get()]
        end = loop.time() + self.wait
        while len(found) < self.batch:
            if self.waiting.empty() and loop.time() >= end:
                break
            try:
                async with asyncio.timeout_at(end):
                    found.append(await self.waiting.get())
            except TimeoutError:
                break
        return found

    def _computed(self, found: Sequence[_Waiting]) -> list[Any]:
        """In the thread. Requests with other options are computed apart."""
        results: dict[int, Any] = {}
        groups: dict[str, list[int]] = {}
        for place, one in enumerate(found):
            groups.setdefault(repr(sorted(one.options.items())), []).append(place)
        for places in groups.values():
            items, options = [found[place].item for place in places], found[places[0]].options
            results |= zip(places, self.pipeline.answer(items, self.pipeline.module, options), strict=True)
        return [results[place] for place in range(len(found))]
