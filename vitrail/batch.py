"""What travels from the loader to the task: a dict of tensors, all with the same first dimension."""

from typing import TypedDict

from jaxtyping import Int64, UInt8
from torch import Tensor


class Batch(TypedDict):
    """B images as they were decoded; normalising them is the device's work, and four times fewer bytes travel."""

    images: UInt8[Tensor, "B C H W"]
    targets: Int64[Tensor, "B"]
