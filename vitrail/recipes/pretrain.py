"""The paper's pre-training (Dosovitskiy et al., 2021, arXiv 2010.11929, Table 3): a function for each ViT and hybrid.

    vitrail train vit_b16_imagenet --data imagenet
    run = RECIPES["vit_l16_imagenet21k"]("imagenet21k")

All of them: Adam .9/.999, batch 4096, 10,000 steps of warm-up, 224 px, a pre-logits layer of the model's width (section
3.1). What the paper leaves open is as in its authors' code (big_vision's pp/ops_image.py and configs/vit_i1k.py):
pixels in [-1, 1], Inception crops of 5 to 100 % of the area and mirrored images to train on, the middle of the image,
its shorter side at 256, to evaluate on.

rows.py has the rows. Expected are Table 5's scores on ImageNet after fine-tuning at 384 px (finetune.py), hybrids' from
Table 6. JFT-300M is Google's own: those recipes are for data of its size.
"""

from dataclasses import replace
from typing import Any

from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.open import Data
from vitrail.models import vit
from vitrail.models.zoo import configure
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.recipes import rows
from vitrail.run import Run

HALF = (0.5, 0.5, 0.5)


def big_vision(row: rows.Row, data: str, **settings: Any) -> Run:
    """A row's Run in the way of Google's code, with what else it needs: pixels in [-1, 1], crops, mirrored images."""
    crops = Augment(crop="inception", scale=(0.05, 1.0), flip=0.5)
    how = Preprocessing((224, 224), HALF, HALF, resize="crop", crop_fraction=224 / 256)
    shared = {"recipe": row.name, "preprocessing": how, "augment": crops, "data": Data(data)}
    often = {"duration": f"{row.epochs} epochs", "checkpoint_every": "1000 steps"}
    return Run(**{**shared, **often, **settings})


def table3(row: rows.Table3, data: str) -> Run:
    """The Run of a row of Table 3."""
    on = row.on
    config = configure(row.model, classes=on.classes, dropout=on.dropout)
    assert isinstance(config, vit.Config)
    schedule = Schedule(on.decay, warmup="40_960_000 examples")  # 10,000 steps of 4096, at any batch
    adam = optim.Config(lr=row.lr, weight_decay=on.weight_decay, clip=on.clip, schedule=schedule)
    return big_vision(row, data, model=replace(config, representation=config.width), optim=adam, batch=4096)


PRETRAIN = tuple(rows.recipe(row, table3) for row in rows.TABLE3)
