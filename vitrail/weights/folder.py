"""The model folder: weights, configuration, preprocessing and class names, everything from pixels to a class name.

`model.safetensors` has timm's parameter names and `config.json` is timm's, with our card under "vitrail": the folder is
loaded by `timm.create_model("local-dir:FOLDER", pretrained=True)` and by transformers, too. What a task has outside its
model is in `task.safetensors`.

    write(folder, model.state_dict(), card)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from vitrail.config import dump, parse
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import Config, vit
from vitrail.weights import timm
from vitrail.weights.format import Place, Weights, from_state_dict
from vitrail.weights.spelling import Cut, spelled
from vitrail.weights.tensors import open_tensors, write_folder, write_tensors

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
    """The format."""

    name = "vitrail"

    def recognise(self, place: Place) -> bool:
        return "vitrail" in place.settings

    def read(self, place: Place) -> Weights:
        try:
            card = parse(Card, place.settings["vitrail"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{place.path / 'config.json'} cannot be used: {str(error).rstrip('.')}.") from error
        names, how = spelled(place.named), card.preprocessing
        names = {ours: place.named[name] for ours, name in names.items()}
        entries = timm.entries(card.model, Cut.of(names), names)
        weights = from_state_dict(self.name, place, card.model, entries, how, card.class_names, names)
        fixed = isinstance(card.model, vit.Config) and card.model.positions.startswith("sincos")
        if unknown := set(weights.extra) - ({"pos_embed"} if fixed else set()):  # timm has a table for them
            shape = tuple(weights.extra[min(unknown)].shape)
            raise ValueError(f"config.json describes a model without {min(unknown)} {shape}, which is in the file.")
        extra = open_tensors(place.path / TASK) if (place.path / TASK).exists() else {}
        return replace(weights, extra=extra, task=card.task, left=())

    def write(self, weights: Weights, target: Path) -> list[str]:
        tensors, extra = weights.tensors, {}
        if weights.format == self.name:
            types, extra = weights.original.types, weights.extra
            tensors = {name: tensor.to(types[weights.origin[name][0]]) for name, tensor in tensors.items()}
        names = weights.class_names or tuple(map(str, range(weights.config.classes)))
        return write(target, tensors, Card(weights.config, weights.preprocessing, names, weights.task), extra)


def write(
    folder: Path,
    tensors: Mapping[str, Tensor],
    card: Card,
    extra: Mapping[str, Tensor] | None = None,
    read: Callable[[str], Tensor] | None = None,
) -> list[str]:
    """Write the folder; return in words what timm cannot read of it. ValueError where the disk refuses.

    tensors: the model's. extra: what the task has besides. read: gives each when its turn comes, by the task's name for
    it; the others are on the meta device then, and no two are in memory.
    """
    config, settings, stored, lost = card.model, dict[str, Any](), tensors, ["a ResNet of this kind"]
    made = (lambda name: read(f"model.{name}")) if read else None
    if isinstance(config, vit.Config):
        stored, made = timm.streamed(config, tensors, made) if made else (timm.state_dict(config, tensors), None)
        lost = timm.lost(config, card.preprocessing)
        settings = timm.describe(config, card.preprocessing, card.class_names)
    try:
        write_folder(folder, stored, made, config={**settings, "vitrail": dump(card)})
        (folder / TASK).unlink(missing_ok=True)
        if extra:
            write_tensors(folder / TASK, extra, read)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} could not be written ({error}).") from error
    return lost
