"""From scratch on thousands of small images, on a laptop: a folder of photographs, Fashion-MNIST, CIFAR-10.

    vitrail train small --data photos
    run = cifar10("cifar-10-batches-py")

A Transformer needs many images to learn what an image is, so these models and their images are small, augmentation
strong and training long. Where there are weights for such images, fine-tuning is far better (finetune.py).
"""

from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.data.sources.open import Data
from vitrail.models import vit
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.run import Run
from vitrail.tasks import ClassifyConfig

# The training images' own.
FASHION_MEAN, FASHION_STD = (0.286,), (0.353,)
CIFAR_MEAN, CIFAR_STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


def small(data: str) -> Run:
    """ViT, 96 px, patch 12, width 192, 6 blocks, 2.8 M parameters, for thousands of photographs and no weights.

    Command: `vitrail train small --data DATA`. Cost: 2,000 images x 100 epochs, 0.22 petaFLOPs, about half an hour on
    two cores.
    Expected: not measured yet.
    """
    shape = {"width": 192, "depth": 6, "heads": 3, "mlp_dim": 768, "classes": 10, "drop_path": 0.1}
    return Run(
        recipe="small",
        model=vit.Config((96, 96), (12, 12), class_token=False, pool="avg", positions="sincos", **shape),
        preprocessing=Preprocessing((96, 96), IMAGENET_MEAN, IMAGENET_STD, resize="crop"),
        data=Data(data),
        augment=Augment(crop="inception", scale=(0.25, 1.0), randaugment=2, mixup=0.2, erase=0.25),
        task=ClassifyConfig(smoothing=0.1),
        optim=_adamw(),
        duration="100 epochs",
        evaluate_every="5 epochs",
        ema=0.999,
    )


def fashion_mnist(data: str) -> Run:
    """ViT, 28 px, patch 7, width 128, 4 blocks, 0.8 M parameters, on Fashion-MNIST.

    Command: `vitrail train fashion_mnist --data FASHION-MNIST`. Cost: 60,000 images x 28 epochs, 0.14 petaFLOPs, half
    an hour on two cores.
    Expected: 90.5 % of the 10,000 test images (2026-11-23, two cores, 27 minutes).

    Few tokens and a small model: in equal time on two cores it beat one half as wide again, which saw fewer images.
    """
    return Run(
        recipe="fashion_mnist",
        model=vit.Config((28, 28), (7, 7), 1, width=128, depth=4, heads=4, mlp_dim=512, classes=10),
        preprocessing=Preprocessing((28, 28), FASHION_MEAN, FASHION_STD),
        data=Data(data),
        augment=Augment(crop="shift", shift=1, flip=0.5),
        task=ClassifyConfig(smoothing=0.1),
        optim=_adamw(1.5e-3),
        batch=64,
        duration="28 epochs",
        evaluate_every="4 epochs",
        checkpoint_every="1000 steps",
        log_every=50,
        ema=0.999,
    )


def cifar10(data: str) -> Run:
    """ViT, 32 px, patch 4, width 192, 9 blocks, 4.0 M parameters, on CIFAR-10.

    Command: `vitrail train cifar10 --data CIFAR10`. Cost: 50,000 images x 100 epochs, 8.2 petaFLOPs, about twenty hours
    on two cores, minutes on a GPU.
    Expected: not measured yet.
    """
    shape = {"width": 192, "depth": 9, "heads": 3, "mlp_dim": 768, "classes": 10, "drop_path": 0.1}
    return Run(
        recipe="cifar10",
        model=vit.Config((32, 32), (4, 4), **shape),
        preprocessing=Preprocessing((32, 32), CIFAR_MEAN, CIFAR_STD),
        data=Data(data),
        augment=Augment(crop="shift", shift=4, flip=0.5, randaugment=1),
        task=ClassifyConfig(smoothing=0.1),
        optim=_adamw(),
        batch=128,
        duration="100 epochs",
        ema=0.999,
    )


def _adamw(rate: float = 1e-3) -> optim.Config:
    return optim.Config(lr=rate, weight_decay=0.05, schedule=Schedule("cosine", warmup="5%"))
