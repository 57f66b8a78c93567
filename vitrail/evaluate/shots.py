"""A classifier from a handful of images: a head in closed form on frozen features, and when it should say "none".

    head = fitted(values, labels, classes)      # head.weight (K, D), head.bias (K,): logits of a softmax
    head.none_below                             # accepts ACCEPTED of such images, and head.false of other classes'

Both figures are of images that the head has not seen: an image of a class is judged by the others (evaluate/probe.py),
and those of a class, as images of none, by heads that were fitted without that class.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.data.sources.fingerprint import spread
from vitrail.evaluate.probe import ridge

ACCEPTED = 0.95  # of images of the classes
LEFT_OUT = 50  # classes at most that are left out in turn


@dataclass(frozen=True, eq=False)
class Head:
    """accuracy: of each image by the others. none_below: the probability of the best class under which an image is of
    none; 0 where no class has two images or there are fewer than three classes. false: the fraction of images of other
    classes that are accepted nevertheless, NaN where that cannot be measured."""

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, "K"]
    accuracy: float
    none_below: float
    false: float


def fitted(values: Float[np.ndarray, "N D"], labels: Int64[np.ndarray, "N"], classes: int) -> Head:
    """Every class has an image. ValueError for a single class, which nothing could be told from."""
    if classes < 2:
        raise ValueError("there is one class; a classifier needs two or more, such as one of other things.")
    weight, bias, alone = _fit(values, labels, classes)
    right = float((alone.argmax(1).numpy() == labels).mean())
    counts = np.bincount(labels, minlength=classes)
    if classes < 3 or counts.min() < 2:
        return Head(weight, bias, right, 0.0, float("nan"))
    confidence = alone.softmax(1).amax(1).numpy()
    none_below = float(np.quantile(confidence, 1 - ACCEPTED))
    accepted = total = 0
    for left in spread(classes, LEFT_OUT):
        out = labels == left
        others = labels[~out] - (labels[~out] > left)
        weights, biases, _ = _fit(values[~out], others, classes - 1)
        said = torch.from_numpy(values[out]).double() @ weights.T + biases
        accepted += int((said.softmax(1).amax(1) >= none_below).sum())
        total += int(out.sum())
    return Head(weight, bias, right, none_below, accepted / total)


def _fit(
    values: Float[np.ndarray, "N D"], labels: Int64[np.ndarray, "N"], classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows = F.one_hot(torch.from_numpy(labels), classes).double()
    return ridge(torch.from_numpy(values).double(), rows, several=False)
