"""Relevance of each patch: for a class by gradient-weighted attention or LeGrad, or for any by attention alone.

relevance(model, images, "gradient", classes)       # (B, C, H, W) float, (B, K) int64 -> (B, K, rows, columns)

LRP is left out: its own authors' library says that it is patented.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.explain.attention import attention, last, patches, reading, rollout
from vitrail.models import vit

Method = Literal["gradient", "legrad", "rollout", "attention"]


def relevance(
    model: vit.ViT, images: Float[Tensor, "B C H W"], method: Method, classes: Int64[Tensor, "B K"] | None = None
) -> Float[Tensor, "B maps rows columns"]:
    """The map of each class; with rollout and attention, which know no classes, a single one."""
    config = model.config
    if method in ("gradient", "legrad"):
        if classes is None or not config.classes:
            raise ValueError(f"{method} explains a class; name one of a model with a head, or take rollout.")
        return (gradient if method == "gradient" else legrad)(model, images, classes)
    with torch.no_grad(), attention(model) as maps:
        model.represent(images)
    found = (rollout if method == "rollout" else last)(maps, config)
    return patches(found, config, config.grid((images.shape[-2], images.shape[-1])))[:, None]


def gradient(
    model: vit.ViT, images: Float[Tensor, "B C H W"], classes: Int64[Tensor, "B K"]
) -> Float[Tensor, "B K rows columns"]:
    """Gradient-weighted attention (Chefer et al., 2021, arXiv 2103.15679, eq. 5 and 6): R <- R + mean_h (dA * A)+ R
    over the blocks, dA the gradient of the class's logit; of R the row that the head reads. Attention pooling is one
    more such step. A forward and, for each class, a backward pass through the activations."""
    config = model.config
    with torch.enable_grad(), attention(model) as maps:
        logits = model(images)
    found = []
    for gradients in _gradients(logits, classes, maps):
        weighted = [(g * a.detach()).clamp_min(0).mean(1) for g, a in zip(gradients, maps, strict=True)]
        rows = reading(weighted, config)
        for layer in reversed(weighted[: config.depth]):  # a row through (I + A) of each block, not their product
            rows = rows + rows @ layer
        found.append(rows[:, 0])
    return patches(torch.stack(found, 1), config, config.grid((images.shape[-2], images.shape[-1])))


def legrad(
    model: vit.ViT, images: Float[Tensor, "B C H W"], classes: Int64[Tensor, "B K"]
) -> Float[Tensor, "B K rows columns"]:
    """LeGrad (Bousselham et al., 2024, arXiv 2404.03214): the mean over blocks, heads and rows of (d s_l / dA_l)+, s_l
    the class's logit as the head reads it off the tokens after block l; with attention pooling the A_l is that of the
    pooling of these tokens."""
    config = model.config
    with torch.enable_grad(), attention(model) as maps:
        z, places, logits = model.embed(images), model.places(images), images.new_zeros(())
        for block in model.blocks:
            z = block(z.detach(), None, places)  # so that one backward pass gives each s_l its own A_l alone
            logits = logits + model.head(model.pre_logits(model.pool(model.norm(z))))
    maps = maps[1::2] if config.pool == "map" else maps
    several = _gradients(logits, classes, maps)
    found = [torch.stack([g.clamp_min(0).mean((1, 2)) for g in gradients]).mean(0) for gradients in several]
    return patches(torch.stack(found, 1), config, config.grid((images.shape[-2], images.shape[-1])))


def _gradients(
    logits: Float[Tensor, "B classes"], classes: Int64[Tensor, "B K"], maps: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """For each of the K classes of the images, the gradients of its logit with respect to the maps."""
    with torch.enable_grad():
        scores = logits.gather(1, classes).sum(0).unbind()
    for score in scores:
        yield torch.autograd.grad(score, maps, retain_graph=True)
