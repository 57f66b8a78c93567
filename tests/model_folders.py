"""Model folders of ours, every parameter at a generic value."""

import torch
from reference import perturb

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.weights import folder

CLASSIFY = {"kind": "classify", "config": {}}


def names_of(config):
    return tuple(f"class {i}" for i in range(config.classes))


def preprocessing_of(config):
    gray, std = (0.4,) * config.channels, (0.3,) * config.channels
    return Preprocessing(config.image_size, gray, std, "crop", 0.9, "bicubic")


def write_folder(path, config, dtype=torch.float32, extra=None, task=CLASSIFY):
    """(the model, what timm will not see of it)."""
    model = perturb(config.build(), dtype=torch.float32)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    card = folder.Card(config, preprocessing_of(config), names_of(config), task)
    return model, folder.write(path, state, card, extra)
