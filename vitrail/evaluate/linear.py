"""The linear probe: logistic regression on frozen features, its settings chosen on training images that are held back.

The grid is that of DINOv2's protocol (dinov2/eval/linear.py): the last block or the last four, [class] with or without
the patches' mean; but each head has an L2 penalty of its own where theirs have learning rates, because on features
without augmentation a head that is trained to the end over-fits. The heads of one kind of feature are one matrix
product, and L-BFGS takes all of them to their minima, each with its own step. Then one head is fitted to all training
images, and one number is measured on the others: not the best of 52 on the test set.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.data.order import permute
from vitrail.data.sources.fingerprint import spread
from vitrail.data.sources.source import Subset
from vitrail.evaluate.evaluator import Evaluator, Judged, Validation
from vitrail.evaluate.features import Features, Modelled, features
from vitrail.evaluate.lbfgs import minimised
from vitrail.evaluate.results import accuracy_interval
from vitrail.models import vit
from vitrail.progress import say, track

BYTES = 2**32  # of features of the training images, and of the judged ones; a fit needs some three times that
PENALTIES = 10.0 ** torch.arange(-6, 0.5, 0.5)  # L2, of the mean loss
BLOCKS = 4
HELD = 10  # of so many training images one is held back to choose
ROUGH = 3e-4  # the gradient at which heads are compared; the one that is chosen goes on to a third of it
ROWS = 2**26  # numbers at once


@dataclass(frozen=True)
class Linear(Evaluator):
    """Of a ViT's last blocks; of other models, and where memory is short, the features of `predict` alone."""

    kind: ClassVar[str] = "linear"
    head: ClassVar[bool] = False

    seed: int = 0
    """Which training images are held back."""

    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float]]:
        """Yields ("linear", accuracy), its 95 % interval as "linear_low" and "linear_high", what was chosen as
        "linear_l2", "linear_blocks" (0: `predict`'s features) and "linear_mean" (1: with the patches' mean), and
        "samples". ValueError as `features`, and without training images."""
        bank, test, blocks = _fitting(task, data)
        kinds = [(count, mean) for count in sorted({1, blocks}) for mean in (0, 1)] if blocks else [(0, 0)]
        order = permute(np.arange(len(bank)), len(bank), self.seed, 0)
        held, rest = order[::HELD], np.delete(order, np.s_[::HELD])
        if not len(rest):
            raise ValueError(f"{len(bank)} training image is too few to choose a linear probe by.")
        best = (-1.0, 0.0, kinds[0])
        for kind in track(kinds, len(kinds), "linear probes, kind of features"):
            x, _ = standardised(bank, test, kind, rest, data.device)
            heads = fit(x[rest], bank.targets[rest], bank.classes, PENALTIES, ROUGH)
            for right, l2 in zip(heads.right(x[held], bank.targets[held]), PENALTIES.tolist(), strict=True):
                best = max(best, (float(right.mean()), l2, kind), key=lambda one: one[0])  # the first of equals
        _, l2, kind = best
        x, other = standardised(bank, test, kind, order, data.device)
        right = fit(x, bank.targets, bank.classes, torch.tensor([l2])).right(other, test.targets)[0]
        yield "linear", float(right.mean())
        yield from zip(("linear_low", "linear_high"), accuracy_interval(int(right.sum()), len(right)), strict=True)
        yield from (("linear_l2", l2), ("linear_blocks", float(kind[0])), ("linear_mean", float(kind[1])))
        yield "samples", float(len(test))


def _fitting(task: Judged, data: Validation) -> tuple[Features, Features, int]:
    """Features of the training and of the judged images, and of how many last blocks (0: of `predict`): of fewer, and
    then of some of the training images, where BYTES do not hold them. What is left out is said."""
    train, blocks, width = data.bank(), 0, 0
    if isinstance(task, Modelled) and isinstance(model := task.get_submodule("model"), vit.ViT):
        blocks, width = min(BLOCKS, len(model.blocks)), model.config.width
    images, most = max(len(train.source), len(data.source)), blocks
    blocks = next(count for count in (most, 1, 0) if images * count * 2 * width * 4 <= BYTES)
    if blocks < most:
        read = "the last block" if blocks else "the features of `predict`"
        size = f"{most} blocks of {images:,} images take {images * most * width / 2**27:,.1f} GiB"
        say(f"the linear probe reads {read} alone: {size}, and {BYTES / 2**30:,.1f} GiB are kept.")
    test, total = features(task, data, blocks), len(train.source)
    if (fitting := max(1, BYTES // test.values[0].nbytes)) < total:
        say(f"the linear probe is trained on {fitting:,} of {total:,} images, evenly spaced, whose features fit.")
        train = replace(train, source=Subset(train.source, spread(total, fitting)))
    return features(task, train, blocks), test, blocks


def standardised(
    bank: Features, other: Features, kind: tuple[int, int], places: Int64[np.ndarray, "n"], device: torch.device | str
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "M D"]]:
    """The features of a kind (blocks, whether with the mean) of both, less the mean and over the std of these places of
    the bank; what is constant there is 0."""

    def taken(found: Features) -> Tensor:
        x = torch.from_numpy(found.values)
        return (x[:, -kind[0] :, : 1 + kind[1]].flatten(1) if x.ndim == 4 else x).to(device)

    x, y = taken(bank), taken(other)
    some = torch.from_numpy(places).to(x.device)
    parts = (part[some].double() for part in x.split(64, 1))  # all columns at once: three times as large as x
    std, mean = torch.cat([torch.stack(torch.std_mean(part, 0, correction=0)) for part in parts], 1)
    scale, mean = torch.where(std > 1e-6 * std.max(), 1 / std, 0.0).float(), mean.float()
    return (x - mean).mul_(scale), (y - mean).mul_(scale)


@dataclass(frozen=True, eq=False)
class Heads:
    """G heads beside each other: logits = x weight + bias."""

    weight: Float[Tensor, "D G K"]
    bias: Float[Tensor, "G K"]

    def right(self, x: Float[Tensor, "N D"], labels: Int64[np.ndarray, "N"]) -> np.ndarray:
        """bool (G, N)."""
        said = torch.cat([self.logits(part).argmax(2) for part in x.split(max(1, ROWS // self.bias.numel()))])
        return said.T.cpu().numpy() == labels

    def logits(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N G K"]:
        """One matrix product for all heads."""
        return torch.addmm(self.bias.flatten(), x, self.weight.flatten(1)).unflatten(1, self.bias.shape)


@torch.inference_mode()
def fit(
    x: Float[Tensor, "N D"], labels: Int64[np.ndarray, "N"], classes: int, l2: Float[Tensor, "G"], enough: float = 1e-4
) -> Heads:
    """For each penalty the head with the least mean cross-entropy + l2 |weight|^2 / 2, by L-BFGS (Nocedal and Wright,
    algorithm 7.4) until no element of its gradient is above `enough`."""
    targets, l2 = torch.from_numpy(labels).to(x.device), l2.to(x)

    def objective(heads: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """(G,) and its gradient, of (D + 1, G, K), the bias being the last row."""
        given, penalty = Heads(heads[:-1], heads[-1]), l2[which]
        loss, gradient = (penalty * given.weight.square().sum((0, 2))) / 2, torch.zeros_like(heads)
        gradient[:-1] = penalty[:, None] * given.weight
        size = max(1, ROWS // given.bias.numel())
        for part, right in zip(x.split(size), targets.split(size), strict=True):
            logs = given.logits(part).log_softmax(2)
            index = right[:, None, None].expand(-1, len(which), 1)
            loss -= logs.gather(2, index).sum((0, 2)) / len(x)
            wrong = logs.exp_().scatter_add_(2, index, torch.full_like(logs[:, :, :1], -1)).flatten(1) / len(x)
            gradient[:-1] += (part.T @ wrong).unflatten(1, given.bias.shape)
            gradient[-1] += wrong.sum(0).unflatten(0, given.bias.shape)
        return loss, gradient

    heads = minimised(objective, x.new_zeros(x.shape[1] + 1, len(l2), classes), enough)
    return Heads(heads[:-1], heads[-1])
