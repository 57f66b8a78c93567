"""Pre-training without labels: what masked patches, MAE, views and distillation have in common.

The model has no head. What a task needs besides it, a decoder or a projector, is trained and kept in checkpoints; the
model folder is the backbone alone, which predicts, is judged and fine-tuned as any other weights are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vitrail.batch import Batch
from vitrail.data.images.geometry import View
from vitrail.data.loader import Sample, stacked
from vitrail.data.sources.source import Source
from vitrail.models import Model, vit
from vitrail.models.init import initialise
from vitrail.models.layers import uniform
from vitrail.tasks.classify import Classify, ClassifyConfig
from vitrail.tasks.task import Metrics, Task, TaskConfig

if TYPE_CHECKING:
    from vitrail.run import Run

ALIKE = 1e-4  # of `variety`: below it nothing tells the images apart
LOWER_RATE = "a lower --optim.lr, or more images in a step, usually help"


@dataclass(frozen=True)
class PretrainConfig(TaskConfig):
    """Labels are not needed; where each image has one, the nearest neighbours' labels judge the features."""

    evaluators: ClassVar[tuple[str, ...]] = ("watch",)
    best: ClassVar[tuple[str, ...]] = ("knn", "rank")
    from_start: ClassVar[bool] = True

    def adapt(self, run: "Run", source: Source) -> "Run":
        """The head goes, and what was said of it. ValueError where images would be mixed."""
        if run.augment.mixup or run.augment.cutmix:
            raise ValueError("without labels there is nothing to mix; leave out --augment.mixup and --augment.cutmix.")
        return replace(run, model=replace(run.model, classes=0), head="zero")

    def collate(self, samples: Sequence[Sample], source: Source) -> Batch:
        """With "targets", int64 (B,), where all of them have one class."""
        if source.targets != "class" or any(sample.target is None for sample in samples):
            return stacked(samples)
        return ClassifyConfig().collate(samples, source)


class Pretrain(Task):
    """What a PretrainConfig builds. `extra` is what it has besides the model; its names are in models/init.py.

    spread_floor, said_floor: below them `alarm` speaks of a collapse; MAE on Fashion-MNIST at thrice its rate stayed at
    0.1 and 0.045 for a while, and recovered. remedy: what helps then, in words."""

    extra: Any
    spread_floor: ClassVar[float] = 0.05
    said_floor: ClassVar[float] = 0.02
    remedy: str = LOWER_RATE

    @torch.no_grad()
    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """features (B, D), float32."""
        return {"features": self.model.represent(self.input(batch["images"])).float()}

    def answers(self, outputs: dict[str, Tensor], views: Sequence[View], **options: Any) -> list[Any]:
        raise ValueError("the model has no head, so it has no classes to predict; fine-tune it first.")

    def finished(self) -> Task:
        return Classify(self.model, self.preprocessing)

    def init_weights(self, seed: int) -> None:
        super().init_weights(seed)
        initialise(self.extra, seed=seed)

    @torch.no_grad()
    def apart(
        self,
        images: Float[Tensor, "B C H W"],
        features: Float[Tensor, "B D"],
        said: Float[Tensor, "B n K"],
        places: Int64[Tensor, "B n"] | None = None,
        count: int = 1,
    ) -> Metrics:
        """What `alarm` reads: how much the images of a micro-batch, as the model reads them, differ in their mean
        colours ("variety"), in the directions of their features ("spread") and in what is predicted ("said"). places:
        of `count`, of the predictions. All are 1 for a micro-batch of one image: it alarms nobody, and hides an alarm
        of the step's others."""
        colours, directions = images.mean((2, 3))[:, None], F.normalize(features, dim=1)[:, None]
        found = differing(colours), differing(directions), differing(said, places, count)
        return dict(zip(("variety", "spread", "said"), found, strict=True))

    def alarm(self, values: dict[str, float]) -> str:
        """Floors are for images that differ as photographs do, and lower by `variety` for those that do less."""
        variety, spread, said = (values.get(name, 1.0) for name in ("variety", "spread", "said"))
        if variety < ALIKE:
            return f"the images are all alike (variety {variety:.2g}); look at the data, and at what --augment leaves"
        named = ("features", "spread", spread, self.spread_floor), ("outputs", "said", said, self.said_floor)
        for what, name, value, floor in named:
            if value < (least := floor * min(1.0, variety)):
                words = f"{name} {value:.2g}, below {least:.2g}, where 0 says that all images have the same"
                return f"the {what} collapse: {words}; {self.remedy}"
        return ""


def vit_of(run: "Run", what: str) -> vit.Config:
    """The run's model. ValueError where it is no ViT, its stem shows each patch what is beside it, or patches do not
    divide its images. what: the task, in words."""
    config = run.model
    if not isinstance(config, vit.Config):
        raise ValueError(f"{what} hides patches, which a ResNet has not; give a ViT.")
    if config.stem:
        raise ValueError(f"{what} hides patches, but a hybrid's stem reads across their borders; give a ViT without.")
    (height, width), (down, right) = run.preprocessing.image_size, config.stride
    if height % down or width % right:
        sizes = f"images of {height} x {width} are not whole patches of {down} x {right}"
        raise ValueError(f"{what} hides whole patches, and {sizes}; choose another --image-size.")
    return config


def tokens_alone(model: Model) -> vit.ViT:
    """The model, with what follows its tokens frozen, because no loss of patches reads it: processes wait for the
    gradient of all that is trained, and decay would change it."""
    assert isinstance(model, vit.ViT)
    for part in (model.attn_pool, model.fc_norm, model.pre_logits):
        if part is not None:
            part.requires_grad_(False)
    return model


def hidden(keys: Int64[Tensor, "B"], name: str, patches: int, count: int) -> Int64[Tensor, "B {patches}"]:
    """All patches of each image in an order of its own; the first `count` are hidden, and these and the others are each
    in their place's order."""
    order = uniform(keys, name, patches).argsort(dim=1, stable=True)
    return torch.cat([order[:, :count].sort().values, order[:, count:].sort().values], 1)


def differing(
    values: Float[Tensor, "B n K"], places: Int64[Tensor, "B n"] | None = None, count: int = 1
) -> Float[Tensor, ""]:
    """The standard deviation of values between images, each place by itself, over their root mean square: 0 where all
    images have the same, 1 where they have nothing in common, or no two of them a place. count: of the places."""
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    where = values.new_zeros(values.shape[:2], dtype=torch.int64) if places is None else places
    flat, rows = where.flatten(), values.flatten(0, 1)
    times = rows.new_zeros(count).index_add_(0, flat, torch.ones_like(rows[:, 0]))
    means = rows.new_zeros(count, rows.shape[1]).index_add_(0, flat, rows) / times.clamp_min(1)[:, None]
    squares = (rows - means[flat]).square().sum()
    free = where.numel() - (times > 0).sum()  # degrees of freedom: each place's mean takes one
    found = squares / free.clamp_min(1) * where.numel() / values.square().sum().clamp_min(1e-30)
    return torch.where(free > 0, found, 1.0).sqrt()


def cells(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) -> (B, patches, h, w, C): the pixels of each patch, row by row."""
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // size[0], size[0], width // size[1], size[1])
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(1, 2)


def repainted(
    images: UInt8[Tensor, "B C H W"], size: tuple[int, int], places: Int64[Tensor, "B n"], pixels: UInt8[Tensor, "..."]
) -> UInt8[Tensor, "B C H W"]:
    """The images with other pixels in the patches at the places. pixels: (B, n, h, w, C), or what broadcasts to it."""
    patches = cells(images, size).clone()
    patches[torch.arange(len(images), device=images.device)[:, None], places] = pixels
    grid = patches.unflatten(1, (images.shape[2] // size[0], images.shape[3] // size[1]))
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(images.shape)


def taken(tokens: Tensor, places: Int64[Tensor, "B n"]) -> Tensor:
    """tokens (B, N, ...) at the places of each image, (B, n, ...)."""
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None], places]
