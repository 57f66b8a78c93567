"""The attentive probe: a few learned queries look at a frozen ViT's tokens, and a linear layer reads what they found.

A linear probe underrates models whose [class] token was never trained, such as MAE's. This is "efficient probing"
(Psomas et al., 2025, arXiv 2506.10178): the queries meet the tokens themselves, without projections of keys and values,
and each of M queries gathers its own M-th part of the width, so the probe has M D + D K weights.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.data.order import permute
from vitrail.data.sources.fingerprint import spread
from vitrail.data.sources.source import Subset
from vitrail.evaluate.evaluator import Evaluator, Judged, Validation
from vitrail.evaluate.features import Modelled, inner
from vitrail.evaluate.results import accuracy_interval
from vitrail.models import vit
from vitrail.progress import say, track

BYTES = 2**31  # of tokens that are kept, in half precision
QUERIES, BATCH = 32, 256
RATES = (3e-4, 1e-3, 3e-3)
HELD = 10  # of so many training images one is held back to choose


@dataclass(frozen=True)
class Attentive(Evaluator):
    """Of a ViT. Its rate is chosen on training images that are held back."""

    kind: ClassVar[str] = "attentive"
    head: ClassVar[bool] = False

    epochs: int = 40
    """Over the training images."""
    seed: int = 0
    """Decides the queries' first values, the order and which training images are held back."""

    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float]]:
        """Yields ("attentive", accuracy), its 95 % interval as "attentive_low" and "attentive_high", the rate as
        "attentive_lr", and "samples". ValueError where the model is not a ViT or images have not one label each."""
        if not (isinstance(task, Modelled) and isinstance(task.get_submodule("model"), vit.ViT)):
            raise ValueError("the model is not a ViT, and only a ViT has tokens for an attentive probe.")
        if data.source.targets != "class":
            raise ValueError("an attentive probe is judged on images with one label each.")
        config, classes = task.get_submodule("model").config, len(data.source.class_names)
        rows, columns = config.grid(data.preprocessing.image_size)
        most = max(1, BYTES // (2 * (rows * columns + config.prefix) * config.width))
        bank = data.bank()
        if most < len(bank.source):
            some = f"{most:,} of {len(bank.source):,} images"
            say(f"the attentive probe is trained on {some}, whose tokens fit in memory.")
            bank = replace(bank, source=Subset(bank.source, spread(len(bank.source), most)))
        tokens, labels = _tokens(task, bank)
        order = permute(np.arange(len(labels)), len(labels), self.seed, 0)
        held, rest = torch.from_numpy(order[::HELD]), torch.from_numpy(np.delete(order, np.s_[::HELD]))
        if not len(rest):
            raise ValueError(f"{len(labels)} training image is too few to choose an attentive probe by.")
        scores = {}
        for rate in track(RATES, len(RATES), "attentive probes, learning rate"):
            trained = self._trained(tokens, labels, rest, classes, rate, data)
            scores[rate] = float(_right(trained, tokens[held], labels[held], data).float().mean())
        rate = max(scores, key=scores.__getitem__)
        trained = self._trained(tokens, labels, torch.from_numpy(order), classes, rate, data)
        parts = (_right(trained, *part, data) for part in _batches(task, data))
        right = torch.cat([*parts])
        yield "attentive", float(right.float().mean())
        low, high = accuracy_interval(int(right.sum()), len(right))
        yield "attentive_low", low
        yield "attentive_high", high
        yield "attentive_lr", rate
        yield "samples", float(len(right))

    def _trained(
        self, tokens: Tensor, labels: Tensor, places: Tensor, classes: int, rate: float, data: Validation
    ) -> "Probe":
        generator = torch.Generator().manual_seed(self.seed)
        probe = Probe(tokens.shape[2], classes, generator).to(data.device)
        weights, total = [*probe.parameters()], self.epochs * -(-len(places) // BATCH)
        optimizer = torch.optim.AdamW(weights, rate, weight_decay=0.01)
        plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, max(2, total), pct_start=0.1)
        for _ in range(self.epochs):
            for part in places[torch.randperm(len(places), generator=generator)].split(BATCH):
                logits = probe(tokens[part].to(data.device).float())
                loss = F.cross_entropy(logits, labels[part].to(data.device))
                for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                    weight.grad = gradient
                optimizer.step()
                plan.step()
        return probe


class Probe(nn.Module):
    """(B, N, D) tokens -> logits (B, K). The tokens are normalised without weights first."""

    def __init__(self, width: int, classes: int, generator: torch.Generator) -> None:
        super().__init__()
        queries = next(count for count in range(min(QUERIES, width), 0, -1) if width % count == 0)
        self.queries = nn.Parameter(torch.randn(queries, width, generator=generator) / math.sqrt(width))
        self.head = nn.Linear(width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def maps(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B M N"]:
        """Where each query looks; a row sums to 1."""
        return (self.queries @ tokens.transpose(1, 2) / math.sqrt(tokens.shape[2])).softmax(2)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B K"]:
        tokens = F.layer_norm(tokens, tokens.shape[2:])
        parts = tokens.unflatten(2, (len(self.queries), -1))
        return self.head(torch.einsum("bmn,bnmd->bmd", self.maps(tokens), parts).flatten(1))


@torch.inference_mode()
def _batches(task: Modelled, data: Validation) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in track(data.batches(), -(-len(data.source) // data.batch), "tokens, batch"):
        yield inner(task).tokens(task.input(batch["images"])).half().cpu(), batch["targets"].cpu()


def _tokens(task: Modelled, data: Validation) -> tuple[Float[Tensor, "N T D"], Int64[Tensor, "N"]]:
    tokens, labels = zip(*_batches(task, data), strict=True)
    return torch.cat(tokens), torch.cat(labels)


@torch.no_grad()
def _right(probe: Probe, tokens: Tensor, labels: Tensor, data: Validation) -> Tensor:
    parts = zip(tokens.split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([probe(some.to(data.device).float()).argmax(1).cpu() == truth for some, truth in parts])
