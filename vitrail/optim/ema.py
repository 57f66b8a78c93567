"""A moving average of the weights: steadier than the weights themselves, and often a better model.

The paper's is Ema(task, 0.9999), in fine-tuning on ImageNet (Table 2):

    ema = Ema(task, decay=0.9999)
    for step in range(total):
        ...  # one update of the weights
        ema.update(step)
    with ema.swapped():
        evaluate(task)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitrail.optim.shards import placed, whole


class Ema:
    """shadow <- d * shadow + (1 - d) * weights after each step, in float32 or wider, whatever the weights are.

    In bfloat16 the share of a step, 1e-4, would be lost in rounding. d is `decay`; warm: min(decay, (1 + step) /
    (10 + step)), so that the initial weights, which know nothing, are soon forgotten, and do not still weigh half after
    .7 / (1 - decay) steps (the `num_updates` of TensorFlow's ExponentialMovingAverage).

    Averaged is all that the module's state_dict holds: parameters, frozen ones too (they stay equal to themselves), and
    buffers; what is no floating-point number is copied. Make it once the parameters are what will be trained: after
    loading, moving and sharding them. Raises ValueError for a decay outside [0, 1).
    """

    tensors: dict[str, Tensor]
    """The average by the state_dict's names: what a checkpoint keeps."""

    def __init__(self, module: nn.Module, decay: float, warm: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay {decay} of the weights' average must lie in [0, 1): 0.9999 is the paper's")
        self.decay, self.warm = decay, warm
        self.live: dict[str, Tensor] = module.state_dict(keep_vars=True)
        self.tensors = {name: tensor.detach().to(_wide(tensor), copy=True) for name, tensor in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after the update number `step`, from 0; the arguments and the weights alone decide."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warm else self.decay
        averages, weights = [], []
        for name, average in self.tensors.items():
            if average.is_floating_point():
                averages.append(average)
                weights.append(self.live[name].detach().to(average.dtype))
            else:
                average.copy_(self.live[name])
        torch._foreach_lerp_(averages, weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The module has the averaged weights inside the `with`, and its own again after it, bit for bit."""
        own = {name: tensor.detach().clone() for name, tensor in self.live.items()}
        try:
            _copy(self.tensors, self.live)
            yield
        finally:
            _copy(own, self.live)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from an average that was saved. ValueError for the first tensor that is missing or of another shape;
        nothing is changed then.
        """
        for name, average in self.tensors.items():
            if name not in tensors:
                raise ValueError(f"the saved average of the weights has no {name}: it is of another model, or of none")
            if tensors[name].shape != average.shape:
                raise ValueError(
                    f"the saved average of {name} is {tuple(tensors[name].shape)}, the model's is "
                    f"{tuple(average.shape)}: it is of another model"
                )
        _copy(tensors, self.tensors)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype


def load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a module the values of a state_dict; either may be divided among processes."""
    _copy({name: whole(tensor) for name, tensor in tensors.items()}, module.state_dict(keep_vars=True))


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    # Never by .data: a table of positions is kept until the parameter's version counter moves.
    for name, tensor in target.items():
        tensor.copy_(placed(source[name], tensor))
