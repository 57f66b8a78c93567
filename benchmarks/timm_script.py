"""timm's training script as a peer: a ViT in the words of both libraries, and the speed that the script's log shows.

    words = timm_script.command(Path("train.py"), shape, ["--data-dir", "photos"], lr=1e-3, log_interval=1, ...)
    timm_script.step_seconds(log, batch=16)

The script is `train.py` of huggingface/pytorch-image-models; nothing of it is in this tree.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vitrail.models import vit

# The script's defaults where ours differ: the image's size at evaluation, colours, and a learning rate set by epochs.
SAME = [
    *("--device", "cpu", "--crop-pct", "1.0", "--interpolation", "bicubic", "--train-interpolation", "bicubic"),
    *("--color-jitter", "0", "--sched", "cosine", "--sched-on-updates", "--warmup-prefix", "--warmup-lr", "0"),
    *("--min-lr", "0", "--opt", "adamw", "--opt-betas", "0.9", "0.999", "--opt-eps", "1e-8"),
]
STEP = re.compile(r"^Train: \d+ \[ *(\d+)/.*?  Time: [\d.]+s, +([\d.]+)/s ", re.M)


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
        """The model's config in Vitrail."""
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


def command(script: Path, shape: Shape, data: Sequence[str], **options: Any) -> list[str]:
    """The command of a run. options: the script's own: hflip=0.5 is --hflip 0.5, and a tuple is several words."""
    words = [sys.executable, str(script), *data, *model(shape), *SAME]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def step_seconds(log: str, batch: int) -> list[float]:
    """Seconds of each step, from the log of one epoch in which every step has a line (--log-interval 1).

    A line's own rate is its most exact number. ValueError if the log is not of one epoch, or a step has no line.
    """
    found = [(int(step), float(rate)) for step, rate in STEP.findall(log)]
    if not found or [step for step, _ in found] != list(range(len(found))):
        raise ValueError(f"timm's log has the speed of {len(found)} steps, and not of each from the first")
    return [batch / rate if rate else 0.0 for _, rate in found]


def accuracies(summary: str) -> list[tuple[int, float]]:
    """(epoch from 1, accuracy in [0, 1]) for each line of the script's summary.csv."""
    rows = csv.DictReader(summary.splitlines())
    return [(int(row["epoch"]) + 1, float(row["eval_top1"]) / 100) for row in rows]
