"""The model folder: weights, configuration, preprocessing and class names, all that leads from pixels to a name.

`model.safetensors` has timm's parameter names and `config.json` is timm's, with our card under "vitrail": the folder is
loaded by `timm.create_model("local-dir:FOLDER", pretrained=True)` and by transformers, too. What a task has outside its
model is in `task.safetensors`.

    write(folder, model.state_dict(), card)
    card, tensors, extra = read(folder)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitrail.config import dump, parse
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import Config, vit
from vitrail.weights import timm
from vitrail.weights.format import Place, Weights
from vitrail.weights.tensors import write_folder, write_tensors

TASK = "task.safetensors"


@dataclass(frozen=True)
class Card:
    """Our section of config.json. ValueError where its parts do not agree.

    task: {"kind": ..., "config": {...}}, what the model was trained for, as tasks/ knows it.
    """

    model: Config
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    task: dict[str, Any]

    def __post_init__(self) -> None:
        if len(self.class_names) not in (0, self.model.classes):
            raise ValueError(f"the head has {self.model.classes} classes, but there are {len(self.class_names)} names")
        if (channels := len(self.preprocessing.mean)) != self.model.channels:
            raise ValueError(f"the preprocessing has {channels} channels, the model reads {self.model.channels}")
        if set(self.task) != {"kind", "config"}:
            raise ValueError(f'its task is {self.task}, not {{"kind": ..., "config": ...}}')


class ModelFolder:
    """The format. original: the types that the tensors had."""

    name = "vitrail"

    def recognise(self, place: Place) -> bool:
        return "vitrail" in place.settings

    def read(self, place: Place, image_size: tuple[int, int] | None, heads: int | None) -> Weights:
        card, found, extra = read(place.path)
        types = {name: tensor.dtype for name, tensor in found.items()}
        tensors = {name: tensor.to(torch.float32) for name, tensor in found.items()}
        origin, names = {name: (name,) for name in found}, card.class_names or None
        how = card.preprocessing
        return Weights(self.name, card.model, tensors, origin, how, names, extra, card.task, types)

    def write(self, weights: Weights, target: Path) -> list[str]:
        own = weights.format == self.name
        types = weights.original if own else {}
        tensors = {name: tensor.to(types.get(name, tensor.dtype)) for name, tensor in weights.tensors.items()}
        names = weights.class_names or tuple(str(i) for i in range(weights.config.classes))
        card = Card(weights.config, weights.preprocessing, names, weights.task)
        return write(target, tensors, card, weights.extra if own else None)


def write(
    folder: Path, tensors: Mapping[str, Tensor], card: Card, extra: Mapping[str, Tensor] | None = None
) -> list[str]:
    """Writes the folder; returns what timm will not see of it, in words. ValueError where the disk refuses.

    tensors: the model's. extra: what the task has besides.
    """
    config, settings, stored, lost = card.model, dict[str, Any](), tensors, ["a ResNet of this kind"]
    if isinstance(config, vit.Config):
        stored, lost = timm.state_dict(config, tensors), timm.lost(config, card.preprocessing)
        settings = timm.describe(config, card.preprocessing, card.class_names)
    try:
        write_folder(folder, stored, config={**settings, "vitrail": dump(card)})
        (folder / TASK).unlink(missing_ok=True)
        if extra:
            write_tensors(folder / TASK, extra)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} could not be written ({error}).") from error
    return lost


def read(folder: Path) -> tuple[Card, dict[str, Tensor], dict[str, Tensor]]:
    """(card, the model's tensors by our names, what the task has besides), in the types that they were written in.

    ValueError names the file that is missing or damaged.
    """
    card, path = describe(folder), folder / "model.safetensors"
    tensors = _tensors(path)
    if isinstance(card.model, vit.Config):
        tensors = timm.ours(card.model, tensors)
    expected = {name: tensor.shape for name, tensor in card.model.build("meta").state_dict().items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            here, there = (str(tuple(s[name])) if name in s else "missing" for s in (found, expected))
            raise ValueError(f"{path} does not fit config.json: {name} is {here} in it, {there} by config.json.")
    return card, tensors, _tensors(folder / TASK) if (folder / TASK).exists() else {}


def describe(folder: Path) -> Card:
    """Our section of the folder's config.json. ValueError where it is missing or damaged."""
    path = folder / "config.json"
    try:
        text = json.loads(path.read_text())
        if not isinstance(text, dict) or "vitrail" not in text:
            raise ValueError('it has no section "vitrail", so it is of another program')
        return parse(Card, text["vitrail"])
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path.parent} is not a model folder: it has no config.json.") from None
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {str(error).rstrip('.')}.") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}).") from error
