"""How many images of a source are right, and how wrong the others: one pass, every image counted once.

for name, value in Accuracy(source, batch=500).run(task): ...   # accuracy, top5, loss, samples; or mAP, f1, ...
examination = Accuracy(source).examine(task)                    # the same figures, and what was said of each image
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.data.loader import evaluation
from vitrail.data.sources.source import Content, Source
from vitrail.evaluate.results import ClassificationResult, MultiLabel, SingleLabel
from vitrail.runtime.inference import Linear, batch_size, prepared
from vitrail.tasks.classify import Classify


@dataclass(frozen=True)
class Accuracy:
    """Reads images `batch` at a time, the last time fewer where it must be: no padding, nothing dropped. The model sees
    them in smaller batches, as inference.py says.

    workers: processes that prepare them; 0 is threads. skipped: is told of each image that cannot be read, and it is
    left out and counted; without it, the first of them is a ValueError. int8: whether the linear layers of the blocks
    are computed in 8 bits.
    """

    source: Source
    batch: int = 500
    workers: int = 0
    skipped: Callable[[str], None] | None = None
    int8: bool = False

    def run(self, task: Classify) -> Iterator[tuple[str, float]]:
        """Yields, for images of one class each, ("accuracy", share in [0, 1]), and ("top5", the same) where there are
        more than five classes; for several, ("mAP", mean average precision) and ("f1", of all decisions at 0.5). Then
        ("loss", mean), ("samples", their number), and ("unreadable", number) where some were left out. Raises as
        `examine` does."""
        yield from self.examine(task).metrics.items()

    def examine(self, task: Classify) -> ClassificationResult:
        """What the model says of every image that has a label. All modules keep the mode that they are in.

        ValueError where the data has not as many classes as the model, where no image can be judged, and where the
        model cannot be computed in int8.
        """
        kind = MultiLabel if self.source.multi_label else SingleLabel
        problems: list[str] = []
        parts = []
        with evaluating(task):
            for indices, targets, logits in self._answers(task, problems):
                sigmoid = task.config.loss == "sigmoid"
                found = _several(logits, targets) if kind is MultiLabel else _single(logits, targets, sigmoid)
                parts.append({"indices": indices} | {name: value.cpu().numpy() for name, value in found.items()})
        if not parts:
            raise ValueError("none of the images can be read and has a label, so there is nothing to evaluate.")
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return kind(class_names=self.source.class_names, problems=tuple(problems), **whole)

    def _answers(self, task: Classify, problems: list[str]) -> Iterator[tuple[NDArray[np.int64], Tensor, Tensor]]:
        """(indices, targets, logits (B, K) float64) of one batch after the other, the tensors on the model's device."""

        def skipped(problem: str) -> None:
            assert self.skipped is not None
            self.skipped(problem)
            problems.append(problem)

        device, classes = next(task.parameters()).device, len(self.source.class_names)
        linear: Linear = "int8" if self.int8 else "plain"
        fast = prepared(task, linear)
        labelled = [i for i in range(len(self.source)) if self.source.target(i) != -1]
        batches = evaluation(
            Numbered(self.source, labelled),
            how=task.preprocessing,
            batch=self.batch,
            workers=self.workers,
            skipped=skipped if self.skipped else None,
        )
        for batch in batches:
            indices = batch["targets"].numpy()
            if not len(indices):  # none of its images can be read
                continue
            targets = torch.from_numpy(_targets(self.source, indices.tolist())).to(device)
            height, width = batch["images"].shape[-2:]
            size = batch_size(task.model.config, (height, width), device)
            parts = zip(batch["images"].split(size), targets.split(size), strict=True)
            logits = torch.cat([_logits(fast, {"images": part.to(device), "targets": some}) for part, some in parts])
            if logits.shape[1] != classes:
                raise ValueError(f"the data has {classes} classes, but the model's head has {logits.shape[1]}.")
            yield indices, targets, logits.double()


@dataclass(frozen=True, eq=False)
class Numbered:
    """The records `indices` of a source, each with its number there in place of its target: so a batch tells which
    records are in it, though those that cannot be read are missing."""

    source: Source
    indices: Sequence[int]
    multi_label = False

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Content, int, str]:
        content, _, name = self.source[self.indices[index]]
        return content, self.indices[index], name

    def target(self, index: int) -> int:
        return self.indices[index]

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """All modules in evaluation mode; then each in the mode that it was in, for parts may be frozen in that mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


@torch.inference_mode()
def _logits(task: Classify, batch: Batch) -> Float32[Tensor, "B K"]:
    return task.predict(batch)["logits"]


def _targets(source: Source, indices: list[int]) -> NDArray[np.int64] | NDArray[np.float32]:
    """Class numbers, int64 (B,), or for several labels float32 (B, K), 1 for those that an image has."""
    targets = [source.target(index) for index in indices]
    if not source.multi_label:
        return np.array(targets, np.int64)
    rows = np.zeros((len(targets), len(source.class_names)), np.float32)
    for row, numbers in zip(rows, targets, strict=True):
        assert isinstance(numbers, tuple)
        row[list(numbers)] = 1
    return rows


def _single(logits: Float64[Tensor, "B K"], targets: Int64[Tensor, "B"], sigmoid: bool) -> dict[str, Tensor]:
    """SingleLabel's arrays; loss and probabilities are those of the task, without smoothing and weights."""
    if sigmoid:
        losses = _sigmoid_losses(logits, F.one_hot(targets, logits.shape[1]))
        shares = logits.sigmoid()
    else:
        losses, shares = F.cross_entropy(logits, targets, reduction="none"), logits.softmax(-1)
    predicted = logits.argmax(-1)
    confidence, truth = (shares.gather(1, numbers[:, None])[:, 0] for numbers in (predicted, targets))
    found = {"targets": targets, "predicted": predicted, "losses": losses, "confidence": confidence, "truth": truth}
    if logits.shape[1] > 5:
        found["top5"] = (logits.topk(5).indices == targets[:, None]).any(-1)
    return found


def _several(logits: Float64[Tensor, "B K"], targets: Float32[Tensor, "B K"]) -> dict[str, Tensor]:
    """MultiLabel's arrays."""
    return {"targets": targets.bool(), "losses": _sigmoid_losses(logits, targets), "logits": logits.float()}


def _sigmoid_losses(logits: Float64[Tensor, "B K"], targets: Tensor) -> Float64[Tensor, "B"]:
    """Binary cross-entropy, summed over the classes, as the task trains."""
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").sum(-1)
