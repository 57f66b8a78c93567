"""The model folder: weights, configuration, preprocessing and class names, all that leads from pixels to a name.

`model.safetensors` has timm's parameter names; `config.json` has our section under "vitrail".

    save(folder, model, preprocessing, class_names)
    model, preprocessing, class_names = load(folder)
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vitrail.data.transforms import Preprocessing
from vitrail.models import vit
from vitrail.models.zoo import build
from vitrail.parse import parse


def save(folder: Path, model: vit.ViT, preprocessing: Preprocessing, class_names: tuple[str, ...]) -> None:
    """Writes the folder. ValueError where the class names do not fit the head, or the disk refuses."""
    if len(class_names) != model.config.classes:
        raise ValueError(f"the head has {model.config.classes} classes, but there are {len(class_names)} names.")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    try:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / 'model.safetensors'} could not be written ({error}).") from error
    ours = {"model": asdict(model.config), "preprocessing": asdict(preprocessing), "class_names": list(class_names)}
    (folder / "config.json").write_text(json.dumps({"vitrail": ours}, indent=2) + "\n")


def load(folder: Path) -> tuple[vit.ViT, Preprocessing, tuple[str, ...]]:
    """(model in evaluation mode, preprocessing, class names). ValueError names the file that is missing or damaged."""
    ours = _section(folder / "config.json")
    try:
        config = parse(vit.Config, ours["model"])
        preprocessing = parse(Preprocessing, ours["preprocessing"])
        names = parse(tuple[str, ...], ours["class_names"])
        _agree(config, preprocessing, names)
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} is damaged: it does not say {error}.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged ({error}).") from error
    weights = folder / "model.safetensors"
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{weights} cannot be read ({error}).") from error
    model = build(config, "meta")
    assert isinstance(model, vit.ViT)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            here, there = (str(tuple(s[name])) if name in s else "missing" for s in (found, expected))
            raise ValueError(f"{weights} does not fit config.json: {name} is {here} in it, {there} by config.json.")
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in tensors.items()}, assign=True)
    return model.eval(), preprocessing, names


def _agree(config: vit.Config, preprocessing: Preprocessing, names: tuple[str, ...]) -> None:
    if len(names) != config.classes:
        raise ValueError(f"the head has {config.classes} classes, but there are {len(names)} names")
    if len(preprocessing.mean) != config.channels:
        raise ValueError(f"the preprocessing has {len(preprocessing.mean)} channels, the model reads {config.channels}")


def _section(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())["vitrail"]
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path.parent} is not a model folder: it has no config.json.") from None
    except (KeyError, TypeError):
        raise ValueError(f'{path} is of another program: it has no section "vitrail".') from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
