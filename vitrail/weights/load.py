"""Load any weights: recognise the format by its content, infer the model, adapt it to what is asked for, and report.

    model = load("ViT-B_16.npz")                                     # with the authors' numerics, by the format
    model = load("ViT-B_16.npz", image_size=(384, 384), classes=37)  # for fine-tuning: a new head, resampled positions
    model, report = load_and_report("ViT-B_16.npz")
    print(report)                                                    # each tensor: loaded, resized, reset, ignored

Nothing is unpickled, and nothing in a file is run.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vitrail.models import Config, Model, vit
from vitrail.models.kernels import for_channels, for_patch_size
from vitrail.models.positions import resample
from vitrail.models.relative import resample_relative
from vitrail.models.zoo import override
from vitrail.progress import few
from vitrail.weights import FORMATS, hub
from vitrail.weights.format import Asked, Place, Weights

# What a head is called, wherever a wrapper has put it.
HEAD = re.compile(r"(^|\.)(\w*head\w*|\w*classifier\w*|fc|logits)\b")
# The first convolution, of a ViT's patches and of a hybrid's stem.
PATCHES = ("patch_embed.proj.weight", "patch_embed.backbone.stem.conv.weight")
Status = Literal["loaded", "resized", "reset", "ignored"]


@dataclass(frozen=True)
class Report:
    """What became of every tensor of the file and of the model. tensors: our name -> (what, shapes). notes: what was
    chosen or guessed, in words."""

    format: str
    tensors: Mapping[str, tuple[Status, str]]
    notes: tuple[str, ...] = ()

    def __getitem__(self, status: Status) -> list[str]:
        return [name for name, (found, _) in self.tensors.items() if found == status]

    def __str__(self) -> str:
        counts = ", ".join(f"{len(self[kind])} {kind}" for kind in get_args(Status) if self[kind])
        told = [f"  {name}: {what} {detail}" for name, (what, detail) in self.tensors.items() if what != "loaded"]
        return "\n".join([f"{self.format}: {counts}", *told, *(f"  {note}" for note in self.notes)])


def load(path: Path | str, **options: Any) -> Model:
    """The model in a file or folder, in evaluation mode; see `load_and_report`."""
    return load_and_report(path, **options)[0]


def load_and_report(
    path: Path | str,
    *,
    strict: bool = True,
    ignore: Sequence[str] = (),
    architecture: str | None = None,
    section: str | None = None,
    **overrides: Any,
) -> tuple[Model, Report]:
    """The model in a file or folder, and what became of every tensor.

    strict, ignore, architecture, section: as in `Asked` (weights/format.py).
    overrides: fields of the Config. `image_size` resamples the positions to its grid; `classes` puts a zero-initialised
    head in the place of the whole old one, pre-logits layer included (paper, section 3.2), unless `representation` is
    given, too. ValueError, naming the file, where it cannot be read or does not fit.
    """
    path = hub.resolve(path)
    size = overrides.get("image_size")
    size = (size, size) if isinstance(size, int) else size
    patterns = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    asked = Asked(size, overrides.get("heads"), architecture, section, patterns, strict)
    weights = read(path, asked, new_head="classes" in overrides)
    if "classes" in overrides and isinstance(weights.config, vit.Config):
        overrides = {"representation": None, **overrides}
    try:
        config = override(weights.config, str(path), overrides)
        return instantiate(weights, config, new_head="classes" in overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read(path: Path, asked: Asked | None = None, new_head: bool = False) -> Weights:
    """What a file or folder holds. new_head: whether the old head goes, whatever it is.

    ValueError, naming the file, where it is missing, damaged, or of a kind that is not known; and, unless it is asked
    for otherwise, where a tensor of the model has no place.
    """
    asked = asked or Asked()
    try:
        with closing(Place(path, asked)) as place:
            for form in FORMATS:
                if form.recognise(place):
                    return _strict(form.read(place), place, new_head)
            some = few(place.arrays or place.tensors, 3)
            raise ValueError(f"{path} is of an architecture that is not known; its tensors are {some}.")
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # A config.json may hold values of any type, and damaged names any letters; a message is one printable line.
        first = str(error).partition("\n")[0]  # torch's own may go on with what it called
        text = str(error) if isinstance(error, ValueError) else f"it cannot be used ({type(error).__name__}: {first})."
        if new_head and any(option in text for option in ("--ignore", "--architecture", "--heads", "--image-size")):
            text += " vitrail convert takes these options, and writes a folder to start from."
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
        raise ValueError(text if str(path) in text else f"{path}: {text}") from error


def _strict(weights: Weights, place: Place, new_head: bool) -> Weights:
    """The weights, if nothing that may be the model's is left over, or that is consented to."""
    if (section := place.asked.section) is not None and section not in place.sections:
        there = few(dict.fromkeys(place.sections), 5) if place.sections else "only one state dict"
        raise ValueError(f"it has no section {section!r}; there is {there}.")
    left = [name for name in weights.left if not (new_head and HEAD.search(name))]
    if left and place.asked.strict:
        shape = "" if weights.extra[left[0]].ndim == 0 else f" {tuple(weights.extra[left[0]].shape)}"
        raise ValueError(
            f"{len(left)} of its tensors have no place in a {weights.format} model and would be left out: "
            f"{left[0]}{shape}{', ' + few(left[1:], 2) if left[1:] else ''}; if they are not needed, leave them out by "
            f"--ignore 'PATTERN', or ignore=['PATTERN'] or strict=False in Python."
        )
    gone = [f"left out: {few(left, 5)}"] if left else []
    if weights.config.classes == 1 and weights.task == {"kind": "classify", "config": {}}:
        weights = replace(weights, task={"kind": "classify", "config": {"loss": "sigmoid"}})
        gone.append("its one output is read as a sigmoid's")
    return replace(weights, notes=(*place.notes, *weights.notes[len(place.notes) :], *gone))


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
        elif (resized := _resized(name, found, weights.config, config)) is not None:
            state[name], report[name] = resized, ("resized", f"{tuple(found.shape)} -> {shape}")
        elif found.shape == like.shape:
            state[name], report[name] = found, ("loaded", shape)
        elif name in PATCHES and found.ndim == 4:  # other channels, or another patch size
            changed = for_channels(found, like.shape[1])
            if name == PATCHES[0]:
                changed = for_patch_size(changed, (like.shape[2], like.shape[3]))
            state[name], report[name] = changed, ("resized", f"{tuple(found.shape)} -> {shape}")
        else:
            theirs = ", ".join(weights.origin[name])
            raise ValueError(f"{theirs} is {tuple(found.shape)}, the model's {name} is {shape}.")
    for name, tensor in {**weights.tensors, **weights.extra}.items():
        report.setdefault(name, ("ignored", str(tuple(tensor.shape))))
    model.load_state_dict(state, assign=True)
    made = Report(weights.format, report, weights.notes)
    model.init_weights(seed, only=set(made["reset"]))
    return model.eval(), made


def _resized(name: str, table: Tensor, old: Config, new: Config) -> Tensor | None:
    """A table of positions of the old grid for the new one, the rows of [class] kept aside; None where it is none, or
    the grid is the same."""
    if not isinstance(old, vit.Config) or not isinstance(new, vit.Config):
        return None
    before, after = old.grid(old.image_size), new.grid(new.image_size)
    if before == after:  # as many rows do not make it the same: 14 x 14 and 7 x 28
        return None
    if name.endswith("relative_position_bias_table"):
        return resample_relative(table, before, after, new.relative)
    if name != "pos_embed":
        return None
    first = old.prefix_rows
    if first != new.prefix_rows:
        raise ValueError("a table of positions with a row for [class] cannot become one without, or the reverse.")
    return torch.cat([table[0, :first], resample(table[0, first:], before, after, new.resample)])[None]
