"""Recipes: functions that return a Run; a docstring states command, cost and expected score.

RECIPES["vit_b16_imagenet"]("imagenet")     # what `vitrail train vit_b16_imagenet --data imagenet` runs
"""

from collections.abc import Callable

from vitrail.recipes.demo import demo
from vitrail.recipes.fast import fast
from vitrail.recipes.finetune import finetune, finetune_small
from vitrail.recipes.modern import (
    augreg_b16_imagenet,
    augreg_b16_imagenet21k,
    augreg_s16_imagenet21k,
    deit3_b16_imagenet,
    deit3_s16_imagenet,
    plain_s16_imagenet,
)
from vitrail.recipes.pretrain import (
    r50_vit_b16_jft,
    r50_vit_b32_jft,
    r50_vit_l16_jft,
    r50_vit_l32_jft,
    vit_b16_imagenet,
    vit_b16_imagenet21k,
    vit_b16_jft,
    vit_b32_imagenet,
    vit_b32_imagenet21k,
    vit_b32_jft,
    vit_h14_jft,
    vit_l16_imagenet,
    vit_l16_imagenet21k,
    vit_l16_jft,
    vit_l32_imagenet,
    vit_l32_imagenet21k,
    vit_l32_jft,
)
from vitrail.recipes.small import cifar10, fashion_mnist, small
from vitrail.run import Run

PRETRAIN = (
    vit_b16_jft,
    vit_b32_jft,
    vit_l32_jft,
    vit_l16_jft,
    vit_h14_jft,
    r50_vit_b16_jft,
    r50_vit_b32_jft,
    r50_vit_l32_jft,
    r50_vit_l16_jft,
    vit_b16_imagenet21k,
    vit_b32_imagenet21k,
    vit_l16_imagenet21k,
    vit_l32_imagenet21k,
    vit_b16_imagenet,
    vit_b32_imagenet,
    vit_l16_imagenet,
    vit_l32_imagenet,
)
MODERN = (
    augreg_s16_imagenet21k,
    augreg_b16_imagenet21k,
    augreg_b16_imagenet,
    plain_s16_imagenet,
    deit3_s16_imagenet,
    deit3_b16_imagenet,
)
RECIPES: dict[str, Callable[..., Run]] = {
    recipe.__name__: recipe
    for recipe in (demo, fast, small, fashion_mnist, cifar10, finetune_small, finetune, *MODERN, *PRETRAIN)
}
