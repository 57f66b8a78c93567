"""Minimises many independent functions at once: L-BFGS (Nocedal and Wright, 2006, algorithms 3.1 and 7.4).

found = minimised(objective, start)     # objective(w, which) -> (losses (G,), gradients like w), w: (n, G, K)

torch.optim.LBFGS has one step for all of its parameters, so one hard function would hold back the others; here each has
its own, those that are done drop out, and the rest share what is dear, the matrix products inside `objective`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

STEPS, PAIRS = 300, 5  # the most; what is remembered
ARMIJO, HALVED = 1e-4, 20  # the part of the promised descent that a step must bring; times that it is halved
Pairs = list[tuple[Tensor, Tensor]]


def minimised(
    objective: Callable[[Tensor, Int64[Tensor, "g"]], tuple[Tensor, Tensor]],
    start: Float[Tensor, "n G K"],
    enough: float = 1e-4,
) -> Float[Tensor, "n G K"]:
    """Where no element of a function's gradient is above `enough`, or no step descends further than rounding. which:
    the numbers of those functions that are asked for."""
    found, which = start.clone(), torch.arange(start.shape[1], device=start.device)
    w, pairs = start, Pairs()
    loss, gradient = objective(w, which)
    done = gradient.abs().amax((0, 2)) <= enough
    for _ in range(STEPS):
        found[:, which] = w
        if done.any():
            left = ~done
            which, w, gradient, loss = which[left], w[:, left], gradient[:, left], loss[left]
            pairs = [(moved[:, left], turned[:, left]) for moved, turned in pairs]
        if not len(which):
            break
        direction = -_turned(gradient, pairs)
        slope = (direction * gradient).sum((0, 2))
        upward = slope >= 0  # after rounding, or of an old curvature
        direction = torch.where(upward[:, None], -gradient, direction)
        slope = torch.where(upward, -gradient.square().sum((0, 2)), slope)
        step = torch.ones_like(loss) if pairs else 1 / gradient.square().sum((0, 2)).sqrt()
        new = w + step[:, None] * direction
        lower, after = objective(new, which)
        stuck = ~(lower <= loss + ARMIJO * step * slope)
        for _ in range(HALVED):
            if not stuck.any():
                break
            step = torch.where(stuck, step / 2, step)
            new = w + step[:, None] * direction
            lower, after = objective(new, which)
            stuck = ~(lower <= loss + ARMIJO * step * slope)
        new, after = (torch.where(stuck[:, None], *both) for both in ((w, new), (gradient, after)))
        pairs = [*pairs, (new - w, after - gradient)][-PAIRS:]
        w, gradient, loss = new, after, torch.where(stuck, loss, lower)
        done = stuck | (gradient.abs().amax((0, 2)) <= enough)
    return found


def _turned(gradient: Tensor, pairs: Pairs) -> Tensor:
    """The inverse Hessian, as the pairs have it, times the gradient (the two-loop recursion)."""
    found, factors = gradient.clone(), list[Tensor]()
    for moved, turned in reversed(pairs):
        factors.append((moved * found).sum((0, 2)) * _inverse(moved * turned))
        found -= factors[-1][:, None] * turned
    if pairs:
        moved, turned = pairs[-1]
        scale = (moved * turned).sum((0, 2)) * _inverse(turned.square())
        found *= torch.where(scale > 0, scale, 1.0)[:, None]
    for (moved, turned), factor in zip(pairs, reversed(factors), strict=True):
        found += (factor - (turned * found).sum((0, 2)) * _inverse(moved * turned))[:, None] * moved
    return found


def _inverse(products: Tensor) -> Tensor:
    """1 / their sum for each function; 0 where it is not positive, so that the pair counts for nothing."""
    total = products.sum((0, 2))
    return torch.where(total > 1e-12, 1 / total, 0.0)
