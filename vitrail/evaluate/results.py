"""Per-image predictions on the validation set, and the metrics derived from them: rates, confusion, calibration.

    result = Accuracy().judge(task, validation)
    result.metrics                          # {"accuracy": 0.87, "loss": 0.36, "samples": 2000.0}
    result.per_class().recall               # (K,), as scikit-learn computes it
    accuracy_interval(1740, 2000)           # (0.854, 0.884)

Arrays have one entry per image, N in all; `indices` says which of the source's images each is. A rate of nothing, such
as the recall of a class without images, is NaN.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, Shaped
from numpy.typing import NDArray

from vitrail.evaluate.evaluator import Result

BINS = 15  # of the calibration, as in Guo et al. (2017)
NORMAL_95 = 1.959963984540054  # the standard normal's 97.5 % point


@dataclass(frozen=True, eq=False)
class PerClass:
    """Rates in [0, 1] or NaN, one for each of K classes. support: its images. f1: the harmonic mean of the others."""

    support: Int64[np.ndarray, "K"]
    precision: Float[np.ndarray, "K"]
    recall: Float[np.ndarray, "K"]
    f1: Float[np.ndarray, "K"]


@dataclass(frozen=True)
class Pair:
    """`count` images of the class `truth` were taken for the class `predicted`."""

    truth: int
    predicted: int
    count: int


@dataclass(frozen=True, eq=False)
class Calibration:
    """Bins of equal width over [0, 1], by confidence: images, their mean confidence and their accuracy (NaN in an empty
    bin). error: the expected calibration error, the mean distance of the two over all images."""

    count: Int64[np.ndarray, "bins"]
    confidence: Float[np.ndarray, "bins"]
    accuracy: Float[np.ndarray, "bins"]
    error: float


@dataclass(frozen=True, eq=False)
class ClassificationResult(Result):
    """What one pass over a source found.

    indices: the numbers of the images in the source, ascending. losses: of each. problems: a sentence for each image
    that could not be read and was left out.
    """

    class_names: tuple[str, ...]
    indices: Int64[np.ndarray, "N"]
    losses: Float[np.ndarray, "N"]
    problems: tuple[str, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics that sum it up; "samples" counts the images evaluated, "unreadable" those left out."""
        found = {**self._scores(), "loss": float(self.losses.mean())} | self._also()
        found["samples"] = float(len(self.losses))
        return found | ({"unreadable": float(len(self.problems))} if self.problems else {})

    @abstractmethod
    def _scores(self) -> dict[str, float]: ...

    def _also(self) -> dict[str, float]:
        """Further scores, which no headline needs."""
        return {}

    @abstractmethod
    def per_class(self) -> PerClass: ...

    @abstractmethod
    def decisions(self) -> Shaped[np.ndarray, "N *K"]:
        """What is predicted for each image: the number of a class, or for several labels a bool for each class."""

    @abstractmethod
    def worst(self, count: int) -> Int64[np.ndarray, "n"]:
        """Places in the arrays, 0 .. N - 1, of up to `count` images with the worst predictions, worst first."""


@dataclass(frozen=True, eq=False)
class SingleLabel(ClassificationResult):
    """One image or more, of one class each.

    confidence, truth: probabilities of the predicted class and of the true one. top5: whether the true one is among the
    five most probable; None where there are no more than five classes.
    """

    targets: Int64[np.ndarray, "N"]
    predicted: Int64[np.ndarray, "N"]
    confidence: Float[np.ndarray, "N"]
    truth: Float[np.ndarray, "N"]
    top5: Bool[np.ndarray, "N"] | None = None

    @property
    def correct(self) -> Bool[np.ndarray, "N"]:
        return self.targets == self.predicted

    def _scores(self) -> dict[str, float]:
        found = {"accuracy": float(self.correct.mean())}
        return found if self.top5 is None else found | {"top5": float(self.top5.mean())}

    def _also(self) -> dict[str, float]:
        """The mean accuracy of the classes, where they differ in number."""
        even = np.ptp(np.unique(self.targets, return_counts=True)[1]) == 0
        return {} if even else {"balanced_accuracy": float(np.nanmean(self.per_class().recall))}

    def confusion(self) -> Int64[np.ndarray, "K K"]:
        """How many images of class i (row) were taken for class j (column)."""
        classes = len(self.class_names)
        return np.bincount(self.targets * classes + self.predicted, minlength=classes**2).reshape(classes, classes)

    def decisions(self) -> Int64[np.ndarray, "N"]:
        return self.predicted

    def pairs(self) -> list[Pair]:
        """Which classes are confused, most often first; memory grows with the mistakes, not with K x K."""
        wrong, classes = ~self.correct, len(self.class_names)
        found, counts = np.unique(self.targets[wrong] * classes + self.predicted[wrong], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        codes = zip(found[order].tolist(), counts[order].tolist(), strict=True)
        return [Pair(code // classes, code % classes, count) for code, count in codes]

    def per_class(self) -> PerClass:
        classes = len(self.class_names)
        hits, predicted, support = (
            np.bincount(labels, minlength=classes)
            for labels in (self.targets[self.correct], self.predicted, self.targets)
        )
        return _rates(hits, predicted, support)

    def worst(self, count: int) -> Int64[np.ndarray, "n"]:
        """The mistakes with the highest confidence."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")[:count]]

    def calibration(self) -> Calibration:
        """Whether 80 % of the images with a confidence of 80 % are correct; bins are open below, closed above."""
        place = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], self.confidence)
        count = np.bincount(place, minlength=BINS)
        confidence, correct = (np.bincount(place, v, BINS) for v in (self.confidence, self.correct.astype(np.float64)))
        error = float(np.abs(confidence - correct).sum() / len(place))
        return Calibration(count, _fraction(confidence, count), _fraction(correct, count), error)


@dataclass(frozen=True, eq=False)
class MultiLabel(ClassificationResult):
    """Images of any number of classes each, which targets names. A logit of 0 is a probability of 0.5.

    ValueError where no image has a class.
    """

    targets: Bool[np.ndarray, "N K"]
    logits: Float[np.ndarray, "N K"]

    def __post_init__(self) -> None:
        if not self.targets.any():
            raise ValueError("none of the images has a label, so there is nothing to evaluate.")

    def _scores(self) -> dict[str, float]:
        """The mean of the average precisions of the classes that have images, and F1 over all decisions at 0.5."""
        predicted = self.decisions()
        f1 = 2 * (predicted & self.targets).sum() / (predicted.sum() + self.targets.sum())
        return {"mAP": float(np.nanmean(self.average_precisions())), "f1": float(f1)}

    def average_precisions(self) -> Float[np.ndarray, "K"]:
        """That of each class; NaN for one without images."""
        return np.array([average_precision(*column) for column in zip(self.logits.T, self.targets.T, strict=True)])

    def decisions(self) -> Bool[np.ndarray, "N K"]:
        return self.logits >= 0

    def per_class(self) -> PerClass:
        predicted = self.decisions()
        return _rates((predicted & self.targets).sum(0), predicted.sum(0), self.targets.sum(0))

    def worst(self, count: int) -> Int64[np.ndarray, "n"]:
        """The images with the greatest loss."""
        return np.argsort(-self.losses, kind="stable")[:count]


def difference(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, float, float]:
    """(other - one, low, high): the difference of two accuracies on the same images, with Wald's interval of paired
    proportions, half an image added to each kind of disagreement (Agresti and Min, 2005)."""
    count, gained, lost = len(one), int((other & ~one).sum()), int((one & ~other).sum())
    plus, minus, total = gained + 0.5, lost + 0.5, count + 2
    centre = (plus - minus) / total
    half = NORMAL_95 * math.sqrt(plus + minus - (plus - minus) ** 2 / total) / total
    return (gained - lost) / count, centre - half, centre + half


def agreement(one: ClassificationResult, other: ClassificationResult) -> float:
    """The fraction of decisions that are the same in two results, over the images that are in both."""
    _, first, second = np.intersect1d(one.indices, other.indices, assume_unique=True, return_indices=True)
    return float((one.decisions()[first] == other.decisions()[second]).mean())


def average_precision(scores: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> float:
    """sum_n (R_n - R_{n-1}) P_n over the thresholds, equal scores being one: the area below the precision-recall curve,
    without interpolation, as in scikit-learn. NaN where nothing is positive."""
    if not positive.any():
        return math.nan
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(positive[order])[last]
    return float((np.diff(hits, prepend=0) * hits / (last + 1)).sum() / hits[-1])


def accuracy_interval(correct: int, count: int) -> tuple[float, float]:
    """(low, high), the Wilson score interval (1927) that covers the true accuracy in 95 % of such samples.

    It stays inside [0, 1], and is honest for few images and for accuracies near 1, unlike accuracy +- 1.96 sigma.
    """
    assert 0 <= correct <= count > 0, f"{correct} of {count} are correct"
    accuracy, square = correct / count, NORMAL_95**2
    centre = (correct + square / 2) / (count + square)
    half = NORMAL_95 / (1 + square / count) * math.sqrt(accuracy * (1 - accuracy) / count + square / (4 * count**2))
    return (centre - half if correct else 0.0), (centre + half if correct < count else 1.0)


def _rates(hits: NDArray[np.int64], predicted: NDArray[np.int64], support: NDArray[np.int64]) -> PerClass:
    """(K,) each: images of a class that are predicted correctly, predicted at all, and that there are."""
    precision, recall = _fraction(hits, predicted), _fraction(hits, support)
    return PerClass(support, precision, recall, f1=_fraction(2 * hits, predicted + support))


def _fraction(part: NDArray[np.float64] | NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
