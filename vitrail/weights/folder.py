"""The model folder: weights, configuration, preprocessing and class names, all that leads from pixels to a name.

`model.safetensors` has timm's parameter names and `config.json` is timm's, with our section under "vitrail": the folder
is loaded by `timm.create_model("local-dir:FOLDER", pretrained=True)` and by transformers, too.

    save(folder, model, preprocessing, class_names)
    model, preprocessing, class_names = load(folder)
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitrail.config import parse
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import vit
from vitrail.models.zoo import build
from vitrail.weights import timm

Loss = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Card:
    """Our section of config.json. ValueError where its parts do not agree.

    loss: by which logits become probabilities.
    """

    model: vit.Config
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    loss: Loss = "softmax"

    def __post_init__(self) -> None:
        if len(self.class_names) != self.model.classes:
            raise ValueError(f"the head has {self.model.classes} classes, but there are {len(self.class_names)} names")
        if (channels := len(self.preprocessing.mean)) != self.model.channels:
            raise ValueError(f"the preprocessing has {channels} channels, the model reads {self.model.channels}")


def save(
    folder: Path,
    model: vit.ViT,
    preprocessing: Preprocessing,
    class_names: tuple[str, ...],
    loss: Loss = "softmax",
) -> list[str]:
    """Writes the folder; see `write`. ValueError where class names or preprocessing do not fit the model, too."""
    return write(folder, model.state_dict(), Card(model.config, preprocessing, class_names, loss))


def write(folder: Path, tensors: Mapping[str, Tensor], card: Card) -> list[str]:
    """Writes the folder; returns what timm will not see of it, in words. ValueError where the disk refuses."""
    stored = timm.write(card.model, tensors)
    settings = timm.describe(card.model, card.preprocessing, card.class_names)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({**settings, "vitrail": asdict(card)}, indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / 'model.safetensors'} could not be written ({error}).") from error
    return timm.lost(card.model)


def load(folder: Path) -> tuple[vit.ViT, Preprocessing, tuple[str, ...]]:
    """(model in evaluation mode, preprocessing, class names). ValueError names the file that is missing or damaged."""
    card = describe(folder)
    weights = folder / "model.safetensors"
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{weights} cannot be read ({error}).") from error
    tensors = timm.ours(card.model, tensors)
    model = build(card.model, "meta")
    assert isinstance(model, vit.ViT)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            here, there = (str(tuple(s[name])) if name in s else "missing" for s in (found, expected))
            raise ValueError(f"{weights} does not fit config.json: {name} is {here} in it, {there} by config.json.")
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in tensors.items()}, assign=True)
    return model.eval(), card.preprocessing, card.class_names


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
