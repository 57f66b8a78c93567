"""Robustness: the accuracy on corrupted images, the mean over kinds and strengths (arXiv 1903.12261).

for name, value in Robustness(images=500).run(task, validation): ...    # robustness, robustness_clean, ...

The mean accuracy is not ImageNet-C's mCE, which divides by the errors of AlexNet; and that set's files are JPEG of
quality 85 after the corruption, where these images are corrupted as the model sees them, after resize and crop.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from vitrail.batch import Batch
from vitrail.data.images.corrupt import check, corrupt, suited
from vitrail.data.sources.fingerprint import spread
from vitrail.data.sources.source import Subset
from vitrail.data.stream import prefetch
from vitrail.evaluate.evaluator import Evaluator, Judged, Validation
from vitrail.progress import track

THREADS = 16  # at most, that corrupt images ahead of the model


@dataclass(frozen=True)
class Robustness(Evaluator):
    """Of a task whose `predict` gives logits, for images of one class each. ValueError for an unknown kind or strength.

    kinds: of data/images/corrupt.py; () is all that need no extra and suit the images' channels. images: at most so
    many, evenly spaced. seed: with an image's number in the source it decides what is drawn.
    """

    kind: ClassVar[str] = "robustness"
    divides: ClassVar[bool] = True
    kinds: tuple[str, ...] = ()
    strengths: tuple[int, ...] = (1, 2, 3, 4, 5)
    images: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for kind in self.kinds or suited(3):
            for strength in self.strengths:
                check(kind, strength)
        if not self.strengths or self.images < 1:
            raise ValueError(f"strengths is {self.strengths} and images is {self.images}; there must be one at least.")

    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float]]:
        """Yields ("robustness", mean accuracy over kinds and strengths, in [0, 1]), ("robustness_clean", the same
        images' accuracy as they are), ("robustness_KIND", mean over strengths) of each kind, and ("samples", number).

        ValueError where images have several labels, the task gives no logits, a kind does not suit the images, or none
        can be read.
        """
        kinds = self.kinds or suited(len(data.preprocessing.mean))
        right = data.rows(self._right(task, data, kinds))
        if not len(right):
            raise ValueError("none of the images can be read and has a label, so there is nothing to evaluate.")
        clean, *rates = right.mean(0)
        table = np.reshape(rates, (len(kinds), -1))
        yield "robustness", float(table.mean())
        yield "robustness_clean", float(clean)
        yield from ((f"robustness_{kind}", float(row.mean())) for kind, row in zip(kinds, table, strict=True))
        yield "samples", float(len(right))

    @torch.inference_mode()
    def _right(self, task: Judged, data: Validation, kinds: tuple[str, ...]) -> Bool[np.ndarray, "N M"]:
        """Whether each image is classified rightly: as it is, then for each kind at each strength."""
        if data.source.targets != "class":
            raise ValueError(f"robustness is of images of one class each, but these have {data.source.targets}.")
        numbers = np.array(spread(len(data.source), self.images), np.int64)
        some = replace(data, source=Subset(data.source, numbers))
        count = -(-len(numbers) // (data.batch * data.share[1]))
        tries = [("", 0), *((kind, strength) for kind in kinds for strength in self.strengths)]
        cores = torch.get_num_threads()

        def made(job: tuple[Batch, tuple[str, int]]) -> Batch:
            batch, (kind, strength) = job
            if not kind:
                return batch
            if torch.get_num_threads() > 1:  # a number of each thread: these have a core each
                torch.set_num_threads(1)
            keys = torch.from_numpy(numbers[batch["indices"].cpu().numpy()])
            return batch.plus(images=corrupt(batch["images"], kind, strength, keys, self.seed))

        jobs = ((batch, one) for batch in track(some.batches(), count, "corrupting, batch") for one in tries)
        try:
            found = [_right(task, batch) for batch in prefetch(made, jobs, min(THREADS, os.cpu_count() or 1))]
        finally:
            torch.set_num_threads(cores)  # of threads that begin later
        parts = [torch.stack(found[start : start + len(tries)], 1) for start in range(0, len(found), len(tries))]
        return np.concatenate([part.cpu().numpy() for part in parts] or [np.empty((0, len(tries)), bool)])


def _right(task: Judged, batch: Batch) -> Bool[Tensor, "B"]:
    if "logits" not in (found := task.predict(batch)):
        raise ValueError("robustness needs a task that classifies: this one's predictions have no logits.")
    return found["logits"].argmax(-1) == batch["targets"]
