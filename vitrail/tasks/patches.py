"""Masked patch prediction, as the paper's appendix B.1.2 has it.

Half of the patch embeddings are corrupted: of these 80 % become a learned [mask], 10 % the embedding of another patch,
and 10 % stay. From what the model makes of a corrupted patch a linear layer predicts the patch's mean colour in 3 bits
a channel: 512 colours. The paper does not say where the other patch comes from: here from the same image, so that
images do not depend on each other. Positions are added after the corruption.

    loss, metrics = PatchesConfig().task(model, preprocessing, ())(batch)
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.source import Source
from vitrail.models import Model, vit
from vitrail.models.layers import uniform
from vitrail.tasks.pretrain import Pretrain, PretrainConfig, cells, hidden, repainted, taken, tokens_alone, vit_of
from vitrail.tasks.task import Metrics

if TYPE_CHECKING:
    from vitrail.run import Run

LEVELS = 8  # of a channel: 3 bits
TOGETHER = 3  # channels whose levels are one colour; of more, each is predicted by itself
REPLACED, SWAPPED = 0.8, 0.1  # fractions of the corrupted patches


@dataclass(frozen=True)
class PatchesConfig(PretrainConfig):
    """ValueError for a fraction out of range."""

    kind: ClassVar[str] = "patches"

    corrupted: float = 0.5
    """The fraction of the patches whose embedding is corrupted, and whose colour is predicted."""

    def __post_init__(self) -> None:
        if not 0 < self.corrupted <= 1:
            raise ValueError(f"corrupted is {self.corrupted}; it must be above 0, up to 1.")

    def task(self, model: Model, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> "Patches":
        return Patches(model, preprocessing, self)

    def build(self, run: "Run", source: Source) -> "Patches":
        """ValueError where there is no patch to corrupt, or none to take another's place."""
        config = vit_of(run, "masked patch prediction")
        count = math.prod(config.grid(run.preprocessing.image_size))
        if count < 2 or round(count * self.corrupted) < 1:
            raise ValueError(f"of {count} patches, {self.corrupted:g} are none to corrupt; give smaller patches.")
        return self.task(run.model.build("meta"), run.preprocessing, ())


class _Extra(nn.Module):
    """The embedding of [mask], and the layer that predicts colours."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(width))
        self.leave = nn.Linear(width, outputs)


class Patches(Pretrain):
    """A ViT that predicts the colours of patches it does not see."""

    model: vit.ViT
    config: PatchesConfig

    def __init__(self, model: Model, preprocessing: Preprocessing, config: PatchesConfig) -> None:
        super().__init__(tokens_alone(model), preprocessing, config)
        channels = self.model.config.channels
        together = channels <= TOGETHER
        self.groups, self.colours = (1, LEVELS**channels) if together else (channels, LEVELS)
        self.extra = _Extra(self.model.config.width, self.groups * self.colours)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """Cross-entropy in nats, mean over the corrupted patches; "bits", the same in bits (9 for three channels where
        nothing is known); "right", the fraction of the colours that are named."""
        images = self.input(batch["images"])
        logits, places, features = self.named(images, batch["keys"])
        targets = taken(self.targets(batch["images"]), places)
        loss = F.cross_entropy(logits.flatten(0, 2), targets.flatten())
        right = (logits.detach().argmax(-1) == targets).to(logits.dtype).mean()
        count = math.prod(self.model.config.grid((images.shape[-2], images.shape[-1])))
        apart = self.apart(images, features, logits.flatten(2), places, count)
        return loss, {"loss": loss.detach(), "bits": loss.detach() / math.log(2), "right": right, **apart}

    def named(
        self, images: Float[Tensor, "B C H W"], keys: Int64[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B n groups colours"], Int64[Tensor, "B n"], Float[Tensor, "B D"]]:
        """(the logits of the colours of the corrupted patches, their places, the mean of all patches' tokens)."""
        model = self.model
        x = model.patch_embed(images)
        count = x.shape[-2] * x.shape[-1]
        places = hidden(keys, "corrupted", count, round(count * self.config.corrupted))
        places = places[:, : round(count * self.config.corrupted)]
        z = corrupt(x.flatten(2).transpose(1, 2), places, keys, self.extra.mask_token)
        z = model.sequence(z.transpose(1, 2).unflatten(2, x.shape[-2:]))
        tokens = model.encode(z, model.places(images))[:, model.config.prefix :]
        logits = self.extra.leave(taken(tokens, places)).unflatten(-1, (self.groups, self.colours))
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), places, tokens.mean(1)

    def targets(self, images: UInt8[Tensor, "B C H W"]) -> Int64[Tensor, "B N groups"]:
        """The number of each patch's mean colour; of more than three channels, the level of each."""
        means = cells(images, self.model.config.stride).double().mean((2, 3))  # (B, N, C), from 0 to 255
        levels = (means / 255 * LEVELS).floor().clamp(max=LEVELS - 1).long()
        if self.groups > 1:
            return levels
        powers = LEVELS ** torch.arange(levels.shape[-1] - 1, -1, -1, device=levels.device)
        return (levels * powers).sum(-1, keepdim=True)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """With "mean colours" and "predicted colours", uint8 (B, C, H, W): the image, its corrupted patches in the
        colour that is to be named, or is named."""
        images, size = batch["images"], self.model.config.stride
        logits, places, _ = self.named(self.input(images), batch["keys"])
        found = {"mean colours": taken(self.targets(images), places), "predicted colours": logits.argmax(-1)}
        painted = {name: repainted(images, size, places, self.colour(number)) for name, number in found.items()}
        return super().pictures(batch) | painted

    def colour(self, numbers: Int64[Tensor, "B n groups"]) -> UInt8[Tensor, "B n 1 1 C"]:
        """The middle of each colour that `targets` numbers."""
        if self.groups == 1:
            powers = (LEVELS**n for n in reversed(range(self.model.config.channels)))
            numbers = torch.cat([numbers // power % LEVELS for power in powers], -1)
        return ((numbers + 0.5) * 255 / LEVELS).round().to(torch.uint8)[:, :, None, None]


def corrupt(x: Tensor, places: Int64[Tensor, "B n"], keys: Int64[Tensor, "B"], mask: Tensor) -> Tensor:
    """Patch embeddings (B, N, D), those at the places corrupted."""
    draw = uniform(keys, "corruption", places.shape[1])
    # One of the N - 1 others: those from its own place on are one further.
    other = (uniform(keys, "other patch", places.shape[1]) * (x.shape[1] - 1)).long()
    other = other + (other >= places)
    own, swapped = taken(x, places), taken(x, other)
    kind = draw[..., None]
    new = torch.where(kind < REPLACED, mask.to(x.dtype), torch.where(kind < REPLACED + SWAPPED, swapped, own))
    return x.scatter(1, places[..., None].expand_as(new), new)
