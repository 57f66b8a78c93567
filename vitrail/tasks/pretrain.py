"""Pre-training without labels: what masked patches, MAE, views and distillation have in common.

The model has no head. What a task needs besides it, a decoder or a projector, is trained and kept in checkpoints; the
model folder is the backbone alone, which predicts, is judged and fine-tuned as any other weights are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from vitrail.batch import Batch
from vitrail.data.images.geometry import View
from vitrail.data.loader import Sample, stacked
from vitrail.data.sources.source import Source
from vitrail.models import Model, vit
from vitrail.models.init import initialise
from vitrail.models.layers import uniform
from vitrail.tasks.classify import Classify, ClassifyConfig
from vitrail.tasks.task import Task, TaskConfig

if TYPE_CHECKING:
    from vitrail.run import Run

COLLAPSED = 0.1  # of `spread`, which is 0.5 or more where features tell images apart


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
    """What a PretrainConfig builds. `extra` is what it has besides the model; its names are in models/init.py."""

    extra: Any

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

    def alarm(self, values: dict[str, float]) -> str:
        if values.get("spread", 1.0) >= COLLAPSED:
            return ""
        return (
            f"the features collapse: spread {values['spread']:.2g}, where 0 says that all images have the same and 1 "
            "that they point everywhere"
        )


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
