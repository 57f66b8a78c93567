"""What devices can do at most, and how much of it a training gets.

KINDS["h100"].peak("bf16")                              # 9.89e14 FLOP/s
watch(run.model, (224, 224), "bf16", device, ranks)     # for the log: FLOPs, their peak, memory, all processes
"""

import math
import re
import sys
from functools import partial
from typing import NamedTuple

import torch

from vitrail.log import Watch
from vitrail.models import resnet, vit
from vitrail.models.cost import TRAINING, flops
from vitrail.runtime.blocks import Precision
from vitrail.runtime.distributed import PATIENCE, Ranks


class Kind(NamedTuple):
    """A device. memory: GiB that torch finds. bf16, fp32: dense TFLOP/s at most; 0: no such units."""

    memory: float
    bf16: float
    fp32: float

    def peak(self, precision: Precision) -> float:
        """FLOP/s at most; fp8 counts as bf16 until it is measured, 0 is unknown."""
        half = precision in ("bf16", "fp8") or (precision == "auto" and self.bf16 != 0)
        return 1e12 * (0 if precision == "fp64" else self.bf16 if half else self.fp32)


# By NVIDIA's data sheets: SXM where there is a choice, without sparsity, fp32 without TF32.
KINDS = {
    "a100-40": Kind(39.4, 312, 19.5), "a100-80": Kind(79.1, 312, 19.5), "h100": Kind(79.1, 989, 67),
    "h200": Kind(139.8, 989, 67), "b200": Kind(178.3, 2250, 75), "l4": Kind(22.0, 121, 30.3),
    "t4": Kind(14.6, 0, 8.1), "rtx4090": Kind(23.5, 165, 82.6),
}  # fmt: skip


def watch(
    model: vit.Config | resnet.Config, size: tuple[int, int], precision: Precision, device: torch.device, ranks: Ranks
) -> Watch:
    """What the log needs to say how much of the devices a training of images of (height, width) gets."""
    kind = None
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        kind = _known(found.name, found.total_memory / 2**30)
    peak = kind.peak(precision) * ranks.world if kind else math.nan
    return Watch(
        TRAINING * flops(model, size), peak or math.nan, lambda: _most(device), partial(ranks.rows, patience=PATIENCE)
    )


def _known(name: str, memory: float) -> Kind | None:
    """A device's kind by its name, "NVIDIA A100-SXM4-80GB", and its GiB."""
    words = re.sub(r"[^a-z0-9]", "", name.lower())
    alike = [kind for key, kind in KINDS.items() if key.split("-")[0] in words]
    return next((kind for kind in alike if math.isclose(kind.memory, memory, rel_tol=0.05)), None)


def _most(device: torch.device) -> int:
    """Bytes that this process had at most so far, on a GPU, or of the machine's memory; 0 where that is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
