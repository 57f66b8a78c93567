"""The recipes of the papers as rows: what differs between them, what each costs and reaches. Plain data without torch,
so that help can list them at once; pretrain.py turns each into a function.

Costs in exaFLOPs are Table 3's own for JFT, otherwise three times the forward pass, a multiply and an add counted as
two, which gives the paper's numbers within 3 %.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from vitrail.optim.schedule import Kind


@dataclass(frozen=True)
class Dataset:
    """A data set. images: how many, as people write it. Then Table 3's settings for it, the same for all models."""

    name: str
    title: str
    images: str
    classes: int
    decay: Kind
    weight_decay: float
    dropout: float
    clip: float | None


@dataclass(frozen=True)
class Row:
    """A recipe. cost: exaFLOPs, and what else the paper tells. remark: follows the model and the data set."""

    kind: ClassVar[str] = "vit"
    model: str
    on: Dataset
    epochs: int
    cost: str
    expected: str
    remark: str = ""

    @property
    def name(self) -> str:
        """ViT-B/16 on ImageNet -> "vit_b16_imagenet"."""
        model = re.sub("[-+]", "_", self.model.replace("/", "")).lower()
        return f"{model.replace('vit', self.kind)}_{self.on.name}"

    @property
    def text(self) -> str:
        """The recipe's docstring."""
        return (
            f"{self.model} on {self.on.title}{self.remark}.\n\n"
            f"Command: `vitrail train {self.name} --data {self.on.name.upper()}`. "
            f"Cost: {self.on.images} images x {self.epochs} epochs, {self.cost}.\nExpected: {self.expected}."
        )


@dataclass(frozen=True)
class Table3(Row):
    """A row of the paper's Table 3."""

    lr: float = 1e-3


@dataclass(frozen=True)
class AugReg(Row):
    """level: of augmentation, by its name in the checkpoints. dropout: stochastic depth's rate, too."""

    kind = "augreg"
    level: str = "light1"
    weight_decay: float = 0.03
    dropout: float = 0.0


@dataclass(frozen=True)
class Plain(Row):
    """The plain baseline."""

    kind = "plain"


@dataclass(frozen=True)
class DeiT3(Row):
    """image: pixels a side. drop_path: DeiT III's, the same for every layer."""

    kind = "deit3"
    image: int = 224
    drop_path: float = 0.05


JFT = Dataset("jft", "JFT-300M", "303M", 18_291, "linear", 0.1, 0.0, None)
I21K = Dataset("imagenet21k", "ImageNet-21k", "14.2M", 21_843, "linear", 0.03, 0.1, None)
IMAGENET = Dataset("imagenet", "ImageNet", "1.28M", 1000, "cosine", 0.3, 0.1, 1.0)

LONG = ", for the longer of its two durations"
LONG21K = f"{LONG}, 90 epochs instead of 30"
HYBRID = ", a hybrid"
FEW = ": too few images for it, as the paper shows"
L16 = '87.12 %; with --duration "7 epochs", which costs half as much, 86.30 %'
DAYS = "exaFLOPs, {} TPUv3-core-days"

TABLE3 = (
    Table3("ViT-B/16", JFT, 7, "224 exaFLOPs", "84.15 %", lr=8e-4),
    Table3("ViT-B/32", JFT, 7, "55 exaFLOPs", "80.73 %", lr=8e-4),
    Table3("ViT-L/32", JFT, 7, "196 exaFLOPs", "84.37 %", lr=6e-4),
    Table3("ViT-L/16", JFT, 14, f"1567 {DAYS.format(680)}", L16, LONG, 4e-4),
    Table3("ViT-H/14", JFT, 14, f"4262 {DAYS.format('2,500')}", "88.04 %", lr=3e-4),
    Table3("R50+ViT-B/16", JFT, 7, "274 exaFLOPs", "85.58 %", HYBRID, 8e-4),
    Table3("R50+ViT-B/32", JFT, 7, "106 exaFLOPs", "84.90 %", HYBRID, 8e-4),
    Table3("R50+ViT-L/32", JFT, 7, "246 exaFLOPs", "85.68 %", HYBRID, 2e-4),
    Table3("R50+ViT-L/16", JFT, 7, "859 exaFLOPs", "86.60 %", f"{HYBRID}, for the shorter of its two durations", 4e-4),
    Table3("ViT-B/16", I21K, 90, "135 exaFLOPs", "83.97 %"),
    Table3("ViT-B/32", I21K, 90, "34 exaFLOPs", "81.28 %"),
    Table3("ViT-L/16", I21K, 90, f"472 {DAYS.format(230)}", "85.15 %", LONG21K),
    Table3("ViT-L/32", I21K, 90, "118 exaFLOPs", "80.99 %", LONG21K),
    Table3("ViT-B/16", IMAGENET, 300, "40 exaFLOPs", "77.91 %", lr=3e-3),
    Table3("ViT-B/32", IMAGENET, 300, "10.2 exaFLOPs", "73.38 %", lr=3e-3),
    Table3("ViT-L/16", IMAGENET, 300, "142 exaFLOPs", "76.53 %", FEW, 3e-3),
    Table3("ViT-L/32", IMAGENET, 300, "35.5 exaFLOPs", "71.16 %", FEW, 3e-3),
)

AT384 = "on ImageNet after fine-tuning at 384 px (README of Google's vision_transformer)"
B16 = "79.15 % on ImageNet after fine-tuning at 224 px, 81.10 % at 384 px (timm's results-imagenet.csv)"
LIGHT = " by AugReg: S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0"
MEDIUM = " by AugReg: B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
STRONG = " by AugReg: B_16-i1k-300ep-lr_0.001-aug_strong2-wd_0.1-do_0.1-sd_0.1"
AUGREG = (
    AugReg("ViT-S/16", I21K, 300, "118 exaFLOPs", f"83.73 % {AT384}", LIGHT),
    AugReg("ViT-B/16", I21K, 300, "449 exaFLOPs", f"85.49 % {AT384}", MEDIUM, "medium1", 0.1),
    AugReg("ViT-B/16", IMAGENET, 300, "40 exaFLOPs", B16, STRONG, "strong2", 0.1, 0.1),
)

BASELINE = " by the plain baseline: smaller batches, the patches' mean, fixed positions, augmentation"
S16 = '76.5 % on ImageNet at 224 px without fine-tuning; with --duration "300 epochs" 80.0 % (the report\'s Table 1)'
PLAIN = (Plain("ViT-S/16", IMAGENET, 90, "3.2 exaFLOPs, 6 to 7 hours on a TPUv3-8", S16, BASELINE),)

LAMB = "after DeiT III, but by AdamW, because torch has no LAMB, and without repeated augmentation"
ADAMW = "(README_revenge.md); AdamW is not measured"
S224 = f"LAMB reached 81.4 % on ImageNet at 224 px without fine-tuning {ADAMW}"
B192 = f"LAMB reached 82.8 % on ImageNet at 192 px, and 83.8 % after 20 epochs more at 224 px {ADAMW}"
DEIT3 = (
    DeiT3("ViT-S/16", IMAGENET, 800, "28.3 exaFLOPs", S224, f" {LAMB}"),
    DeiT3("ViT-B/16", IMAGENET, 800, "78.6 exaFLOPs", B192, f", 192 px, {LAMB}", 192, 0.2),
)
ROWS = AUGREG + PLAIN + DEIT3 + TABLE3
