"""Will the memory suffice, how long will it take, and what will it cost? Said before the run starts, with the numbers.

    planned(run, 303_000_000, 8, KINDS["h100"])     # what `vitrail plan` prints, as a document
    layouts(run, 8, half=True)                      # the ways to lay it on 8 devices, with the bytes on each
    free(torch.device("cuda"))                      # bytes

The activations are those that autograd keeps of a ViT's step, counted from its layers (tests hold them against what
torch really saves); a compiled model keeps less. Sharded layouts are held against torch's FSDPMemTracker.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vitrail.models import cost, resnet, vit
from vitrail.models.cost import TRAINING, activations, flops
from vitrail.optim.rules import is_hidden_matrix
from vitrail.run import Run
from vitrail.runtime.devices import Kind

LONG, SHORT = 1800, 600  # seconds, from which on smaller images are suggested, and of what these would take
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
FITS = 0.9  # of a device's memory that a plan fills; libraries, workspaces and fragments take the rest
FEW = 8  # images at once; a device with fewer has too little to do, so checkpointing or sharding is better


@dataclass(frozen=True)
class Layout:
    """How a run lies on its devices, and the bytes on each.

    name: ddp has everything on each device. fsdp shards weights, gradients and averages, as together.shard does.
    images: that go through a device at once. parts: micro-batches, one after the other, whose gradients are added up.
    fixed: weights and averages. whole: unsharded, standardised, or in half precision, for a while. scattered: gradients
        of a block on their way to the others. first: what is in no block, while it is gathered, and a block. image:
        activations of an image. block: those in one block.
    """

    name: Literal["ddp", "fsdp"]
    checkpointing: bool
    images: int
    parts: int
    fixed: int
    gradients: int
    whole: int
    scattered: int
    first: int
    image: int
    block: int

    @property
    def total(self) -> int:
        """At the peak: where the backward pass begins, with all activations (and gradients of earlier micro-batches),
        where it ends, with all gradients, or where the forward pass begins, if what is in no block is large."""
        most, block = self.images * self.image, self.images * self.block
        begin = max(most, most + self.scattered - (0 if self.checkpointing else block))  # as the last block's are gone
        end, start = self.gradients + self.scattered + block, self.first - self.whole + block
        return self.fixed + self.whole + max(end, max(begin, start) + self.gradients * (self.parts > 1))

    def fitting(self, memory: int) -> "Layout | None":
        """With as many micro-batches as this memory needs, of even sizes; None where not even one image fits."""
        if self.total <= memory:
            return self
        most = (memory - self.fixed - self.whole - self.scattered - self.gradients) // self.image
        most = most // 2 * 2 if most > 1 else most
        if most < 1:
            return None
        parts = self.parts * math.ceil(self.images / most)
        images = math.ceil(self.images * self.parts / parts)
        found = replace(self, images=min(most, images + images % 2), parts=parts)
        return found if found.total <= memory else None


def layouts(run: Run, devices: int, half: bool) -> list[Layout]:
    """The ways to lay a run on devices, the simplest first. half: whether its products are in bf16."""
    model = run.model.build("meta")
    blocks = [list(m.parameters()) for m in model.modules() if isinstance(m, vit.Block | resnet.Bottleneck)]
    inner = {id(p) for block in blocks for p in block}
    root = [p for p in model.parameters() if id(p) not in inner]
    full = 8 if run.precision == "fp64" else 4
    width, at_once, found = 2 if half else full, run.micro_batch or run.batch, list[Layout]()
    seen = replace(run.model, image_size=run.preprocessing.image_size)
    copies = 1 + (1 if run.optim.name == "sgd" else 2) + bool(run.ema)
    # Muon keeps no squares of gradients; autograd keeps two copies of a kernel that is standardised, autocast's apart.
    lean = [p for name, p in model.named_parameters() if run.optim.name == "muon" and is_hidden_matrix(name, p)]
    kernels = sum(m.weight.numel() for m in model.modules() if isinstance(m, resnet.StdConv2d))
    for name in ("ddp", "fsdp")[: 2 if devices > 1 else 1]:
        ranks = devices if (sharded := name == "fsdp") else 1
        outer, sizes = _shard(root, ranks), [_shard(block, ranks) for block in blocks]
        held = outer + sum(sizes)
        for again in sorted({run.checkpointing, True}):
            unit, whole = 0, 2 * held * (half and not again)  # autocast's copies, for the backward pass
            if (
                sharded
            ):  # the root, a block and the next, and half of its gradients, as half of its activations are gone
                unit = ranks * max(sizes, default=0)
                whole = ranks * outer * full + unit * (2 * width + width // 2) + 2 * half * sum(p.numel() for p in root)
            image = activations(seen, width, again, stream=full)
            block = activations(seen, width) // max(1, len(blocks))
            parts, images = math.ceil(run.batch / at_once), math.ceil(at_once / devices)
            first = ranks * outer * 2 * full + unit * width if sharded else 0
            whole += 0 if again else kernels * (full if half else 2 * full)
            kept = (full * (held * copies - _shard(lean, ranks)), full * held, whole, full * unit, first)
            found.append(Layout(name, again, images, parts, *kept, image, block))
    return found


def _shard(parameters: Iterable[nn.Parameter], ranks: int) -> int:
    """Numbers on the first of the ranks: fully_shard cuts the first dimension, filled up to a multiple of the ranks."""
    return sum(math.ceil(p.shape[0] / ranks) * math.prod(p.shape[1:]) for p in parameters)


def here(device: torch.device) -> Kind:
    """This machine's device, of unknown peaks."""
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return Kind((free(device) or 0) / 2**30, math.nan if half else 0, math.nan)


def planned(
    run: Run, images: int, devices: int, kind: Kind, utilisation: float = 0.4, measured: float = 0
) -> dict[str, Any]:
    """Cost, memory and time of a run on devices of a kind, for JSON; evaluations are not counted.

    images: in an epoch, 0 where the duration does not ask. measured: FLOP/s of a device in this training, instead of
    the utilisation of its peak. fp8 counts as bf16 until it is measured. "best" is the simplest layout that fits as it
    is, or with a few images at once, else that with the most. ValueError where the precision's peak is not known.
    """
    half = run.precision in ("bf16", "fp8") or (run.precision == "auto" and kind.bf16 != 0)
    peak = kind.peak(run.precision)
    if not (peak or measured):
        raise ValueError(f"these devices have no known speed in {run.precision}; plan with --precision fp32.")
    memory, size, steps = int(FITS * kind.memory * 2**30), run.preprocessing.image_size, run.steps("duration", images)
    ways = layouts(run, devices, half)
    fit = [one for way in ways if (one := way.fitting(memory))]
    good = [one for one in fit if one in ways or one.images >= FEW] or sorted(fit, key=lambda one: -one.images)
    best = good[0] if good else None
    forward, rate = flops(run.model, size), measured or peak * utilisation
    speed = devices * rate / (forward * (TRAINING + (best or ways[0]).checkpointing))
    hours = steps * run.batch / speed / 3600
    return {
        "name": run.recipe, "parameters": cost.parameters(run.model), "image_size": list(size),
        "images": images or None, "duration": run.duration, "batch": run.batch, "steps": steps, "devices": devices,
        "flops_forward": forward, "flops_training": TRAINING * forward * steps * run.batch, "memory": memory,
        "precision": "bf16" if half else "fp32", "layouts": [_row(one, memory) for one in ways],
        "best": best and _row(best, memory) | {"micro_batch": min(run.batch, best.images * devices)},
        "flops_per_second": rate, "utilisation": rate / peak if peak > 0 else None, "images_per_second": speed,
        "hours": hours, "device_hours": hours * devices,
    }  # fmt: skip


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


def _row(one: Layout, memory: int) -> dict[str, Any]:
    return asdict(one) | {"total": one.total, "fits": one.total <= memory}


def refuse(run: Run, device: torch.device) -> None:
    """ValueError where a step of the run needs more than is free, with the numbers and what would fit."""
    half = run.precision in ("bf16", "fp8") or (run.precision == "auto" and device.type == "cuda")
    try:
        need = layouts(run, 1, half)[0]
    except RuntimeError as error:  # torch counts the bytes of a tensor even where it allocates none
        raise ValueError(f"a model with these fields is too large to exist ({error}).") from error
    left = free(device)
    if left is None or need.total <= left:
        return
    words = (
        f"training needs about {text(need.total)} on {device}: {text(need.fixed + need.whole + need.gradients)} for "
        f"weights, gradients and optimiser and {text(need.image * need.images)} for {need.images} images at once, but "
        f"{text(left)} are free"
    )
    if not (fits := need.fitting(left)):
        raise ValueError(f"{words}; choose a smaller model or image size.")
    more = "" if run.checkpointing else ", --checkpointing saves more"
    raise ValueError(f"{words}; --micro-batch {fits.images} fits and gives the same gradient{more}.")


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
