"""Classification: softmax cross-entropy over K classes, as the paper trains.

task = Classify(vitrail.create("ViT-B/16", classes=10), preprocessing)
loss, metrics = task(batch)
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.batch import Batch
from vitrail.data.transforms import Preprocessing, normalise
from vitrail.models.resnet import ResNet
from vitrail.models.vit import ViT
from vitrail.tasks.task import Metrics, Task


class Classify(Task):
    """A model with a head of K classes; targets are class numbers in 0 .. K - 1."""

    def __init__(self, model: ViT | ResNet, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.preprocessing = preprocessing

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        logits = self.model(self._input(batch))
        loss = F.cross_entropy(logits, batch["targets"])
        with torch.no_grad():
            accuracy = (logits.argmax(-1) == batch["targets"]).float().mean()
        return loss, {"loss": loss.detach(), "accuracy": accuracy}

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, D), logits (B, K), both float32; the model is read in the mode it is in."""
        features = self.model.represent(self._input(batch))
        return {"features": features.float(), "logits": self.model.head(features).float()}

    def _input(self, batch: Batch) -> Tensor:
        weight = next(self.model.parameters())
        return normalise(batch["images"], self.preprocessing, weight.dtype)
