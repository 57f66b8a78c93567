"""Attention maps, and what follows from them alone: rollout, heads, mean attention distance.

with attention(model) as maps:              # (B, heads, N, N) of each block; then (B, heads, 1, N) of attention pooling
    logits = model(images)
rollout(maps, model.config)                 # (B, N): how much of each token reaches the head (the paper's Fig. 6)
distance(maps, model.config, (14, 14))      # (B, L, heads), in pixels (the paper's Fig. 7, right)

Inside the context attention is computed by hand, in this thread only, and gradients reach the maps.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitrail.evaluate.evaluator import evaluating
from vitrail.models import vit


class _ByHand(TorchFunctionMode):
    """Computes what fused attention computes, and keeps the softmax. Modes belong to one thread: other threads that
    share the model keep the fused path, which hooks on the modules would not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        fused = func is F.scaled_dot_product_attention
        return (self._attend if fused else func)(*args, **(kwargs or {}))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0
    ) -> Tensor:
        assert not dropout_p, "attention is recorded in evaluation mode"
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # as the fused kernels keep them
        if attn_mask is not None:
            boolean = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if boolean else scores + attn_mask
        weights = scores.softmax(-1)
        if torch.is_grad_enabled() and not weights.requires_grad:  # of a frozen model
            weights.requires_grad_()
        self.maps.append(weights)
        return weights.to(v.dtype) @ v


@contextmanager
def attention(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that receives softmax(q k^T / sqrt(D_h)) of each attention of a forward pass (appendix A), in evaluation
    mode; the pass gives the same numbers to rounding. ValueError where the model is not a ViT."""
    if not isinstance(model, vit.ViT):
        raise ValueError(f"a {type(model).__name__} has no attention to explain; give a ViT or a hybrid.")
    with evaluating(model), _ByHand() as mode:
        yield mode.maps


def reading(means: Sequence[Float[Tensor, "B _ N"]], config: vit.Config) -> Float[Tensor, "B 1 N"]:
    """The weight with which the head reads each token after the last block, by the model's pooling. means: of each
    block over its heads, and then, for attention pooling, of the pooling, which is the answer there."""
    if config.pool == "map":
        return means[config.depth]
    rows = torch.zeros_like(means[0][:, :1])
    if config.pool in ("token", "token_avg", "distilled"):
        rows[..., : 2 if config.pool == "distilled" else 1] = 1
    if config.pool in ("avg", "token_avg"):
        rows[..., config.prefix :] = 1 / (rows.shape[-1] - config.prefix)
    return rows / rows.sum(-1, keepdim=True)


def rollout(maps: Sequence[Float[Tensor, "B heads _ N"]], config: vit.Config) -> Float[Tensor, "B N"]:
    """Attention rollout (Abnar and Zuidema, 2020, arXiv 2005.00928): the product over the blocks of 0.5 A + 0.5 I, A
    the mean over the heads, from the first block on; of it the row that the head reads. Each image's sum is 1."""
    means = [found.mean(1) for found in maps]
    rows = reading(means, config)
    for mean in reversed(means[: config.depth]):  # a row through the matrices, not their product: N times cheaper
        rows = 0.5 * rows + 0.5 * rows @ mean
    return rows[:, 0]


def last(maps: Sequence[Float[Tensor, "B heads _ N"]], config: vit.Config) -> Float[Tensor, "B N"]:
    """The last attention before the head, mean over its heads: of attention pooling, or of the last block."""
    means = [found.mean(1) for found in maps]
    rows = reading(means, config)
    return (rows if config.pool == "map" else rows @ means[-1])[:, 0]


def heads(maps: Sequence[Float[Tensor, "B heads _ N"]], config: vit.Config) -> Float[Tensor, "B L heads N"]:
    """The attention of each block and head in the row that the head of the model reads."""
    rows = reading([found.mean(1) for found in maps], config)[:, None]
    return torch.stack([(rows @ found)[:, :, 0] for found in maps[: config.depth]], 1)


def distance(
    maps: Sequence[Float[Tensor, "B heads _ _"]], config: vit.Config, grid: tuple[int, int]
) -> Float[Tensor, "B L heads"]:
    """The mean attention distance of each head (Fig. 7, right, and appendix D.7), in pixels of the model's input:
    between a patch and those that it attends to, weighted by their attention, mean over the patches. What goes to
    [class] and registers, which are nowhere, is left out. grid: (rows, columns)."""
    places = torch.cartesian_prod(*(torch.arange(n) * float(s) for n, s in zip(grid, config.stride, strict=True)))
    apart = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").to(maps[0])
    found = []
    for weights in (each[..., config.prefix :, config.prefix :] for each in maps[: config.depth]):
        total = weights.sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)
        found.append(((weights * apart).sum(-1) / total).mean(-1))
    return torch.stack(found, 1)


def patches(
    scores: Float[Tensor, "*shape N"], config: vit.Config, grid: tuple[int, int]
) -> Float[Tensor, "*shape r c"]:
    """Scores of all tokens -> those of the patches, (..., rows, columns)."""
    return scores[..., config.prefix :].unflatten(-1, grid)
