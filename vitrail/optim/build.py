"""Config -> optimiser, and the two things the loop does with it: set the learning rate, clip the gradient.

The defaults are the paper's pre-training on ImageNet (arXiv 2010.11929, Table 3 and section B.1), its
fine-tuning (Table 4) is one line:

    Config()                                                                                Adam .9/.999, clip 1
    Config("sgd", lr=0.03, weight_decay=0.0, schedule=Schedule("cosine"))                   momentum .9
    Config("muon")                                                       AdamW's settings, hidden matrices by Muon

    optimizer = build(task, config)
    for step in range(total):
        set_lr(optimizer, config, multiplier(config.schedule, step, total, batch=..., examples=...))
        task(batch)[0].backward()                                          # all micro-batches of the step
        clip(task.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitrail.optim.muon import Muon
from vitrail.optim.rules import Rule, groups, is_hidden_matrix, layer_decay
from vitrail.optim.schedule import Schedule
from vitrail.optim.shards import added, divided, local, whole


@dataclass(frozen=True)
class Config:
    """Everything about the optimiser, in plain values.

    Raises ValueError for a number out of range, and for SGD with weight decay.
    """

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    lr: float = 3e-3
    """The base learning rate, for the batch that is used (the paper's 3e-3 is for 4096 images)."""
    weight_decay: float = 0.3
    """AdamW and Muon, and decoupled: a step multiplies decayed weights by (1 - lr * weight_decay)."""
    clip: float | None = 1.0
    """Largest global norm of the gradient; None does not clip."""
    layer_decay: float = 1.0
    """Learning rate factor from each layer to the one below it, for fine-tuning; 1 is none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW, and what Muon leaves to it."""
    eps: float = 1e-8
    """As betas."""
    momentum: float = 0.9
    """SGD only; Muon's is its author's .95."""
    rules: tuple[Rule, ...] = ()
    """Learning rate and decay by parameter name, such as head:lr=10; these win over layer_decay and over the decay of
    kernels only."""
    # The paper's 10k steps of 4096 images, said in examples so that it holds for any batch.
    schedule: Schedule = field(default_factory=lambda: Schedule("cosine", warmup="40_960_000 examples"))

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "sgd", "muon"):
            raise ValueError(f"optimiser {self.name!r} is unknown: choose adamw, sgd or muon")
        for what, value in (("lr", self.lr), ("weight_decay", self.weight_decay)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"optimiser {what} = {value} must be 0 or more, and finite")
        if not all(0 <= beta < 1 for beta in (*self.betas, self.momentum)) or not self.eps > 0:
            most = f"betas = {self.betas} and momentum = {self.momentum} must be 0 or more, and below 1"
            raise ValueError(f"optimiser {most}, eps = {self.eps} above 0")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"optimiser clip = {self.clip} must be above 0: use None for no clipping")
        # torch.optim.SGD adds decay to the gradient, so momentum and clipping would work on it: another thing.
        if self.name == "sgd" and self.weight_decay:
            raise ValueError(
                f"sgd has no decoupled weight decay, but weight_decay = {self.weight_decay}: set it to 0.0 "
                "(as in the paper's fine-tuning), or use adamw"
            )


class Joint(torch.optim.Optimizer):
    """Optimisers of different parameters as one: its groups and its state are theirs.

    So whoever knows one optimiser (the loop, `set_lr`, a checkpoint) needs to know no more.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # load_state_dict comes here, with new groups and a new state
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups, part.state = list(islice(groups, len(part.param_groups))), self.state

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss


def build(module: nn.Module, config: Config, exact: bool = False) -> torch.optim.Optimizer:
    """The optimiser for all that is trainable in the module; freezes what the rules freeze. exact: whether parameters
    that are divided among processes must come out as whole ones do, bit for bit.

    Call it once the parameters are what will be trained: after loading, moving and sharding them.

    AdamW is the paper's "Adam with weight decay". A step takes lr * weight_decay of each kernel, so decay
    follows the schedule and, unlike big_vision's, the multiplier of a rule as well; big_vision's `wd` is our
    lr * weight_decay (its lr 1e-3, wd 1e-4 is our 1e-3, 0.1).

    Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) replaces the momentum of each hidden matrix by an
    orthogonal matrix close to it; all else is AdamW's. Its update is scaled to the size of AdamW's, .2 sqrt(max(rows,
    columns)) as in arXiv 2502.16982, so that AdamW's learning rate, schedule and weight decay carry over (muon.py).

    Raises ValueError as `groups` and `layer_decay` do, and where Muon would have nothing to do.
    """
    rules = config.rules + (layer_decay(module, config.layer_decay) if config.layer_decay != 1 else ())
    found = groups(module, rules)
    for group in found:
        group["weight_decay"] = config.weight_decay * group["weight_decay_scale"]
        group["lr"] = config.lr * group["lr_scale"]
    # One kernel for the whole update rather than ten a tensor; on two cores it takes a third of the time, too.
    every = [p for group in found for p in group["params"]]
    # But it rounds the last numbers of a tensor otherwise; and SGD's knows none that are divided among processes.
    fused = (not exact and all(p.device.type in ("cpu", "cuda") for p in every)) or None
    if config.name == "sgd":
        fused = None if any(map(divided, every)) else fused
        return torch.optim.SGD(found, lr=config.lr, momentum=config.momentum, fused=fused)
    parts: list[torch.optim.Optimizer] = []
    if config.name == "muon":
        hidden, found = _apart(found, module)
        parts.append(Muon(hidden, config.lr))
    if found:
        parts.append(torch.optim.AdamW(found, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused))
    return parts[0] if len(parts) == 1 else Joint(*parts)


def _apart(found: list[dict[str, Any]], module: nn.Module) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same groups twice: with hidden matrices only, and with all but those; without the empty ones."""
    parts: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for group in found:
        named = list(zip(group["names"], group["params"], strict=True))
        for hidden, part in parts.items():
            chosen = [pair for pair in named if is_hidden_matrix(*pair) == hidden]
            if chosen:
                part.append(group | {"names": [name for name, _ in chosen], "params": [p for _, p in chosen]})
    if not parts[True]:
        what = "the matrices of a Transformer's blocks (blocks.0.attn.qkv.weight, ...)"
        raise ValueError(f"muon trains {what}, and {type(module).__name__} has none to train: use adamw")
    return parts[True], parts[False]


def set_lr(optimizer: torch.optim.Optimizer, config: Config, multiplier: float) -> None:
    """Writes lr = config.lr * multiplier * lr_scale into every group: the arguments alone decide."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr * multiplier * group["lr_scale"]


def clip(parameters: Iterable[Tensor], max_norm: float | None, exact: bool = False) -> Tensor:
    """Scales all gradients by one factor so that their common L2 norm is at most `max_norm`; None only measures.

    The factor is torch's, min(1, max_norm / (norm + 1e-6)). exact: whether the norm must not depend on the order of its
    sum, or on how many processes the gradients are divided among.
    Call it after the gradients of all micro-batches are summed. Returns the norm before clipping, a
    scalar on the device (reading it waits for the device).
    A norm that is not finite is returned, not raised, and clipping by it spoils every gradient: watch it.
    """
    if exact:
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = _exact_norm(gradients)
        if max_norm is not None:
            factor = (max_norm / (norm + 1e-6)).clamp_max(1.0)
            for gradient in gradients:
                local(gradient).mul_(factor)
        return norm
    if max_norm is not None:
        return whole(nn.utils.clip_grad_norm_(parameters, max_norm))
    return whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


@torch.no_grad()
def _exact_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm by squares as whole numbers, of which no sum rounds: parts of the largest, so that it fits 63 bits."""
    parts = [part.double() if part.numel() else part.new_zeros(1).double() for part in map(local, gradients)]
    largest = added([part.abs().max() for part in parts], gradients[0], "max")
    grid = 2.0 ** (62 - sum(gradient.numel() for gradient in gradients).bit_length())
    squares = [(part / largest.clamp_min(1e-300)).square().mul_(grid).round_().long().sum() for part in parts]
    return (largest * (added(squares, gradients[0], "sum").double() / grid).sqrt()).to(gradients[0].dtype)
