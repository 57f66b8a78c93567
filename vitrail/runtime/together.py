"""The gradient of a step on many processes, by torch's own: DistributedDataParallel, and fully_shard (FSDP2, HSDP).

shard(task, size=8, world=16)           # before the optimiser: two groups of eight have a copy each
metrics = together(task)(parts, backward)
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from vitrail.batch import Batch
from vitrail.models import resnet, vit
from vitrail.runtime.gradients import Backward, Gradient, Metrics, added


def together(task: nn.Module) -> Gradient:
    """How the gradient is added up of a task that is divided, or that each process has whole."""
    return Sharded(task) if isinstance(task, FSDPModule) else Together(task)


class Together:
    """On many processes, each with all weights: DistributedDataParallel, whose sums overlap the backward pass."""

    def __init__(self, task: nn.Module) -> None:
        self.task = task
        self.model = DistributedDataParallel(task, gradient_as_bucket_view=True)
        self.model.register_comm_hook(None, _summed)

    def __call__(self, parts: Iterable[Batch], backward: Backward) -> Metrics:
        *before, last = parts
        sums: Metrics = {}
        with self.model.no_sync():
            for batch in before:
                sums = added(sums, backward(self.model, self.task, batch))
        return _everywhere(added(sums, backward(self.model, self.task, last)))


class Sharded:
    """On many processes, of which each has a part of the weights (fully_shard): gathered for each block, and gradients
    divided again."""

    def __init__(self, task: nn.Module) -> None:
        self.task: Any = task
        for part in task.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)  # its mean would count processes, not images
                part.set_force_sum_reduction_for_comms(True)

    def __call__(self, parts: Iterable[Batch], backward: Backward) -> Metrics:
        sums: Metrics = {}
        *before, last = parts
        for batch in (*before, last):
            self.task.set_requires_gradient_sync(batch is last)
            sums = added(sums, backward(self.task, self.task, batch))
        return _everywhere(sums)


def shard(task: nn.Module, size: int, world: int) -> None:
    """Divides weights, gradients and optimiser state of each block, and of what is beside them, among `size` processes;
    world / size groups of these have copies. ValueError where the groups do not come out even."""
    if world % size:
        raise ValueError(f"{world} processes cannot be groups of {size}; give --shard a number that divides them.")
    kind, groups = next(task.parameters()).device.type, world // size
    shape, names = ((groups, size), ("copies", "parts")) if groups > 1 else ((size,), ("parts",))
    mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    for part in list(task.modules()):
        if isinstance(part, vit.Block | resnet.Bottleneck):
            fully_shard(part, mesh=mesh)
    fully_shard(task, mesh=mesh)


def _everywhere(sums: Metrics) -> Metrics:
    numbers = torch.stack(list(sums.values()))
    dist.all_reduce(numbers)
    return dict(zip(sums, numbers.unbind(), strict=True))


def _summed(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """DistributedDataParallel's mean would count processes, not images."""
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])
