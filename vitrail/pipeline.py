"""A Pipeline: weights, preprocessing and class names in one, from an image to named answers (law 3).

Every consumer uses this one description, so that a prediction does not depend on who makes it:

    predict = Pipeline.load("runs/demo")    # or a model folder, or any weights that weights/load.py reads
    predict("cat.jpg")                      # [Prediction(label="tabby", index=281, probability=0.98), ...], best first
    predict(["cat.jpg", image])             # such a list for each; a batch and a generator are several images, too
    for result in predict.stream(paths):    # the same, one by one; a bad file is a ValueError and stops no other
    outputs = predict.module(uint8_images)  # (B, C, H, W) -> a dict of tensors: what export traces
"""

import copy
import itertools
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.config import dump
from vitrail.data.images.decode import Opened, opened
from vitrail.data.images.decode import read as read_bytes
from vitrail.data.images.geometry import View, centred
from vitrail.data.images.given import content, listed, own
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.stream import prefetch
from vitrail.evaluate.evaluator import evaluating
from vitrail.models import Model
from vitrail.runtime.blocks import pick_device
from vitrail.runtime.inference import batch_size, prepared
from vitrail.tasks import Task
from vitrail.tasks.exported import exported, needs_weights, open_session, recognised
from vitrail.tasks.task import config_of
from vitrail.weights import folder
from vitrail.weights.adjust import adjust, class_file
from vitrail.weights.format import Asked, Weights
from vitrail.weights.hub import resolve
from vitrail.weights.load import instantiate, read

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
    """Call it with images of any sizes: paths, bytes, open files, Pillow's images, arrays (H, W, C), tensors (C, H, W),
    and several of them (data/images/given.py). Threads may call it at the same time.

    int8: whether the linear layers of the blocks are computed in 8 bits (runtime/inference.py). What is replaced in the
    task, and weights that change (int8: not by way of `.data`), count from the next call on. ValueError where the task
    is none, or its model is another library's; what torch.compile or a parallel wrapper put around them is taken off.
    """

    task: Task
    int8: bool = False

    def __post_init__(self) -> None:
        task: Any = _bare(self.task)
        if not isinstance(task, Task):
            kind = type(task).__name__
            raise ValueError(
                f"a Pipeline needs a task, not a {kind}; give Classify(model, preprocessing, class_names=...)."
            )
        model: Any = _bare(task.model)
        if not isinstance(model, Model):
            raise ValueError(f"the task's model is a {type(model).__name__}, not a ViT or ResNet of vitrail.")
        if model is not task.model:
            task = copy.copy(task)
            task._modules = task._modules | {"model": model}
        object.__setattr__(self, "task", task)

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the model's input."""
        return self.task.preprocessing

    @property
    def class_names(self) -> tuple[str, ...]:
        """() where the model has no classes."""
        return self.task.class_names

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        int8: bool = False,
        classes: Path | str | Sequence[str] | None = None,
        device: str = "cpu",
        say: Callable[[str], object] = lambda _: None,
        **options: Any,
    ) -> "Pipeline":
        """From a run folder, a model folder, a file with weights or hf-hub:NAME, or a file that `vitrail export` wrote;
        unnamed classes go by their numbers.

        int8: faster on a CPU, a little less exact; `vitrail evaluate --int8` measures how much on your images.
        classes: their names in the head's order, a file with them (weights/adjust.py), or "numbers".
        device: cpu, cuda, cuda:N, or auto for the GPU where there is one; int8 needs the CPU.
        options: image_size, mean, std, resize and interpolation of the preprocessing; heads, architecture, section,
        ignore and strict as in `Asked` (weights/format.py). say: is told what was chosen or guessed.
        ValueError, naming the file, where there is none, or it cannot be read.
        """
        place = resolve(path)
        where = pick_device("cpu" if recognised(place) and device == "auto" else device)
        if int8 and where != "cpu":
            raise ValueError(f"int8 layers are computed on the CPU, not on {where}; use the device cpu.")
        if recognised(place):
            return cls._exported(place, where, int8, classes, options)
        weights = opened_weights(place, **options)
        for note in weights.notes:
            say(f"{path}: {note}")
        try:
            count = weights.config.classes
            names = weights.class_names or tuple(map(str, range(count)))
            if isinstance(classes, str | Path):
                names = tuple(map(str, range(count))) if classes == "numbers" else class_file(Path(classes), count)[1]
            elif classes is not None:
                names = adjust(weights, names=tuple(classes)).class_names or names
            task = config_of(weights.task).task(instantiate(weights, weights.config)[0], weights.preprocessing, names)
            if weights.format == "vitrail":
                _restore(task, weights.extra)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{place}: {error}") from None
        return cls(task.to(where).eval(), int8)

    @classmethod
    def _exported(cls, place: Path, device: str, int8: bool, classes: Any, options: dict[str, Any]) -> "Pipeline":
        """Of a file that `vitrail export` wrote."""
        if int8 or device != "cpu":
            how = "has its precision; export it with --int8" if int8 else f"runs on the CPU, not on {device}"
            raise ValueError(f"{place} is an exported file and {how}.")
        session = open_session(place)
        count = session.about.model.classes
        names = tuple(map(str, range(count))) if classes == "numbers" else ()
        try:
            if classes is not None and not names:
                names = class_file(Path(classes), count)[1] if isinstance(classes, str | Path) else tuple(classes)
            return cls(exported(session, str(place), names, **options).eval())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{place}: {error}") from None

    def save(self, path: Path | str) -> None:
        """Writes the model folder. ValueError where the disk refuses, or the head is not one linear layer with an
        output for each class name."""
        needs_weights(self.task, "save")
        task, head = self.task, self.task.model.head
        if not isinstance(head, nn.Linear | nn.Identity):
            raise ValueError(f"the head is a {type(head).__name__}; only one nn.Linear can be saved.")
        classes = head.out_features if isinstance(head, nn.Linear) else 0
        if classes and task.class_names and classes != len(task.class_names):
            named = f"the head has {classes} outputs, but the task {len(task.class_names)} class_names"
            raise ValueError(f"{named}; give task.class_names as many.")
        config = replace(task.model.config, classes=classes)
        card = folder.Card(config, task.preprocessing, task.class_names, dump(task.config))
        folder.write(Path(path), task.model.state_dict(), card, _outside(task))

    def __call__(self, images: Any, **options: Any) -> Any:
        """The task's answers for one image, or for each of several; without dropout, whatever the mode.

        options: as the task's `answers` takes them, such as top=5. ValueError, naming the file, for the first image
        that is of another kind or damaged.
        """
        found = []
        for result in self.stream(images, **options):
            if isinstance(result, ValueError):
                raise result
            found.append(result)
        return found[0] if listed(images) is None else found

    def stream(self, images: Any, **options: Any) -> Iterator[Any]:
        """For each image in turn its answer, or the ValueError that says what is wrong with it. ValueError for options
        that the task refuses.

        Threads decode ahead while the model works; images that have one size by then go through it together, which
        changes no answer by more than rounding.
        """
        several, module = listed(images), self.module
        several = map(own, several) if isinstance(several, Iterator) else several
        names = ("the image",) if several is None else map("images[{}]".format, itertools.count())
        named = zip(names, [images] if several is None else several, strict=False)
        # At their own size, a few images may already fill the memory.
        ahead = WORKERS if self.preprocessing.resize == "native" else 32
        waiting: list[Item] = []
        filled = 0
        for item in prefetch(self.prepare, named, ahead, WORKERS):
            waiting.append(item)
            filled += max(item.pixels, AT_ONCE // 256)
            if filled >= AT_ONCE:
                yield from self.answer(waiting, module, options)
                waiting, filled = [], 0
        yield from self.answer(waiting, module, options)

    @property
    def module(self) -> Module:
        """From prepared images to what the task predicts, in evaluation mode; it shares its parameters with the task.
        It stays the same one until a part of the task is replaced, or, for int8, a weight changes."""
        state, found = _state(self.task, self.int8), self.__dict__.get("_made")
        if found and len(state) == len(found[0]) and all(map(operator.is_, state, found[0])):
            return found[1]
        made = Module(prepared(self.task, "int8" if self.int8 else "plain"))
        self.__dict__["_made"] = state, made  # at once: another thread sees both or neither
        return made

    def open(self, image: Any, name: str) -> Opened:
        """An image of any kind that a Pipeline takes, ready to be decoded. ValueError, naming it, where it is none."""
        file, channels = isinstance(image, str | os.PathLike), len(self.preprocessing.mean)
        return opened(read_bytes(Path(image)) if file else content(image, channels, name), name)

    def prepare(self, named: tuple[str, Any]) -> "Item":
        """What the model reads of an image, or what is wrong with it."""
        name, image = named
        name = os.fsdecode(image) if isinstance(image, str | os.PathLike) else name
        try:
            found = self.open(image, name)
        except ValueError as error:
            return Item(name, None, error)
        try:
            view = centred(found.size, self.preprocessing)
            pixels = view.apply(found.decode(view.crop, len(self.preprocessing.mean)))
        except ValueError as error:
            text = str(error)
            return Item(name, None, error if text.startswith(name) else ValueError(f"{name}: {text}"))
        return Item(name, view, torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C")))

    def answer(self, items: Sequence["Item"], module: Module, options: dict[str, Any]) -> list[Any]:
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
                outputs = self._predicted(module, torch.stack(list(group.values())))
            except ValueError as error:  # a size that the model refuses
                results |= {place: ValueError(f"{items[place].name}: {error}") for place in group}
                continue
            views = [view for place in group if (view := items[place].view)]
            results |= zip(group, self.task.answers(outputs, views, **options), strict=True)
        return [results[place] for place in range(len(items))]

    @torch.inference_mode()
    def _predicted(self, module: Module, images: UInt8[Tensor, "B C H W"]) -> dict[str, Tensor]:
        device, height, width = self.task.device, *images.shape[-2:]
        size = batch_size(self.task.model.config, (height, width), device)
        with evaluating(module):  # a compiled task is used as it is
            parts = [module(part.to(device)) for part in images.split(size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Item:
    """An image on its way. content: uint8 (C, H, W)."""

    name: str
    view: View | None
    content: Tensor | ValueError

    @property
    def pixels(self) -> int:
        return 0 if isinstance(self.content, ValueError) else self.content[0].numel()


def _bare(module: Any) -> Any:
    """Without what torch.compile, DataParallel and the like put around it."""
    while isinstance(module, nn.Module):
        inner = module._modules.get("_orig_mod")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if inner is None:
            break
        module = inner
    return module


def _state(task: Task, int8: bool) -> list[Any]:
    """All objects that a prepared copy is made from, the numbers of int8's in a text. The parameters are shared; int8
    weights are copies, which are known by the place and the version of what they were made from."""
    found: list[Any] = []
    for part in task.modules():
        found.append(part)
        found += [value for name, value in part.__dict__.items() if name not in ("training", "_modules")]
    if int8:
        versions = ((w.data_ptr(), 0 if w.is_inference() else w._version) for w in task.parameters())
        found.append(sys.intern(str([*versions])))  # equal ones are one object
    return found


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


def opened_weights(
    path: Path | str,
    *,
    image_size: int | tuple[int, int] | None = None,
    heads: int | None = None,
    architecture: str | None = None,
    section: str | None = None,
    ignore: Sequence[str] | None = None,
    strict: bool = True,
    brought: bool = True,
    **pixels: Any,
) -> Weights:
    """The weights in a place, with what is said of them (`Asked`, `adjust`). brought: whether images are brought to
    image_size, too. ValueError as `read` and `adjust`."""
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if unknown := sorted(set(pixels) - {"mean", "std", "resize", "interpolation"}):
        raise ValueError(f"there is no option {unknown[0]}; the docstring of Pipeline.load lists them.")
    place = resolve(path)
    weights = read(place, Asked(size, heads, architecture, section, tuple(ignore or ()), strict))
    try:
        return adjust(weights, size if brought else None, **pixels)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
