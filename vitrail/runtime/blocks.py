"""How the blocks of a model are computed: precision, compilation, activation checkpointing.

    checkpoint_blocks(model)        # before torch.compile and fully_shard
    compile_blocks(model)
    with autocast("auto", device): ...

Checkpointing (Chen et al., 2016, "Training deep nets with sublinear memory cost") keeps only the input of each block
and computes the rest again in the backward pass: one more forward pass of time, the activations of one block of memory.
The loss and the gradients are the same bit for bit, dropout included.
"""

import warnings
from contextlib import AbstractContextManager
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vitrail.models import resnet, vit
from vitrail.progress import few

Precision = Literal["auto", "fp32", "bf16", "fp8", "fp64"]


def checkpoint_blocks(model: nn.Module) -> None:
    """Checkpoint every `Block` and `Bottleneck` of `model`, in place; nothing else about the model changes.

    Only `forward` is replaced: torch's wrapper module would add its own name to `named_parameters`, by which the rules
    of the optimiser and the weights know a parameter, and another class would be in the way of `fully_shard`, which
    puts in one of its own.
    """
    for module in model.modules():
        if isinstance(module, vit.Block | resnet.Bottleneck):
            # The random state is kept by default: the second pass drops what the first dropped.
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def compile_blocks(model: nn.Module, backend: str = "inductor") -> None:
    """torch.compile for every `Block` and `Bottleneck` of `model`, in place: names and weights stay as they are, and
    blocks of one shape share what is compiled. The compiler's advice to round fp32 products to 10 bits is left out.

    Each size of a micro-batch is compiled once, for it alone (a size left open makes slower code). What is only
    evaluated should be so under `uncompiled`.
    """
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
    for module in model.modules():
        if isinstance(module, vit.Block | resnet.Bottleneck):
            module.compile(dynamic=False, backend=backend)


def uncompiled() -> AbstractContextManager[object]:
    """Inside it compiled blocks run as they are written: an evaluation in another precision and mode, and with a last
    batch of its own size, would compile twice for what is seldom done."""
    return torch.compiler.set_stance("force_eager")


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Matrix products in bf16 where `precision` says so (fp8: those that are not in 8 bits); auto does on a GPU that
    has it, and not on a CPU, where it may be ten times slower. ValueError where the device has none."""
    return torch.autocast(device.type, torch.bfloat16, enabled=halved(precision, device))


def halved(precision: Precision, device: torch.device) -> bool:
    """Whether they are in bf16. ValueError as autocast."""
    able = device.type != "cuda" or torch.cuda.is_bf16_supported()
    if precision in ("bf16", "fp8") and not able:
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bf16; use --precision fp32.")
    return precision in ("bf16", "fp8") or (precision == "auto" and device.type == "cuda" and able)


def pick_device(name: str) -> str:
    """ "auto" is the GPU where there is one. ValueError for a device that torch does not have here.

    fp32 is fp32 on each: torch lets cuDNN round the inputs of convolutions to 10 bits (TF32), though not those of other
    products, which moves a ResNet's logits by some thousandths of their standard deviation.
    """
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    known = [
        "cpu",
        *(["cuda"] if torch.cuda.is_available() else []),
        *map("cuda:{}".format, range(torch.cuda.device_count())),
    ]
    if name not in known:
        raise ValueError(f"the device {name!r} is not available here; use auto or {few(known)}.")
    return name
