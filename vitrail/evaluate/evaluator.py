"""Evaluators: a config in the Run, which judges a task on the validation images and yields (name, value).

for name, value in Accuracy().run(task, Validation(source, preprocessing, collate, batch=16)): ...

A value is a number, or a Result that a page has a section for. To add an evaluator, write a frozen dataclass in a file,
here or outside the package (docs/extend.md).
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.loader import Collate, evaluation
from vitrail.data.sources.source import Source, Subset, unknown


@runtime_checkable
class Judged(Protocol):
    """What an evaluator asks of a task (tasks/task.py)."""

    def predict(self, batch: Batch) -> dict[str, Tensor]: ...


class Result:
    """What an evaluator found, besides its numbers: for programs, and in words."""

    def document(self) -> Any:
        """For JSON; None: it is in no document."""
        return None

    def lines(self) -> list[str]:
        """For people."""
        return []


@dataclass(frozen=True, eq=False)
class Validation:
    """The images to be judged on, each once, with the targets that the task needs.

    collate: the task's. batch: images that go through the model together. workers: processes that prepare them; 0 is
    threads. skipped: is told of each image that cannot be read, and it is left out; without it, the first of them is a
    ValueError. share: (rank, world) of the processes that judge together, each its batches; rows: brings the arrays of
    all of them together, one entry an image. train: the images that were trained on, where an evaluator wants them.
    before: is called before each batch; what it raises ends the evaluation. keep: whether features stay on the disk, as
    for weights that will be judged again. shared: what the evaluators of one evaluation compute once.
    """

    source: Source
    preprocessing: Preprocessing
    collate: Collate
    batch: int = 16
    device: torch.device | str = "cpu"
    workers: int = 0
    skipped: Callable[[str], None] | None = None
    share: tuple[int, int] = (0, 1)
    rows: Callable[[NDArray[Any]], NDArray[Any]] = lambda mine: mine
    train: Source | None = None
    before: Callable[[], None] | None = None
    keep: bool = False
    shared: dict[Any, Any] = field(default_factory=dict)

    def bank(self) -> "Validation":
        """The images that were trained on, instead. ValueError where there are none."""
        if self.train is None:
            raise ValueError("there are no training images for this evaluator; name data that has a train split.")
        return replace(self, source=self.train)

    def batches(self) -> Iterator[Batch]:
        """Every image that has a target once, in order, on the device; of several processes, this one's batches; no
        padding, nothing dropped.

        "indices" says which images of the source they are. ValueError where none of them can be read.
        """
        source, known = self.source, None
        if source.targets != "none":
            known = np.flatnonzero(~unknown(source))
            source = Subset(source, known)
        some = False
        read = {"batch": self.batch, "workers": self.workers, "skipped": self.skipped, "share": self.share}
        for batch in evaluation(source, self.preprocessing, self.collate, **read):
            some = True
            if self.before:
                self.before()
            if known is not None:
                batch = batch.plus(indices=torch.from_numpy(known[batch["indices"].numpy()]))
            yield batch.to(self.device)
        if not some and self.share[1] == 1:
            raise ValueError("none of the images can be read and has a label, so there is nothing to evaluate.")


@dataclass(frozen=True)
class Evaluator(ABC):
    """Judges a task. Each kind has a name of its own, `kind`, by which JSON and the command line know it."""

    kind: ClassVar[str]
    head: ClassVar[bool] = True
    """Whether it judges the model's own answers; else features, and the model need not have the data's classes."""
    divides: ClassVar[bool] = False
    """Whether several processes may judge together, each some of the batches: what it sums up has been through
    `data.rows`. Else one judges alone, and the others wait."""

    @abstractmethod
    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float | Result]]:
        """Yields what it finds; "samples", how many images were judged, among it. The task is in evaluation mode."""


def judge(
    evaluators: Iterable[Evaluator], task: Judged, data: Validation
) -> tuple[dict[str, float], dict[str, Result]]:
    """(the numbers, the results) that all of the evaluators find, by name; of several processes, on the first."""
    numbers, results = dict[str, float](), dict[str, Result]()
    for evaluator in evaluators:
        rank, _ = data.share
        if rank and not evaluator.divides:
            continue
        alone = data if evaluator.divides else replace(data, share=(0, 1), rows=lambda mine: mine)
        for name, value in evaluator.run(task, alone):
            if isinstance(value, Result):
                results[name] = value
            elif name != "samples" or name not in numbers:  # the first one's, which the headline is about
                numbers[name] = value
    return numbers, results


class _Modes:
    """Modules that are in evaluation mode for some threads: for how many, and in which mode each part was before."""

    lock = threading.Lock()
    found: ClassVar[dict[nn.Module, tuple[int, dict[nn.Module, bool]]]] = {}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode; then, once no other thread needs it, each in the mode that it was in, because
    parts may be frozen in that mode."""
    with _Modes.lock:
        count, modes = _Modes.found.get(module) or (0, {part: part.training for part in module.modules()})
        _Modes.found[module] = count + 1, modes
        module.eval()
    try:
        yield
    finally:
        with _Modes.lock:
            count, _ = _Modes.found.pop(module)
            if count > 1:
                _Modes.found[module] = count - 1, modes
            else:
                for part, mode in modes.items():
                    part.training = mode
