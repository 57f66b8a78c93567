"""Distillation: a student learns from images without labels what a larger model makes of them.

The teacher is any model that is read; it sees the student's own views, at its own size and preprocessing. The student's
representation, through one linear layer, is to point where the teacher's does, or its answers are to be the teacher's
(Hinton et al., 2015, arXiv 1503.02531). The teacher is in no checkpoint: it is read anew from where it was.

    task = DistillConfig(teacher="dinov2").task(model, preprocessing, ())
    task.learn_from(teacher, its_preprocessing)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing, normalise
from vitrail.data.sources.source import Source
from vitrail.models import Config, Model, vit
from vitrail.tasks.pretrain import Pretrain, PretrainConfig
from vitrail.tasks.task import Metrics

if TYPE_CHECKING:
    from vitrail.run import Run


@dataclass(frozen=True)
class DistillConfig(PretrainConfig):
    """ValueError for a temperature out of range."""

    kind: ClassVar[str] = "distill"

    teacher: str = ""
    """Weights: a file or folder, a run folder, or hf-hub:OWNER/NAME."""
    target: Literal["features", "logits"] = "features"
    """features: the direction of the teacher's representation. logits: its answers, for a teacher with a head."""
    outputs: int = 0
    """How many numbers that is; vitrail pretrain looks it up."""
    temperature: float = 2.0
    """Of the answers: what they are divided by before the softmax."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0.")

    def task(self, model: Model, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> "Distill":
        return Distill(model, preprocessing, self)

    def build(self, run: "Run", source: Source) -> "Distill":
        """ValueError without a teacher."""
        if not self.teacher:
            raise ValueError("distillation needs a teacher: --teacher WEIGHTS.")
        return self.task(run.model.build("meta"), run.preprocessing, ())


class Distill(Pretrain):
    """A student; `learn_from` gives it its teacher."""

    config: DistillConfig

    def __init__(self, model: Model, preprocessing: Preprocessing, config: DistillConfig) -> None:
        super().__init__(model, preprocessing, config)
        self.extra = nn.Module()
        self.extra.leave = nn.Linear(_width(model), config.outputs or 1)
        self.teacher: list[tuple[Model, Preprocessing]] = []  # in a list it is no part of the task

    def learn_from(self, teacher: Model, how: Preprocessing) -> None:
        """ValueError where it reads other channels, or has no head whose answers could be learnt."""
        theirs, ours = teacher.config, self.model.config
        if theirs.channels != ours.channels:
            raise ValueError(f"the teacher reads {theirs.channels} channels, the student {ours.channels}.")
        if self.config.target == "logits" and not theirs.classes:
            raise ValueError("the teacher has no head; give --task.target features.")
        outputs = answers(theirs, self.config.target)
        if outputs != self.config.outputs:
            raise ValueError(
                f"the teacher's {self.config.target} are {outputs} numbers, but outputs is {self.config.outputs}; give "
                f"--task.outputs {outputs}."
            )
        self.teacher = [(teacher.eval().requires_grad_(False), how)]

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """features: 1 - cosine; "cosine" is that. logits: the cross-entropy with the teacher's answers, times the
        temperature squared; "same", how often the first answer is the teacher's."""
        images = self.input(batch["images"])
        wanted, features = self.taught(batch["images"]), self.model.represent(images)
        said = self.extra.leave(features)
        said = said.to(torch.promote_types(said.dtype, torch.float32))
        apart = self.apart(images, features, said[:, None])
        if self.config.target == "features":
            cosine = F.cosine_similarity(said, wanted.to(said.dtype)).mean()
            return 1 - cosine, {"loss": 1 - cosine.detach(), "cosine": cosine.detach(), **apart}
        heat = self.config.temperature
        loss = F.cross_entropy(said / heat, (wanted.to(said.dtype) / heat).softmax(-1)) * heat**2
        same = (said.detach().argmax(-1) == wanted.argmax(-1)).to(said.dtype).mean()
        return loss, {"loss": loss.detach(), "same": same, **apart}

    @torch.no_grad()
    def taught(self, images: Num[Tensor, "B C H W"]) -> Float[Tensor, "B outputs"]:
        """What the teacher makes of images, bytes or numbers from 0 to 255."""
        [(teacher, how)] = self.teacher
        teacher.to(images.device)
        if images.shape[-2:] != how.image_size:
            pixels = images.float()
            images = F.interpolate(pixels, how.image_size, mode="bicubic", antialias=True).clamp(0, 255)
        features = teacher.represent(normalise(images, how, next(teacher.parameters()).dtype))
        return (teacher.head(features) if self.config.target == "logits" else features).float()


def answers(teacher: Config, target: str) -> int:
    """How many numbers the teacher says of an image."""
    if target == "logits":
        return teacher.classes
    return (teacher.representation if isinstance(teacher, vit.Config) else None) or teacher.features


def _width(model: Model) -> int:
    """Of its representation."""
    return answers(model.config, "features")
