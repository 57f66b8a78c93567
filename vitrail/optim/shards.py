"""Tensors that are divided among processes (torch's DTensor, after fully_shard), and whole ones.

whole(parameter)                    # the same on every process; all of them must ask for it
local(parameter)                    # this process's part, in the same memory
added(counts, parameter)            # one number from all parts, of which a process has some
placed(tensor, like=parameter)      # a whole tensor, of which each process keeps its part
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor


def divided(tensor: Tensor) -> bool:
    """Whether it is. Without the module, which takes long to import, there is none."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all of its parts; itself where it is not divided."""
    parts: Any = tensor
    return parts.full_tensor() if divided(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, which may be empty; itself where it is not divided."""
    parts: Any = tensor
    return parts.to_local() if divided(tensor) else tensor


def added(numbers: Sequence[Tensor], like: Tensor, how: Literal["sum", "max"]) -> Tensor:
    """The sum, or the largest, of this process's scalars and those of the others among which `like` is divided."""
    found = torch.stack(list(numbers))
    found = found.sum() if how == "sum" else found.max()
    if divided(like):
        import torch.distributed as dist

        parts: Any = like
        group = parts.device_mesh.get_group(parts.device_mesh.ndim - 1)  # the dimension before it, if any, is of copies
        dist.all_reduce(found, dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX, group)
    return found


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, divided as `like` is; itself where that is not."""
    if divided(tensor) or not divided(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    parts: Any = like
    return distribute_tensor(tensor.to(like.device), parts.device_mesh, parts.placements)


def mine(tensors: Mapping[str, Tensor], rank: int, world: int) -> dict[str, Tensor]:
    """Those of which this process, one of `world`, should write its part, so that each part is written once: of copies,
    each writes a share. The same names in the same order must be on all."""
    found: dict[str, Tensor] = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        place, copies, parts = rank, world, tensor
        if divided(tensor):
            whole: Any = tensor
            mesh, parts = whole.device_mesh, whole.to_local()
            place, copies = (mesh.get_local_rank(0), mesh.size(0)) if mesh.ndim == 2 else (0, 1)
        if number % copies == place and parts.numel():
            found[name] = tensor
    return found


def empty(like: Tensor, owner: Tensor) -> Tensor:
    """A tensor to be filled, of the shape and dtype of `like`: divided as `owner` is; where that is not, and where it
    is a number, whole and on the CPU."""
    if not divided(owner) or not like.ndim:
        return torch.empty_like(like, device="cpu")
    from torch.distributed.tensor import empty as made

    parts: Any = owner
    return made(*like.shape, dtype=like.dtype, device_mesh=parts.device_mesh, placements=parts.placements)
