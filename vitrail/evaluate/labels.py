"""Which labels may be wrong: confident learning (Northcutt et al., 2021) on frozen features.

A trained network has learned wrong labels by heart, so its probabilities do not show them. Here each image is judged by
the others: ridge regression in closed form, each left out in turn (evaluate/probe.py). An image is suspected where it
is more probable of another class than images of that class are on average, as many of each pair of classes as the
counts of such images say; the most improbable label comes first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64

from vitrail.evaluate.evaluator import Evaluator, Judged, Result, Validation
from vitrail.evaluate.features import features
from vitrail.evaluate.probe import ridge

SHOWN = 10  # of those suspected, in words


@dataclass(frozen=True, eq=False)
class Suspects(Result):
    """Images whose labels may be wrong, the most improbable first. names: of images. given, likely: classes."""

    names: tuple[str, ...]
    given: tuple[str, ...]
    likely: tuple[str, ...]
    probability: Float[np.ndarray, "n"]

    def document(self) -> list[dict[str, Any]]:
        """One entry an image: {image, label, likely, probability}, the last one of the label that it has."""
        rows = zip(self.names, self.given, self.likely, self.probability.tolist(), strict=True)
        return [dict(zip(("image", "label", "likely", "probability"), row, strict=True)) for row in rows]

    def lines(self) -> list[str]:
        """The first ones."""
        shown = zip(self.names[:SHOWN], self.given, self.likely, strict=False)
        more = f"; the first {SHOWN}, --json has all" if len(self.names) > SHOWN else ""
        head = f"labels that may be wrong: {len(self.names):,}{more}"
        return [head, *(f"  {name}: {given}, or {likely}?" for name, given, likely in shown)]


@dataclass(frozen=True)
class Labels(Evaluator):
    """Judges the labels of the images, not the model."""

    kind: ClassVar[str] = "labels"
    head: ClassVar[bool] = False

    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float | Suspects]]:
        """Yields ("label_errors", how many are suspected), "samples", and ("labels", which). ValueError as `features`,
        and where there is only one class."""
        found = features(task, data)
        if len(np.unique(found.targets)) < 2:
            raise ValueError("labels are compared between classes, but all images have one.")
        probabilities = out_of_sample(found.values, found.targets, found.classes)
        wrong = suspected(probabilities, found.targets)
        order = np.flatnonzero(wrong)[np.argsort(quality(probabilities, found.targets)[wrong], kind="stable")]
        other = probabilities.copy()
        other[np.arange(len(other)), found.targets] = -1
        classes = np.array(data.source.class_names, object)
        yield "label_errors", float(len(order))
        yield "samples", float(len(found))
        yield (
            "labels",
            Suspects(
                tuple(data.source.name(index) for index in found.indices[order].tolist()),
                tuple(classes[found.targets[order]]),
                tuple(classes[other[order].argmax(1)]),
                probabilities[order, found.targets[order]],
            ),
        )


def out_of_sample(
    values: Float[np.ndarray, "N D"], labels: Int64[np.ndarray, "N"], classes: int
) -> Float[np.ndarray, "N K"]:
    """What ridge regression on the other images says of each one."""
    x = torch.from_numpy(values).double()
    x = (x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-9)
    rows = F.one_hot(torch.from_numpy(labels), classes).double()
    return ridge(x, rows, several=False)[2].softmax(1).numpy()


def thresholds(probabilities: Float[np.ndarray, "N K"], labels: Int64[np.ndarray, "N"]) -> Float[np.ndarray, "K"]:
    """The mean probability of each class over the images that have it as their label; 1 without images."""
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    own = np.bincount(labels, probabilities[np.arange(len(labels)), labels], classes)
    return np.where(counts > 0, own / np.maximum(counts, 1), 1.0)


def joint(probabilities: Float[np.ndarray, "N K"], labels: Int64[np.ndarray, "N"]) -> Float[np.ndarray, "K K"]:
    """How many images with label i (row) are of class j, estimated: counts of the confident ones, scaled to the number
    of images with each label (eq. 1 and 3 of the paper)."""
    classes = probabilities.shape[1]
    sure = probabilities >= thresholds(probabilities, labels) - 1e-6
    likely = np.where(sure, probabilities, -1.0).argmax(1)
    some = sure.any(1)
    counts = np.bincount(labels[some] * classes + likely[some], minlength=classes**2).reshape(classes, classes)
    counts = counts.astype(np.float64)
    np.fill_diagonal(counts, np.maximum(counts.diagonal(), 1))
    return counts / counts.sum(1, keepdims=True) * np.bincount(labels, minlength=classes)[:, None]


def suspected(probabilities: Float[np.ndarray, "N K"], labels: Int64[np.ndarray, "N"]) -> Bool[np.ndarray, "N"]:
    """Pruned by noise rate: of each pair of classes (i, j) as many images of label i as are estimated to be of j, those
    with the greatest margin of j over i (section 3.2)."""
    found, counts = np.zeros(len(labels), bool), np.rint(joint(probabilities, labels)).astype(int)
    for i in np.unique(labels).tolist():
        mine = np.flatnonzero(labels == i)
        margins = probabilities[mine] - probabilities[mine, i][:, None]
        for j in np.flatnonzero(counts[i]).tolist():
            if j != i:
                found[mine[np.argsort(-margins[:, j], kind="stable")[: counts[i, j]]]] = True
    return found & (probabilities.argmax(1) != labels)


def quality(probabilities: Float[np.ndarray, "N K"], labels: Int64[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """How probable each label is: self-confidence, which ranks better here than the margin over another class."""
    return probabilities[np.arange(len(labels)), labels]
