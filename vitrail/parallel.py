"""How a model is computed: precision, compilation, activation checkpointing.

    checkpoint_blocks(model)        # before torch.compile and fully_shard
    compile_blocks(model)
    with autocast("auto", device): ...

Checkpointing (Chen et al., 2016, "Training deep nets with sublinear memory cost") keeps only the input of each block
and computes the rest again in the backward pass: one more forward pass of time, the activations of one block of memory.
The loss and the gradients are the same bit for bit, dropout included.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.models import resnet, vit


class CheckpointedBlock(vit.Block):
    """A transformer block that computes its activations again in the backward pass."""

    def forward(self, z: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return _again(super().forward, z)


class CheckpointedBottleneck(resnet.Bottleneck):
    """A ResNet bottleneck that computes its activations again in the backward pass."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return _again(super().forward, x)


def _again(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    # The random state is kept by default: the second pass drops what the first dropped.
    return checkpoint(forward, x, use_reentrant=False)


def checkpoint_blocks(model: nn.Module) -> None:
    """Checkpoint every `Block` and `Bottleneck` of `model`, in place; nothing else about the model changes.

    Their class is replaced rather than a wrapper put around them: torch's wrapper adds its own name to
    `named_parameters`, by which the rules of the optimiser and the weights know a parameter.
    """
    for module in model.modules():
        if type(module) is vit.Block:
            module.__class__ = CheckpointedBlock
        elif type(module) is resnet.Bottleneck:
            module.__class__ = CheckpointedBottleneck


def compile_blocks(model: nn.Module) -> None:
    """torch.compile for every `Block` and `Bottleneck` of `model`, in place: names and weights stay as they are, and
    blocks of one shape share what is compiled."""
    for module in model.modules():
        if isinstance(module, vit.Block | resnet.Bottleneck):
            module.compile()


def autocast(precision: Literal["auto", "fp32", "bf16", "fp64"], device: torch.device) -> torch.autocast:
    """Matrix products in bf16 where `precision` says so; auto does on a GPU that has it, and not on a CPU, where it may
    be ten times slower. ValueError where the device has none."""
    able = device.type != "cuda" or torch.cuda.is_bf16_supported()
    if precision == "bf16" and not able:
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bf16; use --precision fp32.")
    half = precision == "bf16" or (precision == "auto" and device.type == "cuda" and able)
    return torch.autocast(device.type, torch.bfloat16, enabled=half)
