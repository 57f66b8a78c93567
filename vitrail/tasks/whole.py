"""Tasks whose loss is no mean over the images, but a function of all images of a step together.

A step in parts is the same step for them, too: first all parts are embedded without gradients; of the embeddings of all
of them, and of all processes, the loss and its gradient are taken; then each part is embedded again, and that gradient
goes on from its rows (the idea of GradCache, Gao et al., 2021, arXiv 2101.06983). runtime/gradients.py does that.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from vitrail.batch import Batch
from vitrail.tasks.task import Metrics, Task


class WholeBatch(Task):
    """measured: the names of its metrics, "loss" first."""

    measured: ClassVar[tuple[str, ...]] = ("loss",)

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """(B, ...): a function of each image alone, float32 or wider."""

    @abstractmethod
    def objective(self, z: Tensor, keys: Int64[Tensor, "B"]) -> tuple[Tensor, Metrics]:
        """The loss of the embeddings of all images of a step, and what is measured, in that order."""

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Of all images of a step; or, where the batch has the "gradient" of its embeddings, times the number of images
        of the step, and what was "measured", of a part of them: a mean over the images that has this gradient."""
        z = self.embed(batch)
        if "gradient" not in batch:
            with torch.autocast(z.device.type, enabled=False):
                return self.objective(z, batch["keys"])
        loss = (z * batch["gradient"]).flatten(1).sum(1).mean()
        found = batch["measured"].mean(0)
        return loss, dict(zip(self.measured, found.unbind(), strict=True))
