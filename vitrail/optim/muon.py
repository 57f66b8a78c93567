"""Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): the momentum of a matrix, made orthogonal.

    optimizer = Muon([{"params": [...], "names": [...]}], lr=1e-3)        # of hidden matrices, named as groups() does

torch.optim.Muon orthogonalises one matrix at a time, in bfloat16 whatever the weights are: on a CPU without bfloat16
the steps of a small model took 2 to 9 times as long. Here all matrices of one shape go through it together, in their
own precision on a CPU; and q, k and v, which are one tensor in a block, are three matrices.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.optim.shards import placed, whole

# Of the quintic iteration: steep at 0, so that five of them bring every singular value into 0.7 to 1.2 (the author's).
A, B, C = 3.4445, -4.7750, 2.0315
TOGETHER = 2**26  # numbers that are stacked at once: 256 MiB in float32
FUSED = {"qkv": 3, "kv": 2}  # layers -> how many matrices are one tensor in them


class Muon(torch.optim.Optimizer):
    """b <- m b + (1 - m) g;  w <- (1 - lr decay) w - lr .2 sqrt(max(rows, columns)) orthogonal((1 - m) g + m b).

    The factor makes an update as large as AdamW's (arXiv 2502.16982), whose rates then carry over. Every group has
    "names" beside "params". ValueError for a parameter that is no matrix.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        for group in self.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if parameter.ndim != 2:
                    raise ValueError(f"muon trains matrices, and {name} is {tuple(parameter.shape)}: use adamw for it.")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = None if closure is None else closure()
        waiting: dict[Any, list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
        moves: list[tuple[Tensor, Tensor]] = []  # of parameters that are divided among processes
        for group in self.param_groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if parameter.grad is None:
                    continue
                divided, move = self._update(parameter, group), parameter
                if (update := whole(divided)) is not divided:
                    move = torch.zeros_like(update)
                    moves.append((parameter, move))
                for target, piece in _pieces(name, move, update):
                    key = piece.shape, piece.device, piece.dtype
                    waiting[key].append((target, piece, group["lr"]))
        for (shape, _, _), found in waiting.items():
            size = max(1, TOGETHER // shape.numel())
            for some in (found[first : first + size] for first in range(0, len(found), size)):
                made = orthogonal(torch.stack([update for _, update, _ in some]))
                for (target, _, lr), direction in zip(some, made, strict=True):  # rounds as what `placed` adds does
                    target.add_(direction.mul_(-0.2 * math.sqrt(max(shape)) * lr))
        for parameter, move in moves:
            parameter.add_(placed(move, parameter))
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Decays a parameter and takes its gradient in; what to make orthogonal."""
        gradient, state, momentum = parameter.grad, self.state[parameter], group["momentum"]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        update = gradient.lerp(state["momentum_buffer"], momentum)  # Nesterov's
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        return update


def _pieces(name: str, parameter: Tensor, update: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """(part of the parameter, what to make orthogonal), each with no more rows than columns."""
    layer = re.search(r"(\w+)\.weight$", name)
    count = FUSED.get(layer[1], 1) if layer else 1
    for pair in zip(parameter.chunk(count), update.chunk(count), strict=True):
        tall = pair[0].shape[0] > pair[0].shape[1]
        yield (pair[0].mT, pair[1].mT) if tall else pair


def orthogonal(matrices: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """U V^T of each U S V^T, about: singular values come out between 0.7 and 1.2, zeros stay zero. rows <= columns.

    Five Newton-Schulz iterations, in bfloat16 on a GPU, else in the precision of the matrices.
    """
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x.to(matrices.dtype)
