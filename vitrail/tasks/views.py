"""Views of an image are to have one embedding, and the embeddings of all images the distribution of a Gaussian.

LeJEPA (Balestriero and LeCun, 2025, arXiv 2511.08544): no teacher, no stop-gradient, no temperature. Of each image some
global and some local crops are drawn; z is a small projector's answer to the model's representation, mu the mean of an
image's global ones, N the images of a step:

    L = (1 - lambda) mean_{n,v,k} (mu_nk - z_nvk)^2 + lambda mean_v SIGReg({z_nv}_n)

SIGReg asks how far the embeddings of a view are from a standard Gaussian, along random directions that are new in each
step: the Epps-Pulley statistic T = N int |phi(t) - e^(-t^2/2)|^2 e^(-t^2/2) dt, phi being the characteristic function
of what is seen along a direction. Of a true Gaussian it is 1.06 on average, whatever N: "gaussian" in the log is T over
that, so 1 is as Gaussian as chance. Collapsed embeddings have 0.41 N, so the push away from there grows with N: lambda
is for 128 images, and scaled by 128 / N.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.source import Source
from vitrail.models import Model, vit
from vitrail.models.layers import uniform
from vitrail.tasks.crops import Preset, ViewConfig, draw
from vitrail.tasks.pretrain import Pretrain, PretrainConfig, differing
from vitrail.tasks.task import Metrics
from vitrail.tasks.whole import WholeBatch

if TYPE_CHECKING:
    from vitrail.run import Run

KNOTS, REACH = 17, 5.0  # of the integral over t: on [0, 5] it has five digits
EXPECTED = 1.059  # of T for a true Gaussian
FEWEST = 16  # images of a step: with fewer, nothing can be said of their distribution
USUAL = 128  # images of a step, for which lambda is meant


@dataclass(frozen=True)
class ViewsConfig(PretrainConfig):
    """ValueError for a number out of range."""

    kind: ClassVar[str] = "views"

    regulariser: float = 0.05
    """Lambda, for 128 images in a step; of N of them it is times 128 / N."""
    global_views: int = 2
    """Crops of a large part of the image, at the model's size."""
    local_views: int = 4
    """Crops of a small part, at half of that size."""
    global_scale: tuple[float, float] = (0.3, 1.0)
    """Fractions of the image's area."""
    local_scale: tuple[float, float] = (0.05, 0.3)
    """The same of the local ones; of small images take more, such as 0.1 to 0.4."""
    preset: Preset = "photo"
    """How views are changed besides: photo: colours, blur, mirrored. grey: brightness and contrast, for X-rays or many
    bands. micro: for cells and other things without an up, mirrored both ways and turned. none: crops alone. What is
    changed is what the features will not tell: take none where colour or direction matter."""
    hidden: int = 512
    """The width of the projector's two hidden layers."""
    width: int = 64
    """Of the embeddings."""
    directions: int = 256
    """That a step looks along."""

    def __post_init__(self) -> None:
        if not 0 <= self.regulariser < 1:
            raise ValueError(f"regulariser is {self.regulariser}; it must be 0 or more, and below 1.")
        if self.global_views < 1 or self.local_views < 0 or self.global_views + self.local_views < 2:
            said = f"{self.global_views} global and {self.local_views} local views"
            raise ValueError(f"{said} leave nothing to compare; give one global view or more, and two in all.")
        if min(self.hidden, self.width, self.directions) < 1:
            raise ValueError("the projector's widths and the number of directions must be 1 or more.")

    def task(self, model: Model, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> "Views":
        return Views(model, preprocessing, self)

    def build(self, run: "Run", source: Source) -> "Views":
        """ValueError for too few images in a step, or crops of fewer than two patches a side."""
        if run.batch < FEWEST:
            raise ValueError(
                f"a batch of {run.batch} images is too small to have a distribution; give --batch {FEWEST} or more "
                "(with --micro-batch the memory is that of a part)."
            )
        task = self.task(run.model.build("meta"), run.preprocessing, ())
        if isinstance(run.model, vit.Config) and self.local_views:
            rows, columns = run.model.grid(task.looks[-1].size)
            if min(rows, columns) < 2:
                raise ValueError(
                    f"a local view of {task.looks[-1].size[0]} x {task.looks[-1].size[1]} is {rows} x {columns} "
                    "patches; give smaller patches, larger images, or --task.local-views 0 with more global ones."
                )
        return task


class _Projector(nn.Module):
    """Three layers, with LayerNorm between: statistics of a batch would make an image's embedding depend on others."""

    def __init__(self, inputs: int, config: ViewsConfig) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, config.hidden)
        self.norm1 = nn.LayerNorm(config.hidden)
        self.between = nn.Linear(config.hidden, config.hidden)
        self.norm2 = nn.LayerNorm(config.hidden)
        self.leave = nn.Linear(config.hidden, config.width)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        x = self.norm1(self.enter(x)).relu()
        return self.leave(self.norm2(self.between(x)).relu())


class Views(WholeBatch, Pretrain):
    """A model whose representations of an image's views agree."""

    config: ViewsConfig
    spread_floor = said_floor = 0.1  # both are 0.4 or more where images are told apart
    measured: ClassVar[tuple[str, ...]] = ("loss", "invariance", "gaussian", "spread", "said", "variety")

    def __init__(self, model: Model, preprocessing: Preprocessing, config: ViewsConfig) -> None:
        super().__init__(model, preprocessing, config)
        own = model.config
        read = own.representation if isinstance(own, vit.Config) else None
        self.extra = _Projector(read or own.features, config)
        height, width = preprocessing.image_size
        down, right = own.stride if isinstance(own, vit.Config) else (1, 1)
        small = max(1, round(height / 2 / down)) * down, max(1, round(width / 2 / right)) * right
        large = ViewConfig((height, width), config.global_scale, preset=config.preset)
        local = ViewConfig(small, config.local_scale, preset=config.preset)
        self.looks = [large] * config.global_views + [local] * config.local_views
        self.shown = max(config.global_views, config.local_views)
        if not config.regulariser:
            self.remedy = "--task.regulariser is 0, so nothing keeps the features apart"

    def embed(self, batch: Batch) -> Float[Tensor, "B numbers"]:
        """The embeddings of all views, the direction of the representation of the first one, and the image's mean
        colour, beside each other."""
        found, first = list[Tensor](), None
        count = self.config.global_views
        for views in (range(count), range(count, len(self.looks))):
            if not views:
                continue
            drawn = [draw(batch["images"], batch["keys"], view, self.looks[view]) for view in views]
            features = self.model.represent(self.input(torch.cat(drawn)))
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            first = features[: len(batch)] if first is None else first
            z = self.extra(features)
            found += z.to(torch.promote_types(z.dtype, torch.float32)).split(len(batch))
        assert first is not None
        colours = self.input(batch["images"]).mean((2, 3))
        return torch.cat([*found, nn.functional.normalize(first.detach(), dim=1), colours], 1)

    def objective(self, z: Float[Tensor, "N numbers"], keys: Int64[Tensor, "N"]) -> tuple[Tensor, Metrics]:
        """ "invariance" is the first term without its factor; "gaussian" that of the second, over what it is by chance;
        "spread" is 0 where all representations point one way, 1 where they point everywhere; "said" the standard
        deviation of the images' mean embeddings; "variety" how much the images themselves differ in their colours."""
        config, views = self.config, len(self.looks)
        each = z[:, : views * config.width].unflatten(1, (views, config.width))
        mean = each[:, : config.global_views].mean(1, keepdim=True)
        invariance = (each - mean).square().mean()
        statistic = sigreg(each, directions(keys, config.width, config.directions).to(each))
        factor = min(config.regulariser * USUAL / len(z), 0.9)
        loss = (1 - factor) * invariance + factor * statistic
        first, colours = z[:, views * config.width :].tensor_split([-self.model.config.channels], 1)
        spread = first.var(0, correction=0).sum().sqrt()
        said = mean[:, 0].var(0, correction=0).mean().sqrt()
        found = (loss, invariance, statistic / EXPECTED, spread, said, differing(colours[:, None]))
        return loss, dict(zip(self.measured, (one.detach() for one in found), strict=True))


def directions(keys: Int64[Tensor, "N"], width: int, count: int) -> Float[Tensor, "K M"]:
    """Random directions (columns of length 1, float64) that are the same for the same images, in any order."""
    draws = uniform(keys.sum()[None], "directions", width * count)[0].clamp(2**-33, 1 - 2**-33)
    normal = torch.erfinv(2 * draws - 1).view(width, count)
    return normal / normal.norm(dim=0)


def sigreg(z: Float[Tensor, "N V K"], along: Float[Tensor, "K M"]) -> Tensor:
    """T of each view along each direction, the mean over both."""
    return _EppsPulley.apply((z @ along).flatten(1)).mean()


class _EppsPulley(torch.autograd.Function):
    """x (N, S) -> T (S,) of each column. cos t x and sin t x at all knots come from those at the first by turning, so
    that neither they nor a graph through them is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        step = REACH / (KNOTS - 1)
        cos, sin, total, means = *_first(x, step), x.new_zeros(x.shape[1]), list[tuple[Tensor, Tensor]]()
        a, b = torch.ones_like(x), torch.zeros_like(x)
        for knot in range(KNOTS):
            gap, odd = a.mean(0) - math.exp(-((knot * step) ** 2) / 2), b.mean(0)
            means.append((gap, odd))
            total = total + _weight(knot, step) * (gap.square() + odd.square())
            a, b = a * cos - b * sin, a * sin + b * cos
        ctx.save_for_backward(x)
        ctx.means = means
        return len(x) * total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        step = REACH / (KNOTS - 1)
        (cos, sin), found = _first(x, step), torch.zeros_like(x)
        a, b = torch.ones_like(x), torch.zeros_like(x)
        for knot, (gap, odd) in enumerate(ctx.means):
            found += (2 * _weight(knot, step) * knot * step) * (odd * a - gap * b)
            a, b = a * cos - b * sin, a * sin + b * cos
        return found * gradients[0]


def _first(x: Tensor, step: float) -> tuple[Tensor, Tensor]:
    return (x * step).cos(), (x * step).sin()


def _weight(knot: int, step: float) -> float:
    """Of the trapezoid rule on both sides of 0, times e^(-t^2 / 2)."""
    return (step if knot in (0, KNOTS - 1) else 2 * step) * math.exp(-((knot * step) ** 2) / 2)
