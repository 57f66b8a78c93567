"""How faithful a map is: what the model says once the patches are gone, and once its weights are others.

summary([removal(model, images, scores, classes)])      # {"most": 0.31, "least": 0.79, "random": 0.58, ...}
randomised(model, images, explain, seed=0)              # (B,): Spearman's correlation of the maps of two models

Patches are really taken out of the sequence, the others keep their positions: no grey squares, which a model has never
seen, stand in their place. Usual measures cannot tell most methods from chance (Wu et al., 2024, arXiv 2404.01415), so
the same is done in random orders.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.evaluate.evaluator import evaluating
from vitrail.models import vit
from vitrail.runtime.inference import batch_size

Z = 1.959964  # of a normal, what 2.5 % are above
Explain = Callable[[vit.ViT], Float[Tensor, "B rows columns"]]


@dataclass(frozen=True, eq=False)
class Removal:
    """The probability of a class as patches are removed. removed: the fractions, (S,). most, least: (B, S), the most or
    the least important patch first. random: (B, R, S), in random orders."""

    removed: Float[Tensor, "S"]
    most: Float[Tensor, "B S"]
    least: Float[Tensor, "B S"]
    random: Float[Tensor, "B R S"]

    def area(self, curves: Float[Tensor, "*shape S"]) -> Float[Tensor, "*shape"]:
        """The mean probability over the fractions, by the trapezoidal rule; low is good for `most`."""
        return torch.trapezoid(curves, self.removed) / (self.removed[-1] - self.removed[0])


def summary(found: Sequence[Removal]) -> dict[str, float]:
    """Areas, means over the images, and "gain" = random - most with its 95 % interval, "low" to "high": of the mean, by
    Student's t over the images; for one image, of a single random order, by the spread of all."""
    areas = [[each.area(curves).double() for curves in (each.most, each.least, each.random)] for each in found]
    most, least, random = map(torch.cat, zip(*areas, strict=True))
    gains = random - most[:, None]
    count, gain = len(gains), float(gains.mean())
    spread = float((gains.mean(1) if count > 1 else gains[0]).std()) / count**0.5
    half = spread * (student(count - 1) if count > 1 else Z)
    means = {"most": float(most.mean()), "least": float(least.mean()), "random": float(random.mean())}
    return means | {"gain": gain, "low": gain - half, "high": gain + half}


def student(freedom: int) -> float:
    """Student's t that 2.5 % are above, to 0.3 %, by the expansion of Abramowitz and Stegun, 26.7.5."""
    terms = (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96, (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return {1: 12.706, 2: 4.303, 3: 3.182}.get(freedom, Z + sum(g / freedom**n for n, g in enumerate(terms, 1)))


@torch.no_grad()
def removal(
    model: vit.ViT,
    images: Float[Tensor, "B C H W"],
    scores: Float[Tensor, "B rows columns"],
    classes: Int64[Tensor, "B"],
    *,
    steps: int = 10,
    orders: int = 20,
    seed: int = 0,
    sigmoid: bool = False,
) -> Removal:
    """Removes the patches of each image in `steps` steps, by their scores and in random `orders`, two or more.

    The last patch stays where nothing could be read without it. sigmoid: what makes probabilities of the logits.
    """
    draw, config = torch.Generator().manual_seed(seed), model.config
    curves = []
    with evaluating(model):
        z, places = model.embed(images), model.places(images)
        count = z.shape[1] - config.prefix
        stays = int(config.pool in ("avg", "token_avg") or not config.prefix)
        counts = [min(round(count * step / steps), count - stays) for step in range(steps + 1)]
        size = batch_size(config, (images.shape[-2], images.shape[-1]), images.device)
        for image, ranked, label in zip(z, scores.flatten(1).argsort(1, descending=True), classes, strict=True):
            drawn = torch.stack([torch.randperm(count, generator=draw) for _ in range(orders)]).to(ranked)
            rows = torch.cat([torch.stack([ranked, ranked.flip(0)]), drawn])
            points = []
            for number in counts:  # without any removed, all orders are one
                kept = rows[: len(rows) if number else 1, number:]
                logits = [_without(model, image, part, places) for part in kept.split(size)]
                chances = torch.cat(logits).sigmoid() if sigmoid else torch.cat(logits).softmax(-1)
                points.append(chances[:, label].float().expand(len(rows)))
            curves.append(torch.stack(points, 1))
    most, least, random = torch.stack(curves).split((1, 1, orders), 1)
    return Removal(torch.tensor(counts).to(most) / count, most[:, 0], least[:, 0], random)


def _without(
    model: vit.ViT, z: Float[Tensor, "N D"], kept: Int64[Tensor, "R k"], places: vit.Places | None
) -> Float[Tensor, "R K"]:
    """The logits of an image with the patches `kept` alone, for each row of them. z: all its tokens, with positions."""
    prefix = torch.arange(model.config.prefix, device=kept.device).expand(len(kept), -1)
    index = torch.cat([prefix, kept.sort(1).values + model.config.prefix], 1)
    if places is None:
        tokens = z[index]
        for block in model.blocks:
            tokens = block(tokens)
    else:  # attention knows the whole grid: nobody attends to what is removed, which is the same
        seen = torch.zeros(len(kept), len(z), dtype=torch.bool, device=z.device).scatter_(1, index, True)
        mask, tokens = seen[:, None, None].expand(-1, -1, len(z), -1), z.expand(len(kept), -1, -1)
        for block in model.blocks:
            tokens = block(tokens, mask, places)
        tokens = tokens.gather(1, index[..., None].expand(-1, -1, z.shape[1]))
    return model.head(model.pre_logits(model.pool(model.norm(tokens))))


def randomised(model: vit.ViT, explain: Explain, blocks: int | None = None, seed: int = 0) -> Float[Tensor, "B"]:
    """Spearman's rank correlation of the maps of the model and of a copy whose last `blocks`, half of them by default,
    have initial values (Adebayo et al., 2018, arXiv 1810.03292). A map that says something about the model's decisions
    is another one then: above 0.5 it mostly shows the image."""
    depth, other = model.config.depth, copy.deepcopy(model)
    chosen = range(depth - (blocks or max(1, depth // 2)), depth)
    names = {name for name, _ in model.named_parameters() if name.startswith(tuple(f"blocks.{n}." for n in chosen))}
    other.init_weights(seed, names)
    return spearman(explain(model).flatten(1), explain(other).flatten(1))


def spearman(first: Float[Tensor, "B n"], second: Float[Tensor, "B n"]) -> Float[Tensor, "B"]:
    """Spearman's rank correlation of each row, equal numbers sharing their ranks; 0 where all are equal."""
    ranks = [(x[..., None] > x[:, None]).sum(-1) + (x[..., None] == x[:, None]).sum(-1) / 2 for x in (first, second)]
    one, other = (r.double() - r.double().mean(1, keepdim=True) for r in ranks)
    norm = (one.square().sum(1) * other.square().sum(1)).sqrt()
    return torch.where(norm > 0, (one * other).sum(1) / norm.clamp_min(1e-12), 0.0).float()
