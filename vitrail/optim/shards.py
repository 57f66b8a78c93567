"""Tensors that are divided among processes (torch's DTensor, after fully_shard), and whole ones.

whole(parameter)                    # the same on every process; all of them must ask for it
placed(tensor, like=parameter)      # a whole tensor, of which each process keeps its part
"""

import sys
from typing import Any

from torch import Tensor


def divided(tensor: Tensor) -> bool:
    """Whether it is. Without the module, which takes long to import, there is none."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all of its parts; itself where it is not divided."""
    parts: Any = tensor
    return parts.full_tensor() if divided(tensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, divided as `like` is; itself where that is not."""
    if divided(tensor) or not divided(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    parts: Any = like
    return distribute_tensor(tensor.to(like.device), parts.device_mesh, parts.placements)
