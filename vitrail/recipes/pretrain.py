"""Pre-training a plain ViT from scratch, by the paper and by later and better ways: a function for each row of rows.py.

    vitrail train vit_b16_imagenet --data imagenet
    run = RECIPES["augreg_b16_imagenet21k"]("imagenet21k")

The paper is Dosovitskiy et al., 2021, arXiv 2010.11929, Table 3: Adam .9/.999, batch 4096, 10,000 steps of warm-up,
224 px, a pre-logits layer of the model's width (section 3.1). What it leaves open is as in its authors' code
(big_vision's pp/ops_image.py and configs/vit_i1k.py): pixels in [-1, 1], Inception crops of 5 to 100 % of the area and
mirrored images to train on, the middle of the image, its shorter side at 256, to evaluate on. Expected are Table 5's
scores on ImageNet after fine-tuning at 384 px (finetune.py), hybrids' from Table 6. JFT-300M is Google's own: those
recipes are for data of its size.

AugReg is Steiner et al., 2021, "How to train your ViT?", arXiv 2106.10270: more augmentation and regularisation for the
paper's own models. Its settings are those in the names of its published checkpoints; the rest is in big_vision's
configs/vit_i21k.py and vit_i1k.py. The plain baseline is Beyer et al., 2022, arXiv 2205.01580, big_vision's
configs/vit_s16_i1k.py. DeiT III is Touvron et al., 2022, arXiv 2204.07118, README_revenge.md of its code; ours is not
quite theirs, so their scores are not a promise:
    optimiser               AdamW at DeiT's 5e-4 for 512 images (arXiv 2012.12877); theirs is LAMB at 4e-3 or 3e-3
    repeated augmentation   none; their batches hold each image three times
    stochastic depth        rises from 0 to twice their rate, which is that of every layer: the mean is the same
    mixed images            have fractions of both labels; theirs have both in full
    head                    starts at -ln K; theirs at 0

big_vision writes weight decay without the learning rate: its wd 0.0001 beside lr 0.001 is our 0.1 (optim/build.py).
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.data.sources.open import Data
from vitrail.models import vit
from vitrail.models.zoo import configure
from vitrail.optim import build as optim
from vitrail.optim.schedule import Duration, Schedule
from vitrail.recipes import rows
from vitrail.run import Run
from vitrail.tasks import ClassifyConfig

HALF = (0.5, 0.5, 0.5)
# AugReg's names: (RandAugment's magnitude, Mixup's alpha). Magnitude 0 is "actually not nothing", as its authors say.
LEVELS = {"light1": (0.0, 0.0), "medium1": (15.0, 0.2), "strong2": (20.0, 0.8)}


def table3(row: rows.Table3, data: str) -> Run:
    """As the paper has it."""
    on = row.on
    config = configure(row.model, classes=on.classes, dropout=on.dropout)
    assert isinstance(config, vit.Config)
    schedule = Schedule(on.decay, warmup="40_960_000 examples")  # 10,000 steps of 4096, at any batch
    adam = optim.Config(lr=row.lr, weight_decay=on.weight_decay, clip=on.clip, schedule=schedule)
    crops = Augment(crop="inception", scale=(0.05, 1.0), flip=0.5)
    model = replace(config, representation=config.width)
    return _run(row, data, model=model, augment=crops, optim=adam, batch=4096)


def augreg(row: rows.AugReg, data: str) -> Run:
    """As in the checkpoints, the head reads [class] without a layer between."""
    magnitude, mixup = LEVELS[row.level]
    return _run(
        row,
        data,
        model=configure(row.model, classes=row.on.classes, dropout=row.dropout, drop_path=row.dropout),
        augment=Augment(crop="inception", scale=(0.05, 1.0), randaugment=2, magnitude=magnitude, mixup=mixup),
        task=ClassifyConfig("sigmoid", head_bias=-math.log(row.on.classes)),
        optim=_adam(row.weight_decay, "40_960_000 examples"),
        batch=4096,
    )


def plain(row: rows.Plain, data: str) -> Run:
    """The configuration in big_vision's configs/vit_s16_i1k.py."""
    return _run(
        row,
        data,
        model=configure(row.model, class_token=False, pool="avg", positions="sincos", representation=384),
        augment=Augment(crop="inception", scale=(0.05, 1.0), randaugment=2, magnitude=10.0, mixup=0.2),
        optim=_adam(0.1, "10_240_000 examples"),
        batch=1024,
    )


def deit3(row: rows.DeiT3, data: str) -> Run:
    """As README_revenge.md of DeiT III's code has it, but for the differences above."""
    size = (row.image, row.image)
    extra = {"class_position": False, "layer_scale": 1e-4, "drop_path": 2 * row.drop_path}
    return _run(
        row,
        data,
        model=configure(row.model, image_size=size, **extra),
        preprocessing=Preprocessing(size, IMAGENET_MEAN, IMAGENET_STD, "crop", interpolation="bicubic"),
        augment=Augment(crop="inception", colour=0.3, three_augment=True, mixup=0.8, cutmix=1.0),
        task=ClassifyConfig("sigmoid", head_bias=-math.log(row.on.classes)),
        optim=optim.Config(lr=2e-3, weight_decay=0.05, schedule=Schedule("cosine", warmup="5 epochs")),
        batch=2048,
    )


def _adam(weight_decay: float, warmup: Duration) -> optim.Config:
    return optim.Config(lr=1e-3, weight_decay=weight_decay, schedule=Schedule("cosine", warmup=warmup))


def _run(row: rows.Row, data: str, **settings: Any) -> Run:
    """What the rows have in common, unless settings differ: among it the paper's pixels."""
    how = Preprocessing((224, 224), HALF, HALF, resize="crop", crop_fraction=224 / 256)
    shared = {"recipe": row.name, "preprocessing": how, "data": Data(data), "checkpoint_every": "1000 steps"}
    return Run(**{**shared, "duration": f"{row.epochs} epochs", **settings})


BUILDERS: dict[type[rows.Row], Callable[..., Run]] = {
    rows.Table3: table3,
    rows.AugReg: augreg,
    rows.Plain: plain,
    rows.DeiT3: deit3,
}


def _recipe(row: rows.Row) -> Callable[[str], Run]:
    """A row as a function of the data's place, with the row's name and docstring."""

    def made(data: str) -> Run:
        return BUILDERS[type(row)](row, data)

    made.__name__, made.__doc__ = row.name, row.text
    return made


PRETRAIN = tuple(map(_recipe, rows.ROWS))
