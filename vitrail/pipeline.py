"""A Pipeline: weights, preprocessing and class names in one, from an image to named answers (law 3).

Every consumer uses this one description, so that a prediction does not depend on who makes it:

    predict = Pipeline.load("runs/demo")    # or a model folder, or any weights that weights/load.py reads
    predict("cat.jpg")                      # [Prediction(label="tabby", index=281, probability=0.98), ...], best first
    predict(["cat.jpg", image])             # such a list for each; an image is uint8 (H, W, C)
    for result in predict.stream(paths):    # the same, one by one; a bad file is a ValueError and stops no other
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.images.decode import decode
from vitrail.data.images.preprocessing import Preprocessing, normalise, prepare
from vitrail.data.loader import prefetch
from vitrail.models.vit import ViT
from vitrail.runtime.inference import batch_size, prepared
from vitrail.weights import folder as model_folder
from vitrail.weights.hub import resolve
from vitrail.weights.load import fit, read

Image = NDArray[np.uint8] | Path | str

AT_ONCE = 2**20  # pixels that are collected for the model: 21 images of 224 x 224, 256 of 64 x 64 or less
WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Prediction:
    """One class and how probable the model finds it, in [0, 1]."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Pipeline:
    """Call it with images: paths, or uint8 arrays (H, W, C), of any sizes.

    loss: what the model was trained with. After softmax the probabilities of an image sum to 1; after sigmoid each
    class has its own, for an image may show several. int8: whether the linear layers of the blocks are computed in 8
    bits (inference.py), with the weights as they are at the first call.
    """

    model: ViT
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    loss: model_folder.Loss = "softmax"
    int8: bool = False

    @classmethod
    def load(cls, path: Path | str, *, int8: bool = False) -> "Pipeline":
        """From a run folder, a model folder, a file with weights or hf-hub:NAME; unnamed classes go by their numbers.

        int8: faster on a CPU, a little less exact; `vitrail evaluate --int8` measures how much on your images.
        ValueError, naming the file, where there is none, or it cannot be read.
        """
        place = locate(resolve(path))
        weights = read(place)
        try:
            model = fit(weights, weights.config)[0]
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        names = weights.class_names or tuple(map(str, range(weights.config.classes)))
        return cls(model, weights.preprocessing, names, weights.loss, int8)

    def save(self, path: Path) -> None:
        """Writes the model folder."""
        model_folder.save(path, self.model, self.preprocessing, self.class_names, self.loss)

    @overload
    def __call__(self, images: Image, top: int = 5) -> list[Prediction]: ...
    @overload
    def __call__(self, images: Sequence[Image], top: int = 5) -> list[list[Prediction]]: ...
    def __call__(self, images: Image | Sequence[Image], top: int = 5) -> list[Prediction] | list[list[Prediction]]:
        """The `top` most probable classes, best first, of one image or of each; without dropout, whatever the mode.

        ValueError, naming the file, for the first image that is of another kind or damaged.
        """
        one = isinstance(images, np.ndarray | Path | str)
        found: list[list[Prediction]] = []
        for result in self.stream([images] if one else images, top):
            if isinstance(result, ValueError):
                raise result
            found.append(result)
        return found[0] if one else found

    def stream(self, images: Iterable[Image], top: int = 5) -> Iterator[list[Prediction] | ValueError]:
        """For each image in turn its `top` answers, or the ValueError that says what is wrong with it.

        Threads decode ahead while the model works; images that have one size by then go through it together, which
        changes no answer by more than rounding.
        """
        if top < 1:
            raise ValueError(f"top is {top}; it must be 1 or more.")
        if not self.class_names:
            raise ValueError("the model has no head, so it has no classes to predict; fine-tune it first.")
        # At their own size, a few images may already fill the memory.
        ahead = WORKERS if self.preprocessing.resize == "native" else 32
        waiting: list[_Item] = []
        filled = 0
        for item in prefetch(self._prepared, images, ahead, WORKERS):
            waiting.append(item)
            filled += max(item.pixels, AT_ONCE // 256)
            if filled >= AT_ONCE:
                yield from self._answers(waiting, top)
                waiting, filled = [], 0
        yield from self._answers(waiting, top)

    def _prepared(self, image: Image) -> "_Item":
        """What the model reads of an image, or what is wrong with it."""
        name = "" if isinstance(image, np.ndarray) else f"{image}: "
        try:
            pixels = image if isinstance(image, np.ndarray) else decode(Path(image), len(self.preprocessing.mean))
        except ValueError as error:  # which names the file already
            return _Item(name, error)
        try:
            return _Item(name, prepare(pixels, self.preprocessing))
        except ValueError as error:
            return _Item(name, ValueError(f"{name}{error}"))

    def _answers(self, items: Sequence["_Item"], top: int) -> list[list[Prediction] | ValueError]:
        """One result an item, in their order; those of one size are one batch."""
        results: dict[int, list[Prediction] | ValueError] = {}
        sizes: dict[torch.Size, dict[int, Tensor]] = {}
        for place, item in enumerate(items):
            if isinstance(item.content, ValueError):
                results[place] = item.content
            else:
                sizes.setdefault(item.content.shape, {})[place] = item.content
        for group in sizes.values():
            try:
                results |= zip(group, self._classified(torch.stack(list(group.values())), top), strict=True)
            except ValueError as error:  # a size that the model refuses
                results |= {place: ValueError(f"{items[place].name}{error}") for place in group}
        return [results[place] for place in range(len(items))]

    @cached_property
    def _prepared_model(self) -> ViT:
        """Shares its parameters with `model`; int8 weights are made once, at the first call."""
        return prepared(self.model, "int8" if self.int8 else "plain")

    @torch.inference_mode()
    def _classified(self, images: UInt8[Tensor, "B C H W"], top: int) -> list[list[Prediction]]:
        model, weight = self._prepared_model, next(self.model.parameters())
        height, width = images.shape[-2:]
        size = batch_size(model.config, (height, width), weight.device)
        training = model.training
        model.eval()
        try:
            parts = (part.to(weight.device) for part in images.split(size))
            logits = torch.cat([model(normalise(part, self.preprocessing, weight.dtype)) for part in parts]).float()
        finally:
            model.train(training)
        shares = logits.softmax(-1) if self.loss == "softmax" else logits.sigmoid()
        best = shares.topk(min(top, len(self.class_names)))
        rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [
            [Prediction(self.class_names[index], index, value) for value, index in zip(*row, strict=True)]
            for row in rows
        ]


@dataclass(frozen=True)
class _Item:
    """An image on its way. name: in front of a message, "" for an array. content: uint8 (C, H, W)."""

    name: str
    content: Tensor | ValueError

    @property
    def pixels(self) -> int:
        return 0 if isinstance(self.content, ValueError) else self.content[0].numel()


def locate(path: Path) -> Path:
    """Where the weights are that a path means: a run's model folder, or the path itself.

    ValueError where a run has none yet.
    """
    inside = path / "model"
    if (path / "run.json").is_file() and not inside.is_dir():
        raise ValueError(f"{path} has no model yet: the run has not ended; go on with `vitrail resume {path}`.")
    return inside if inside.is_dir() else path
