"""The grid of a study: models of equal cost from three families, and the runs of a preset.

    grid = Grid(fast("cifar10"), "compute", images=50_000, classes=10, examples=300_000)
    for cell in grid.cells({}):                 # a run each; those with a `trunk` begin from another one's checkpoint
        grid.run(cell)                          # its Run

Every run has a constant learning rate after a warm-up, and a linear cool-down over its last fifth. A longer run is the
same up to its own cool-down, so a shorter one begins at four fifths of its steps, from a checkpoint of the longest
(Zhai et al., "Scaling Vision Transformers", section 3.3): four durations cost 1.2 times the longest, not 1.9 times.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import Literal

import torch

from vitrail.data.images.augment import Augment
from vitrail.evaluate import Accuracy, Fewshot
from vitrail.models import Config, resnet, vit
from vitrail.models.cost import TRAINING, flops, parameters
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.run import Run
from vitrail.runtime.threads import share_out, shared
from vitrail.tasks import ClassifyConfig

Family = Literal["vit", "hybrid", "resnet"]
Preset = Literal["data-size", "compute", "fewshot"]
Rates = Mapping[tuple[str, int], float]  # by family and size
WIDTH, DEPTH, HEADS = 96, 4, 4  # of the ViT that costs as much as the others at scale 1
LADDER = (0.5, 1.0, 2.0, 4.0, 8.0)  # the costs of `compute`'s sizes, as multiples of that
NEAR = 0.1  # how far a ResNet's cost may be from a step of the ladder, so that it has as many stages as the others
POINTS, STEP = 5, 10**0.5  # numbers of images in `data-size`, and the factor between them
LEAST = 2  # images of a class in the smallest of them
DURATIONS = (1, 2, 4, 8)  # of `compute`, as multiples of the shortest
SHOTS = (2, 5, 10)  # that `fewshot` judges by as well, whose runs are those of `data-size`
RATE = 1e-3  # of AdamW, at scale 1


@dataclass(frozen=True)
class Cell:
    """One run. size: its place among the costs. images: it trains on. trunk: steps of the run from whose checkpoint it
    begins; 0 for one that begins with its first step."""

    family: str
    size: int
    images: int
    steps: int
    seed: int
    rate: float
    trunk: int = 0

    @property
    def name(self) -> str:
        """Of its run folder."""
        of = f"{self.family}-{self.size}-{self.images}-images-{self.steps}-steps"
        return f"{of}-rate-{self.rate:.3g}-seed-{self.seed}"

    @property
    def stem(self) -> int:
        """The steps that a longer run has in common with it: those before the cool-down."""
        return self.steps - self.steps // 5


@dataclass(frozen=True, eq=False)
class Grid:
    """The runs of a study. base: what they have in common: data, preprocessing, batch; its model tells the patch.
    images: to train on. classes: of the data. examples: seen by the longest run. scale: multiplies the models' cost.
    rates: see `rate`. ValueError where there is nothing to compare."""

    base: Run
    preset: Preset
    images: int
    classes: int
    examples: int
    families: tuple[Family, ...] = ("vit", "hybrid", "resnet")
    seeds: int = 3
    scale: float = 1.0
    rates: tuple[float, ...] = (RATE,)

    def __post_init__(self) -> None:
        if not self.steps:
            least = f"{self._unit * self.base.batch:,}, {self._unit} steps of {self.base.batch} images"
            raise ValueError(f"--examples is {self.examples:,}; it must be at least {least}.")
        if self.seeds < 1 or not self.scale > 0 or not self.families or not all(rate > 0 for rate in self.rates):
            raise ValueError(
                f"--seeds {self.seeds}, --scale {self.scale:g}, --families {' '.join(self.families) or 'none'} and "
                f"--rates {' '.join(f'{rate:g}' for rate in self.rates)} must be above 0, and one family or more."
            )

    @property
    def steps(self) -> int:
        """Of the longest run, such that all cool-downs are whole steps."""
        return self.examples // self.base.batch // self._unit * self._unit

    @cached_property
    def sizes(self) -> tuple[float, ...]:
        """FLOPs of a forward pass at which the families are compared; a ResNet of three stages may need more than the
        ViT of scale 1 has."""
        image, model = self.base.preprocessing.image_size, self.base.model
        least = flops(resnet.Config((1, 1, 1), 0.5, model.channels, self.classes, image), image)
        one = self.scale * max(least, flops(self._vit(WIDTH), image))
        return tuple(one * factor for factor in (LADDER if self.preset == "compute" else (1.0,)))

    def _vit(self, width: int, hybrid: bool = False) -> vit.Config:
        """A ViT with the patches of the base; or on the feature map of a ResNet of one block, with as many tokens."""
        base, stem, patch = self._base, None, self._base.patch_size
        if hybrid:
            stem = resnet.Config((1,), 0.5, base.channels, 0, base.image_size)
            patch = math.ceil(patch[0] / stem.stride), math.ceil(patch[1] / stem.stride)
        shape = (base.channels, width, DEPTH, HEADS, 4 * width, self.classes)
        return vit.Config(base.image_size, patch, *shape, stem=stem)

    def model(self, family: str, size: int) -> Config:
        """The family's model at a cost: a ResNet near it; the others by the width that comes nearest to the cost of
        that ResNet, within 5 %, because a ViT's width is the finer choice."""
        image = self._base.image_size
        anchor = _resnet(self.sizes[size], image, self._base.channels, self.classes)
        if family == "resnet":
            return anchor
        widths, wanted = range(4 * HEADS, 1025, HEADS), flops(anchor, image)
        place = bisect_left(widths, wanted, key=lambda width: flops(self._vit(width, family == "hybrid"), image))
        near = (self._vit(width, family == "hybrid") for width in widths[max(0, place - 1) : place + 1])
        return min(near, key=lambda config: abs(math.log(flops(config, image) / wanted)))

    def cost(self, cell: Cell) -> float:
        """FLOPs of a run's training, those of its trunk included: those of the forward pass, three times."""
        return float(TRAINING * self.flops[cell.family, cell.size] * cell.steps * self.base.batch)

    def work(self, cell: Cell) -> float:
        """FLOPs that a cell adds to those of its trunk."""
        return self.cost(cell) * (1 - (cell.stem / cell.steps if cell.trunk else 0))

    @cached_property
    def models(self) -> dict[tuple[str, int], Config]:
        """By family and size."""
        return {(f, size): self.model(f, size) for f, size in product(self.families, range(len(self.sizes)))}

    @cached_property
    def flops(self) -> dict[tuple[str, int], int]:
        """Of a forward pass of an image, by family and size."""
        return {which: flops(model, self._base.image_size) for which, model in self.models.items()}

    @cached_property
    def parameters(self) -> dict[tuple[str, int], int]:
        """By family and size, without the head and a ViT's embeddings, which bend the exponent of small models."""
        return {which: _inner(model) for which, model in self.models.items()}

    def cells(self, chosen: Rates) -> list[Cell]:
        """All runs, a trunk before its branches. chosen: the rates, where there are several to choose from."""
        subsets = [self.images]
        if self.preset != "compute":
            subsets = [round(self.images / STEP**power) for power in reversed(range(POINTS))]
            subsets = [count for count in subsets if count >= LEAST * self.classes]
        found = []
        for seed, size, images, family in product(range(self.seeds), range(len(self.sizes)), subsets, self.families):
            whole = Cell(family, size, images, self.steps, seed, self.rate(family, size, chosen))
            found.append(whole)
            if self.preset == "compute":
                shorter = (self.steps * part // DURATIONS[-1] for part in DURATIONS[:-1])
                found += [replace(whole, steps=steps, trunk=self.steps) for steps in shorter]
        return found

    def trials(self) -> list[Cell]:
        """Runs that choose among several rates, for each family at its smallest and its largest size; with all images,
        for the shortest duration, seed 0. Nothing where there is one rate."""
        steps = self.steps // (DURATIONS[-1] if self.preset == "compute" else 1)
        ends, rates = sorted({0, len(self.sizes) - 1}), self.rates if len(self.rates) > 1 else ()
        return [Cell(f, size, self.images, steps, 0, r) for f, size, r in product(self.families, ends, rates)]

    def rate(self, family: str, size: int, chosen: Rates) -> float:
        """The learning rate of a size. Where one is given, it is that of scale 1, and falls with the root of the cost,
        as 1 / width (muP's rule for Adam); of several, those chosen for the smallest and the largest size are, and
        those between lie on a line between them, both axes being logarithms."""
        cost, last = self.flops, len(self.sizes) - 1
        if not chosen:
            relative = self.scale * (LADDER[size] if self.preset == "compute" else 1)
            return float(f"{self.rates[0] / math.sqrt(relative):.3g}")
        if size in (0, last):
            return chosen[family, size]
        low, here, high = (math.log(cost[family, which]) for which in (0, size, last))
        part = (here - low) / (high - low)
        return float(f"{chosen[family, 0] ** (1 - part) * chosen[family, last] ** part:.3g}")

    def run(self, cell: Cell) -> Run:
        """The Run of a cell. Checkpoints come as often as the shortest branch needs one."""
        warmup, often = max(1, self.steps // 40), max(1, 4 * self.steps // (5 * DURATIONS[-1]))
        schedule = Schedule("constant", warmup=f"{warmup} steps", cooldown=f"{cell.steps // 5} steps")
        examples = cell.images if cell.images < self.images else None
        return replace(
            self.base,
            recipe=f"study {cell.family}",
            model=self.models[cell.family, cell.size],
            data=replace(self.base.data, examples=examples, examples_seed=cell.seed if examples else 0),
            augment=Augment("shift", shift=max(1, min(self._base.image_size) // 16), flip=0.5),
            task=ClassifyConfig(),
            evaluate=(Accuracy(), Fewshot(SHOTS)) if self.preset == "fewshot" else (),
            optim=optim.Config("adamw", lr=cell.rate, weight_decay=0.05, schedule=schedule),
            duration=f"{cell.steps} steps",
            evaluate_every=f"{cell.steps} steps",
            checkpoint_every=f"{often} steps",
            keep=10 if self.preset == "compute" and not cell.trunk else 1,
            seed=cell.seed,
            log_every=max(1, cell.steps // 40),
        )

    @property
    def _unit(self) -> int:
        return 5 * DURATIONS[-1] if self.preset == "compute" else 5

    @property
    def _base(self) -> vit.Config:
        assert isinstance(self.base.model, vit.Config)
        return self.base.model


@cache
def _resnet(wanted: float, image: tuple[int, int], channels: int, classes: int) -> resnet.Config:
    """The BiT ResNet nearest to this cost, of stages that are about as deep as each other: of three, if one is NEAR."""
    shapes = (blocks for stages in (2, 3) for d in range(1, 7) for blocks in product((d, d + 1), repeat=stages))
    made = (resnet.Config(s, w / 2, channels, classes, image) for s, w in product(shapes, range(1, 7)))
    off = {config: abs(math.log(flops(config, image) / wanted)) for config in made}
    return min(
        off, key=lambda config: (off[config] > NEAR, len(config.blocks) == 2 and off[config] <= NEAR, off[config])
    )


def _inner(config: Config) -> int:
    head = (config.features + 1) * config.classes
    if isinstance(config, resnet.Config):
        return parameters(config) - head
    inputs = config.stem.features if config.stem else config.channels
    rows, columns = config.grid(config.image_size)
    embedding = config.width * (math.prod(config.patch_size) * inputs + 1 + rows * columns + 2)
    return parameters(config) - head - embedding


def calibrated(models: Iterable[Config], image: tuple[int, int], batch: int, device: str = "cpu") -> list[float]:
    """Seconds that a step of each model takes here, roughly: the gradients of a few random images, on all cores."""
    found, few = [], min(16, batch)
    cores = shared(share_out(few // 2) if device == "cpu" else 1)
    for config in models:
        model, seconds = config.build().to(device), list[float]()
        images = torch.rand(few, config.channels, *image, device=device)

        def gradient(some: torch.Tensor, model: torch.nn.Module = model) -> float:
            first, *_ = torch.autograd.grad(model(some).square().sum(), list(model.parameters()))
            return first.sum().item()

        while len(seconds) < 3 or (len(seconds) < 10 and sum(seconds) < 0.3):  # the first time also finds the memory
            started = time.perf_counter()
            cores.map(gradient, images.chunk(cores.count))
            seconds.append(time.perf_counter() - started)
        found.append(min(seconds) * batch / few)
    return found
