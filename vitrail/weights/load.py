"""Load any weights: recognise the format by its content, infer the model, adapt it to what is asked for, and report.

    model = load("ViT-B_16.npz")                                     # with the authors' numerics, by the format
    model = load("ViT-B_16.npz", image_size=(384, 384), classes=37)  # for fine-tuning: a new head, resampled positions
    model, report = load_and_report("ViT-B_16.npz")
    print(report)                                                    # each tensor: loaded, resized, reset, ignored

Nothing is unpickled, and nothing in a file is run.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vitrail.models import Config, Model, vit
from vitrail.models.positions import resample
from vitrail.models.zoo import override
from vitrail.progress import few
from vitrail.weights import FORMATS, hub
from vitrail.weights.format import Place, Weights

Status = Literal["loaded", "resized", "reset", "ignored"]


@dataclass(frozen=True)
class Report:
    """What became of every tensor of the file and of the model. tensors: our name -> (what, shapes)."""

    format: str
    tensors: Mapping[str, tuple[Status, str]]

    def __getitem__(self, status: Status) -> list[str]:
        return [name for name, (found, _) in self.tensors.items() if found == status]

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self[kind])} {kind}" for kind in get_args(Status) if self[kind])
        told = [f"  {name}: {what} {detail}" for name, (what, detail) in self.tensors.items() if what != "loaded"]
        return "\n".join([f"{self.format}: {counts}", *told])


def load(path: Path | str, **overrides: Any) -> Model:
    """The model in a file or folder, in evaluation mode; see `load_and_report`."""
    return load_and_report(path, **overrides)[0]


def load_and_report(path: Path | str, **overrides: Any) -> tuple[Model, Report]:
    """The model in a file or folder, and what became of every tensor.

    overrides: fields of the Config. `image_size` resamples the positions to its grid; `classes` puts a zero-initialised
    head in the place of the whole old one, pre-logits layer included (paper, section 3.2), unless `representation` is
    given, too. ValueError, naming the file, where it cannot be read or does not fit.
    """
    path = hub.resolve(path)
    weights = read(path, overrides.get("image_size"), overrides.get("heads"))
    if "classes" in overrides and isinstance(weights.config, vit.Config):
        overrides = {"representation": None, **overrides}
    try:
        config = override(weights.config, str(path), overrides)
        return instantiate(weights, config, new_head="classes" in overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read(path: Path, image_size: int | tuple[int, int] | None = None, heads: int | None = None) -> Weights:
    """What a file or folder holds. image_size and heads: used only where a format does not tell them.

    ValueError, naming the file, where it is missing, damaged, or of a kind that is not known.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        with closing(Place(path)) as place:
            for form in FORMATS:
                if form.recognise(place):
                    return form.read(place, size, heads)
            some = few(place.arrays or place.tensors, 3)
            raise ValueError(f"{path} is of an architecture that is not known; its tensors are {some}.")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # A config.json may hold values of any type, and damaged names any letters; a message is one printable line.
        text = str(error) if isinstance(error, ValueError) else f"it cannot be used ({type(error).__name__}: {error})."
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
        raise ValueError(text if str(path) in text else f"{path}: {text}") from error


def instantiate(weights: Weights, config: Config, new_head: bool = False, seed: int = 0) -> tuple[Model, Report]:
    """A model of `config` with the weights in it: positions resampled, the head new where it is asked for.

    What the weights lack gets the initial value that `seed` draws ("reset"). ValueError where a tensor does not fit.
    """
    model = config.build("meta")
    report: dict[str, tuple[Status, str]] = {}
    state: dict[str, Tensor] = {}
    for name, like in model.state_dict().items():
        found, shape = weights.tensors.get(name), str(tuple(like.shape))
        if found is None or (new_head and name.startswith("head.")):
            state[name], report[name] = torch.empty(like.shape), ("reset", shape)
        elif name == "pos_embed" and (resized := _resized(found, weights.config, config)) is not None:
            state[name], report[name] = resized, ("resized", f"{tuple(found.shape)} -> {shape}")
        elif found.shape == like.shape:
            state[name], report[name] = found, ("loaded", shape)
        else:
            theirs = ", ".join(weights.origin[name])
            raise ValueError(f"{theirs} is {tuple(found.shape)}, the model's {name} is {shape}.")
    for name, tensor in {**weights.tensors, **weights.extra}.items():
        report.setdefault(name, ("ignored", str(tuple(tensor.shape))))
    model.load_state_dict(state, assign=True)
    made = Report(weights.format, report)
    model.init_weights(seed, only=set(made["reset"]))
    return model.eval(), made


def _resized(table: Tensor, old: Config, new: Config) -> Tensor | None:
    """Positions (1, rows, D) of the old grid for the new one, the row of [class] kept aside; None for the same grid."""
    assert isinstance(old, vit.Config)
    assert isinstance(new, vit.Config)
    before, after = old.grid(old.image_size), new.grid(new.image_size)
    if before == after:  # as many rows do not make it the same: 14 x 14 and 7 x 28
        return None
    first = old.prefix_rows
    if first != new.prefix_rows:
        raise ValueError("a table of positions with a row for [class] cannot become one without, or the reverse.")
    return torch.cat([table[0, :first], resample(table[0, first:], before, after, new.resample)])[None]
