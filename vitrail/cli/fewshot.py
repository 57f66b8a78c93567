"""`vitrail fewshot`: a classifier from a handful of images, without training."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from vitrail.cli.opening import Using
from vitrail.cli.options import Command, Flag, Given, Model, Out, described
from vitrail.progress import few, say

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vitrail.data.sources.source import Source
    from vitrail.evaluate.features import Features
    from vitrail.tasks import Task

SHOTS = "shots.safetensors"  # in the folder: what another class is added to
MOST = 10_000  # images


@dataclass(kw_only=True)
class Fewshot(Using, Command):
    """Make a classifier from a handful of images, without training.

    The model stays as it is; its head is computed from the features of the images (ridge regression, the penalty by
    leave-one-out). Where no class is probable enough, it answers "none of these". Every command takes the new folder.
    """

    extends = True
    model: Model
    """Weights with good features, such as a run folder, a model folder, or hf-hub:OWNER/NAME."""
    folder: Positional[Annotated[str, arg(metavar="FOLDER")]]
    """Images in a folder for each class, or any labelled data that vitrail train reads; up to 10,000 are taken."""
    out: Out
    """The new model folder, which must not exist."""
    add: Flag = False
    """Keep the classes that the model has: it is one that this command made, or a run, whose data is there."""
    accept_all: Flag = False
    """Never answer "none of these"."""

    def run(self, given: Given) -> None:
        import numpy as np
        import torch
        from safetensors.numpy import save_file
        from torch import nn

        from vitrail.data.sources.open import find_splits
        from vitrail.evaluate.shots import ACCEPTED, fitted
        from vitrail.pipeline import Pipeline
        from vitrail.tasks import Classify, ClassifyConfig
        from vitrail.tasks.exported import needs_weights

        target = Path(self.out)
        if target.exists():
            raise ValueError(f"{target} exists; name another folder with --out.")
        task = self.pipeline(self.model).task
        needs_weights(task, "put a head on")
        found = find_splits(described(self.folder, given, self, "vitrail fewshot"))
        source = found.get("train") or next(iter(found.values()))
        old = self._before(task) if self.add else None
        names = [*dict.fromkeys((*(task.class_names if old else ()), *source.class_names))]
        if len(names) < 2:
            raise ValueError(f"{self.folder} has one class; it needs another, such as one of other things.")
        say("\n".join(found.said(self.folder)))
        new = self._features(task, source)
        parts = [(new.values, new.targets)]
        if old:
            places = np.array([names.index(name) for name in source.class_names])
            parts = [old, (new.values, places[new.targets])]
        values, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
        if empty := [name for name, n in zip(names, np.bincount(labels, minlength=len(names)), strict=True) if not n]:
            raise ValueError(f"{self.folder}: no image of {few(empty)} can be read; put some there, or take it out.")
        head = fitted(values, labels, len(names))
        none = None if self.accept_all else head.none_below
        model = task.model
        model.head = nn.Linear(values.shape[1], len(names))
        with torch.no_grad():
            model.head.weight.copy_(head.weight)
            model.head.bias.copy_(head.bias)
        config = ClassifyConfig(none_below=none)
        made = Classify(model.to("cpu"), task.preprocessing, config, tuple(names))
        Pipeline(made).save(target)
        save_file({"values": values, "labels": labels}, target / SHOTS, {"preprocessing": repr(task.preprocessing)})
        answer = {"classes": names, "images": len(labels), "accuracy": head.accuracy, "none_below": none}
        answer |= {} if none is None else {"accepted": ACCEPTED, "false_positive_rate": head.false}
        right = f"{head.accuracy:.1%} of them right by the others"
        text = f"{target}: {len(names)} classes from {len(labels):,} images, {right}"
        if none is not None:
            taken = f"{ACCEPTED:.0%} of images of these classes, and {head.false:.1%} of those of a class left out"
            text += f'\nwhere it does not answer "none of these": {taken}'
        elif not self.accept_all:
            text += '\nit never says "none of these": for that it needs three classes, and two images of each'
        self.answer(answer, text)

    def _features(self, task: "Task", source: "Source") -> "Features":
        from functools import partial

        from vitrail.data.sources.fingerprint import spread
        from vitrail.data.sources.source import Subset
        from vitrail.evaluate import Validation
        from vitrail.evaluate.features import features
        from vitrail.runtime.inference import batch_size, prepared

        device = task.device
        some = Subset(source, spread(len(source), MOST)) if len(source) > MOST else source
        batch = batch_size(task.model.config, task.preprocessing.image_size, device)
        collate = partial(task.config.collate, source=some)
        data = Validation(some, task.preprocessing, collate, batch, device, skipped=say, keep=True)
        return features(prepared(task), data)

    def _before(self, task: "Task") -> "tuple[NDArray, NDArray]":
        """(features, labels) of what the model's own classes were made from."""
        from safetensors import SafetensorError, safe_open

        from vitrail import run as runs
        from vitrail.data.sources.open import open_source

        place = Path(self.model)
        if (place / SHOTS).is_file():
            try:
                with safe_open(place / SHOTS, "numpy") as file:
                    how, found = file.metadata()["preprocessing"], [file.get_tensor(n) for n in ("values", "labels")]
            except (SafetensorError, KeyError, TypeError):
                raise ValueError(f"{place / SHOTS} is damaged; make {place} again with vitrail fewshot.") from None
            if how != repr(task.preprocessing):
                raise ValueError(f"{place} was made with another preprocessing; leave out --image-size and the like.")
            return found[0], found[1]
        if not (place / "run.json").is_file():
            raise ValueError(f"{place} has no {SHOTS} and is not a run, so the images of its classes are not known.")
        run = runs.read(place)
        known = self._features(task, open_source(replace(run.data, balance=False), "train", "classes"))
        return known.values, known.targets
