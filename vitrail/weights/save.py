"""Weights back out, in the layout of any public format; what came from that format goes back bit for bit.

    weights = read(Path("ViT-B_16.npz"))
    save(weights, Path("out.npz"), "google")              # the same names, shapes and bits
    notes = save(weights, Path("folder"), "timm")         # what the format cannot hold, in words

google and torchvision are files, vitrail and huggingface are folders, timm is a file where the target is named like
one. Nothing is ever overwritten, and a target appears only when it is complete.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vitrail.models import vit
from vitrail.weights import folder, google, huggingface, timm, torchvision
from vitrail.weights.load import Weights, read

# Fields of the configuration that change answers and that no tensor shows.
NUMERICS = ("activation", "norm_eps", "heads", "pool", "resample", "remainder")
FILES = (".safetensors", ".pth", ".pt", ".bin")

Format = Literal["vitrail", "google", "timm", "huggingface", "torchvision"]


def save(weights: Weights, target: Path, to: Format) -> list[str]:
    """Writes weights to a file or folder; returns what the format cannot hold, in words.

    ValueError where the target exists, the format is not known, or it has no place for a part of the model.
    """
    if to not in get_args(Format):
        raise ValueError(f"there is no format {to!r}; choose one of {', '.join(get_args(Format))}.")
    if target.exists():
        raise ValueError(f"{target} exists already; name another target.")
    partial = target.with_name(f".{target.name}.partial")
    notes: list[str] = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if to == "google":
            _google(weights, partial)
        elif to == "torchvision":
            tensors = torchvision.write(_vit(weights), weights.tensors)
            _file(_as_it_was(weights, tensors, "torchvision"), partial, target.suffix)
        elif to == "huggingface":
            _huggingface(weights, partial)
        elif to == "timm" and (target.suffix in FILES or (weights.format == "timm" and weights.settings)):
            _timm(weights, partial, target.suffix if target.suffix in FILES else "")
        else:  # our folder is timm's, too
            notes = _ours(weights, partial)
        partial.rename(target)
    except OSError as error:
        raise ValueError(f"{target} could not be written ({error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
    return notes + _changed(weights, target)


def _vit(weights: Weights) -> vit.Config:
    """ValueError for a model that only our own format can hold."""
    if not isinstance(weights.config, vit.Config):
        raise ValueError("this format has no place for a ResNet; write it as vitrail.")
    return weights.config


def _changed(weights: Weights, target: Path) -> list[str]:
    """What a reader of the target takes for another numerics than the model has: its tensors are whole all the same."""
    config = weights.config
    if not isinstance(config, vit.Config):
        return []
    again = read(target, config.image_size, config.heads).config
    pairs = [(name, getattr(config, name), getattr(again, name)) for name in NUMERICS]
    return [f"{name} {ours!r} (read back as {theirs!r})" for name, ours, theirs in pairs if ours != theirs]


def _google(weights: Weights, path: Path) -> None:
    layout = weights.layout if weights.format == "google" else None
    arrays: dict[str, Any] = {**google.write(_vit(weights), weights.tensors, layout)}
    with path.open("wb") as file:  # numpy would append .npz to a path
        np.savez(file, **arrays)


def _huggingface(weights: Weights, path: Path) -> None:
    own = weights.format == "huggingface"
    settings = weights.settings if own else huggingface.describe(_vit(weights), weights.class_names)
    kind, root = settings["model_type"], "vit." if weights.config.classes else ""
    if own:
        root = huggingface.prefix(kind, _their_names(weights))
    tensors = huggingface.write(_vit(weights), weights.tensors, kind, root)
    processor = huggingface.processor(weights.preprocessing)
    _folder(path, _as_it_was(weights, tensors, "huggingface"), settings, {"preprocessor_config.json": processor})


def _timm(weights: Weights, path: Path, suffix: str) -> None:
    """timm's own, as it was: a folder, or a bare state dict."""
    tensors = _as_it_was(weights, timm.write(_vit(weights), weights.tensors), "timm")
    if suffix:
        _file(tensors, path, suffix)
    else:
        _folder(path, tensors, weights.settings, {})


def _ours(weights: Weights, path: Path) -> list[str]:
    names = weights.class_names or tuple(str(i) for i in range(weights.config.classes))
    card = folder.Card(weights.config, weights.preprocessing, names, weights.task)
    return folder.write(path, weights.tensors, card, weights.extra if weights.format == "vitrail" else None)


def _file(tensors: dict[str, Tensor], path: Path, suffix: str) -> None:
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def _their_names(weights: Weights) -> list[str]:
    return [name for theirs in weights.origin.values() for name in theirs.split(", ")]


def _as_it_was(weights: Weights, tensors: dict[str, Tensor], to: Format) -> dict[str, Tensor]:
    """In the types that the file had, with what it had besides the model, where it is of this format."""
    if weights.format != to:
        return tensors
    types = {n: weights.types[ours] for ours, theirs in weights.origin.items() for n in theirs.split(", ")}
    return {**{name: tensor.to(types[name]) for name, tensor in tensors.items()}, **weights.extra, **weights.sums}


def _folder(path: Path, tensors: dict[str, Tensor], settings: Mapping[str, Any], more: dict[str, Any]) -> None:
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    for name, content in {"config.json": settings, **more}.items():
        (path / name).write_text(json.dumps(content, indent=2) + "\n")
