"""From an image to an Explanation: what the model predicts, where it looks for that, and how faithful the map is.

found = explain(Pipeline.load("runs/pets"), "cat.jpg", faithfulness=True)
found.labels, found.maps                    # ("cat", "dog", "fox"), (3, rows, columns)
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitrail.data.images.geometry import centred
from vitrail.explain.attention import attention, distance, heads, patches
from vitrail.explain.faithful import Removal, randomised, removal, summary
from vitrail.explain.relevance import Method, relevance
from vitrail.models import vit
from vitrail.pipeline import Pipeline
from vitrail.progress import few
from vitrail.tasks import Task
from vitrail.tasks.classify import Classify
from vitrail.tasks.exported import needs_weights

TITLES: dict[Method, str] = {
    "gradient": "gradient-weighted attention (Chefer et al., 2021)",
    "legrad": "LeGrad (Bousselham et al., 2024)",
    "rollout": "attention rollout (Abnar and Zuidema, 2020), the same for every class",
    "attention": "attention of the last block, the same for every class",
}


@dataclass(frozen=True, eq=False)
class Explanation:
    """Of one image. photo: the whole, upright. box: (left, top, right, bottom) of the patches' grid in its pixels; it
    may reach beyond. labels, probabilities: the classes that were asked for, else the most probable, best first; none
    without a head. maps: one of each class, or a single one. attention: in the row that the head reads. distances: in
    pixels of the model's input. tokens: of the patches, after the final norm. removal: for the first class;
    correlation: of its map with that of a model with other weights (`faithful.randomised`)."""

    name: str
    photo: UInt8[np.ndarray, "H W C"]
    box: tuple[float, float, float, float]
    method: Method
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    maps: Float[Tensor, "K rows columns"]
    attention: Float[Tensor, "L heads rows columns"]
    distances: Float[Tensor, "L heads"]
    tokens: Float[Tensor, "rows columns D"]
    removal: Removal | None = None
    correlation: float | None = None

    @property
    def caption(self) -> str:
        """The method, and the numbers of its faithfulness, where they were asked for."""
        return "; ".join(filter(None, [TITLES[self.method], self.faithfulness or "faithfulness not measured"]))

    @property
    def faithfulness(self) -> str:
        """In words; "" where it was not asked for."""
        if self.removal is None or self.correlation is None:
            return ""
        found = summary([self.removal])
        areas = "area under removal {most:.3f} most important first, {random:.3f} in random orders, {least:.3f} least "
        gain = "important first; random - most {gain:+.3f} ({low:+.3f} to {high:+.3f}); correlation with other weights "
        return f"for {self.labels[0]}: {(areas + gain).format(**found)}{self.correlation:.2f}"

    def arrays(self) -> dict[str, Any]:
        """Everything but the photo as NumPy arrays, for numpy.savez."""
        found = {
            name: getattr(self, name).float().cpu().numpy() for name in ("maps", "attention", "distances", "tokens")
        }
        found |= {"box": np.array(self.box), "probabilities": np.array(self.probabilities)}
        found |= {"labels": np.array(self.labels, str), "token_norms": np.linalg.norm(found["tokens"], axis=-1)}
        if self.removal is not None:
            found |= {f"removal_{name}": curves.cpu().numpy() for name, curves in vars(self.removal).items()}
        return found


def explain(
    pipeline: Pipeline,
    image: Any,
    *,
    method: Method = "gradient",
    labels: Sequence[str] = (),
    top: int = 3,
    faithfulness: bool = False,
    seed: int = 0,
    name: str = "the image",
) -> Explanation:
    """Explains one image of any kind that the pipeline takes: the named classes, or the `top` most probable.

    faithfulness: whether patches and weights are removed, too, which takes about a hundred forward passes. ValueError,
    naming the image, where it cannot be read; where the model is not a ViT, or has not such classes.
    """
    name = os.fsdecode(image) if isinstance(image, str | os.PathLike) else name
    task, how = pipeline.task, pipeline.preprocessing
    model = check(task, method, labels, faithfulness)
    config = model.config
    found = pipeline.open(image, name)
    photo = found.decode(channels=len(how.mean))
    try:
        view = centred(found.size, how)
        grid = config.grid(view.output)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    pixels = torch.from_numpy(np.array(view.apply(photo).transpose(2, 0, 1), order="C"))[None]
    images = task.input(pixels.to(task.device))
    with torch.no_grad(), attention(model) as maps:
        tokens = model.tokens(images)
        logits = model.head(model.pre_logits(model.pool(tokens)))
    sigmoid = isinstance(task, Classify) and task.config.loss == "sigmoid"
    chances = logits.sigmoid() if sigmoid else logits.softmax(-1)
    names = _names(task)
    best = chances[0].topk(min(top, len(names))).indices
    classes = torch.tensor([names.index(label) for label in labels]).to(best) if labels else best
    scores = relevance(model, images, method, classes[None])
    removed, correlation = None, None
    if faithfulness:
        removed = removal(model, images, scores[:, 0], classes[:1], seed=seed, sigmoid=sigmoid)
        alike = randomised(model, lambda other: relevance(other, images, method, classes[None, :1])[:, 0], seed=seed)
        correlation = float(alike)
    height, width = (float(n * stride) for n, stride in zip(grid, config.stride, strict=True))
    left, top_, right, bottom = view.original(np.array([[0.0, 0.0, width, height]]))[0].tolist()
    return Explanation(
        name,
        photo,
        (left, top_, right, bottom),
        method,
        tuple(names[i] for i in classes.tolist()),
        tuple(chances[0, classes].tolist()),
        scores[0],
        patches(heads(maps, config), config, grid)[0],
        distance(maps, config, grid)[0],
        patches(tokens[0].T, config, grid).permute(1, 2, 0),
        removed,
        correlation,
    )


def check(task: Task, method: Method, labels: Sequence[str] = (), faithfulness: bool = False) -> vit.ViT:
    """The task's model. ValueError where it cannot be explained so, or does not have these classes."""
    needs_weights(task, "explain")
    if not isinstance(task.model, vit.ViT):
        raise ValueError("a ResNet has no attention to explain; give a ViT or a hybrid.")
    names = _names(task)
    if not names and (faithfulness or labels or method in ("gradient", "legrad")):
        raise ValueError("the model has no classes to explain; fine-tune it first, or take the method rollout alone.")
    for label in labels:
        if label not in names:
            near = difflib.get_close_matches(label, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the classes are {few(names)}."
            raise ValueError(f"there is no class {label!r}; {hint}")
    return task.model


def _names(task: Task) -> tuple[str, ...]:
    return task.class_names if isinstance(task, Classify) else ()
