"""Classification: softmax cross-entropy over K classes, as the paper trains, or a sigmoid for each class.

task = Classify(vitrail.create("ViT-B/16", classes=10), preprocessing)
loss, metrics = task(batch)
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.data.images.mixing import mix
from vitrail.data.images.preprocessing import Preprocessing, normalise
from vitrail.models.resnet import ResNet
from vitrail.models.vit import ViT
from vitrail.tasks.task import Metrics, Task


@dataclass(frozen=True)
class Config:
    """The loss. ValueError for a number out of range."""

    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: one class an image. sigmoid: each class by itself, summed, as multi-label data needs and "Are we done
    with ImageNet?" (Beyer et al., 2020) found to be as good for one label."""
    smoothing: float = 0.0
    """Of labels (Szegedy et al., 2016): this share of the target is spread over all classes."""
    class_weights: bool = False
    """Whether rare classes weigh more: by N / (K n) for a class with n of N images, 1 on average over the images."""
    head_bias: float = 0.0
    """The head's first bias. -ln K for a sigmoid over K classes: every class is improbable before anything is learned,
    and the first steps are not spent on learning that (big_vision's init_head_bias, -6.9 for K = 1000)."""

    def __post_init__(self) -> None:
        if self.loss not in ("softmax", "sigmoid"):
            raise ValueError(f"loss is {self.loss!r}; choose softmax or sigmoid.")
        if not abs(self.head_bias) <= 100:
            raise ValueError(f"head_bias is {self.head_bias}; it must be from -100 to 100, such as -6.9.")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is {self.smoothing}; it must be 0 or more, and below 1.")


class Classify(Task):
    """A model with a head of K classes.

    counts: images of each class in the training data, (K,), for class weights. ValueError without them, and where a
    class that is to be weighed has none.
    """

    weights: Tensor | None

    def __init__(
        self,
        model: ViT | ResNet,
        preprocessing: Preprocessing,
        config: Config | None = None,
        counts: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.preprocessing, self.config = model, preprocessing, config or Config()
        weights = class_weights(counts) if self.config.class_weights else None
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        images, targets, soft = batch["images"], batch["targets"], None
        if "lam" in batch and "box" in batch:
            images, soft = mix(images, self._soft(targets), batch["lam"], batch["box"])
        logits = self.model(self._input(images))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = self._loss(logits, targets, soft)
        metrics = {"loss": loss.detach()}
        if not targets.is_floating_point():
            metrics["accuracy"] = (logits.detach().argmax(-1) == targets).float().mean()
        return loss, metrics

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, D), logits (B, K), both float32; the model is read in the mode it is in."""
        features = self.model.represent(self._input(batch["images"]))
        return {"features": features.float(), "logits": self.model.head(features).float()}

    def init_head(self) -> None:
        """Puts `head_bias` into the head: for a head that is new."""
        if self.config.head_bias and isinstance(self.model.head, nn.Linear):
            nn.init.constant_(self.model.head.bias, self.config.head_bias)

    def _loss(self, logits: Float[Tensor, "B K"], targets: Tensor, soft: Tensor | None) -> Tensor:
        """A mean over images, so that a batch's loss is that of its parts, weighted by their sizes: with weights,
        F.cross_entropy would divide by those that happen to be in the batch."""
        if self.config.loss == "softmax" and soft is None and not targets.is_floating_point():
            losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.config.smoothing)
            return (losses if self.weights is None else losses * self.weights[targets]).mean()
        soft = (self._soft(targets) if soft is None else soft).to(logits.dtype)
        if self.config.loss == "softmax":
            losses = -soft * F.log_softmax(logits, -1)
        else:
            losses = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
        if self.weights is not None:
            # Of mixed labels each brings its share of weight.
            losses = losses.sum(-1) * (soft * self.weights).sum(-1) / soft.sum(-1).clamp_min(1e-6)
            return losses.mean()
        return losses.sum(-1).mean()

    def _soft(self, targets: Tensor) -> Float[Tensor, "B K"]:
        """Targets as a row of shares for each image, smoothed."""
        classes, smoothing = self.model.config.classes, self.config.smoothing
        rows = targets if targets.is_floating_point() else F.one_hot(targets, classes).float()
        return rows * (1 - smoothing) + smoothing / classes if smoothing else rows

    def _input(self, images: Tensor) -> Tensor:
        weight = next(self.model.parameters())
        return normalise(images, self.preprocessing, weight.dtype)


def class_weights(counts: NDArray[np.int64] | None) -> Float[Tensor, "K"]:
    """N / (K n) for each class, float32. ValueError where a class has no images, or there are no counts."""
    if counts is None or counts.min() < 1:
        empty = "the counts are missing" if counts is None else f"class {int(counts.argmin())} has no images"
        raise ValueError(f"classes cannot be weighed: {empty}; train without class weights.")
    return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()
