"""A linear probe in closed form: ridge regression from a frozen model's features to the classes, as a head.

    print(probe(task, Validation(source, preprocessing, collate), task.model.head))      # each image is read once

What the regression says of an image without that image costs nothing more: y_i - f_-i(x_i) = (y_i - f(x_i)) / (1 - h_i)
with the leverage h_i. It chooses the penalty, and the scale at which its outputs are logits.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.data.sources.fingerprint import spread
from vitrail.data.sources.source import Subset
from vitrail.evaluate.evaluator import Judged, Validation
from vitrail.progress import track

MOST = 10_000
PENALTIES, SCALES = 10.0 ** torch.arange(-4, 4.5, 0.5).double(), 2.0 ** torch.arange(0, 8).double()


@torch.inference_mode()
def probe(task: Judged, data: Validation, head: nn.Module) -> str:
    """Puts the probe of 10,000 images at most into the head; a sentence that says how good it is, where each image is
    judged by the others. task: its `predict` gives "features". ValueError for a head that is not linear, and where no
    image can be read."""
    if not isinstance(head, nn.Linear):
        raise ValueError("the model has no linear head, which a probe could begin; train with --head zero.")
    features, targets = list[Tensor](), list[Tensor]()
    source = Subset(data.source, spread(len(data.source), MOST))
    batches = replace(data, source=source).batches()
    for batch in track(batches, -(-len(source) // data.batch), "probing the weights, batch"):
        features.append(task.predict(batch)["features"].double().cpu())
        targets.append(batch["targets"].cpu())
    labels = torch.cat(targets)
    several = labels.is_floating_point()
    rows = labels.double() if several else F.one_hot(labels, head.out_features).double()
    weight, bias, logits = ridge(torch.cat(features), rows, several)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
    right = (logits > 0) == (rows > 0) if several else logits.argmax(1) == labels
    what = f"{right.double().mean():.1%} {'of the labels' if several else 'right'}"
    return f"the head begins as a linear probe, by ridge regression on {len(labels):,} training images: {what}"


def ridge(
    features: Float[Tensor, "N D"], rows: Float[Tensor, "N K"], several: bool
) -> tuple[Float[Tensor, "K D"], Float[Tensor, "K"], Float[Tensor, "N K"]]:
    """(weight, bias, the logits of each image by the others). rows: 1 for each class of an image. several: whether
    logits are a sigmoid's, which is then what the penalty and the scale are chosen for."""
    count, centre, level = len(features), features.mean(0), rows.mean(0)
    x, y = features - centre, rows - level
    values, vectors = torch.linalg.eigh(x.T @ x)
    along = x @ vectors
    best, least = (torch.empty(0), torch.empty(0), torch.empty(0)), float("inf")
    for penalty in PENALTIES * values.mean().clamp_min(1e-9):
        shrunk = 1 / (values.clamp_min(0) + penalty)
        turned = shrunk[:, None] * (along.T @ y)
        leverage = (along**2 * shrunk).sum(1, keepdim=True) + 1 / count
        alone = rows - (y - along @ turned) / (1 - leverage).clamp_min(1e-6) - 0.5
        for scale in SCALES:
            logits = scale * alone
            entropy = F.binary_cross_entropy_with_logits if several else F.cross_entropy
            if (loss := float(entropy(logits, rows))) < least:
                weight = scale * (vectors @ turned).T
                best, least = (weight, scale * (level - 0.5) - weight @ centre, logits), loss
    return best
