"""A CPU's cores side by side: each has its own share of the images, instead of a part of every operation.

    cores = shared(torch.get_num_threads())
    features = torch.cat(cores.map(model.represent, images.chunk(cores.count)))

torch divides each operation among its threads, and all of them wait for the slowest after each: for small ones longer
than they compute, and on a machine that others use, too, several times as long. Shares meet once, at their end.
"""

import copy
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Generic, TypeVar

import torch
from torch import nn

from vitrail.batch import Batch

T = TypeVar("T")
R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)

MOST = 8  # shares; a guess: more than two cores were not at hand


class Cores:
    """`count` threads of Python, the caller's among them, to which torch's threads are dealt out."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool = ThreadPoolExecutor(max(1, count - 1), "core")

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """function(item) of each item, no more than `count`, at the same time; with gradients where the caller has
        them. What a function raises is raised once all have ended."""
        gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        first, *others = items
        threads = torch.get_num_threads()
        each = max(1, threads // (1 + len(others)))

        def alike(item: T) -> R:
            _set(each)
            with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
                return function(item)

        _set(each)
        futures = [self.pool.submit(alike, item) for item in others]
        try:
            found = function(first)
        finally:
            wait(futures)
            _set(threads)
        return [found, *(future.result() for future in futures)]


def share_out(items: int) -> int:
    """How many shares of so many items are worth having on this machine's cores: one a core, but MOST at most, for
    Python itself runs on one of them at a time."""
    return max(1, min(torch.get_num_threads(), items, MOST))


def _set(threads: int) -> None:
    """How many threads torch uses is a number of each thread of Python; to set it takes longer than to read it."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


class Replicas(Generic[M]):
    """A module once for each core, around the same weights and buffers, each with gradients of its own.

    They are summed in the order of the shares, so that a step gives the same bits every time. The module must not draw
    from torch's generator, because there is one stream of its numbers.
    """

    def __init__(self, module: M, count: int) -> None:
        self.modules = [module, *(_replica(module) for _ in range(count - 1))]
        self.cores = shared(count)

    def map(self, function: Callable[[M, Batch], R], batch: Batch) -> list[R]:
        """function(module, share) for the shares of a batch, each with its own replica."""
        pairs = zip(self.modules, shares(batch, len(self.modules)), strict=False)
        return self.cores.map(lambda pair: function(*pair), pairs)

    @torch.no_grad()
    def gather(self) -> None:
        """Adds the replicas' gradients to the module's own."""
        first, *others = (list(module.parameters()) for module in self.modules)
        for other in others:
            for mine, yours in zip(first, other, strict=True):
                if mine.grad is not None and yours.grad is not None:
                    mine.grad.add_(yours.grad)
                yours.grad = None


def shares(batch: Batch, count: int) -> list[Batch]:
    """At most `count` parts of a batch, of even sizes but for the last: pairs that are mixed stay together."""
    return batch.split(-(-len(batch) // (2 * count)) * 2)


def _replica(module: M) -> M:
    same = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, same | {id(b): b for b in module.buffers()})


@cache
def shared(count: int) -> Cores:
    """The process's own."""
    return Cores(count)


if sys.platform != "win32":  # which has no fork; threads do not outlive one
    os.register_at_fork(after_in_child=shared.cache_clear)
