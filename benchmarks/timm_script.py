"""timm's training script as a peer: a ViT in the words of both libraries, and what the script's log says of its speed.

    arguments = [*timm_script.model(shape), *timm_script.SAME, "--opt", "adamw", ...]
    timm_script.seconds_per_image(log, batch=16, warm=5)

The script is `train.py` of huggingface/pytorch-image-models; nothing of it is in this tree.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vitrail.models import vit

# The script's defaults where ours differ: the image's size at evaluation, colours, and a learning rate set by epochs.
SAME = [
    *("--device", "cpu", "--crop-pct", "1.0", "--interpolation", "bicubic", "--train-interpolation", "bicubic"),
    *("--color-jitter", "0", "--sched", "cosine", "--sched-on-updates", "--warmup-prefix", "--warmup-lr", "0"),
    *("--min-lr", "0", "--opt", "adamw", "--opt-betas", "0.9", "0.999", "--opt-eps", "1e-8"),
]
STEP = re.compile(r"^Train: \d+ \[ *(\d+)/.* \( *[\d.]+s, +([\d.]+)/s\)", re.M)


@dataclass(frozen=True)
class Shape:
    """A square ViT whose MLP is four times as wide; "avg" has no [class] token."""

    size: int
    patch: int
    width: int
    depth: int
    heads: int
    channels: int = 3
    classes: int = 10
    pool: Literal["token", "avg"] = "token"

    def vitrail(self) -> vit.Config:
        """Ours."""
        from vitrail.models import vit

        token = self.pool == "token"
        return vit.Config(
            image_size=(self.size, self.size),
            patch_size=(self.patch, self.patch),
            channels=self.channels,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_dim=4 * self.width,
            classes=self.classes,
            pool=self.pool,
            class_token=token,
            norm_first=token,
        )


def model(shape: Shape) -> list[str]:
    """The script's arguments for the same model."""
    kwargs = {"img_size": shape.size, "patch_size": shape.patch, "embed_dim": shape.width, "depth": shape.depth}
    kwargs |= {"num_heads": shape.heads, "class_token": shape.pool == "token"}
    return [
        *("--model", "vit_tiny_patch16_224", "--num-classes", str(shape.classes), "--gp", shape.pool),
        *("--input-size", str(shape.channels), str(shape.size), str(shape.size), "--in-chans", str(shape.channels)),
        *("--model-kwargs", *(f"{name}={value}" for name, value in kwargs.items())),
    ]


def seconds_per_image(log: str, batch: int, warm: int) -> float:
    """From the log of one epoch, of the steps after the first `warm` ones that were logged.

    The rates are the most exact numbers there; each is the mean since the epoch began, so a difference of two times is
    that of the steps between. ValueError where the log has no such steps.
    """
    ends = [(int(step) + 1, float(rate)) for step, rate in STEP.findall(log)]
    after = [(done, done * batch / rate) for done, rate in ends if done > warm]
    if len(after) < 2:
        raise ValueError(f"timm's log shows {len(after)} steps after the first {warm}, but 2 are needed")
    (first, begin), (last, end) = after[0], after[-1]
    return (end - begin) / ((last - first) * batch)


def accuracies(summary: str) -> list[tuple[int, float]]:
    """(epoch from 1, accuracy in [0, 1]) for each line of the script's summary.csv that is whole."""
    rows = csv.DictReader(summary[: summary.rfind("\n") + 1].splitlines())
    return [(int(row["epoch"]) + 1, float(row["eval_top1"]) / 100) for row in rows]
