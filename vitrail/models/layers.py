"""Small layers that came after the paper, its dropout, and the MLP's non-linearities.

What is random here is drawn by image, not from one stream: a function of the image's key and the layer's name. So it is
the same however a batch is split, over micro-batches, cores or processes, and whatever else draws random numbers.

    with drawing(task, batch["keys"]):      # int64 (B,), one key an image
        task(batch)[0].backward()
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor, nn

from vitrail.models.config import Activation

# The multipliers of a 32-bit integer hash with little bias (Wellons, "Prospecting for hash functions": lowbias32).
FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32
VIEW = 0x9E3779B97F4A7C15 - 2**64  # between the keys of an image's views


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The MLP's non-linearity. Google trained with the tanh form of GELU; the two differ by up to 4.7e-4."""
    if activation == "swiglu":
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value
    if activation == "quick_gelu":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


class LayerScale(nn.Module):
    """A learned scale for each channel of a residual branch (Touvron et al., 2021, "Going deeper")."""

    def __init__(self, width: int, device: torch.device | None) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width, device=device))

    def forward(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return z * self.gamma


class Dropout(nn.Module):
    """In training, sets elements to 0 with this rate and scales the others up (Srivastava et al., 2014).

    drawn: a key for each image, while `drawing`; without it torch's generator draws.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.drawn: Int32[Tensor, B] | None = None

    def forward(self, x: Float[Tensor, "B *rest"]) -> Float[Tensor, "B *rest"]:
        if not self.training or self.rate == 0:
            return x
        if self.drawn is None:
            return F.dropout(x, self.rate)
        count = x[0].numel()
        places = mixed(torch.arange(count, dtype=torch.int32, device=x.device))
        bits = (self.drawn[: len(x), None] + places) * FIRST
        bits = (bits ^ _shifted(bits, 15)) * SECOND
        kept = bits.view(x.shape) < int((1 - self.rate) * 2**32) - 2**31
        return torch.where(kept, x * (1 / (1 - self.rate)), 0.0)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, drops an image's residual branch with this rate.

    drawn: the scale of each image's branch, 0 or 1 / (1 - rate), while `drawing`; without it torch's generator draws.
    It is drawn outside: torch.compile would make a graph for each block's own rate, and give up after eight.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.drawn: Float[Tensor, B] | None = None

    def forward(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        if not self.training:
            return z
        if self.drawn is not None:
            return z * self.drawn[: len(z), None, None].to(z.dtype)
        if self.rate == 0:
            return z
        return z * z.new_empty(z.shape[0], 1, 1).bernoulli_(1 - self.rate).div_(1 - self.rate)


@contextmanager
def drawing(module: nn.Module, keys: Int64[Tensor, "B"], views: int = 1) -> Iterator[None]:
    """Inside it, `Dropout` and `DropPath` in the module draw for these images, in the forward pass and in the same
    pass again, as checkpointing has it. views: that go through it at once at most, all images of one view after those
    of another; each has draws of its own."""
    numbers = torch.arange(views, device=keys.device)
    keys = (keys + numbers[:, None] * VIEW).flatten()  # the first view's are the keys themselves
    every = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, Dropout | DropPath)]
    deep = any(layer.rate for _, layer in every if isinstance(layer, DropPath))
    # Blocks that never drop have a scale, too, where others drop: they are one graph for torch.compile.
    layers = [(name, layer) for name, layer in every if layer.rate or (deep and isinstance(layer, DropPath))]
    try:
        for name, layer in layers:
            drawn = _salted(keys, name)
            if isinstance(layer, Dropout):
                layer.drawn = drawn
            else:  # the bits as a number in [0, 1)
                kept = drawn.double() * 2**-32 + 0.5 < 1 - layer.rate
                layer.drawn = kept.double() / (1 - layer.rate)
        yield
    finally:
        for _, layer in layers:
            layer.drawn = None


def uniform(keys: Int64[Tensor, "B"], name: str, count: int) -> Float[Tensor, "B {count}"]:
    """`count` numbers in [0, 1) for each key, float64: a function of the key and the name, on every device the same."""
    places = mixed(torch.arange(count, dtype=torch.int32, device=keys.device))
    return mixed(_salted(keys, name)[:, None] + places).double() * 2**-32 + 0.5


def _salted(keys: Int64[Tensor, "B"], name: str) -> Int32[Tensor, "B"]:
    """The words from which what has this name draws."""
    salt = int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), signed=True)
    return mixed(mixed(mixed(keys.to(torch.int32)) ^ (keys >> 32).to(torch.int32)) ^ salt)


def mixed(words: Int32[Tensor, "..."]) -> Int32[Tensor, "..."]:
    """A bijection of 32 bits in which each input bit flips half of the output bits."""
    words = (words ^ _shifted(words, 16)) * FIRST
    words = (words ^ _shifted(words, 15)) * SECOND
    return words ^ _shifted(words, 16)


def _shifted(words: Int32[Tensor, "..."], by: int) -> Int32[Tensor, "..."]:
    """Shifted to the right with zeros, where `>>` would repeat the sign."""
    return (words >> by) & ((1 << 32 - by) - 1)
