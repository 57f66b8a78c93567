"""What travels from the loader to the task: a dict of tensors, all with the same first dimension."""

from typing import NotRequired, TypedDict

from jaxtyping import Float32, Int64, UInt8
from torch import Tensor


class Batch(TypedDict):
    """B images as they were decoded; normalising them is the device's work, and four times fewer bytes travel.

    targets: class numbers, or, where images may have several labels, 1 for each class that an image has and 0 for the
    others. lam, box: how pairs of images are to be mixed (tasks/mixup.py), where they are.
    """

    images: UInt8[Tensor, "B C H W"]
    targets: Int64[Tensor, "B"] | Float32[Tensor, "B K"]
    lam: NotRequired[Float32[Tensor, "B"]]
    box: NotRequired[Int64[Tensor, "B 4"]]
