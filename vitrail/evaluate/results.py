"""What a model said of every held-back image, and what follows from it: rates, mistakes, confusion, calibration.

    examination = Accuracy(source).examine(task)
    examination.metrics                     # {"accuracy": 0.87, "loss": 0.36, "samples": 2000.0}
    examination.per_class().recall          # (K,), as scikit-learn computes it
    accuracy_interval(1740, 2000)           # (0.854, 0.884)

Arrays have one entry an image, N in all; `indices` says which of the source's records each is. A rate of nothing, such
as the recall of a class without images, is NaN.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, Shaped
from numpy.typing import NDArray

from vitrail.evaluate.evaluator import Result

BINS = 15  # of the calibration, as Guo et al. (2017) have it
NORMAL_95 = 1.959963984540054  # the standard normal's 97.5 % point


@dataclass(frozen=True, eq=False)
class PerClass:
    """Rates in [0, 1] or NaN, one for each of K classes. support: images that have it. f1: the harmonic mean."""

    support: Int64[np.ndarray, "K"]
    precision: Float[np.ndarray, "K"]
    recall: Float[np.ndarray, "K"]
    f1: Float[np.ndarray, "K"]


@dataclass(frozen=True)
class Pair:
    """`count` images of the class `truth` were taken for the class `taken`."""

    truth: int
    taken: int
    count: int


@dataclass(frozen=True, eq=False)
class Calibration:
    """Bins of equal width over [0, 1], by confidence: images, their mean confidence and the share that is right (NaN
    in an empty bin). error: the expected calibration error, the mean distance of the two over all images."""

    count: Int64[np.ndarray, "bins"]
    confidence: Float[np.ndarray, "bins"]
    accuracy: Float[np.ndarray, "bins"]
    error: float


@dataclass(frozen=True, eq=False)
class ClassificationResult(Result):
    """What one pass over a source found.

    indices: the numbers of the images in the source, rising. losses: of each. problems: a sentence for each image that
    could not be read and was left out."""

    class_names: tuple[str, ...]
    indices: Int64[np.ndarray, "N"]
    losses: Float[np.ndarray, "N"]
    problems: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that sum it up; "samples" counts the images that were judged, "unreadable" those left out."""
        found = {**self._scores(), "loss": float(self.losses.mean()), "samples": float(len(self.losses))}
        return found | ({"unreadable": float(len(self.problems))} if self.problems else {})

    @abstractmethod
    def _scores(self) -> dict[str, float]: ...

    @abstractmethod
    def per_class(self) -> PerClass: ...

    @abstractmethod
    def decisions(self) -> Shaped[np.ndarray, "N *K"]:
        """What it says of each image: the number of a class, or for several labels a bool for each class."""

    @abstractmethod
    def worst(self, count: int) -> Int64[np.ndarray, "n"]:
        """Places in the arrays, 0 .. N - 1, of up to `count` images that the model got most wrong, worst first."""


@dataclass(frozen=True, eq=False)
class SingleLabel(ClassificationResult):
    """Images of one class each, one or more.

    confidence, truth: probabilities of the predicted class and of the true one. top5: whether the true one is among the
    five most probable; None where there are no more than five.
    """

    targets: Int64[np.ndarray, "N"]
    predicted: Int64[np.ndarray, "N"]
    confidence: Float[np.ndarray, "N"]
    truth: Float[np.ndarray, "N"]
    top5: Bool[np.ndarray, "N"] | None = None

    @property
    def right(self) -> Bool[np.ndarray, "N"]:
        return self.targets == self.predicted

    def _scores(self) -> dict[str, float]:
        found = {"accuracy": float(self.right.mean())}
        return found if self.top5 is None else found | {"top5": float(self.top5.mean())}

    def confusion(self) -> Int64[np.ndarray, "K K"]:
        """How many images of class i (row) were taken for class j (column)."""
        classes = len(self.class_names)
        return np.bincount(self.targets * classes + self.predicted, minlength=classes**2).reshape(classes, classes)

    def decisions(self) -> Int64[np.ndarray, "N"]:
        return self.predicted

    def pairs(self) -> list[Pair]:
        """What was taken for what, most often first; in memory for the mistakes, not for K x K."""
        wrong, classes = ~self.right, len(self.class_names)
        found, counts = np.unique(self.targets[wrong] * classes + self.predicted[wrong], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        codes = zip(found[order].tolist(), counts[order].tolist(), strict=True)
        return [Pair(code // classes, code % classes, count) for code, count in codes]

    def per_class(self) -> PerClass:
        classes = len(self.class_names)
        hits, taken, support = (
            np.bincount(labels, minlength=classes)
            for labels in (self.targets[self.right], self.predicted, self.targets)
        )
        return _rates(hits, taken, support)

    def worst(self, count: int) -> Int64[np.ndarray, "n"]:
        """The mistakes in which the model was most confident."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")[:count]]

    def calibration(self) -> Calibration:
        """Whether of the images with a confidence of 80 %, say, 80 % are right; bins are open below, closed above."""
        place = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], self.confidence)
        count = np.bincount(place, minlength=BINS)
        confidence, right = (np.bincount(place, v, BINS) for v in (self.confidence, self.right.astype(np.float64)))
        error = float(np.abs(confidence - right).sum() / len(place))
        return Calibration(count, _share(confidence, count), _share(right, count), error)


@dataclass(frozen=True, eq=False)
class MultiLabel(ClassificationResult):
    """Images of any number of classes each: targets says of which. A logit of 0 is a probability of one half.

    ValueError where no image has a class.
    """

    targets: Bool[np.ndarray, "N K"]
    logits: Float[np.ndarray, "N K"]

    def __post_init__(self) -> None:
        if not self.targets.any():
            raise ValueError("none of the images has a label, so there is nothing to evaluate.")

    def _scores(self) -> dict[str, float]:
        """The mean of the average precisions of the classes that have images, and F1 over all decisions at 0.5."""
        said = self.decisions()
        f1 = 2 * (said & self.targets).sum() / (said.sum() + self.targets.sum())
        return {"mAP": float(np.nanmean(self.average_precisions())), "f1": float(f1)}

    def average_precisions(self) -> Float[np.ndarray, "K"]:
        """Of each class; NaN for one without images."""
        return np.array([average_precision(*column) for column in zip(self.logits.T, self.targets.T, strict=True)])

    def decisions(self) -> Bool[np.ndarray, "N K"]:
        return self.logits >= 0

    def per_class(self) -> PerClass:
        said = self.decisions()
        return _rates((said & self.targets).sum(0), said.sum(0), self.targets.sum(0))

    def worst(self, count: int) -> Int64[np.ndarray, "n"]:
        """The images with the greatest loss."""
        return np.argsort(-self.losses, kind="stable")[:count]


def agreement(one: ClassificationResult, other: ClassificationResult) -> float:
    """The share of decisions that two models make alike, of the images that both have judged."""
    _, first, second = np.intersect1d(one.indices, other.indices, assume_unique=True, return_indices=True)
    return float((one.decisions()[first] == other.decisions()[second]).mean())


def average_precision(scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> float:
    """sum_n (R_n - R_{n-1}) P_n over the thresholds, equal scores being one: the area below the precision-recall curve,
    without interpolation, as scikit-learn has it. NaN where nothing is positive."""
    if not positive.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(positive[order])[last]
    return float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / hits[-1])


def accuracy_interval(right: int, count: int) -> tuple[float, float]:
    """(low, high), the Wilson score interval (1927) that covers the true accuracy in 95 % of such samples.

    It stays inside [0, 1], and is honest for few images and for accuracies near 1, where right +- 1.96 sigma is not.
    """
    assert 0 <= right <= count, f"{right} of {count} are right"
    assert count > 0, "an interval needs a sample"
    share, square = right / count, NORMAL_95**2
    centre = (right + square / 2) / (count + square)
    half = NORMAL_95 / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    return (centre - half if right else 0.0), (centre + half if right < count else 1.0)


def _rates(hits: NDArray[np.int64], taken: NDArray[np.int64], support: NDArray[np.int64]) -> PerClass:
    """(K,) each: images of a class that were found, that were taken for it, that have it."""
    return PerClass(support, _share(hits, taken), _share(hits, support), _share(2 * hits, taken + support))


def _share(part: NDArray[np.float64] | NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """part / whole, NaN where there is no whole."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
