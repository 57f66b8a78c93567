"""How a model is spread over memory and machines: so far, activation checkpointing.

    checkpoint_blocks(model)        # before torch.compile and fully_shard

Checkpointing (Chen et al., 2016, "Training deep nets with sublinear memory cost") keeps only the input of each block
and computes the rest again in the backward pass: one more forward pass of time, the activations of one block of memory.
The loss and the gradients are the same bit for bit, dropout included.
"""

from collections.abc import Callable

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
