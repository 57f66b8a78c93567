"""Whether features learn anything, while they are trained without labels.

"rank": how many directions the features use, exp(entropy) of the singular values of the centred features (Roy and
Vetterli, 2007; RankMe, Garrido et al., 2023, does not centre, and then the mean decides). It grows with the number of
images, so it is always that of the same ones, and compares runs of one method and width alone. "spread": the standard
deviation of the features' directions, times the root of the width: 1 where they point everywhere, 0 where all images
have the same. Where images have labels, "knn" is the accuracy of their nearest neighbours, and ranks methods.
"pictures": what the task shows of a few images. What it hides there follows from an image's number alone, so pictures
of other weights, and of other runs on the same images, are of the same patches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vitrail.batch import Batch
from vitrail.data.loader import stacked
from vitrail.data.sources.fingerprint import spread as evenly
from vitrail.data.sources.source import Source, Subset, Targets, coded
from vitrail.evaluate.evaluator import Evaluator, Judged, Result, Validation
from vitrail.evaluate.knn import neighbours, votes
from vitrail.evaluate.results import accuracy_interval

K, TEMPERATURE = 20, 0.07  # DINO's
SHOWN = 8  # images of which there are pictures


@runtime_checkable
class Pictured(Judged, Protocol):
    """A task that shows what it makes of images (tasks/task.py)."""

    def pictures(self, batch: Batch) -> dict[str, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Pictures(Result):
    """Of n images. names: theirs. images: as the model sees them. found: what the task shows, by name, n of each:
    "tokens", float32 (rows, columns, D), and others, uint8 (H, W, C)."""

    names: list[str]
    images: list[UInt8[np.ndarray, "_ _ C"]]
    found: dict[str, list[np.ndarray]]


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

    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float | Result]]:
        """Yields, of the images that have one class each, if any, ("knn", accuracy) with its 95 % interval, "knn_low"
        and "knn_high"; of all, "rank", "spread", and "samples"; and of a few, where the task shows any, "pictures"."""
        places = _some(np.arange(len(data.source)), self.images)
        values, labels, read = _features(task, data, data.source, places)
        asked = np.flatnonzero(labels >= 0)
        known = (
            np.flatnonzero(_labels(data.train, data.source) >= 0)
            if len(asked) and data.train is not None
            else asked[:0]
        )
        if len(known) and data.train is not None:
            bank, theirs, _ = _features(task, data, data.train, _some(known, self.bank))
            found = neighbours(values[asked], bank, K)
            said = votes(*found, theirs, len(data.source.class_names), TEMPERATURE).argmax(1)
            right = int((said == labels[asked]).sum())
            yield "knn", right / len(asked)
            low, high = accuracy_interval(right, len(asked))
            yield "knn_low", low
            yield "knn_high", high
        yield "rank", effective_rank(values)
        yield "spread", spread(values)
        yield "samples", float(len(values))
        shown = _pictures(task, data, _some(read, SHOWN)) if isinstance(task, Pictured) else None
        if shown and shown.found:
            yield "pictures", shown


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
    """The root of the variance of the directions, 1 - |mean direction|^2; 0 of features that are all 0."""
    x = values.astype(np.float64)
    directions = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return float(np.sqrt(directions.var(0).sum()))


class _All(Subset):
    """Images that are looked at with labels or without."""

    @property
    def targets(self) -> Targets:
        return "none"


def _some(places: Int64[np.ndarray, "N"], most: int) -> Int64[np.ndarray, "n"]:
    return places[evenly(len(places), most)] if len(places) > most else places


def _labels(source: Source, judged: Source) -> Int64[np.ndarray, "N"]:
    """By the class names of the images that are judged, which may number them otherwise; -1 where an image has not one
    of these classes."""
    numbers = {name: number for number, name in enumerate(judged.class_names)}
    own = [numbers.get(name, -1) for name in source.class_names]
    if source.targets != "class":
        return np.full(len(source), -1)
    codes, known = coded(source)
    return np.array([own[some[0]] if some else -1 for some in known], np.int64)[codes]


def _batches(data: Validation, source: Source, places: Int64[np.ndarray, "N"]) -> Iterator[Batch]:
    return replace(data, source=_All(source, places), collate=stacked).batches()


@torch.inference_mode()
def _features(
    task: Judged, data: Validation, source: Source, places: Int64[np.ndarray, "N"]
) -> tuple[Float[np.ndarray, "n D"], Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """And labels and places, of those that can be read."""
    found = [
        (task.predict(batch)["features"].float().cpu().numpy(), batch["indices"].cpu().numpy())
        for batch in _batches(data, source, places)
    ]
    values, read = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return values, _labels(Subset(source, places[read]), data.source), places[read]


@torch.inference_mode()
def _pictures(task: Pictured, data: Validation, places: Int64[np.ndarray, "n"]) -> Pictures:
    """Of the validation images at these places."""
    pictures = Pictures([data.source.name(place) for place in places.tolist()], [], {})
    for batch in _batches(data, data.source, places):
        keys = torch.from_numpy(places).to(batch["indices"].device)[batch["indices"]]
        for name, values in {"images": batch["images"], **task.pictures(batch.plus(keys=keys))}.items():
            kept = pictures.images if name == "images" else pictures.found.setdefault(name, [])
            kept.extend((values if name == "tokens" else values.permute(0, 2, 3, 1)).cpu().numpy())
    return pictures
