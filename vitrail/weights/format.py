"""The protocol of the weights formats: recognise what a place holds, read it, write it.

A new format is a class with these methods, in a file of its own, and a line in FORMATS (weights/__init__.py).

    with closing(Place(Path("ViT-B_16.npz"))) as place:
        place.arrays["embedding/kernel"]        # of an .npz, otherwise None
        place.tensors["cls_token"]              # of safetensors or PyTorch's own files, otherwise empty
        place.settings.get("architecture")      # config.json, {} beside a bare file
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.stray import stray
from vitrail.models import Config, vit
from vitrail.weights.mapping import Entry, gather
from vitrail.weights.npz import Npz, is_npz
from vitrail.weights.tensors import open_tensors

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


class Place:
    """What is found at a path. settings: config.json, of a folder.

    ValueError, naming the file, where it is missing, damaged, or cannot hold weights.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise ValueError(f"{path} does not exist; name a file with weights, or a model folder.")
        self.path = path / "model" if (path / "model" / "config.json").is_file() else path  # of a run folder
        self.settings = self.json("config.json")
        self.arrays: Npz | None = None
        if self.path.is_dir() and not (self.path / "config.json").exists():
            raise ValueError(f"{path} is not a model folder: it has no config.json.")
        if self.path.is_file() and is_npz(self.path):
            self.arrays = Npz(_whole(self.path))

    def close(self) -> None:
        """Close the file."""
        if self.arrays is not None:
            self.arrays.close()

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder; {} where there is none."""
        path = self.path / name
        try:
            content = json.loads(path.read_text()) if path.exists() else {}
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is damaged ({error}).") from error
        if not isinstance(content, dict):
            raise ValueError(f"{path} is not a JSON object.")
        return content

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """name -> tensor."""
        if self.arrays is not None:
            return {}
        path = next((self.path / name for name in FILES if (self.path / name).is_file()), self.path)
        if path.is_dir():
            raise ValueError(f"{path} has neither model.safetensors nor pytorch_model.bin.")
        return open_tensors(_whole(path))


@dataclass(frozen=True)
class Weights:
    """What a file or folder holds: the model, its tensors under our names, and how images become answers.

    tensors: float32. origin: our name -> the file's own names. preprocessing: the file's own, or its family's.
    class_names: None where the format does not carry them. extra: tensors that are not the model's; in our own format
    what the task has besides its model. task: what the model was trained for; only our own format tells.
    original: what the format itself needs to write the file back as it was.
    """

    format: str
    config: Config
    tensors: Mapping[str, Tensor]
    origin: Mapping[str, tuple[str, ...]]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=lambda: {"kind": "classify", "config": {}})
    original: Any = None

    def vit(self, to: str) -> vit.Config:
        """The configuration of a ViT. to: a format. ValueError for a ResNet, which only our own format can hold."""
        if not isinstance(self.config, vit.Config):
            raise ValueError(f"{to} has no place for a ResNet; write it as vitrail.")
        return self.config


class Format(Protocol):
    """One layout of weights."""

    name: str

    def recognise(self, place: Place) -> bool:
        """Whether the place holds this layout."""
        ...

    def read(self, place: Place, image_size: tuple[int, int] | None, heads: int | None) -> Weights:
        """The weights. image_size, heads: used only where the layout does not tell them. ValueError where something is
        missing or does not fit."""
        ...

    def write(self, weights: Weights, target: Path) -> list[str]:
        """Write a file or folder; return in words what the layout cannot hold. ValueError where it has no place for a
        part of the model."""
        ...


@dataclass(frozen=True)
class Original:
    """What a state dict was: the types by its own names, tensors that cannot be told from ours, config.json."""

    types: Mapping[str, torch.dtype]
    kept: Mapping[str, Tensor]
    settings: Mapping[str, Any]


def from_state_dict(
    name: str,
    place: Place,
    config: Config,
    entries: Iterable[Entry],
    preprocessing: Preprocessing,
    class_names: tuple[str, ...] | None = None,
) -> Weights:
    """Weights of the format `name`: the place's tensors by the entries, with what is needed to write them back."""
    found = place.tensors
    tensors, origin = gather(entries, found.get, config)
    count = Counter(itertools.chain(*origin.values()))
    # What two of ours are made of, together with what is added to it.
    kept = {name for theirs in origin.values() if any(count[n] > 1 for n in theirs) for name in theirs}
    types = {name: tensor.dtype for name, tensor in found.items()}
    return Weights(
        name,
        config,
        {name: tensor.to(torch.float32) for name, tensor in tensors.items()},
        origin,
        preprocessing,
        class_names if class_names and len(class_names) == config.classes else None,
        extra={name: tensor for name, tensor in found.items() if name not in count},
        original=Original(types, {name: found[name] for name in kept}, place.settings),
    )


def as_it_was(weights: Weights, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the format `name`: if it came from there, in its types, and with what it had besides."""
    if weights.format != name:
        return dict(tensors)
    types = weights.original.types
    return {**{n: t.to(types[n]) for n, t in tensors.items()}, **weights.extra, **weights.original.kept}


def _whole(path: Path) -> Path:
    """The path. ValueError for a file whose first bytes show that it cannot hold weights."""
    with path.open("rb") as file:
        if seen := stray(file.read(512)):
            raise ValueError(f"{path} {seen}")
    return path
