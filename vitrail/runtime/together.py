"""The gradient of a step on many processes, by torch's own: DistributedDataParallel, and fully_shard (FSDP2, HSDP).

shard(task, grouped("cuda", size=8, world=16), half=True)   # before the optimiser: two groups of eight have a copy each
metrics = together(task, exact=0)(parts, backward)
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter
from torch.nn.parallel import DistributedDataParallel

from vitrail.batch import Batch
from vitrail.models import resnet, vit
from vitrail.optim.shards import local
from vitrail.runtime.distributed import LONG, join
from vitrail.runtime.gradients import (
    GRID,
    LARGEST,
    Backward,
    Gradient,
    Metrics,
    TwoPasses,
    WholeBatch,
    added,
    whole,
    without_order,
)


def together(task: nn.Module, exact: int) -> Gradient:
    """How the gradient is added up of a task that is divided, or that each process has whole. exact: as for
    gradients.gradient, of a task that is divided."""
    join().flags(False, patience=LONG)  # one of them may have loaded for longer
    if exact:
        without_order(task)
        how: Gradient = ExactSharded(task, exact)
    else:
        how = Sharded(task) if isinstance(task, FSDPModule) else Together(task)
    if not isinstance(task, WholeBatch):
        return how
    world = dist.get_world_size()
    return TwoPasses(task, how, world, rounds=-(-exact // world))


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
        for part in _parts(task):
            part.set_gradient_divide_factor(1.0)  # its mean would count processes, not images
            part.set_force_sum_reduction_for_comms(True)

    def __call__(self, parts: Iterable[Batch], backward: Backward) -> Metrics:
        sums: Metrics = {}
        *before, last = parts
        for batch in (*before, last):
            self.task.set_requires_gradient_sync(batch is last)
            sums = added(sums, backward(self.task, self.task, batch))
        return _everywhere(sums)


class ExactSharded(Sharded):
    """Exact (gradients.py) of divided weights: each micro-batch's gradient is rounded, divided, and added to this
    process's part of the sums. count: micro-batches of a step."""

    def __init__(self, task: nn.Module, count: int) -> None:
        super().__init__(task)
        parameter: Any = next(task.parameters())
        self.count, self.most, self.device, mesh = count, LARGEST / count, parameter.device, parameter.device_mesh
        # Among how many processes the step is divided, and, of groups with copies, those that have the same part.
        self.world, self.copies = mesh.size(), mesh.get_group(0) if mesh.ndim > 1 else None
        self.first = mesh.ndim == 1 or mesh.get_local_rank(0) == 0
        self.sums = [_Sums(self) for _ in _parts(task)]
        for part, one in zip(_parts(task), self.sums, strict=True):
            part.set_custom_reduce_scatter(one)

    def __call__(self, parts: Iterable[Batch], backward: Backward) -> Metrics:
        batches, found = list(parts), list[Metrics]()
        for one in self.sums:
            one.begin()
        # All processes gather weights equally often: who has a micro-batch less repeats one that does not count.
        for number in range(-(-self.count // self.world)):
            self.counts = number < len(batches)
            self.task.zero_grad()  # of the parts before, which are in the sums
            metrics = backward(self.task, self.task, batches[min(number, len(batches) - 1)])
            found += [metrics] if self.counts else []
        numbers = torch.stack([torch.stack(list(one.values())) for one in found])
        fits = (numbers.abs() < self.most).all()
        spoilt = torch.stack([(~fits).long(), *(one.spoilt for one in self.sums)]).sum(0, keepdim=True)
        sums = torch.cat([whole(numbers.where(fits, 0)).sum(0), spoilt])
        dist.all_reduce(sums)
        factor = torch.where(sums[-1] > 0, torch.nan, 1.0)
        for parameter in self.task.parameters():
            if parameter.grad is not None:
                local(parameter.grad).mul_(factor)
        return dict(zip(found[0], (sums[:-1].double() / GRID * factor).float().unbind(), strict=True))


class _Sums(ReduceScatter):
    """How the gradients of a part of the task are divided: added up as whole numbers, micro-batch after micro-batch."""

    def __init__(self, step: ExactSharded) -> None:
        self.step = step

    def begin(self) -> None:
        """Before the micro-batches of a step."""
        self.sum: Tensor | int = 0
        self.spoilt = torch.zeros((), dtype=torch.int64, device=self.step.device)

    def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> None:
        step, fits = self.step, input_tensor.abs().max() < self.step.most
        mine = whole(input_tensor.where(fits & step.counts, 0))
        found = torch.empty_like(output_tensor, dtype=torch.int64)
        dist.reduce_scatter_tensor(found, mine, group=group)
        if step.copies:
            dist.all_reduce(found, group=step.copies)
        self.spoilt, self.sum = self.spoilt + (~fits & step.counts), self.sum + found
        # torch adds the copies' up once more, which zeros do not change.
        output_tensor.copy_(self.sum.double() / GRID if step.first else torch.zeros_like(output_tensor))


def grouped(kind: str, size: int, world: int) -> DeviceMesh:
    """All processes, in world / size groups of `size`. kind: of their devices. ValueError where it does not come out
    even."""
    if world % size:
        raise ValueError(f"{world} processes cannot be groups of {size}; give --shard a number that divides them.")
    join().flags(False, patience=LONG)  # as above
    shape, names = ((world // size, size), ("copies", "parts")) if world > size else ((size,), ("parts",))
    return init_device_mesh(kind, shape, mesh_dim_names=names)


def shard(task: nn.Module, mesh: DeviceMesh, half: bool) -> None:
    """Divides weights, gradients and optimiser state of each block, and of what is beside them, among the processes of
    a group. half: whether a ViT's blocks are gathered in bf16, in which autocast multiplies their weights anyway; their
    inputs, and what is added to them, stay in fp32, as do the sums of gradients."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for part in list(task.modules()):
        if isinstance(part, vit.Block | resnet.Bottleneck):
            gathered = half and isinstance(part, vit.Block)  # a ResNet standardises its kernels, in fp32
            fully_shard(part, mesh=mesh, mp_policy=policy if gathered else MixedPrecisionPolicy())
    fully_shard(task, mesh=mesh)
    if isinstance(task, WholeBatch):
        register_fsdp_forward_method(task, "embed")


def _parts(task: nn.Module) -> Iterator[FSDPModule]:
    return (part for part in task.modules() if isinstance(part, FSDPModule))


def _everywhere(sums: Metrics) -> Metrics:
    numbers = torch.stack(list(sums.values()))
    dist.all_reduce(numbers)
    return dict(zip(sums, numbers.unbind(), strict=True))


def _summed(_: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """DistributedDataParallel's mean would count processes, not images."""
    work: Any = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])
