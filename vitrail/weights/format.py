"""The protocol of the weights formats: recognise what a place holds, read it, write it.

A new format is a class with these methods, in a file of its own, and a line in FORMATS (weights/__init__.py).
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import Config, vit
from vitrail.weights.mapping import Entry, gather
from vitrail.weights.place import Place
from vitrail.weights.spelling import COMPUTED, TRAINING


@dataclass(frozen=True)
class Weights:
    """What a file or folder holds: the model, its tensors under our names, and how images become answers.

    tensors: float32. origin: our name -> the file's own names. preprocessing: the file's own, or its family's.
    class_names: None where the format does not carry them. extra: tensors that are not the model's; in our own format
    what the task has besides its model. task: what the model was trained for; only our own format tells.
    original: what the format itself needs to write the file back as it was. left: those of `extra` that may belong to the
    model, but have no place in it. notes: what was chosen or guessed, in words.
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
    left: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

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

    def read(self, place: Place) -> Weights:
        """The weights, with what is asked for of `place.asked` where the layout does not tell it. ValueError where
        something is missing or does not fit."""
        ...

    def write(self, weights: Weights, target: Path) -> list[str]:
        """Write a file or folder; return in words what the layout cannot hold. ValueError where it has no place for a
        part of the model."""
        ...


@dataclass(frozen=True)
class Original:
    """What a state dict was: the types by its own names, tensors that cannot be told from ours, config.json, and its own
    name for each that the format knows by another."""

    types: Mapping[str, torch.dtype]
    kept: Mapping[str, Tensor]
    settings: Mapping[str, Any]
    names: Mapping[str, str]
    shapes: Mapping[str, torch.Size]


def from_state_dict(
    name: str,
    place: Place,
    config: Config,
    entries: Iterable[Entry],
    preprocessing: Preprocessing,
    class_names: tuple[str, ...] | None = None,
    names: Mapping[str, str] | None = None,
) -> Weights:
    """Weights of the format `name`: the place's tensors by the entries, with what is needed to write them back.

    names: the entries' name of a tensor -> the file's; they are the same where it is None.
    """
    found, table = place.tensors, list(entries)
    names = {n: n for n in found} if names is None else names
    tensors, theirs = gather(table, lambda name: found.get(names.get(name, "")), config)
    origin = {ours: tuple(names[n] for n in them) for ours, them in theirs.items()}
    count = Counter(itertools.chain(*origin.values()))
    # What two of ours are made of, with what is added to it, and what cannot be computed back from ours.
    inexact = {entry.ours for entry in table if not entry.exact}
    kept = {n for ours, them in origin.items() if ours in inexact or any(count[n] > 1 for n in them) for n in them}
    types = {name: tensor.dtype for name, tensor in found.items()}
    shapes = {name: tensor.shape for name, tensor in found.items()}
    back = {theirs: file for theirs, file in names.items() if file in count}
    return Weights(
        name,
        config,
        {name: tensor.to(torch.float32) for name, tensor in tensors.items()},
        origin,
        preprocessing,
        class_names if class_names and len(class_names) == config.classes else None,
        extra={name: tensor for name, tensor in found.items() if name not in count},
        original=Original(types, {name: found[name] for name in kept}, place.settings, back, shapes),
        left=tuple(name for ours, name in names.items() if name not in count and _belongs(ours, name, config, place)),
        notes=tuple(place.notes),
    )


def _belongs(ours: str, name: str, config: Config, place: Place) -> bool:
    """Whether a tensor without a place may be the model's: one inside its root, or one that could read its answer."""
    if COMPUTED.search(ours) or TRAINING.search(ours):
        return False
    if name.startswith(place.root) and place.root + ours == name:
        return True
    sizes = {config.width, config.features} if isinstance(config, vit.Config) else set()
    return bool(sizes & set(place.tensors[name].shape))


def as_it_was(weights: Weights, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the format `name`: if it came from there, under its own names, in its types, and with what it had
    besides."""
    if weights.format != name:
        return dict(tensors)
    types, names = weights.original.types, weights.original.names
    found = {names.get(n, n): t for n, t in tensors.items()}
    shapes = weights.original.shapes
    alike = {n: t.reshape(shapes[n]) if t.numel() == shapes[n].numel() else t for n, t in found.items()}
    return {**{n: t.to(types[n]) for n, t in alike.items()}, **weights.extra, **weights.original.kept}
