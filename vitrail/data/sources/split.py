"""Which images are for validation, smaller training sets, and training that sees every class equally often.

    train, val = stratified(source, fraction=0.1, seed=0)       # a tenth of each class, the same one every time
    some = drawn(train, 500, seed=0)                            # as many of each class; 1,000 contain these 500
    even = balanced(train)                                      # rare classes are repeated

All are pure functions of the source and the seed, and keep no copy of any image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vitrail.data.order import SPLIT_SALT, SUBSET_SALT, permute
from vitrail.data.sources.source import Source, Subset, coded, counts


def stratified(source: Source, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """(the rest, the fraction for validation), 0 < fraction < 1, both in the source's order.

    Every class gives the same fraction, rounded by largest remainders so that the whole is right, but at least one
    image of each class with two or more stays on either side. An image with several labels counts for the rarest of
    them; those without are a class. ValueError if no class has two images.
    """
    labels = _strata(source)
    sizes = np.bincount(labels + 1)  # first those without a label
    quotas = _quotas([int(size) for size in sizes], Fraction(fraction).limit_denominator(10**6))
    chosen = np.zeros(len(labels), bool)
    for stratum, members in enumerate(np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])):
        if quotas[stratum]:
            chosen[members[permute(np.arange(quotas[stratum]), len(members), seed ^ SPLIT_SALT, stratum)]] = True
    if not chosen.any():
        raise ValueError(f"none of the {len(source.class_names)} classes has two images, one for validation; add some.")
    return Subset(source, np.flatnonzero(~chosen)), Subset(source, np.flatnonzero(chosen))


def _strata(source: Source) -> NDArray[np.int64]:
    """The class that each image counts for, (N,), -1 if there is none."""
    frequency, (codes, known) = counts(source), coded(source)
    return np.array([min(some or (), key=lambda n: (frequency[n], n), default=-1) for some in known], np.int64)[codes]


def _quotas(sizes: list[int], fraction: Fraction) -> list[int]:
    """How many of each class are for validation, by largest remainders; of equal remainders, the first class's."""
    exact = [fraction * size for size in sizes]
    quotas = [int(part) for part in exact]
    left = round(fraction * sum(sizes)) - sum(quotas)
    for place in sorted(range(len(sizes)), key=lambda k: quotas[k] - exact[k])[:left]:
        quotas[place] += 1
    return [min(max(quota, 1), size - 1) if size > 1 else 0 for quota, size in zip(quotas, sizes, strict=True)]


def drawn(source: Source, count: int, seed: int) -> Subset:
    """`count` images, in the source's order, of each class as many as of any other, as far as it has them; of one seed
    the larger subset contains the smaller. ValueError where there are not so many images."""
    if not 1 <= count <= len(source):
        raise ValueError(f"examples is {count:,}; it must be from 1 to the {len(source):,} training images.")
    labels, seed = _strata(source), seed ^ SUBSET_SALT
    turns, places = np.zeros((2, len(labels)), np.int64)
    for place, label in enumerate(np.unique(labels)):
        members = np.flatnonzero(labels == label)
        turns[members] = permute(np.arange(len(members)), len(members), seed, place)
        places[members] = place
    classes = int(places.max()) + 1
    first = permute(np.arange(classes), classes, seed, classes)  # which classes have one more
    return Subset(source, np.sort(np.lexsort((first[places], turns))[:count]))


def balanced(source: Source) -> Subset:
    """Every class as often as the largest: image i is of class i % K, whose images follow in turn, again and again.
    K: the classes that have images. ValueError unless images have one label each."""
    if source.targets != "class":
        raise ValueError(f"balance needs one label each, but the targets are {source.targets!r}; train without it.")
    labels = _strata(source)
    order = np.argsort(labels, kind="stable")
    numbers, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    labelled = numbers >= 0
    return Subset(source, _Rounds(order, starts[labelled], sizes[labelled]))


@dataclass(frozen=True, eq=False)
class _Rounds(Sequence[int]):
    """The indices of `balanced`, computed when asked for: there may be many more of them than images.

    order: the images by class, (N,). starts, sizes: where each class begins in it and how many it has, (K,).
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes) * int(self.sizes.max())

    def __getitem__(self, index: int) -> int:  # type: ignore[override]
        turn, number = divmod(index, len(self.sizes))
        if not 0 <= turn < self.sizes.max():
            raise IndexError(index)
        return int(self.order[self.starts[number] + turn % self.sizes[number]])
