"""Tensors that are divided among processes (torch's DTensor, after fully_shard), and whole ones.

whole(parameter)                    # the same on every process; all of them must ask for it
placed(tensor, like=parameter)      # a whole tensor, of which each process keeps its part
"""

from typing import Any

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all of its parts; itself where it is not divided."""
    divided: Any = tensor
    return divided.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, divided as `like` is; itself where that is not."""
    if not hasattr(like, "full_tensor") or hasattr(tensor, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    divided: Any = like
    return distribute_tensor(tensor.to(like.device), divided.device_mesh, divided.placements)
