"""A training step on a CPU: each core computes the loss of its own share of the batch, and its gradients.

    replicas = Replicas(task, cores_for(run, task))
    metrics = accumulate(replicas, parts_of_the_batch, total, autocast)     # the gradients are in `task`

A replica has the task's own weights: nothing but gradients is there twice.
"""

import copy
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.cores import share_out, shared
from vitrail.memory import activations
from vitrail.models.cost import parameters
from vitrail.models.layers import DropPath
from vitrail.models.vit import Attention
from vitrail.run import Run
from vitrail.tasks.task import Metrics, Task

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T", bound=Task)
R = TypeVar("R")


class Replicas(Generic[M]):
    """A module once for each core, around the same weights and buffers, each with gradients of its own.

    They are summed in the order of the shares, so that a step gives the same bits every time. The module must draw no
    random numbers (`draws`), for there is one stream of them.
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


def accumulate(
    replicas: Replicas[T], parts: Iterable[Batch], total: int, autocast: AbstractContextManager[object]
) -> Metrics:
    """Adds up the gradient of the mean loss over `total` images from the parts of their batch; returns its metrics.

    Each part weighs as many images as it has, so that uneven parts change nothing but rounding.
    """
    sums: dict[str, Tensor] = {}

    def backward(task: Task, batch: Batch) -> Metrics:
        share = len(batch["images"]) / total
        with autocast:
            loss, metrics = task(batch)
        (loss if share == 1 else loss * share).backward()
        return {name: value * share for name, value in metrics.items()}

    for batch in parts:
        for metrics in replicas.map(backward, batch):
            for name, value in metrics.items():
                sums[name] = sums[name] + value if name in sums else value
    replicas.gather()
    return sums


def shares(batch: Batch, count: int) -> list[Batch]:
    """At most `count` parts of a batch, of even sizes but for the last: pairs that are mixed stay together."""
    size = -(-len(batch["images"]) // (2 * count)) * 2
    cut = {name: value.split(size) for name, value in batch.items() if isinstance(value, Tensor)}
    number = len(cut["images"])
    return [Batch(**{name: parts[i] for name, parts in cut.items()}) for i in range(number)]  # type: ignore[typeddict-item]


def draws(module: nn.Module) -> bool:
    """Whether a training step of it draws random numbers: dropout of any kind, stochastic depth."""
    return any(
        (isinstance(part, nn.Dropout) and part.p > 0)
        or (isinstance(part, DropPath) and part.rate > 0)
        or (isinstance(part, Attention) and part.attention_dropout > 0)
        for part in module.modules()
    )


def cores_for(run: Run, task: Task) -> int:
    """How many cores should compute shares of a batch of their own; 1: one share, each operation on all of them.

    No more than keep the gradients that each has smaller than the activations, which are gone once those are there.
    """
    device, half = next(task.parameters()).device, run.precision in ("bf16", "fp8")
    if device.type != "cpu" or half or run.compile or run.checkpointing or draws(task):
        return 1
    part = run.micro_batch or run.batch
    fits = 1 + part * activations(run.model) // (4 * parameters(run.model))
    return share_out(min(part // 2, fits))


def _replica(module: M) -> M:
    same = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, same | {id(b): b for b in module.buffers()})
