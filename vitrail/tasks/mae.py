"""Masked autoencoder (He et al., 2021, arXiv 2111.06377): most patches are hidden, and a small decoder paints them.

The encoder reads the visible patches alone, a quarter of them; the decoder sees its tokens, and a learned token with a
position in each hidden place, and predicts the pixels there, each patch less its mean and over its standard deviation.

    loss, metrics = MaeConfig(depth=2, width=64).task(model, preprocessing, ())(batch)
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.source import Source
from vitrail.models import Model, vit
from vitrail.models.positions import sincos
from vitrail.tasks.pretrain import Pretrain, PretrainConfig, cells, hidden, repainted, taken, tokens_alone, vit_of
from vitrail.tasks.task import Metrics

if TYPE_CHECKING:
    from vitrail.run import Run

EPS = 1e-6  # of the variance of a patch, as in the authors' code
GREY = 128  # of a hidden patch in a picture


@dataclass(frozen=True)
class MaeConfig(PretrainConfig):
    """ValueError for a number out of range."""

    kind: ClassVar[str] = "mae"

    masked: float = 0.75
    """The fraction of the patches that is hidden."""
    depth: int = 4
    """Blocks of the decoder."""
    width: int = 384
    """Of the decoder; heads of 32."""
    normalised: bool = True
    """Whether each patch is predicted less its mean and over its standard deviation; else pixels, as the model reads
    them."""

    def __post_init__(self) -> None:
        if not 0 < self.masked < 1:
            raise ValueError(f"masked is {self.masked}; it must be above 0 and below 1.")
        if self.depth < 1 or self.width < 32 or self.width % 32:
            raise ValueError(
                f"the decoder has {self.depth} blocks of width {self.width}; give 1 or more of 32, 64, ..."
            )

    def task(self, model: Model, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> "Mae":
        return Mae(model, preprocessing, self)

    def build(self, run: "Run", source: Source) -> "Mae":
        """ValueError where no patch would be visible, or none hidden, and where attention knows of all places."""
        config = vit_of(run, "MAE")
        if config.rotary is not None or config.relative != "none":
            raise ValueError("MAE leaves patches out, which rotary and relative positions do not allow; take views.")
        count = math.prod(config.grid(run.preprocessing.image_size))
        if not 0 < round(count * self.masked) < count:
            said = f"of {count} patches {round(count * self.masked)} would be hidden"
            raise ValueError(f"{said}; give smaller patches, or another --task.masked.")
        return self.task(run.model.build("meta"), run.preprocessing, ())


class Decoder(nn.Module):
    """From the encoder's tokens to pixels. outputs: numbers of a patch."""

    def __init__(self, config: MaeConfig, encoder: vit.Config, outputs: int) -> None:
        super().__init__()
        own = vit.Config(width=config.width, depth=config.depth, heads=config.width // 32, mlp_dim=4 * config.width)
        self.enter = nn.Linear(encoder.width, config.width)
        self.mask_token = nn.Parameter(torch.empty(config.width))
        self.blocks = nn.Sequential(*(vit.Block(own, 0.0, None) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, own.norm_eps)
        self.leave = nn.Linear(config.width, outputs)

    def forward(
        self, tokens: Float[Tensor, "B T D"], order: Int64[Tensor, "B N"], count: int, grid: tuple[int, int]
    ) -> Float[Tensor, "B count pixels"]:
        """The pixels of the hidden patches. tokens: the prefix, then the visible patches. order: the places of the
        `count` hidden patches, then those of the visible ones."""
        z = self.enter(tokens)
        prefix = z.shape[1] - (order.shape[1] - count)
        masks = self.mask_token.to(z.dtype).expand(len(z), count, -1)
        where = sincos(grid, z.shape[2], True, z.device).to(z.dtype)
        z = torch.cat([z[:, :prefix], torch.cat([masks, z[:, prefix:]], 1) + where[order]], 1)
        for block in self.blocks:
            z = block(z)
        return self.leave(self.norm(z[:, prefix : prefix + count]))


class Mae(Pretrain):
    """A ViT that reads the visible patches, and a decoder that paints the others."""

    model: vit.ViT
    config: MaeConfig

    def __init__(self, model: Model, preprocessing: Preprocessing, config: MaeConfig) -> None:
        super().__init__(tokens_alone(model), preprocessing, config)
        own = self.model.config
        outputs = own.stride[0] * own.stride[1] * own.channels
        self.extra = Decoder(config, own, outputs)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The mean squared error of the hidden patches' pixels; "explained", the fraction of a patch's variance that
        the decoder knows: 0 where it paints each patch's mean, 1 where it is right."""
        images = self.input(batch["images"])
        painted, order, count, seen = self.painted(images, batch["keys"])
        targets = self.targets(taken(cells(images, self.model.config.stride), order[:, :count]))
        loss = (painted.to(targets.dtype) - targets).square().mean()
        variance = targets.var(-1, correction=0).mean()
        apart = self.apart(images, seen, painted, order[:, :count], order.shape[1])
        return loss, {"loss": loss.detach(), "explained": 1 - loss.detach() / variance.clamp_min(EPS), **apart}

    def painted(
        self, images: Float[Tensor, "B C H W"], keys: Int64[Tensor, "B"]
    ) -> tuple[Float[Tensor, "B count pixels"], Int64[Tensor, "B N"], int, Float[Tensor, "B D"]]:
        """(what the decoder paints, in the targets' unit; the places of the hidden patches, then of the others; how
        many are hidden; the mean of the visible patches' tokens)."""
        config = self.model.config
        grid = config.grid((images.shape[-2], images.shape[-1]))
        count = round(grid[0] * grid[1] * self.config.masked)
        order = hidden(keys, "masked", grid[0] * grid[1], count)
        z = self.model.embed(images)
        seen = taken(z[:, config.prefix :], order[:, count:])
        tokens = self.model.encode(torch.cat([z[:, : config.prefix], seen], 1))
        return self.extra(tokens, order, count, grid), order, count, tokens[:, config.prefix :].mean(1)

    def targets(self, patches: Float[Tensor, "B n h w C"]) -> Float[Tensor, "B n pixels"]:
        """What the decoder is to paint of patches."""
        pixels = patches.flatten(2)
        if not self.config.normalised:
            return pixels
        mean, std = _moments(pixels)
        return (pixels - mean) / std

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """With "masked" and "reconstruction", uint8 (B, C, H, W): the image, its hidden patches grey, or as the decoder
        paints them."""
        images, size = batch["images"], self.model.config.stride
        given = self.input(images)
        painted, order, count, _ = self.painted(given, batch["keys"])
        places = order[:, :count]
        pixels = self.pixels(painted, taken(cells(given, size), places))
        filled = {"masked": torch.full_like(pixels[:, :, :1, :1], GREY), "reconstruction": pixels}
        return super().pictures(batch) | {name: repainted(images, size, places, new) for name, new in filled.items()}

    def pixels(
        self, painted: Float[Tensor, "B n pixels"], patches: Float[Tensor, "B n h w C"]
    ) -> UInt8[Tensor, "B n h w C"]:
        """What was painted, in the targets' unit, as bytes again. patches: what was to be painted, whose means and
        standard deviations it gets back where it is `normalised`."""
        if self.config.normalised:
            mean, std = _moments(patches.flatten(2))
            painted = painted * std + mean
        mean, std = (painted.new_tensor(each) for each in (self.preprocessing.mean, self.preprocessing.std))
        values = painted.unflatten(-1, patches.shape[2:]) * std + mean
        return (255 * values).round().clamp(0, 255).to(torch.uint8)


def _moments(pixels: Float[Tensor, "B n pixels"]) -> tuple[Float[Tensor, "B n 1"], Float[Tensor, "B n 1"]]:
    """The mean and the standard deviation of each patch."""
    return pixels.mean(-1, keepdim=True), (pixels.var(-1, keepdim=True) + EPS).sqrt()
