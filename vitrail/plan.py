"""Will the memory suffice, and how long will it take? Said before the run starts, with the numbers.

    need = needed(config, batch=512, optimizer="adamw")     # Need(state=..., activations=..., ...), bytes
    free(torch.device("cuda"))                              # bytes

The activations are those that autograd keeps of a ViT's step, counted from its layers (tests hold them against what
torch really saves); a compiled model keeps less.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from vitrail.models import Config, cost, vit
from vitrail.models.cost import activations, parameters
from vitrail.run import Run

LONG, SHORT = 1800, 600  # seconds, from which on smaller images are suggested, and of what these would take
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


@dataclass(frozen=True)
class Need:
    """Bytes. state: weights, gradients, the optimiser's averages and those of the weights. image: of activations."""

    state: int
    image: int
    batch: int

    @property
    def total(self) -> int:
        return self.state + self.image * self.batch


def needed(
    config: Config, batch: int, *, optimizer: str = "adamw", ema: bool = False, width: int = 4, again: bool = False
) -> Need:
    """For steps of `batch` images at config.image_size. width: bytes of an activation. again: with checkpointing."""
    copies = 2 + {"sgd": 1, "muon": 2}.get(optimizer, 2) + ema
    return Need(4 * copies * parameters(config), activations(config, width, again), batch)


def free(device: torch.device) -> int | None:
    """Bytes that a new process could take; None where the machine does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        line = next((line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")), None)
        found += [int(line.split()[1]) * 1024] if line else []
    for limit, used in zip(LIMITS, USED, strict=True):  # a container's own
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue
    return min(found, default=None)


def refuse(run: Run, device: torch.device) -> None:
    """ValueError where a step of the run needs more than is free, with the numbers and what would fit."""
    batch = run.micro_batch or run.batch
    half = run.precision in ("bf16", "fp8") or (run.precision == "auto" and device.type == "cuda")
    width = {"fp64": 8}.get(run.precision, 2 if half else 4)
    ways = {"optimizer": run.optim.name, "ema": bool(run.ema), "width": width, "again": run.checkpointing}
    try:
        need = needed(run.model, batch, **ways)
    except RuntimeError as error:  # torch counts the bytes of a tensor even where it allocates none
        raise ValueError(f"a model with these fields is too large to exist ({error}).") from error
    left = free(device)
    if left is None or need.total <= left:
        return
    words = (
        f"training needs about {text(need.total)} on {device}: {text(need.state)} for weights, gradients and optimiser "
        f"and {text(need.image * batch)} for {batch} images at once, but {text(left)} are free"
    )
    fits = int((left - need.state) / need.image) // 2 * 2
    if fits < 1:
        raise ValueError(f"{words}; choose a smaller model or image size.")
    raise ValueError(f"{words}; --micro-batch {fits} fits and gives the same gradient, --checkpointing saves more.")


def text(size: int) -> str:
    """Bytes for people: "3.1 GiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def expected(run: Run, seconds: float) -> str:
    """How long a run will take, in words, and where that is long, with which image size it would not; "" for a minute
    or less."""
    if seconds < 60:
        return ""
    text = f"about {_minutes(seconds)} on this machine"
    if seconds > LONG and isinstance(run.model, vit.Config):
        wanted, stride = cost.flops(run.model, run.model.image_size) * SHORT / seconds, run.model.stride[0]
        sides = range(min(run.model.image_size) // stride * stride, 2 * stride, -stride)
        if side := next((side for side in sides if cost.flops(run.model, (side, side)) <= wanted), 0):
            text += f"; with --image-size {side} it would be about {_minutes(SHORT)}"
    return text


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
