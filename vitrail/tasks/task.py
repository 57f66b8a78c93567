"""The Task: owns a model and turns a batch into a loss. `task(batch)` is the only thing that the loop calls (law 1).

A task is two classes: a frozen config, which a Run holds and run.json keeps, and the module that it builds. To add one,
write both in a file, here or outside the package (docs/extend.md).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.config import kinds, parse
from vitrail.data.images.augment import Augment
from vitrail.data.images.geometry import View
from vitrail.data.images.preprocessing import Preprocessing, normalise
from vitrail.data.loader import Sample, stacked
from vitrail.data.sources.open import Needs
from vitrail.data.sources.source import Source, Targets
from vitrail.models import Model, vit

if TYPE_CHECKING:
    from vitrail.run import Run

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class TaskConfig(ABC):
    """What a run says of its task. Each kind has a name of its own, `kind`, by which JSON knows it.

    needs: what targets the data must have. evaluators: the kinds of those that judge it where the run names none. best:
    the metrics that choose the best checkpoint, of which the first counts that an evaluation has; lower_is_better: of
    two values of it the lower one. from_start: whether it is judged before the first step, too.
    """

    kind: ClassVar[str]
    needs: ClassVar[Needs] = "none"
    evaluators: ClassVar[tuple[str, ...]] = ()
    best: ClassVar[tuple[str, ...]] = ("loss",)
    lower_is_better: ClassVar[bool] = False
    from_start: ClassVar[bool] = False

    @abstractmethod
    def task(self, model: Model, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> "Task":
        """The task around a model."""

    def build(self, run: "Run", source: Source) -> "Task":
        """The task of a run, its model without memory yet; `init_weights` gives it values. source: the training images.

        ValueError where run and data do not fit.
        """
        return self.task(run.model.build("meta"), run.preprocessing, source.class_names)

    def adapt(self, run: "Run", source: Source) -> "Run":
        """The run made to fit the training images, such as by a head for their classes."""
        return run

    def views(self, augment: Augment) -> tuple[Augment, ...]:
        """How each view of a training image is drawn; most tasks want one."""
        return (augment,)

    def collate(self, samples: Sequence[Sample], source: Source) -> Batch:
        """Samples, one or more, as a batch."""
        return stacked(samples)


def config_of(card: dict[str, Any]) -> TaskConfig:
    """The config of a model folder's or exported file's task. ValueError for a kind that is not known."""
    known = kinds(TaskConfig)
    if card["kind"] not in known:
        there = f"its task is {card['kind']!r}, and here there is {', '.join(sorted(known))}"
        raise ValueError(f"{there}; if it is code of your own, name the file with --code.")
    return parse(TaskConfig, card)


class Task(nn.Module, ABC):
    """What a TaskConfig builds. class_names: of the data, () where it has none. shown: how many views of each image go
    through the model at once, at most."""

    shown = 1

    def __init__(
        self, model: Model, preprocessing: Preprocessing, config: TaskConfig, class_names: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.model, self.preprocessing, self.config, self.class_names = model, preprocessing, config, class_names

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """(loss, metrics): a scalar that carries the gradient, and detached scalars to be logged, "loss" among them.

        A mean over the images, so that a batch's loss is that of its parts, weighted by their sizes.
        """

    @abstractmethod
    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """What the model makes of each image, without gradients: "features" (B, D), and what the task adds."""

    def outputs(self, images: Num[Tensor, "B C H W"]) -> dict[str, Tensor]:
        """That part of `predict` which an exported graph computes, of bytes."""
        return self.predict(Batch(images=images))

    def judged(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """What `predict` says, from `outputs`."""
        return outputs

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """What a page shows of each image: "tokens", float32 (B, rows, columns, D), those of the patches after the
        final norm, which a ResNet has not; and what the task adds, each uint8 (B, C, H, W), by its name. The batch has
        "keys", which decide what is hidden."""
        if not isinstance(self.model, vit.ViT):
            return {}
        images, config = self.input(batch["images"]), self.model.config
        tokens = self.model.tokens(images)[:, config.prefix :].float()
        return {"tokens": tokens.unflatten(1, config.grid((images.shape[-2], images.shape[-1])))}

    @abstractmethod
    def answers(self, outputs: dict[str, Tensor], views: Sequence[View], **options: Any) -> list[Any]:
        """For people, what `predict` said of each image, in pixels of the original where it says where something is."""

    def for_targets(self, targets: Targets) -> "Task":
        """The task as it judges images with such targets."""
        return self

    @property
    def device(self) -> torch.device:
        """Where images are to be brought."""
        return next(self.parameters()).device

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step: teachers and schedules of the task's own."""

    def finished(self) -> "Task":
        """The task that the model folder has: itself, or, of one that pre-trains, a task around its model alone."""
        return self

    def alarm(self, values: dict[str, float]) -> str:
        """What is wrong, in words, where these numbers of a step say that nothing is learned; else ""."""
        return ""

    def init_weights(self, seed: int) -> None:
        """Gives every parameter its initial value, a function of (seed, its name)."""
        self.model.init_weights(seed)

    def input(self, images: Num[Tensor, "*B C H W"]) -> Float[Tensor, "*B C H W"]:
        """Bytes, or numbers from 0 to 255, as the model reads them."""
        return normalise(images, self.preprocessing, next(self.model.parameters()).dtype)
