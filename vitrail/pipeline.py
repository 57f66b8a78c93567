"""A Pipeline: weights, preprocessing and class names in one, from an image to named answers (law 3).

Every consumer uses this one description, so that a prediction does not depend on who makes it:

    predict = Pipeline.load("runs/demo")    # or a model folder, or any weights that weights/load.py reads
    predict("cat.jpg")                      # [Prediction(label="tabby", index=281, probability=0.98), ...], best first
    predict(["cat.jpg", image])             # such a list for each
    for result in predict.stream(paths):    # the same, one by one; a bad file is a ValueError and stops no other
    outputs = predict.module(uint8_images)  # (B, C, H, W) -> a dict of tensors: what export traces
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.config import dump, kinds, parse
from vitrail.data.images.decode import opened
from vitrail.data.images.decode import read as read_bytes
from vitrail.data.images.geometry import View, centred
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.stream import prefetch
from vitrail.evaluate.evaluator import evaluating
from vitrail.runtime.inference import batch_size, prepared
from vitrail.tasks import Task, TaskConfig
from vitrail.weights import folder
from vitrail.weights.hub import resolve
from vitrail.weights.load import instantiate, read

Image = NDArray[np.uint8] | Path | str | bytes | Pillow.Image | io.BufferedIOBase

AT_ONCE = 2**20  # pixels that are collected for the model: 21 images of 224 x 224, 256 of 64 x 64 or less
WORKERS = min(8, os.cpu_count() or 1)


class Module(nn.Module):
    """uint8 (B, C, H, W) -> what the task predicts of each image: preprocessing, model and head as one graph."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: UInt8[Tensor, "B C H W"]) -> dict[str, Tensor]:
        return self.task.predict(Batch(images=images))


@dataclass(frozen=True)
class Pipeline:
    """Call it with images of any sizes: paths, bytes or open files, Pillow's images, or uint8 arrays (H, W, C).

    int8: whether the linear layers of the blocks are computed in 8 bits (runtime/inference.py), with the weights as
    they are at the first call.
    """

    task: Task
    int8: bool = False

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input."""
        return self.task.preprocessing

    @property
    def class_names(self) -> tuple[str, ...]:
        """() where the model has no classes."""
        return self.task.class_names

    @classmethod
    def load(cls, path: Path | str, *, int8: bool = False) -> "Pipeline":
        """From a run folder, a model folder, a file with weights or hf-hub:NAME; unnamed classes go by their numbers.

        int8: faster on a CPU, a little less exact; `vitrail evaluate --int8` measures how much on your images.
        ValueError, naming the file, where there is none, or it cannot be read.
        """
        place = locate(resolve(path))
        weights = read(place)
        try:
            names = weights.class_names or tuple(map(str, range(weights.config.classes)))
            task = _config(weights.task).task(instantiate(weights, weights.config)[0], weights.preprocessing, names)
            if weights.format == "vitrail":
                _restore(task, weights.extra)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{place}: {error}") from None
        return cls(task.eval(), int8)

    def save(self, path: Path | str) -> None:
        """Writes the model folder. ValueError where the disk refuses."""
        task = self.task
        card = folder.Card(task.model.config, task.preprocessing, task.class_names, dump(task.config))
        folder.write(Path(path), task.model.state_dict(), card, _outside(task))

    def __call__(self, images: Image | Sequence[Image], **options: Any) -> Any:
        """The task's answers for one image or for each; without dropout, whatever the mode.

        options: as the task's `answers` takes them, such as top=5. ValueError, naming the file, for the first image
        that is of another kind or damaged.
        """
        several = isinstance(images, Sequence) and not isinstance(images, str | bytes)
        found = []
        for result in self.stream(images if several else [images], **options):  # type: ignore[arg-type, list-item]
            if isinstance(result, ValueError):
                raise result
            found.append(result)
        return found if several else found[0]

    def stream(self, images: Iterable[Image], **options: Any) -> Iterator[Any]:
        """For each image in turn its answer, or the ValueError that says what is wrong with it. ValueError for options
        that the task refuses.

        Threads decode ahead while the model works; images that have one size by then go through it together, which
        changes no answer by more than rounding.
        """
        # At their own size, a few images may already fill the memory.
        ahead = WORKERS if self.preprocessing.resize == "native" else 32
        waiting: list[_Item] = []
        filled = 0
        for item in prefetch(self._prepared, images, ahead, WORKERS):
            waiting.append(item)
            filled += max(item.pixels, AT_ONCE // 256)
            if filled >= AT_ONCE:
                yield from self._answers(waiting, options)
                waiting, filled = [], 0
        yield from self._answers(waiting, options)

    @cached_property
    def module(self) -> Module:
        """From prepared images to what the task predicts, in evaluation mode; it shares its parameters with the task,
        and int8 weights are made once, at the first call."""
        return Module(prepared(self.task, "int8" if self.int8 else "plain"))

    def _prepared(self, image: Image) -> "_Item":
        """What the model reads of an image, or what is wrong with it."""
        file = isinstance(image, Path | str)
        name = str(image) if file else "the image"
        try:
            found = opened(read_bytes(Path(image)) if file else _content(image), name)
            view = centred(found.size, self.preprocessing)
            pixels = view.apply(found.decode(view.crop, len(self.preprocessing.mean)))
        except ValueError as error:
            text = str(error)
            return _Item(name, None, error if not file or text.startswith(name) else ValueError(f"{name}: {text}"))
        return _Item(name, view, torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")))

    def _answers(self, items: Sequence["_Item"], options: dict[str, Any]) -> list[Any]:
        """One result an item, in their order; those of one size are one batch."""
        results: dict[int, Any] = {}
        sizes: dict[torch.Size, dict[int, Tensor]] = {}
        for place, item in enumerate(items):
            if isinstance(item.content, ValueError):
                results[place] = item.content
            else:
                sizes.setdefault(item.content.shape, {})[place] = item.content
        for group in sizes.values():
            try:
                outputs = self._predicted(torch.stack(list(group.values())))
            except ValueError as error:  # a size that the model refuses
                results |= {place: ValueError(f"{items[place].name}: {error}") for place in group}
                continue
            views = [view for place in group if (view := items[place].view)]
            results |= zip(group, self.task.answers(outputs, views, **options), strict=True)
        return [results[place] for place in range(len(items))]

    @torch.inference_mode()
    def _predicted(self, images: UInt8[Tensor, "B C H W"]) -> dict[str, Tensor]:
        device, height, width = next(self.task.parameters()).device, *images.shape[-2:]
        size = batch_size(self.task.model.config, (height, width), device)
        with evaluating(self.module):  # a compiled task is used as it is
            parts = [self.module(part.to(device)) for part in images.split(size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class _Item:
    """An image on its way. content: uint8 (C, H, W)."""

    name: str
    view: View | None
    content: Tensor | ValueError

    @property
    def pixels(self) -> int:
        return 0 if isinstance(self.content, ValueError) else self.content[0].numel()


def _content(
    image: NDArray[np.uint8] | bytes | Pillow.Image | io.BufferedIOBase,
) -> NDArray[np.uint8] | bytes | Pillow.Image:
    """What `opened` takes: a grey array has one channel, and one of four is red, green, blue and alpha."""
    if isinstance(image, np.ndarray):
        image = image[..., None] if image.ndim == 2 else image
        return Pillow.fromarray(image) if image.ndim == 3 and image.shape[2] == 4 else image
    return image if isinstance(image, bytes | Pillow.Image) else image.read()


def _outside(task: Task) -> dict[str, Tensor]:
    """What a task keeps besides its model."""
    return {name: tensor for name, tensor in task.state_dict().items() if not name.startswith("model.")}


def _restore(task: Task, found: Mapping[str, Tensor]) -> None:
    """Puts in what a model folder has besides the model. ValueError where it is not what the task keeps."""
    own = _outside(task)
    if own.keys() != found.keys():
        name = min(own.keys() ^ found.keys())
        raise ValueError(f"{folder.TASK} has {'no' if name in own else 'an unknown'} {name}; the folder is damaged.")
    task.load_state_dict({**task.state_dict(), **found})


def _config(card: dict[str, Any]) -> TaskConfig:
    """The config of a model folder's task. ValueError for a kind that is not known."""
    known = kinds(TaskConfig)
    if card["kind"] not in known:
        there = f"its task is {card['kind']!r}, and here there is {', '.join(sorted(known))}"
        raise ValueError(f"{there}; if it is code of your own, name the file with --code.")
    return parse(TaskConfig, card)


def locate(path: Path) -> Path:
    """Where the weights are that a path means: a run's model folder, or the path itself.

    ValueError where a run has none yet.
    """
    inside = path / "model"
    if (path / "run.json").is_file() and not inside.is_dir():
        raise ValueError(f"{path} has no model yet: the run has not ended; go on with `vitrail resume {path}`.")
    return inside if inside.is_dir() else path
