"""`fast`: as accurate as a few minutes on a laptop allow, from scratch, on any small images.

    vitrail train --data photos                   # what train does without the name of a recipe
    run = fast("fashion-mnist")

Two choices make it fast (LOG.md, 2026-11-25; docs/results.md): few tokens, so that many images are seen, and Muon for
the matrices of the blocks, which needs less than half as many images as AdamW.
"""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.data.sources.open import PACKAGED, Data, open_splits
from vitrail.data.sources.source import Source, pixels
from vitrail.models import vit
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.run import Run
from vitrail.tasks import ClassifyConfig

NATIVE = 64  # pixels a side up to which images of one size keep it; others become PHOTO
PHOTO = 96
LOOKED_AT = 16  # images that the recipe looks at
EXAMPLES, PHOTOS = 240_000, 150_000  # training examples in all, of small images and of photographs
OFTEN = 10  # epochs above which augmentation is stronger


@dataclass(frozen=True)
class Look:
    """The size of images, (height, width) or None where they differ; 1 channel if all are grey; how many there are."""

    size: tuple[int, int] | None
    channels: int
    count: int


def fast(data: str, reading: Data | None = None) -> Run:
    """A ViT of 16 tokens (photographs: 36) that fits the images, 0.8 to 2.8 M parameters, by Muon, in minutes.

    Command: `vitrail train fast --data DATA`. Cost: 240,000 images; 192,000 of 28 px took 8 minutes of one core,
    125,000 of 32 px 10. Photographs, which become 96 px: 150,000, 14 minutes of two cores. How long a run takes on the
    machine at hand is said when it starts, and --duration makes it shorter.
    Expected: 88.2 % of Fashion-MNIST's 10,000 test images after 3.2 epochs. Of Imagenette's photographs, 1,500 to train
    on, 58.5 % (53.6 to 63.2), and 54.2 % after a third of the time; 64 px have no more then (docs/results.md). Weights
    that have seen more are the better start for photographs: vitrail finetune.

    Images of one size up to 64 px keep it; grey images get a model with one channel. With few images there are many
    epochs, and then RandAugment and Mixup are added. reading: how the data is read, where more than its place is said.
    """
    look = look_at(reading or Data(data))
    photo, grey = look.size is None, look.channels == 1
    size = look.size or (PHOTO, PHOTO)
    side = 6 if photo else 4  # patches
    width, depth, heads = (192, 6, 3) if photo else (128, 4 if grey else 6, 4)
    epochs = min(100, max(3, round((PHOTOS if photo else EXAMPLES) / look.count)))
    often = epochs > OFTEN
    augment = Augment("inception", scale=(0.25 if often else 0.5, 1.0)) if photo else Augment("shift", shift=1)
    mean, std = ((0.5,), (0.5,)) if grey else (IMAGENET_MEAN, IMAGENET_STD)
    return Run(
        recipe="fast",
        model=vit.Config(
            image_size=size,
            patch_size=(-(-size[0] // side), -(-size[1] // side)),
            channels=look.channels,
            width=width,
            depth=depth,
            heads=heads,
            mlp_dim=4 * width,
            classes=10,
        ),
        preprocessing=Preprocessing(size, mean, std, resize="crop"),
        data=reading or Data(data),
        augment=replace(augment, randaugment=1, mixup=0.2) if often else augment,
        task=ClassifyConfig(smoothing=0.1),
        optim=optim.Config("muon", lr=3e-3, weight_decay=0.05, schedule=Schedule("cosine", warmup="5%")),
        batch=128,
        duration=f"{epochs} epochs",
        evaluate_every="25%",
    )


def look_at(data: Data) -> Look:
    """The kind of images at a place, from a few of them that can be read; colour images of 32 x 32 where it does not
    exist, because opening it later reports that. ValueError as open_splits raises it."""
    elsewhere = data.path == PACKAGED or any(mark in data.path for mark in (".py:", "://"))
    if not elsewhere and not Path(data.path).exists():
        return Look((32, 32), 3, 50_000)
    return look_through(open_splits(data).train)


def look_through(source: Source) -> Look:
    """The kind of the images of a source."""
    seen = list[np.ndarray]()
    for index in np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int).tolist():
        with suppress(ValueError):
            seen.append(pixels(source[index].image, 3, source.name(index)))
    sizes = {image.shape[:2] for image in seen}
    size = sizes.pop() if len(sizes) == 1 else None
    grey = all((image == image[..., :1]).all() for image in seen)
    return Look(size if size and max(size) <= NATIVE else None, 1 if grey and seen else 3, len(source))
