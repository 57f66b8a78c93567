"""From weights that have seen many images to a model of yours: the paper's fine-tuning, and a small one.

    vitrail finetune photos --weights hf-hub:timm/vit_small_patch16_224.augreg_in21k
    run = finetune("photos", "ViT-B_16.npz")            # Dosovitskiy et al., 2021, arXiv 2010.11929, Table 4
    run = finetune_small("photos", "ViT-B_16.npz")      # an hour rather than days without a GPU
    several = choices(run, images=2000)                 # with each of the paper's learning rates, to choose among

Both layers of the old head are replaced by one zero-initialised layer (section 3.2); the preprocessing keeps the
weights' mean, std and interpolation.
"""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import replace

from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.open import Data, open_splits
from vitrail.models import Config, vit
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.run import Run
from vitrail.weights.hub import resolve
from vitrail.weights.load import read

# Table 4's steps and rates, and section B.1.1's fractions of the images that choose a rate, for Pets and Flowers, for
# CIFAR, and for ImageNet. The limits between them are the BiT-HyperRule's, which has the same steps (arXiv 1912.11370).
LIMITS = (20_000, 500_000)  # images
STEPS, FRACTIONS = (500, 10_000, 20_000), (0.10, 0.02, 0.01)
RATES = ((0.001, 0.003, 0.01, 0.03), (0.001, 0.003, 0.01, 0.03), (0.003, 0.01, 0.03, 0.06))
# Images below which `vitrail finetune` takes the small recipe, as it does on a CPU, where the paper's 500 steps would
# take ViT-B/16 a week.
FEW = 50_000
SMALL_BATCH = 32
# Steps of the small recipe where ten epochs are fewer. Of 72 photographs in four classes (ViT-S/14 at 84 px) the probe
# had 72.5 % of 160 others, 22 steps after it 82.5 %, 66 steps no more; 22 steps from zeros at the higher rate 78.1 %.
LEAST = 22


def finetune(data: str, weights: str, images: int | None = None, image_size: int = 384) -> Run:
    """The paper's fine-tuning: SGD, momentum .9, no decay, batch 512, cosine to 0, clip 1, 384 px.

    Command: `vitrail finetune DATA --weights W --recipe paper`. Cost: below 20,000 images 500 steps, below 500,000
    10,000, else 20,000, of 512 images each; ViT-B/16 takes 85 petaFLOPs for 500 of them.
    Expected: with Google's ViT-B/16 from ImageNet-21k 99.0 % on CIFAR-10, 92.1 % on CIFAR-100 (README of Google's
    vision_transformer), 83.97 % on ImageNet (Table 5).

    images: how many there are to train on; without it they are counted. image_size: the side of the square that images
    become, rounded down to whole patches. Crops are Google's input_pipeline.py's; so is the warm-up of 500 steps, which
    the paper does not mention: here a tenth of the run if that is less.
    """
    images = len(open_splits(Data(data)).train) if images is None else images
    steps = STEPS[bisect(LIMITS, images)]
    model, how = started(weights)
    strides = model.stride if isinstance(model, vit.Config) else (1, 1)
    height, width = (max(image_size // stride, 1) * stride for stride in strides)
    how = replace(how, image_size=(height, width), resize="squash", crop_fraction=1.0)
    return Run(
        recipe="finetune",
        model=replace(model, image_size=(height, width)),
        preprocessing=how,
        data=Data(data),
        augment=Augment(crop="inception", scale=(0.05, 1.0), flip=0.5),
        optim=optim.Config(
            "sgd",
            lr=0.01,
            weight_decay=0.0,
            clip=1.0,
            momentum=0.9,
            schedule=Schedule("cosine", warmup=f"{100 * min(500 / steps, 0.1):g}%"),
        ),
        start=weights,
        batch=512,
        duration=f"{steps} steps",
        evaluate_every="10%",
    )


def finetune_small(data: str, weights: str, images: int | None = None) -> Run:
    """Fine-tuning for hundreds to thousands of images on a laptop: AdamW, lower layers slower, the weights' own size.

    Command: `vitrail finetune DATA --weights W`. Cost: 2,000 images x 10 epochs with ViT-S/16 at 224 px are 0.55
    petaFLOPs, about 75 minutes on two cores; with ViT-Ti/16 0.15, about 20.
    Expected: 82.5 % (75.9 to 87.6) of 160 of Imagenette's photographs after 22 steps on 72 others, four classes, with a
    ViT-S/14 at 84 px, where the linear probe that it begins as has 72.5 %. The rate was chosen on these images, and a
    head of zeros at the higher rate has 78.1 % (71.1 to 83.8): what is gained is the start, not surely the end.

    Learning rates fall by a quarter from layer to layer (BEiT's layer decay, arXiv 2106.08254), so that the lower ones
    change little though Adam's steps are large. Crops show a third of the image or more.

    images: how many there are to train on, as `vitrail finetune` knows. The head then begins as a linear probe rather
    than with zeros, at a lower rate, which does not spoil it, and there are LEAST steps or more. Without: 10 epochs.
    """
    model, how = started(weights)
    rate, head, duration = 5e-4, "zero", "10 epochs"
    if images is not None:
        rate, head = 1e-4, "probe"
        duration = f"{LEAST} steps" if 10 * images < LEAST * SMALL_BATCH else duration
    return Run(
        recipe="finetune_small",
        model=model,
        preprocessing=how,
        data=Data(data),
        augment=Augment(crop="inception", scale=(0.35, 1.0), flip=0.5),
        optim=optim.Config(
            lr=rate,
            weight_decay=0.05,
            layer_decay=0.75 if isinstance(model, vit.Config) else 1.0,  # a ResNet has no blocks to count
            clip=1.0,
            schedule=Schedule("cosine", warmup="10%"),
        ),
        start=weights,
        head=head,
        batch=SMALL_BATCH,
        duration=duration,
        evaluate_every="1 epoch" if images is None else "10%",
    )


def choices(run: Run, images: int, rates: Sequence[float] = ()) -> list[Run]:
    """The run once for each learning rate, validated on the paper's fraction of the training images; the run itself is
    then trained with the best rate on all of them.

    images: how many there are to train on. rates: the paper's for so many images; with AdamW a third, one and three
    times the run's own.
    """
    size = bisect(LIMITS, images)
    rates = rates or (RATES[size] if run.optim.name == "sgd" else [run.optim.lr * factor for factor in (1 / 3, 1, 3)])
    data = replace(run.data, val_fraction=FRACTIONS[size], val=None)
    return [at(replace(run, data=data), rate) for rate in rates]


def at(run: Run, rate: float) -> Run:
    """The run at another learning rate."""
    return replace(run, optim=replace(run.optim, lr=rate))


def started(weights: str) -> tuple[Config, Preprocessing]:
    """What a run that starts from weights has of them: the model, without a pre-logits layer, and the preprocessing."""
    found = read(resolve(weights), new_head=True)
    config = found.config
    return replace(config, representation=None) if isinstance(config, vit.Config) else config, found.preprocessing
