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
    """accuracy: of each image by the others. none_below: the best class's logit below which an image is of none (not
    its probability, which is near 1 for whatever lies far away); None where a class has one image, or there are fewer
    than three classes. false: the fraction of images of other classes that are accepted nevertheless, NaN likewise."""

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, "K"]
    accuracy: float
    none_below: float | None
    false: float


def fitted(values: Float[np.ndarray, "N D"], labels: Int64[np.ndarray, "N"], classes: int) -> Head:
    """Every class has an image. ValueError for a single class, which nothing could be told from."""
    if classes < 2:
        raise ValueError("there is one class; a classifier needs two or more, such as one of other things.")
    weight, bias, alone = _fit(values, labels, classes)
    right = float((alone.argmax(1).numpy() == labels).mean())
    counts = np.bincount(labels, minlength=classes)
    if classes < 3 or counts.min() < 2:
        return Head(weight, bias, right, None, float("nan"))
    accepted = total = 0
    for left in spread(classes, LEFT_OUT):
        out = labels == left
        others = labels[~out] - (labels[~out] > left)
        weights, biases, without = _fit(values[~out], others, classes - 1)
        best = (torch.from_numpy(values[out]).double() @ weights.T + biases).amax(1)
        accepted += int((best >= _limit(without)).sum())
        total += int(out.sum())
    return Head(weight, bias, right, _limit(alone), accepted / total)


def _limit(logits: Float[Tensor, "N K"]) -> float:
    return float(np.quantile(logits.amax(1).numpy(), 1 - ACCEPTED))


def _fit(
    values: Float[np.ndarray, "N D"], labels: Int64[np.ndarray, "N"], classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    rows = F.one_hot(torch.from_numpy(labels), classes).double()
    return ridge(torch.from_numpy(values).double(), rows, several=False)
