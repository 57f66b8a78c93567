"""One door for all weights: recognise the format by content, infer the model, fit it to what is asked for, report.

    model = load("ViT-B_16.npz")                                     # the authors' numerics, switched on by the format
    model = load("ViT-B_16.npz", image_size=(384, 384), classes=37)  # for fine-tuning: a new head, resampled positions
    model, report = load_and_report("ViT-B_16.npz")
    print(report)                                                    # of every tensor: loaded, resized, reset, ignored

Nothing is unpickled, and nothing in a file is run.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import vit
from vitrail.models.positions import resample
from vitrail.models.zoo import Config, Model, override
from vitrail.weights import folder, google, hub, huggingface, timm, torchvision
from vitrail.weights.npz import Npz
from vitrail.weights.tensors import open_tensors

Status = Literal["loaded", "resized", "reset", "ignored"]


@dataclass(frozen=True)
class Weights:
    """What a file or folder holds: the model it was made for, its tensors under our names, what leads to an answer.

    origin: our name -> the file's own names. preprocessing: the file's own, or its family's. class_names: None where
    the format does not carry them. The rest is for writing it back as it was: Google's layout, tensors that are not the
    model's, those that are only in sums of ours, the types that they had (here all are float32), and config.json.
    task: what the model was trained for; only our own format tells. extra: there what the task has besides its model.
    """

    format: str
    config: Config
    tensors: Mapping[str, Tensor]
    origin: Mapping[str, str]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None = None
    layout: google.Layout | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    types: Mapping[str, torch.dtype] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=lambda: {"kind": "classify", "config": {}})


@dataclass(frozen=True)
class Line:
    """What became of one tensor. name: ours. origin: the file's. detail: shapes, where they changed."""

    name: str
    status: Status
    origin: str
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """What became of every tensor of the file and of the model."""

    format: str
    lines: tuple[Line, ...]

    def __getitem__(self, status: Status) -> list[str]:
        return [line.name for line in self.lines if line.status == status]

    def __str__(self) -> str:
        kinds: tuple[Status, ...] = ("loaded", "resized", "reset", "ignored")
        counts = ", ".join(f"{len(self[kind])} {kind}" for kind in kinds if self[kind])
        told = [
            f"  {line.name}: {line.status} {line.detail}".rstrip() for line in self.lines if line.status != "loaded"
        ]
        return "\n".join([f"{self.format}: {counts}", *told])


def load(path: Path | str, **overrides: Any) -> Model:
    """The model in a file or folder, in evaluation mode; see `load_and_report`."""
    return load_and_report(path, **overrides)[0]


def load_and_report(path: Path | str, **overrides: Any) -> tuple[Model, Report]:
    """The model in a file or folder, and what became of every tensor.

    overrides: fields of vit.Config. `image_size` resamples the positions to its grid; `classes` puts a zero-initialised
    head in the place of the whole old one, pre-logits layer included (paper, section 3.2), unless `representation` is
    given, too. ValueError, naming the file, where it cannot be read or does not fit.
    """
    path = hub.resolve(path)
    weights = read(path, overrides.get("image_size"), overrides.get("heads"))
    if "classes" in overrides:
        overrides = {"representation": None, **overrides}
    try:
        config = override(weights.config, str(path), overrides)
        return instantiate(weights, config, new_head="classes" in overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read(path: Path, image_size: int | tuple[int, int] | None = None, heads: int | None = None) -> Weights:
    """What a file or folder holds. image_size and heads: for what some formats do not tell, and only for that.

    ValueError, naming the file, where it is missing, damaged, or of a kind that is not known.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not path.exists():
        raise ValueError(f"{path} does not exist; name a file with weights, or a model folder.")
    if (path / "model" / "config.json").is_file():  # a run folder
        path = path / "model"
    try:
        if path.is_dir():
            return _folder(path, size, heads)
        if _is_npz(path):
            return _google(path, size)
        return _state_dict(path, {}, {}, size, heads)
    except ValueError as error:
        # Damaged names can hold anything; a sentence is one line of what can be printed.
        text = "".join(letter if letter.isprintable() else "?" for letter in str(error))
        raise ValueError(text if str(path) in text else f"{path}: {text}") from None


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return path.suffix == ".npz"


def _google(path: Path, size: tuple[int, int] | None) -> Weights:
    if seen := _looks(path):
        raise ValueError(f"{path} {seen}.")
    with Npz(path) as arrays:
        config, tensors, layout, origin = google.read(arrays, size)
    # Google's models, all of them, see pixels in [-1, 1].
    how = Preprocessing(config.image_size, (0.5,) * config.channels, (0.5,) * config.channels)
    return Weights("google", config, tensors, origin, how, layout=layout)


def _folder(path: Path, size: tuple[int, int] | None, heads: int | None) -> Weights:
    """A model folder of ours, or of timm's or transformers'."""
    settings = _json(path / "config.json")
    if "vitrail" in settings:
        card, tensors, extra = folder.read(path)
        origin = {name: name for name in tensors}
        names = card.class_names or None
        return Weights("vitrail", card.model, tensors, origin, card.preprocessing, names, extra=extra, task=card.task)
    beside = path / "preprocessor_config.json"
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    files = [path / name for name in names if (path / name).is_file()]
    if not files:
        raise ValueError(f"{path} has neither model.safetensors nor pytorch_model.bin.")
    return _state_dict(files[0], settings, _json(beside) if beside.is_file() else {}, size, heads)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path.parent} is not a model folder: it has no {path.name}.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no JSON object.")
    return content


def _state_dict(
    path: Path,
    settings: Mapping[str, Any],
    processor: Mapping[str, Any],
    size: tuple[int, int] | None,
    heads: int | None,
) -> Weights:
    """A file of tensors, with what config.json and preprocessor_config.json beside it say."""
    if seen := _looks(path):
        raise ValueError(f"{path} {seen}.")
    found = open_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    names, sums = None, ()
    if "model_type" in settings:
        config, tensors, origin = huggingface.read(found, settings)
        sums = huggingface.sums(settings["model_type"], huggingface.prefix(settings["model_type"], found))
        kind, names = "huggingface", huggingface.class_names(settings)
        how = huggingface.preprocessing(config, settings["model_type"], processor)
    elif timm.recognise(shapes):
        config, tensors, origin = timm.read(found, settings, size, heads)
        kind, names = "timm", timm.class_names(settings)
        how = timm.preprocessing(config, settings)
    elif torchvision.recognise(shapes):
        config, tensors, origin = torchvision.read(found, size, heads)
        kind, how = "torchvision", torchvision.preprocessing(config)
    else:
        some = ", ".join(list(found)[:3])
        raise ValueError(f"{path} is of an architecture that is not known; its first tensors are {some}.")
    if names is not None and len(names) != config.classes:
        names = None
    used = {name for theirs in origin.values() for name in theirs.split(", ")}
    extra = {name: tensor for name, tensor in found.items() if name not in used}
    floats = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    types = {name: tensor.dtype for name, tensor in tensors.items()}
    return Weights(
        kind,
        config,
        floats,
        origin,
        how,
        names,
        extra=extra,
        sums={n: found[n] for n in sums},
        types=types,
        settings=settings,
    )


def instantiate(weights: Weights, config: Config, new_head: bool = False, seed: int = 0) -> tuple[Model, Report]:
    """A model of `config` with the weights in it: positions resampled, the head new where it is asked for.

    What the weights lack gets the initial value that `seed` draws ("reset"). ValueError where a tensor fits in no way.
    """
    model = config.build("meta")
    lines: list[Line] = []
    state: dict[str, Tensor] = {}
    for name, like in model.state_dict().items():
        found = weights.tensors.get(name)
        if found is None or (new_head and name.startswith("head.")):
            state[name] = torch.empty(like.shape)
            lines.append(Line(name, "reset", weights.origin.get(name, ""), str(tuple(like.shape))))
        elif found.shape == like.shape:
            state[name] = found
            lines.append(Line(name, "loaded", weights.origin[name]))
        elif name == "pos_embed" and isinstance(config, vit.Config) and isinstance(weights.config, vit.Config):
            state[name] = _resized(found, weights.config, config)
            change = f"{tuple(found.shape)} -> {tuple(like.shape)}"
            lines.append(Line(name, "resized", weights.origin[name], change))
        else:
            shapes = f"{tuple(found.shape)}, the model's {name} is {tuple(like.shape)}"
            raise ValueError(f"{weights.origin[name]} is {shapes}.")
    dropped = {name: weights.tensors[name] for name in weights.tensors if name not in state}
    for name, tensor in {**dropped, **weights.extra}.items():
        lines.append(Line(name, "ignored", weights.origin.get(name, name), str(tuple(tensor.shape))))
    model.load_state_dict(state, assign=True)
    reset = {line.name for line in lines if line.status == "reset"}
    model.init_weights(seed, only=reset)
    return model.eval(), Report(weights.format, tuple(lines))


def _resized(table: Tensor, old: vit.Config, new: vit.Config) -> Tensor:
    """Positions (1, rows, D) of the old grid for the new one, the row of [class] kept aside."""
    first = int(old.class_token and old.class_position)
    if first != int(new.class_token and new.class_position):
        raise ValueError("a table of positions with a row for [class] cannot become one without, or the reverse.")
    patches = resample(table[0, first:], old.grid(old.image_size), new.grid(new.image_size), new.resample)
    return torch.cat([table[0, :first], patches])[None]


def _looks(path: Path) -> str:
    """What a file is that cannot hold weights, by its first bytes; "" where it may."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "is empty; fetch it again"
    if start.lstrip()[:1] == b"<":
        return "is a web page, perhaps of a download that failed; fetch the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself (git lfs pull fetches it)"
    return ""
