"""The demo: a small ViT from scratch on the images in the package, similar to the recipe `fast`.

Fashion-MNIST's 28 x 28 images make 16 patches of 7 x 7: few tokens, and so little time.
"""

from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.open import PACKAGED, Data
from vitrail.models import vit
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.run import Run


def demo(data: str = PACKAGED, duration: str = "10 epochs", seed: int = 0) -> Run:
    """ViT, patch 7, width 128, 4 blocks, 0.8 M parameters; Muon 3e-3, batch 128, warm-up and cosine.

    Command: `vitrail demo`. Cost: 11,000 images, 10 epochs, about three minutes on two cores.
    Expected: 85 to 87 % on 2,000 images that it has not trained on.
    """
    model = vit.Config(
        image_size=(28, 28), patch_size=(7, 7), channels=1, width=128, depth=4, heads=4, mlp_dim=512, classes=10
    )
    return Run(
        recipe="demo",
        model=model,
        preprocessing=Preprocessing(image_size=(28, 28), mean=(0.5,), std=(0.5,)),
        data=Data(data),
        augment=Augment(flip=0.5),
        optim=optim.Config("muon", lr=3e-3, weight_decay=0.05, schedule=Schedule("cosine", warmup="5%")),
        batch=128,
        duration=duration,
        seed=seed,
    )
