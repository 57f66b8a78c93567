"""Some images with what a task shows of them: their tokens, and what it paints, such as what a masked autoencoder does.

    found = pictures(task, batches, source, places)        # a result that the page of a run has a section for

What is hidden of an image follows from its number alone, so the pictures of other weights, and of other runs on the
same images, are of the same patches.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vitrail.batch import Batch
from vitrail.data.sources.source import Source
from vitrail.evaluate.evaluator import Judged, Result

SHOWN = 8  # images


@runtime_checkable
class Pictured(Judged, Protocol):
    """A task that shows what it makes of images (tasks/task.py)."""

    def pictures(self, batch: Batch) -> dict[str, Tensor]: ...


@dataclass(frozen=True, eq=False)
class Pictures(Result):
    """Of n images. names: theirs. images: as the task was given them. tokens: of their patches, or none. painted: the
    other pictures by name, each of all images."""

    names: list[str]
    images: list[UInt8[np.ndarray, "H W C"]]
    tokens: list[Float[np.ndarray, "rows columns D"]]
    painted: dict[str, list[UInt8[np.ndarray, "H W C"]]]


@torch.inference_mode()
def pictures(task: Judged, batches: Iterable[Batch], source: Source, places: Int64[np.ndarray, "n"]) -> Pictures | None:
    """Of the images of the source at these places, which the batches hold; None where the task shows none."""
    if not isinstance(task, Pictured):
        return None
    names, found = list[str](), dict[str, list[np.ndarray]]()
    for batch in batches:
        numbers = places[batch["indices"].cpu().numpy()]
        shown = task.pictures(batch.plus(keys=torch.from_numpy(numbers).to(batch["indices"].device)))
        if not shown:
            return None
        names += [source.name(int(number)) for number in numbers]
        for name, values in {"images": batch["images"], **shown}.items():
            upright = values if name == "tokens" else values.permute(0, 2, 3, 1)
            found.setdefault(name, []).extend(upright.cpu().numpy())
    return Pictures(names, found.pop("images"), found.pop("tokens", []), found)
