"""Classification: softmax cross-entropy over K classes, as the paper trains, or a sigmoid for each class.

task = ClassifyConfig().task(vitrail.create("ViT-B/16", classes=10), preprocessing, class_names)
loss, metrics = task(batch)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.data.images.geometry import View
from vitrail.data.images.mixing import mix
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.loader import Sample, stacked
from vitrail.data.sources.open import Needs
from vitrail.data.sources.source import Source, Targets, classes_of, counts
from vitrail.models import Model
from vitrail.tasks.task import Metrics, Task, TaskConfig

if TYPE_CHECKING:
    from vitrail.run import Run

NONE = "none of these"


@dataclass(frozen=True)
class ClassifyConfig(TaskConfig):
    """The loss. ValueError for a number out of range."""

    kind: ClassVar[str] = "classify"
    needs: ClassVar[Needs] = "classes"
    evaluators: ClassVar[tuple[str, ...]] = ("accuracy",)
    best: ClassVar[tuple[str, ...]] = ("accuracy", "mAP")

    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax: one class an image. sigmoid: each class by itself, summed, as multi-label data needs and "Are we done
    with ImageNet?" (Beyer et al., 2020) found to be as good for one label."""
    smoothing: float = 0.0
    """Label smoothing (Szegedy et al., 2016): this fraction of the target is spread over all classes."""
    class_weights: bool = False
    """Whether rare classes weigh more: by N / (K n) for a class with n of N images, 1 on average over the images."""
    head_bias: float = 0.0
    """The head's first bias. -ln K for a sigmoid over K classes: every class is improbable before anything is learned,
    and the first steps are not spent on learning that (big_vision's init_head_bias, -6.9 for K = 1000)."""

    none_below: float | None = None
    """The answer is "none of these" where the best class's logit is lower (vitrail fewshot chooses it); None: never."""

    def __post_init__(self) -> None:
        if self.loss not in ("softmax", "sigmoid"):
            raise ValueError(f"loss is {self.loss!r}; choose softmax or sigmoid.")
        if not abs(self.head_bias) <= 100:
            raise ValueError(f"head_bias is {self.head_bias}; it must be from -100 to 100, such as -6.9.")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing is {self.smoothing}; it must be 0 or more, and below 1.")

    def task(self, model: Model, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> "Classify":
        return Classify(model, preprocessing, self, class_names)

    def build(self, run: "Run", source: Source) -> "Classify":
        """ValueError where the head has not the data's classes, or softmax meets images with several labels."""
        found = len(source.class_names)
        if found != run.model.classes:
            raise ValueError(f"{run.data.path} has {found} classes, but the model's head has {run.model.classes}.")
        if source.targets == "classes" and self.loss == "softmax":
            raise ValueError(f"the images of {run.data.path} have several labels; train with --task.loss sigmoid.")
        weights = class_weights(counts(source)) if self.class_weights else None
        return Classify(run.model.build("meta"), run.preprocessing, self, source.class_names, weights)

    def adapt(self, run: "Run", source: Source) -> "Run":
        """The head gets the data's classes. Where images have several labels each class is judged by itself, and labels
        are not smoothed, because their fractions do not sum to 1; Mixup and CutMix stay.

        A sigmoid's head begins at -ln K: where softmax had no such bias, and where a recipe's was for another K.
        """
        classes, task = len(source.class_names), self
        biased = task.loss == "sigmoid" and task.head_bias and classes != run.model.classes
        if source.targets == "classes":
            biased = biased or (task.loss == "softmax" and not task.head_bias)
            task = replace(task, loss="sigmoid", smoothing=0.0)
        if biased:
            task = replace(task, head_bias=-math.log(classes))
        return replace(run, model=replace(run.model, classes=classes), task=task)

    def collate(self, samples: Sequence[Sample], source: Source) -> Batch:
        """With "targets": class numbers, int64 (B,), or, where images may have several labels, 1 for each class that an
        image has and 0 for the others, float32 (B, K)."""
        found = [classes_of(sample.target) for sample in samples]
        if source.targets == "class":
            return stacked(samples).plus(targets=torch.tensor([number for (number,) in found]))
        targets = torch.zeros(len(found), len(source.class_names))
        for row, several in zip(targets, found, strict=True):
            row[list(several)] = 1
        return stacked(samples).plus(targets=targets)


@dataclass(frozen=True)
class Prediction:
    """One class and how probable the model finds it, in [0, 1]."""

    label: str
    index: int
    probability: float


class Classify(Task):
    """A model with a head of K classes. weights: how much the images of each class count, (K,)."""

    config: ClassifyConfig
    weights: Tensor | None

    def __init__(
        self,
        model: Model,
        preprocessing: Preprocessing,
        config: ClassifyConfig | None = None,
        class_names: tuple[str, ...] = (),
        weights: Float[Tensor, "K"] | None = None,
    ) -> None:
        super().__init__(model, preprocessing, config or ClassifyConfig(), class_names)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        images, targets, soft = batch["images"], batch["targets"], None
        if "lam" in batch:
            images, soft = mix(images, self._soft(targets), batch["lam"], batch["box"])
        logits = self.model(self.input(images))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = self._losses(logits, targets, soft).mean()
        metrics = {"loss": loss.detach()}
        if not targets.is_floating_point():
            metrics["accuracy"] = (logits.detach().argmax(-1) == targets).float().mean()
        return loss, metrics

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, D), logits (B, K), probabilities (B, K), all float32; the model is read in the mode it is in.

        After softmax the probabilities of an image sum to 1; after sigmoid each class has its own. Where there are
        targets also losses (B,), float64, without smoothing and weights.
        """
        return self.judged(self.outputs(batch["images"]), batch)

    def outputs(self, images: Num[Tensor, "B C H W"]) -> dict[str, Tensor]:
        """features and logits."""
        features = self.model.represent(self.input(images))
        return {"features": features.float(), "logits": self.model.head(features).float()}

    def judged(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Probabilities and losses from the logits."""
        logits = outputs["logits"]
        probabilities = logits.softmax(-1) if self.config.loss == "softmax" else logits.sigmoid()
        found = {**outputs, "probabilities": probabilities}
        if "targets" not in batch:
            return found
        exact, targets, classes = logits.double(), batch["targets"], logits.shape[1]
        most = targets.shape[1] if targets.is_floating_point() else int(targets.max()) + 1
        if most > classes:
            raise ValueError(f"the data has {most} classes or more, but the model's head has {classes}.")
        if self.config.loss == "softmax":
            return found | {"losses": F.cross_entropy(exact, targets, reduction="none")}
        rows = targets if targets.is_floating_point() else F.one_hot(targets, classes)
        losses = F.binary_cross_entropy_with_logits(exact, rows.to(exact.dtype), reduction="none")
        return found | {"losses": losses.sum(-1)}

    def answers(
        self, outputs: dict[str, Tensor], views: Sequence[View], *, top: int = 5, **options: Any
    ) -> list[list[Prediction]]:
        """The `top` most probable classes of each image, best first; with `none_below`, "none of these" is one more,
        number -1, of the probability sigmoid(none_below - best logit). ValueError where top is below 1, there is no
        head, or the head has not one output for each class name."""
        if options:
            raise ValueError(f"classification has no option {min(options)}; it has top.")
        if not isinstance(top, int) or top < 1:
            raise ValueError(f"top is {top!r}; it must be 1 or more, a whole number.")
        if not self.class_names:
            raise ValueError("the model has no head, so it has no classes to predict; fine-tune it first.")
        if (found := outputs["probabilities"].shape[1]) != len(self.class_names):
            named = f"the head has {found} outputs, but the task {len(self.class_names)} class_names"
            raise ValueError(f"{named}; give task.class_names as many.")
        probabilities, names = outputs["probabilities"], self.class_names
        if self.config.none_below is not None:
            none = (self.config.none_below - outputs["logits"].amax(1, keepdim=True)).sigmoid()
            probabilities, names = torch.cat([probabilities * (1 - none), none], 1), (*names, NONE)
        best = probabilities.topk(min(top, len(names)))
        numbers = best.indices.where(best.indices < found, -1)  # of NONE, which is the last name, too
        rows = zip(best.values.tolist(), numbers.tolist(), strict=True)
        return [[Prediction(names[i], i, value) for value, i in zip(*row, strict=True)] for row in rows]

    def for_targets(self, targets: Targets) -> "Classify":
        """Where images may have several labels, each class is judged by itself."""
        several = targets == "classes" and self.config.loss == "softmax"
        config = replace(self.config, loss="sigmoid") if several else self.config
        return Classify(self.model, self.preprocessing, config, self.class_names)

    def init_weights(self, seed: int) -> None:
        super().init_weights(seed)
        self.init_head()

    def init_head(self) -> None:
        """Puts `head_bias` into the head: for a head that is new."""
        if self.config.head_bias and isinstance(self.model.head, nn.Linear):
            nn.init.constant_(self.model.head.bias, self.config.head_bias)

    def _losses(self, logits: Float[Tensor, "B K"], targets: Tensor, soft: Tensor | None) -> Float[Tensor, "B"]:
        """Of each image: with weights, F.cross_entropy's own mean would divide by those that happen to be there."""
        if self.config.loss == "softmax" and soft is None and not targets.is_floating_point():
            losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=self.config.smoothing)
            return losses if self.weights is None else losses * self.weights[targets]
        soft = (self._soft(targets) if soft is None else soft).to(logits.dtype)
        if self.config.loss == "softmax":
            losses = -soft * F.log_softmax(logits, -1)
        else:
            losses = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
        if self.weights is None:
            return losses.sum(-1)
        # Of mixed labels each brings its part of the weight.
        return losses.sum(-1) * (soft * self.weights).sum(-1) / soft.sum(-1).clamp_min(1e-6)

    def _soft(self, targets: Tensor) -> Float[Tensor, "B K"]:
        """Targets as a row of fractions for each image, smoothed."""
        classes, smoothing = self.model.config.classes, self.config.smoothing
        rows = targets if targets.is_floating_point() else F.one_hot(targets, classes).float()
        return rows * (1 - smoothing) + smoothing / classes if smoothing else rows


def class_weights(counts: NDArray[np.int64]) -> Float[Tensor, "K"]:
    """N / (K n) for each class, float32. ValueError where a class has no images."""
    if counts.min() < 1:
        empty = f"class {int(counts.argmin())} has no images"
        raise ValueError(f"classes cannot be weighed: {empty}; train without class weights.")
    return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()
