"""The gradient of a step: of the mean loss over its images, added up from micro-batches, on one process or many.

    add = gradient(task, cores=2, world=1, exact=0)
    metrics = add(parts, backward)          # task.parameters() have their .grad

Floating-point sums depend on their order, and that on how many there are: Exact rounds the gradient of
each micro-batch to a grid and adds whole numbers, whose order cannot matter. Its micro-batches are those of the run,
however many processes and cores there are; each is computed by one thread on a CPU.
"""

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from vitrail.batch import Batch
from vitrail.runtime.threads import Replicas

Metrics = dict[str, Tensor]

# A gradient of 2^-44 = 5.7e-14 is the least that is seen, and sums below 2^18 fit into 64 bits.
GRID = 2.0**44
LARGEST = 2.0**18


@runtime_checkable
class WholeBatch(Protocol):
    """A task whose loss is a function of all images of a step (tasks/whole.py)."""

    def embed(self, batch: Batch, /) -> Tensor: ...

    def objective(self, z: Tensor, keys: Tensor, /) -> tuple[Tensor, Metrics]: ...


@runtime_checkable
class Backward(Protocol):
    """Leaves the gradient of a micro-batch, weighted, and returns its metrics, likewise; model is the task, or what is
    around it."""

    def __call__(self, model: nn.Module, task: nn.Module, batch: Batch, /) -> Metrics: ...

    def embed(self, task: Any, batch: Batch, /) -> Tensor:
        """What a WholeBatch makes of a micro-batch, without gradients."""
        ...


# Adds up the gradients of micro-batches; returns the metrics of all.
Gradient = Callable[[Iterable[Batch], Backward], Metrics]


def gradient(task: nn.Module, cores: int, world: int, exact: int) -> Gradient:
    """How a task's is added up with so many cores: on one process, or, exactly, on `world` of them (else together.py).
    exact: the number of micro-batches of a step, where sums must not depend on their order; else 0."""
    inner = Exact(task, cores if without_order(task) == "cpu" else 1, world, exact) if exact else Alone(task, cores)
    return TwoPasses(task, inner, world, cores) if isinstance(task, WholeBatch) else inner


def without_order(task: nn.Module) -> str:
    """Lets operations give the same bits every time; returns the kind of device. ValueError where a part of the task
    draws random numbers that depend on their order."""
    if drawn := [name for name, part in task.named_modules() if isinstance(part, _DropoutNd) and part.p]:
        raise ValueError(f"{drawn[0]} draws from torch's one stream of numbers, which --exact cannot divide.")
    if (device := next(task.parameters()).device).type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_num_threads(1)  # each core has micro-batches of its own instead
    return device.type


class Alone:
    """On one process, whose cores share each micro-batch."""

    def __init__(self, task: nn.Module, cores: int) -> None:
        self.replicas = Replicas(task, cores)

    def __call__(self, parts: Iterable[Batch], backward: Backward) -> Metrics:
        sums: Metrics = {}
        for batch in parts:
            for found in self.replicas.map(lambda task, share: backward(task, task, share), batch):
                sums = added(sums, found)
        self.replicas.gather()
        return sums


class Exact:
    """The same bits on any number of processes and cores. count: micro-batches of a step."""

    def __init__(self, task: nn.Module, cores: int, world: int, count: int) -> None:
        self.replicas, self.world, self.lock = Replicas(task, cores), world, threading.Lock()
        self.trained, self.most = _trained(task), LARGEST / count
        sizes, device = [p.numel() for p in self.trained], self.trained[0].device
        # All gradients side by side, and behind them how many micro-batches had one that is not finite, or too large.
        self.sums = torch.zeros(sum(sizes) + 1, dtype=torch.int64, device=device)
        self.views = self.sums[:-1].split(sizes)

    def __call__(self, parts: Iterable[Batch], backward: Backward) -> Metrics:
        self.sums.zero_()
        waiting, found = iter(parts), list[Metrics]()
        while pairs := list(zip(self.replicas.modules, waiting, strict=False)):
            found += self.replicas.cores.map(lambda pair: self._part(*pair, backward), pairs)
        numbers = torch.stack([whole(torch.stack(list(one.values()))) for one in found]).sum(0)
        if self.world > 1:
            dist.all_reduce(self.sums)
            dist.all_reduce(numbers)
        spoilt = torch.where(self.sums[-1] > 0, torch.nan, 1.0)
        for parameter, added_up in zip(self.trained, self.views, strict=True):
            parameter.grad = (added_up.double() / GRID * spoilt).to(parameter.dtype).view_as(parameter)
        return dict(zip(found[0], (numbers.double() / GRID * spoilt).float().unbind(), strict=True))

    def _part(self, task: nn.Module, batch: Batch, backward: Backward) -> Metrics:
        metrics = backward(task, task, batch)
        grads = [p.grad for p in _trained(task)]
        task.zero_grad(set_to_none=True)
        there = [g for g in grads if g is not None]
        sizes = torch._foreach_norm(there, torch.inf)  # pyright: ignore[reportPrivateImportUsage]
        fits = bool((torch.stack([*sizes, *metrics.values()]).abs() < self.most).all())
        numbers = [whole(g).view(-1) if fits and g is not None else None for g in grads]
        with self.lock:
            self.sums[-1] += not fits
            for view, more in zip(self.views, numbers, strict=True):
                if more is not None:
                    view.add_(more)
        return metrics if fits else dict.fromkeys(metrics, torch.zeros_like(next(iter(metrics.values()))))


class TwoPasses:
    """The gradient of a loss that is a function of all images of a step (tasks/whole.py), however they are divided.

    All images are put in the order of their keys first, so that no sum depends on who has embedded which. cores: that
    have shares of a micro-batch. rounds: micro-batches of the process that has most of them; where weights are divided,
    all gather them equally often."""

    def __init__(self, task: WholeBatch, inner: Gradient, world: int, cores: int = 1, rounds: int = 0) -> None:
        self.task, self.inner, self.world, self.cores, self.rounds = task, inner, world, cores, rounds

    def __call__(self, parts: Iterable[Batch], backward: Backward) -> Metrics:
        batches = list(parts)
        if len(batches) == self.world == self.cores == 1:
            return self.inner(batches, backward)
        mine = torch.cat([backward.embed(self.task, batch) for batch in batches])
        for _ in range(len(batches), self.rounds):
            backward.embed(self.task, batches[-1])
        keys = torch.cat([batch["keys"] for batch in batches])
        own = len(mine)
        if self.world > 1:
            (mine, start), (keys, _) = _everybodys(mine), _everybodys(keys)
        else:
            start = 0
        order = keys.argsort(stable=True)
        z = mine[order].requires_grad_()
        with torch.enable_grad():
            loss, metrics = self.task.objective(z, keys[order])
        (found,) = torch.autograd.grad(loss, z)
        rows = torch.empty_like(found).index_copy_(0, order, found * len(z))[start : start + own]
        values = torch.stack([*metrics.values()]).to(rows)
        sizes = [len(batch) for batch in batches]
        more = zip(batches, rows.split(sizes), strict=True)
        return self.inner(
            [batch.plus(gradient=part, measured=values.expand(len(part), -1)) for batch, part in more], backward
        )


def _everybodys(mine: Tensor) -> tuple[Tensor, int]:
    """(the rows of all processes, rank after rank; where this one's begin)."""
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=mine.device)
    counts[dist.get_rank()] = len(mine)
    dist.all_reduce(counts)
    sizes = counts.tolist()
    start = sum(sizes[: dist.get_rank()])
    # Each fills its rows of zeros, which are then added up: no bit changes.
    rows = mine.new_zeros(sum(sizes), *mine.shape[1:])
    rows[start : start + len(mine)] = mine
    dist.all_reduce(rows)
    return rows, start


def _trained(task: nn.Module) -> list[nn.Parameter]:
    return [p for p in task.parameters() if p.requires_grad]


def whole(numbers: Tensor) -> Tensor:
    """Numbers on the grid, int64."""
    return (numbers.double() * GRID).round().long()


def added(sums: Metrics, more: Metrics) -> Metrics:
    """The sums of metrics, by name."""
    return {name: sums[name] + value if name in sums else value for name, value in more.items()}
