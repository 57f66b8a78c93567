"""Weights to start a run from: the model with them in it, and their head where it has the same classes.

model, kept, words = start(Path("runs/pets/model"), config, ("cat", "dog"), seed=0)
"""

from pathlib import Path

import torch

from vitrail.models import Config, Model, vit
from vitrail.progress import few
from vitrail.weights.format import Weights
from vitrail.weights.load import instantiate, read


def start(path: Path, config: Config, class_names: tuple[str, ...], seed: int) -> tuple[Model, bool, str]:
    """(the model, whether its head is that of the weights, what became of head and tensors). Classes are compared by
    name, and may be in another order. ValueError as `read` raises it, and where the weights do not fit."""
    weights = read(path, new_head=True)
    new = _new(weights, config, class_names)
    try:
        model, report = instantiate(weights, config, new_head=bool(new), seed=seed)
    except ValueError as error:
        raise ValueError(f"{path} does not fit the model: {error}") from None
    if new:
        head = f"with a new head, because {new}" if config.classes else "without a head"
        return model, False, f"{head}; {report}"
    order = [(weights.class_names or ()).index(name) for name in class_names]
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(parameter[order].clone())
    return model, True, f"with its head, because the {len(order)} classes are the same; {report}"


def _new(weights: Weights, config: Config, class_names: tuple[str, ...]) -> str:
    """Why the head cannot be that of the weights; "" where it can."""
    theirs, ours = set(weights.class_names or ()), set(class_names)
    if not theirs or "head.weight" not in weights.tensors:
        return "the weights name no classes"
    if theirs != ours or len(ours) != len(class_names) or len(theirs) != weights.config.classes:
        return f"the classes differ (gone: {few(sorted(theirs - ours), 3)}; new: {few(sorted(ours - theirs), 3)})"
    reads = isinstance(config, vit.Config) and config.representation is not None
    if reads != any(name.startswith("pre_logits.") for name in weights.tensors):
        return "that of the weights reads another pre-logits layer"
    return ""
