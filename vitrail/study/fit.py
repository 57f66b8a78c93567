"""Power laws of an error: E + A x^-a along one axis, E + A N^-a + B D^-b along two, by variable projection.

    law = fit(x, y)                             # x (runs, 1 or 2), y (runs,) above 0
    law.predict(larger)
    resamples = list(draws(seeds))              # whole seeds at a time
    values = [fit(x, y, weights).exponents[0] for weights, _ in resamples]
    low, high = interval(values, [often for _, often in resamples])

The squares of relative errors are summed, because the noise of an error is a fraction of it. With the exponents fixed,
the other coefficients, all 0 or more, are a problem of linear least squares with an exact answer; what remains is a
search over one or two numbers, by a grid and then a pattern (Golub and Pereyra, 1973; for the laws arXiv 2203.15556,
approach 3, whose own search stopped early: arXiv 2404.10102).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
LOWEST, HIGHEST, GRID = 0.02, 2.0, 18  # of exponents, and how many of each are tried first
FINEST, COARSE = 1e-10, 1e-4  # steps at which the search ends, and those for resamples
RESAMPLES = 1000


class TooFew(ValueError):
    """There are not enough different runs for a fit."""


@dataclass(frozen=True, eq=False)
class Law:
    """floor: E. factors: A, or (A, B). exponents: a, or (a, b), 0 where the error does not fall. error: of the runs,
    relative, the root of its mean square."""

    floor: float
    factors: tuple[float, ...]
    exponents: tuple[float, ...]
    error: float

    def predict(self, x: Float[np.ndarray, "n axes"]) -> Float[np.ndarray, "n"]:
        """The error at other places."""
        return self.floor + (x ** -np.array(self.exponents)) @ np.array(self.factors)


def fit(
    x: Float[np.ndarray, "n axes"], y: Float[np.ndarray, "n"], weights: Numbers | None = None, finest: float = FINEST
) -> Law:
    """The best law, for one axis or two. weights: of the runs, 0 or more; None: all alike. finest: step
    of the search, in the logarithm of an exponent.

    TooFew unless there are more different places than the law has coefficients, and three values along each axis.
    ValueError for numbers that are not above 0.
    """
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (x > 0).all() and (y > 0).all()):
        raise ValueError("a power law is fitted to numbers above 0; one of these is not.")
    weights = np.ones(len(y)) if weights is None else weights
    axes, used = x.shape[1], x[weights > 0]
    places, needed = len(np.unique(used, axis=0)), 2 * axes + 2
    if places < needed or any(len(np.unique(column)) < 3 for column in used.T):
        most = min((len(np.unique(column)) for column in used.T), default=0)
        raise TooFew(
            f"too few runs for a fit: {places} different ones, of {most} values along an axis; a law with "
            f"{2 * axes + 1} coefficients needs {needed} and 3."
        )
    scale = x.max(axis=0)  # so that no column is far from 1
    logs, roots = np.log(x / scale), np.sqrt(weights / weights.sum())

    def solved(exponents: Numbers) -> tuple[Numbers, Numbers]:
        """Of many pairs of exponents (m, axes): the sums of squares (m,) and the coefficients (m, 1 + axes)."""
        powers = np.exp(-exponents[:, None, :] * logs)
        columns = np.concatenate([np.ones_like(powers[..., :1]), powers], 2)
        return _nonnegative(columns * (roots / y)[:, None], roots)

    points = np.geomspace(LOWEST, HIGHEST, GRID)
    tried = np.array(list(product(points, repeat=axes)))
    sums, coefficients = solved(tried)
    best, step = int(sums.argmin()), np.log(points[1] / points[0])
    at, least, found = tried[best], float(sums[best]), coefficients[best]
    pattern = np.array([p for p in product((-1.0, 0.0, 1.0), repeat=axes) if any(p)])
    while step > finest:
        tried = np.clip(at * np.exp(step * pattern), LOWEST / 10, 2 * HIGHEST)
        sums, coefficients = solved(tried)
        best = int(sums.argmin())
        if sums[best] < least:
            at, least, found = tried[best], float(sums[best]), coefficients[best]
        else:
            step /= 2
    factors, at = found[1:] * scale**at, at * (found[1:] > 0)
    return Law(float(found[0]), tuple(factors.tolist()), tuple(at.tolist()), float(np.sqrt(least)))


def _nonnegative(columns: Numbers, target: Numbers) -> tuple[Numbers, Numbers]:
    """Least squares with coefficients of 0 or more, exactly: the best of all subsets of columns that has them so.
    columns (m, n, c), target (n,) -> the sums of squares (m,), the coefficients (m, c)."""
    count = columns.shape[2]
    least, found = np.full(len(columns), np.inf), np.zeros((len(columns), count))
    for chosen in _subsets(count):
        some = columns[..., chosen]
        across = some.transpose(0, 2, 1)
        products = across @ some
        products += 1e-13 * np.eye(len(chosen)) * np.trace(products, axis1=1, axis2=2)[:, None, None]
        there = np.zeros((len(columns), len(chosen), 1))
        for _ in range(3):  # each time what the addition above changed is made good
            there = there + np.linalg.solve(products, across @ (target[:, None] - some @ there))
        sums = (np.square(target - (some @ there)[..., 0])).sum(1)
        better = (there[..., 0] >= 0).all(1) & (sums < least)
        least[better] = sums[better]
        found[better] = 0.0
        found[np.ix_(better, chosen)] = there[better, :, 0]
    return least, found


@cache
def _subsets(count: int) -> tuple[tuple[int, ...], ...]:
    chosen = (tuple(np.flatnonzero(kept).tolist()) for kept in product((0, 1), repeat=count))
    return tuple(one for one in chosen if one)


def draws(seeds: Int[np.ndarray, "n"], count: int = RESAMPLES) -> Iterator[tuple[Numbers, int]]:
    """Resamples of whole seeds, because runs of one seed share images and order: (how often each run is in it, how many
    of `count` draws gave it), each different one once. The draws are always the same."""
    clusters, numbers = np.unique(seeds, return_inverse=True)
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(clusters), (count, len(clusters)))
    times = np.stack([np.bincount(row, minlength=len(clusters)) for row in chosen])
    different, often = np.unique(times, axis=0, return_counts=True)
    yield from zip(different[:, numbers].astype(np.float64), often.tolist(), strict=True)


def interval(values: Sequence[float], often: Sequence[int]) -> tuple[float, float]:
    """The 2.5th and the 97.5th percentile of values of which each counts `often` times."""
    low, high = np.percentile(np.repeat(values, often), (2.5, 97.5)).tolist()
    return low, high
