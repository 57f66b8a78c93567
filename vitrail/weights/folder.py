"""The model folder: weights, configuration, preprocessing and class names, all that leads from pixels to a name.

`model.safetensors` has timm's parameter names; `config.json` has our section under "vitrail".

    save(folder, model, preprocessing, class_names)
    model, preprocessing, class_names = load(folder)
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vitrail.data.transforms import Preprocessing
from vitrail.models import vit
from vitrail.models.zoo import build
from vitrail.parse import parse


@dataclass(frozen=True)
class Card:
    """Our section of config.json. ValueError where its parts do not agree."""

    model: vit.Config
    preprocessing: Preprocessing
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.class_names) != self.model.classes:
            raise ValueError(f"the head has {self.model.classes} classes, but there are {len(self.class_names)} names")
        if (channels := len(self.preprocessing.mean)) != self.model.channels:
            raise ValueError(f"the preprocessing has {channels} channels, the model reads {self.model.channels}")


def save(folder: Path, model: vit.ViT, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> None:
    """Writes the folder. ValueError where class names or preprocessing do not fit the model, or the disk refuses."""
    card = Card(model.config, preprocessing, class_names)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / 'model.safetensors'} could not be written ({error}).") from error
    (folder / "config.json").write_text(json.dumps({"vitrail": asdict(card)}, indent=2) + "\n")


def load(folder: Path) -> tuple[vit.ViT, Preprocessing, tuple[str, ...]]:
    """(model in evaluation mode, preprocessing, class names). ValueError names the file that is missing or damaged."""
    card = _card(folder / "config.json")
    weights = folder / "model.safetensors"
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{weights} cannot be read ({error}).") from error
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


def _card(path: Path) -> Card:
    try:
        text = json.loads(path.read_text())
        if not isinstance(text, dict) or "vitrail" not in text:
            raise ValueError('it has no section "vitrail", so it is of another program')
        return parse(Card, text["vitrail"])
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path.parent} is not a model folder: it has no config.json.") from None
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {str(error).rstrip('.')}.") from error
