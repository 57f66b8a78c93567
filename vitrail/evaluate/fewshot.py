"""Few-shot classification in closed form, as the paper judges representations (section 4.1): ridge regression from
frozen features of a few training images a class to targets of -1 and 1.

    right = ridge(shots, labels, classes).scores(test).argmax(1) == targets     # authors=True: by their protocol

The authors' protocol is big_vision's evaluators/fewshot_lsr.py: features are standardised by the shots, a constant 100
stands for the bias, l2 is 2^10. Ours costs the same: the bias is free, features that are constant over the shots are
left out, not divided by 1e-5, and l2 is the one by which each shot is best predicted from the others,
y_i - f_-i(x_i) = (y_i - f(x_i)) / (1 - h_i), from one eigendecomposition; of single shots, 2^10. All in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray

from vitrail.evaluate.evaluator import Evaluator, Judged, Validation
from vitrail.evaluate.features import Features, features
from vitrail.progress import say

AUTHORS_L2, AUTHORS_BIAS = 2.0**10, 100.0
COARSE, FINE = 10.0 ** np.arange(-3.0, 4.0), 10.0 ** np.array([-1 / 3, 1 / 3])  # of the mean eigenvalue
ROUNDS = 1_000  # of the bootstrap
CHUNK = 2**24  # numbers at once


@dataclass(frozen=True)
class Fewshot(Evaluator):
    """Accuracy from so many training images of each class; several draws of them."""

    kind: ClassVar[str] = "fewshot"
    head: ClassVar[bool] = False

    shots: tuple[int, ...] = (1, 5, 10, 25)
    """Images of each class; those numbers that the smallest class does not have are left out, and that is said."""
    seeds: int = 3
    """Draws of them: seed s is the draw of the authors' code."""

    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float]]:
        """Yields for each number of shots ("fewshot_5", accuracy), ("fewshot_5_low", ...) and ("fewshot_5_high", ...),
        the 95 % interval over draws and test images, and ("fewshot_5_authors", accuracy) by the authors' protocol; last
        "samples". ValueError as `features`, and where no number of shots can be had."""
        bank, test = features(task, data.bank()), features(task, data)
        counts = np.bincount(bank.targets, minlength=bank.classes)
        least = int(counts.argmin())
        small = f"{data.source.class_names[least]} has {counts[least]:,} training images"
        if not (fitting := [n for n in self.shots if n <= counts[least]]):
            raise ValueError(f"{small}, fewer than the {min(self.shots)} shots of each class that are asked for.")
        if left := [str(n) for n in self.shots if n > counts[least]]:
            say(f"few-shot with {', '.join(left)} images a class is left out: {small}.")
        for n in fitting:
            right = {authors: self._right(bank, test, n, authors) for authors in (False, True)}
            yield f"fewshot_{n}", float(right[False].mean())
            low, high = interval(right[False])
            yield f"fewshot_{n}_low", low
            yield f"fewshot_{n}_high", high
            yield f"fewshot_{n}_authors", float(right[True].mean())
        yield "samples", float(len(test))

    def _right(self, bank: Features, test: Features, n: int, authors: bool) -> Bool[np.ndarray, "seeds N"]:
        found = list[NDArray[np.bool_]]()
        for seed in range(self.seeds):
            places = draw(bank.targets, n, seed)
            fitted = ridge(bank.values[places], bank.targets[places], bank.classes, authors)
            found.append(fitted.scores(test.values).argmax(1) == test.targets)
        return np.stack(found)


def draw(labels: Int64[np.ndarray, "N"], n: int, seed: int) -> Int64[np.ndarray, "S"]:
    """Places of `n` images of each class, or all where it has fewer, as big_vision draws them: one generator permutes
    each class in turn."""
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.permutation(np.flatnonzero(labels == k))[:n] for k in np.unique(labels)])


@dataclass(frozen=True, eq=False)
class Ridge:
    """scores = x weight + bias. error: the mean square of each shot by the others, NaN where it did not choose l2."""

    weight: Float[np.ndarray, "D K"]
    bias: Float[np.ndarray, "K"]
    l2: float
    error: float

    def scores(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
        """float64."""
        return x.astype(np.float64) @ self.weight + self.bias


def ridge(x: Float[np.ndarray, "N D"], labels: Int64[np.ndarray, "N"], classes: int, authors: bool = False) -> Ridge:
    """Fitted to 2 onehot - 1; the module says what differs for the authors'."""
    given, y = torch.from_numpy(x).double(), 2 * F.one_hot(torch.from_numpy(labels), classes).double() - 1
    mean, std = given.mean(0), given.std(0, correction=0)
    scale = 1 / (std + 1e-5) if authors else torch.where(std > 1e-9 * std.max(), 1 / std, 0.0)
    z, level = (given - mean) * scale, torch.zeros(classes).double() if authors else y.mean(0)
    z = torch.cat([z, torch.full_like(z[:, :1], AUTHORS_BIAS)], 1) if authors else z
    y = y - level
    if wide := len(z) < z.shape[1]:  # X = U sqrt(values) V^T, by the smaller of the two Gram matrices
        values, inner = torch.linalg.eigh(z @ z.T)
        kept = values > 1e-12 * values[-1].clamp_min(1e-300)
        values, inner = values[kept], inner[:, kept]
        along = inner * values.sqrt()
    else:
        values, inner = torch.linalg.eigh(z.T @ z)
        values, along = values.clamp_min(0), z @ inner
    turned = along.T @ y
    single = authors or np.bincount(labels).max() == 1  # without it, a shot's class is not there to be found
    l2, error = (AUTHORS_L2, float("nan")) if single else _chosen(along, values, turned, y)
    weight = turned / (values + l2)[:, None]
    weight = z.T @ (inner @ (weight / values.sqrt()[:, None])) if wide else inner @ weight
    bias = AUTHORS_BIAS * weight[-1] if authors else level
    weight = weight[: len(scale)] * scale[:, None]
    return Ridge(weight.numpy(), (bias - mean @ weight).numpy(), l2, error)


def _chosen(along: torch.Tensor, values: torch.Tensor, turned: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """(l2, its leave-one-out error): the best of a coarse grid, then of a fine one around it. They are compared in
    float32, which takes half of the time."""
    squares, half = along.square(), (along.float(), y.float())

    def error(l2: float, along: torch.Tensor, y: torch.Tensor) -> float:
        shrunk = 1 / (values + l2)
        left = (1 - 1 / len(y) - squares @ shrunk).clamp_min(1e-9)  # 1 - h_i; that of a single shot is 0
        rest = torch.addmm(y, along, (shrunk[:, None] * turned).to(y), alpha=-1)
        return float((rest.square().sum(1) / left.square()).mean() / y.shape[1])

    unit = float(values.mean()) if len(values) else 0.0
    coarse = {float(l2): error(float(l2), *half) for l2 in COARSE * (unit or 1.0)}
    around = min(coarse, key=coarse.__getitem__)
    found = coarse | {float(l2): error(float(l2), *half) for l2 in around * FINE}
    best = min(found, key=found.__getitem__)
    return best, error(best, along, y)


def interval(right: Bool[np.ndarray, "S N"], seed: int = 0) -> tuple[float, float]:
    """(low, high) of the mean, 95 % of resamples of both the draws and the images."""
    generator, (draws, count), means = np.random.default_rng(seed), right.shape, list[NDArray[np.float64]]()
    weights = right.astype(np.float32)
    for start in range(0, ROUNDS, step := max(1, CHUNK // count)):
        rounds = min(step, ROUNDS - start)
        images = generator.multinomial(count, np.full(count, 1 / count), rounds).astype(np.float32)
        seeds = generator.multinomial(draws, np.full(draws, 1 / draws), rounds)
        means.append((seeds * (images @ weights.T)).sum(1) / (draws * count))
    found = np.concatenate(means)
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))
