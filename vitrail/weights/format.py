"""The protocol of the weights formats: recognise what a place holds, read it, write it.

A new format is a class with these methods, in a file of its own, and a line in FORMATS (weights/__init__.py).

    with closing(Place(Path("ViT-B_16.npz"))) as place:
        place.arrays["embedding/kernel"]        # of an .npz, otherwise None
        place.tensors["cls_token"]              # of safetensors or PyTorch's own files, otherwise empty
        place.settings.get("architecture")      # config.json, {} beside a bare file
"""

import fnmatch
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
from vitrail.progress import few
from vitrail.weights.mapping import COMPUTED, TRAINING, Entry, gather
from vitrail.weights.npz import Npz, is_npz
from vitrail.weights.tensors import open_sections

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# The first layer of each layout: where it is, a model begins.
ANCHORS = (
    "patch_embed.proj.weight",
    "conv_proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
    "embeddings.patch_embedding.weight",
)
# Of several models in a file, averages and teachers are what is evaluated; students and online networks are not.
FIRST, LAST = ("ema", "averag", "teacher", "target", "momentum"), ("student", "online", "predictor", "optim", "decoder")


@dataclass(frozen=True)
class Asked:
    """What is said about weights besides where they are.

    image_size: (height, width), and heads: used only where the layout does not tell them.
    architecture: a name of the zoo, whose numerics hold where tensors do not tell them.
    section: which state dict of a file that has several. ignore: patterns of the names of tensors to leave out.
    strict: False leaves out whatever has no place, and says so.
    """

    image_size: tuple[int, int] | None = None
    heads: int | None = None
    architecture: str | None = None
    section: str | None = None
    ignore: tuple[str, ...] = ()
    strict: bool = True


class Place:
    """What is found at a path. settings: config.json, of a folder.

    ValueError, naming the file, where it is missing, damaged, or cannot hold weights.
    """

    def __init__(self, path: Path, asked: Asked = Asked()) -> None:
        self.asked, self.notes, self.sections, self.section = asked, list[str](), list[str](), ""
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
        """name -> tensor, of the model that is asked for, or is most likely meant; without the prefix that they share
        where a wrapper put one before every name of the model (`roots`)."""
        if self.arrays is not None:
            return {}
        path = next((self.path / name for name in FILES if (self.path / name).is_file()), self.path)
        if path.is_dir():
            raise ValueError(f"{path} has none of {', '.join(FILES)}.")
        sections = open_sections(_whole(path))
        models = {place: found for place, found in sections.items() if _roots(found)} or sections
        self.section = self._chosen(list(models), "state dicts", list(sections))
        found = sections[self.section]
        for pattern in self.asked.ignore:
            gone = [name for name in found if fnmatch.fnmatchcase(name, pattern)]
            if not gone and not any(fnmatch.fnmatchcase(name, pattern) for name in self.settings):
                raise ValueError(f"no tensor's name fits the pattern {pattern!r}; one is {next(iter(found))}.")
            self.notes += [f"left out as asked ({pattern}): {few(gone, 3)}"] if gone else []
            found = {name: tensor for name, tensor in found.items() if name not in gone}
        return found

    def ignores(self, name: str) -> bool:
        """Whether a field of config.json is to be left out."""
        return not self.asked.strict or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.asked.ignore)

    @cached_property
    def root(self) -> str:
        """What stands before every name of the model: "" or "backbone." of a wrapper."""
        roots = _roots(self.tensors)
        return self._chosen(roots, "models", roots) if roots else ""

    @cached_property
    def others(self) -> tuple[str, ...]:
        """The roots of other models in the same state dict."""
        return tuple(root for root in _roots(self.tensors) if root != self.root and not self.root.startswith(root))

    @cached_property
    def named(self) -> dict[str, str]:
        """The model's name of a tensor -> the file's. Names outside the root are as they are."""
        inside = {n.removeprefix(self.root): n for n in self.tensors if n.startswith(self.root)}
        outside = {n: n for n in self.tensors if not n.startswith((self.root or "\0", *self.others))}
        return {**(outside if self.root else {}), **{n: f for n, f in inside.items() if not f.startswith(self.others)}}

    def _chosen(self, names: list[str], what: str, every: list[str]) -> str:
        """One of the names: the one that is asked for, otherwise the best; said where there are several."""
        self.sections += [n.rstrip(".") for n in every if n]
        if asked := [n for n in every if n and n.rstrip(".") == self.asked.section]:
            return asked[0]

        def rank(name: str) -> int:
            lower = name.lower()
            return 0 if any(w in lower for w in FIRST) else 2 if any(w in lower for w in LAST) else 1

        best, *rest = sorted(names, key=rank)
        if rest:
            one, others = best.rstrip(".") or "the one at the top", few([n.rstrip(".") or "the top's" for n in rest], 3)
            self.notes.append(f"of the {what} in it, {one} is read, not {others} (--section NAME chooses)")
        return best


def _roots(names: Iterable[str]) -> list[str]:
    """What stands before the first layer of each model among the names."""
    found = [name.removesuffix(anchor) for name in names for anchor in ANCHORS if name.endswith(anchor)]
    return [root for root in dict.fromkeys(found) if not root or root.endswith(".")]


def _whole(path: Path) -> Path:
    """The path. ValueError for a file whose first bytes show that it cannot hold weights."""
    with path.open("rb") as file:
        if seen := stray(file.read(512)):
            raise ValueError(f"{path} {seen}")
    return path


@dataclass(frozen=True)
class Weights:
    """What a file or folder holds: the model, its tensors under our names, and how images become answers.

    tensors: float32. origin: our name -> the file's own names. preprocessing: the file's own, or its family's.
    class_names: None where the format does not carry them. extra: tensors that are not the model's; in our own format
    what the task has besides its model. task: what the model was trained for; only our own format tells.
    original: what the format itself needs to write the file back as it was. left: those of `extra` that may belong to
    the model, but have no place in it. notes: what was chosen or guessed, in words.
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
    """What a state dict was: the types and shapes by its own names, tensors that cannot be told from ours, config.json,
    and its own name for each that the format knows by another."""

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
    found = place.tensors
    count = config.depth if isinstance(config, vit.Config) else sum(config.blocks)
    if count > len(found):  # or a damaged number would build blocks without end
        raise ValueError(f"the configuration has {count} blocks, but there are {len(found)} tensors.")
    table = list(entries)
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
    if COMPUTED.search(ours) or TRAINING.search(ours) or not place.tensors[name].numel():
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
