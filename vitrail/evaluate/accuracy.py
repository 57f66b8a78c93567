"""Accuracy: how many images are right, and how wrong the others are. One pass, every image counted once.

for name, value in Accuracy().run(task, validation): ...    # accuracy, top5, loss, samples; or mAP, f1, ...
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vitrail.evaluate.evaluator import Evaluator, Judged, Validation
from vitrail.evaluate.results import ClassificationResult, MultiLabel, SingleLabel


@dataclass(frozen=True)
class Accuracy(Evaluator):
    """Of a task whose `predict` gives logits, probabilities and, with targets, losses (tasks/classify.py)."""

    kind: ClassVar[str] = "accuracy"
    divides: ClassVar[bool] = True

    def run(self, task: Judged, data: Validation) -> Iterator[tuple[str, float | ClassificationResult]]:
        """Yields, for images of one class each, ("accuracy", fraction in [0, 1]), and ("top5", the same) where there
        are more than five classes; for several, ("mAP", mean average precision) and ("f1", of all decisions at 0.5).
        Then ("loss", mean), ("balanced_accuracy", the mean over the classes) where they differ in number, ("samples",
        number), ("unreadable", number) where some were left out, and last ("classification", what was found of each).

        ValueError where the data has not as many classes as the model, or no image can be judged.
        """
        result = self.judge(task, data)
        yield from result.metrics.items()
        yield "classification", result

    @torch.inference_mode()
    def judge(self, task: Judged, data: Validation) -> ClassificationResult:
        """What the model says of every image that has a label. Raises as `run` does."""
        problems: list[str] = []

        def skipped(problem: str) -> None:
            assert data.skipped is not None
            data.skipped(problem)
            problems.append(problem)

        classes, several, parts = len(data.source.class_names), data.source.targets == "classes", []
        for batch in replace(data, skipped=skipped if data.skipped else None).batches():
            outputs = task.predict(batch)
            if (found := outputs["logits"].shape[1]) != classes:
                raise ValueError(f"the data has {classes} classes, but the model's head has {found}.")
            seen = _several(batch["targets"], outputs) if several else _single(batch["targets"], outputs)
            seen |= {"indices": batch["indices"], "losses": outputs["losses"]}
            parts.append({name: value.cpu().numpy() for name, value in seen.items()})
        single = ("targets", "predicted", "confidence", "truth", *(["top5"] if classes > 5 else []))
        names = *(("targets", "logits") if several else single), "indices", "losses"
        # A process may have no batch; what it lacks is as the others' then.
        whole = {name: np.concatenate([part[name] for part in parts] or [np.empty(0)]) for name in names}
        whole = {name: data.rows(values) for name, values in whole.items()}
        if not len(order := np.argsort(whole["indices"], kind="stable")):
            raise ValueError("none of the images can be read and has a label, so there is nothing to evaluate.")
        whole = {name: values[order] for name, values in whole.items()}
        said = data.rows(np.frombuffer("".join(f"{problem}\0" for problem in problems).encode(), np.uint8))
        kind = MultiLabel if several else SingleLabel
        left_out = tuple(said.tobytes().decode().split("\0")[:-1])
        return kind(class_names=data.source.class_names, problems=left_out, **whole)


def _single(targets: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """SingleLabel's arrays."""
    logits, probabilities = outputs["logits"], outputs["probabilities"].double()
    predicted = logits.argmax(-1)
    confidence, truth = (probabilities.gather(1, numbers[:, None])[:, 0] for numbers in (predicted, targets))
    found = {"targets": targets, "predicted": predicted, "confidence": confidence, "truth": truth}
    if logits.shape[1] > 5:
        found["top5"] = (logits.topk(5).indices == targets[:, None]).any(-1)
    return found


def _several(targets: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """MultiLabel's arrays."""
    return {"targets": targets.bool(), "logits": outputs["logits"]}
