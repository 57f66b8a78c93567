"""`vitrail pretrain`: features from images without labels, on one machine (docs/pretrain.md).

    run = unlabelled("photos")                              # the task that suits the images
    run = unlabelled("cells", "views", preset="micro", start="vit_small.safetensors")
    print(why(look_through(source), "auto", None))          # which, and why

What is chosen: views where colours can be changed without changing what is seen, MAE for grey images, whose shades are
the signal. By estimate, not by measurement, both last 45 and 30 minutes on two cores at 32 pixels.
"""

from contextlib import suppress
from dataclasses import replace
from typing import Literal

import numpy as np

from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.open import Data, open_splits
from vitrail.data.sources.source import Source, pixels
from vitrail.models import vit
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.recipes.fast import PHOTO, Look, look_through
from vitrail.recipes.finetune import started
from vitrail.run import Run
from vitrail.tasks import DistillConfig, MaeConfig, PatchesConfig, TaskConfig, ViewsConfig
from vitrail.tasks.crops import Preset
from vitrail.tasks.distill import answers
from vitrail.weights.hub import resolve
from vitrail.weights.load import read

Name = Literal["auto", "views", "mae", "patches", "distill"]
EXAMPLES: dict[str, int] = {"views": 1_200_000, "mae": 3_600_000, "patches": 1_200_000, "distill": 1_200_000}
LARGER = 8  # times as much costs a photograph as a small image
MOST = 400  # epochs
MEASURED = 200  # images whose mean and standard deviation stand for all
FEW = 10_000  # photographs below which weights that have seen more serve better


def unlabelled(
    data: str,
    task: Name = "auto",
    preset: Preset = "photo",
    start: str | None = None,
    reading: Data | None = None,
    teacher: str = "",
    source: Source | None = None,
) -> Run:
    """A run that pre-trains on a folder. preset: how views are changed (tasks/crops.py); other tasks mirror and crop,
    or, with none, do neither. start: weights to go on from, at a lower rate, lower layers slower. reading: how the data
    is read, where more than its place is said. teacher: weights that a student learns from, by the task distill.
    source: the training images, where they have been opened. ValueError as open_splits and the weights raise it."""
    place = reading or Data(data)
    source = source or open_splits(place, "none").train
    look = look_through(source)
    name = task if task != "auto" else "distill" if teacher else chosen(look)
    if bool(teacher) != (name == "distill"):
        raise ValueError("the task distill and --teacher WEIGHTS belong together; give both, or neither.")
    if start:
        model, how = started(start)
        if not isinstance(model, vit.Config):
            raise ValueError(f"{start} holds a ResNet; pre-training begins with a ViT, or a hybrid.")
        model = replace(model, classes=0)
    else:
        model = _model(look, name)
        how = Preprocessing(model.image_size, *_statistics(source, look.channels), resize="crop")
    examples = EXAMPLES[name] // (1 if look.size else LARGER)
    epochs = min(MOST, max(1, round(examples / max(1, look.count))))
    return Run(
        recipe=f"pretrain_{name}",
        model=model,
        preprocessing=how,
        data=place,
        augment=_augment(name, preset),
        task=_taught(teacher) if teacher else _task(name, preset, model),
        optim=optim.Config(
            lr=1e-4 if start else 1e-3,
            weight_decay=0.05,
            layer_decay=0.75 if start else 1.0,
            schedule=Schedule("cosine", warmup="10%" if start else "5%"),
        ),
        start=start,
        batch=128,
        duration=f"{epochs} epochs",
        evaluate_every="5%",
        ema=0.999,
    )


def chosen(look: Look) -> Name:
    """The task that suits the images."""
    return "mae" if look.channels == 1 else "views"


def why(look: Look, task: Name, start: str | None, teacher: str = "") -> str:
    """In words, which task was chosen, and whether weights that are there would serve better."""
    words = []
    if task == "auto" and not teacher:
        reason = (
            "the images are grey, and what views would change may be what matters"
            if look.channels == 1
            else "the images have colours; where colours matter, give --preset grey, or --task mae"
        )
        words.append(f"task {chosen(look)}: {reason}")
    if look.size is None and look.count < FEW and not (start or teacher) and look.channels == 3:
        words.append(
            f"these are {look.count:,} photographs: weights that have seen millions know more, such as DINOv2's; "
            "judge both with vitrail evaluate WEIGHTS DATA --with fewshot knn, or go on from them with --start WEIGHTS"
        )
    return "\n".join(words)


def _model(look: Look, name: Name) -> vit.Config:
    """As many patches as minutes allow: 16 of small images for views, which reads six crops; 64 for what hides some."""
    size = look.size or (PHOTO, PHOTO)
    sides = 8 if look.size is None or name != "views" else 4
    patch = -(-size[0] // sides), -(-size[1] // sides)
    size = patch[0] * (-(-size[0] // patch[0])), patch[1] * (-(-size[1] // patch[1]))
    width, depth = (128, 4) if look.size else (192, 6)
    shape = (look.channels, width, depth, width // 32, 4 * width, 0)
    return vit.Config(size, patch, *shape, class_token=False, pool="avg", positions="sincos")


def _task(name: Name, preset: Preset, model: vit.Config) -> TaskConfig:
    small = max(model.image_size) <= 64
    if name == "views":
        return ViewsConfig(local_scale=(0.1, 0.4) if small else (0.05, 0.3), preset=preset)
    if name == "mae":
        return MaeConfig(depth=2, width=96) if small else MaeConfig()
    return PatchesConfig()


def _taught(teacher: str) -> DistillConfig:
    found = read(resolve(teacher), new_head=True)
    return DistillConfig(teacher, outputs=answers(found.config, "features"))


def _augment(name: Name, preset: Preset) -> Augment:
    """What the loader does: views are drawn by the task itself."""
    if name == "views" or preset == "none":
        return Augment(flip=0.0)
    return Augment("inception", scale=(0.2, 1.0))


def _statistics(source: Source, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation of each channel, of some of the images."""
    sums = list[np.ndarray]()
    for index in np.linspace(0, len(source) - 1, min(MEASURED, len(source))).astype(int).tolist():
        with suppress(ValueError):
            image = pixels(source[index].image, channels, source.name(index)) / 255.0
            sums.append(np.stack([image.mean((0, 1)), np.square(image).mean((0, 1))]))
    if not sums:
        return (0.5,) * channels, (0.5,) * channels
    mean, square = np.mean(sums, 0)
    std = np.sqrt(np.maximum(square - np.square(mean), 1e-4))
    return tuple(round(float(one), 3) for one in mean), tuple(round(float(one), 3) for one in std)
