"""Top-1 accuracy and mean cross-entropy over a source, every sample counted once.

for name, value in Accuracy(source, batch=500).run(task): ...
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vitrail.data.loader import evaluation
from vitrail.data.source import Source
from vitrail.tasks.classify import Classify


@dataclass(frozen=True)
class Accuracy:
    """Evaluates in batches of `batch`, the last one smaller where it must be: no padding, nothing dropped."""

    source: Source
    batch: int = 500

    def run(self, task: Classify) -> Iterator[tuple[str, float]]:
        """Yields ("accuracy", share in [0, 1]), ("loss", mean) and ("samples", their number). Puts the task back into
        the mode it was in."""
        device, training = next(task.parameters()).device, task.training
        task.eval()
        right, loss, count = 0, 0.0, 0
        try:
            for batch in evaluation(self.source, batch=self.batch, how=task.preprocessing):
                targets = batch["targets"].to(device)
                logits = task.predict({"images": batch["images"].to(device), "targets": targets})["logits"]
                right += int((logits.argmax(-1) == targets).sum())
                loss += float(F.cross_entropy(logits.to(torch.float64), targets, reduction="sum"))
                count += len(targets)
        finally:
            task.train(training)
        yield "accuracy", right / count
        yield "loss", loss / count
        yield "samples", float(count)
