"""Small layers that came after the paper, and the MLP's non-linearities."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"]


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


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training, drops a sample's residual branch with this rate."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        if not self.training or self.rate == 0:
            return z
        return z * z.new_empty(z.shape[0], 1, 1).bernoulli_(1 - self.rate).div_(1 - self.rate)
