"""How far a model's probabilities can be trusted: beside what a perfectly calibrated model of these would show.

The expected calibration error of a perfect model is not 0: bins hold few images, so it is 3.2 % at 500 images and 1.1 %
at 5,000. The value by chance is drawn from the confidences themselves and told beside it. The temperature (Guo et al.,
2017) of each half of the images is the one that suits the other half best: it is not fitted to what it is judged on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vitrail.data.order import permute
from vitrail.evaluate.evaluator import Evaluator, Judged, Validation
from vitrail.evaluate.results import BINS

DRAWS = 1_000  # of answers by chance
CHUNK = 2**24  # numbers at once
LOG = torch.linspace(-3, 3, 25).double()  # of the temperature, before it is refined twice


@dataclass(frozen=True)
class Calibration(Evaluator):
    """Of images with one class each."""

    kind: ClassVar[str] = "calibration"

    @torch.inference_mode()
    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float]]:
        """Yields, all as fractions or in nats: "nll" and "brier" (sum over the classes), "ece", "ece_chance" (its mean
        for a perfectly calibrated model with these confidences), "temperature" (the mean of both halves), "nll_scaled",
        "ece_scaled", and "samples". ValueError where images have no label or several."""
        if data.source.targets != "class":
            raise ValueError("calibration is measured on images with one label each.")
        parts, targets, normal = list[Tensor](), list[Tensor](), True
        for batch in data.batches():
            outputs = task.predict(batch)
            parts.append(outputs["logits"].double().cpu())
            targets.append(batch["targets"].cpu())
            normal = normal and bool((outputs["probabilities"].sum(1) - 1).abs().max() < 1e-3)
        logits, labels = torch.cat(parts), torch.cat(targets)
        order = permute(np.arange(len(labels)), len(labels), 0, 0)
        halves = order[::2], order[1::2]
        temperatures = torch.ones(len(labels)).double()
        for one, other in (halves, halves[::-1]) if len(labels) > 1 else ():
            temperatures[torch.from_numpy(one)] = temperature(logits[other], labels[other], normal)
        for name, scaled in (("", logits), ("_scaled", logits / temperatures[:, None])):
            found = scaled.softmax(1) if normal else scaled.sigmoid()
            confidence, said = found.max(1)
            yield f"nll{name}", float(_nll(scaled, labels, normal))
            yield f"ece{name}", ece(confidence.numpy(), (said == labels).numpy())
            if not name:
                yield "ece_chance", ece_by_chance(confidence.numpy())
                yield "brier", float((found - F.one_hot(labels, found.shape[1])).square().sum(1).mean())
        yield "temperature", float(temperatures.mean())
        yield "samples", float(len(labels))


def ece(confidence: Float[np.ndarray, "*R N"], correct: Bool[np.ndarray, "*R N"]) -> float:
    """The expected calibration error over 15 bins of equal width, open below; the mean of several, where given."""
    place = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)
    gaps = np.where(correct, confidence - 1, confidence)
    rows = np.arange(gaps.size // gaps.shape[-1]).reshape(*gaps.shape[:-1], 1) * BINS
    sums = np.bincount((place + rows).ravel(), gaps.ravel(), minlength=int(rows.size) * BINS)
    return float(np.abs(sums).sum() / gaps.size)


def ece_by_chance(confidence: Float[np.ndarray, "N"], seed: int = 0) -> float:
    """The mean calibration error where each answer is right with just the probability that it is said to have."""
    generator, total = np.random.default_rng(seed), 0.0
    for start in range(0, DRAWS, step := max(1, CHUNK // len(confidence))):
        rounds = min(step, DRAWS - start)
        drawn = generator.random((rounds, len(confidence))) < confidence
        total += rounds * ece(np.broadcast_to(confidence, drawn.shape), drawn)
    return total / DRAWS


def temperature(logits: Float[Tensor, "N K"], labels: Int64[Tensor, "N"], normal: bool = True) -> float:
    """What the logits are best divided by: least negative log-likelihood, from 0.05 to 20. normal: after a softmax."""
    centre, width = 0.0, 1.0
    for _ in range(3):
        logs = centre + width * LOG
        losses = [float(_nll(logits / float(one.exp()), labels, normal)) for one in logs]
        centre, width = float(logs[int(np.argmin(losses))]), width / 12
    return float(np.exp(centre))


def _nll(logits: Tensor, labels: Tensor, normal: bool) -> Tensor:
    if normal:
        return F.cross_entropy(logits, labels)
    rows = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, rows, reduction="none").sum(1).mean()
