"""Whether features learn anything, while they are trained without labels.

"rank": how many directions the features use, exp(entropy) of the singular values of the centred features (Roy and
Vetterli, 2007; RankMe, Garrido et al., 2023, does not centre, and then the mean decides). It grows with the number of
images, so it is always that of the same ones, and compares runs of one method and width alone. "spread": the standard
deviation of the features' directions, times the root of the width: 1 where they point everywhere, 0 where all images
have the same. Where images have labels, "knn" is the accuracy of their nearest neighbours, and ranks methods.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64

from vitrail.data.sources.fingerprint import spread as evenly
from vitrail.data.sources.source import Source, Subset
from vitrail.evaluate.evaluator import Evaluator, Judged, Validation
from vitrail.evaluate.knn import neighbours, votes
from vitrail.evaluate.results import accuracy_interval

K, TEMPERATURE = 20, 0.07  # DINO's


@dataclass(frozen=True)
class Watch(Evaluator):
    """ValueError for fewer than 2 images."""

    kind: ClassVar[str] = "watch"
    head: ClassVar[bool] = False

    images: int = 2_000
    """Validation images that are looked at, evenly spaced."""
    bank: int = 10_000
    """Training images among which neighbours are looked for."""

    def __post_init__(self) -> None:
        if min(self.images, self.bank) < 2:
            raise ValueError(f"watch looks at {self.images} images and {self.bank} neighbours; give 2 or more of each.")

    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float]]:
        """Yields, where images have one class each, ("knn", accuracy) with its 95 % interval, "knn_low" and "knn_high";
        "rank", "spread", and "samples"."""
        values, labels = _features(task, replace(data, source=_some(data.source, self.images)))
        labelled = labels is not None and data.source.targets == "class" and data.train is not None
        if labelled and labels is not None and data.train is not None:
            bank, theirs = _features(task, replace(data, source=_some(data.train, self.bank)))
            if theirs is not None:
                found = neighbours(values, bank, K)
                right = votes(*found, theirs, len(data.source.class_names), TEMPERATURE).argmax(1) == labels
                yield "knn", float(right.mean())
                low, high = accuracy_interval(int(right.sum()), len(right))
                yield "knn_low", low
                yield "knn_high", high
        yield "rank", effective_rank(values)
        yield "spread", spread(values)
        yield "samples", float(len(values))


def effective_rank(values: Float[np.ndarray, "N D"]) -> float:
    """exp(- sum p log p), p the singular values of the centred features over their sum; from 1 to min(N - 1, D), and 0
    where all are the same."""
    x = values.astype(np.float64)
    sizes = np.linalg.svd(x - x.mean(0), compute_uv=False)
    if not sizes.sum() > 1e-12 * np.abs(x).sum():
        return 0.0
    p = sizes[sizes > 0] / sizes.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def spread(values: Float[np.ndarray, "N D"]) -> float:
    """The root of 1 - |mean direction|^2."""
    x = values.astype(np.float64)
    directions = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return float(np.sqrt(max(0.0, 1 - np.square(directions.mean(0)).sum())))


def _some(source: Source, most: int) -> Source:
    return Subset(source, evenly(len(source), most)) if len(source) > most else source


@torch.inference_mode()
def _features(task: Judged, data: Validation) -> tuple[Float[np.ndarray, "N D"], Int64[np.ndarray, "N"] | None]:
    """And the class of each, where all have one."""
    found = list[np.ndarray]()
    labels: list[np.ndarray] | None = []
    for batch in data.batches():
        found.append(task.predict(batch)["features"].float().cpu().numpy())
        if labels is not None and "targets" in batch and not batch["targets"].is_floating_point():
            labels.append(batch["targets"].cpu().numpy())
        else:
            labels = None
    return np.concatenate(found), np.concatenate(labels) if labels else None
