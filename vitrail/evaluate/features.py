"""What a frozen model makes of every image, once: for the evaluators that judge it by that, kept on the disk.

    bank, found = features(task, data.bank()), features(task, data)     # float32 (N, D), int64 (N,)
    deep = features(task, data, blocks=4).values                        # (N, 4, 2, D): [class] and the patches' mean

The evaluators of one evaluation share them. With `data.keep` they stay in $VITRAIL_CACHE/features, under a name of what
they follow from: weights, code, preprocessing, images and what is taken of them, so that nothing old is ever read.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from vitrail.batch import Batch
from vitrail.data.sources.cache import Arrays, cache_folder
from vitrail.data.sources.fingerprint import code
from vitrail.evaluate.evaluator import Judged, Validation
from vitrail.evaluate.matching import digests
from vitrail.models import vit
from vitrail.progress import track


@runtime_checkable
class Modelled(Judged, Protocol):
    """A task whose model is looked into: a submodule, which isinstance does not find since Python 3.12."""

    def get_submodule(self, target: str, /) -> Any: ...

    def input(self, images: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, eq=False)
class Features:
    """Of N images with one class each. indices: which images of the source they are. classes: how many there are."""

    values: Float[np.ndarray, "N *D"]
    targets: Int64[np.ndarray, "N"]
    indices: Int64[np.ndarray, "N"]
    classes: int

    def __len__(self) -> int:
        return len(self.targets)


@torch.inference_mode()
def features(task: Judged, data: Validation, blocks: int = 0) -> Features:
    """Of every image that has a label: what `predict` calls features; or, of so many last blocks, the first one first,
    [class] (or the mean again, where there is none) and the mean of the patches, after the final norm.

    ValueError where images have no labels or several each, blocks are asked of a model that is no ViT with as many,
    or none of the images can be read.
    """
    source = data.source
    if source.targets != "class":
        why = "have no labels" if source.targets == "none" else "have several labels each"
        raise ValueError(f"the images {why}, but this evaluator judges features by one class of each image.")
    assert isinstance(task, Modelled)
    model = task.get_submodule("model")
    if blocks and not (isinstance(model, vit.ViT) and len(model.blocks) >= blocks):
        raise ValueError(f"the model is not a ViT with {blocks} blocks or more.")
    what = id(task), id(source), blocks
    if what not in data.shared:  # both are held there, so that no other object gets their numbers
        data.shared[what] = task, source, _kept(task, data, blocks) if data.keep else _computed(task, data, blocks)[0]
    found = data.shared[what][2]
    return Features(found["values"], found["targets"], found["indices"], len(source.class_names))


def _kept(task: Modelled, data: Validation, blocks: int) -> Arrays:
    """Those on the disk, or they are computed, and put there."""
    file = cache_folder() / "features" / f"{_key(task, data, blocks)}.safetensors"
    with suppress(OSError, SafetensorError):
        return load_file(file)
    found, problems = _computed(task, data, blocks)
    with suppress(OSError, SafetensorError):  # then they are computed again
        if not problems:  # or nobody would be told of these next time
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            save_file(found, part)
            os.replace(part, file)
    return found


def _computed(task: Modelled, data: Validation, blocks: int) -> tuple[Arrays, list[str]]:
    problems = list[str]()
    parts = [*_parts(task, data, blocks, problems)]
    return {name: np.concatenate([part[name].cpu().numpy() for part in parts]) for name in parts[0]}, problems


def _parts(task: Modelled, data: Validation, blocks: int, problems: list[str]) -> Iterator[dict[str, Tensor]]:
    def skipped(problem: str) -> None:
        problems.append(problem)
        assert data.skipped is not None
        data.skipped(problem)

    batches = replace(data, skipped=skipped if data.skipped else None).batches()
    for batch in track(batches, -(-len(data.source) // data.batch), "features, batch"):
        values = last_blocks(task, batch, blocks) if blocks else task.predict(batch)["features"]
        yield {"values": values.float(), "targets": batch["targets"], "indices": batch["indices"]}


def inner(task: Modelled) -> Any:
    """The task's model. ValueError where it is a file of another runtime (tasks/exported.py), which has no weights."""
    model = task.get_submodule("model")
    if next(model.parameters()).is_meta:
        raise ValueError("an exported file does not give what this evaluator reads inside a model; judge its run.")
    return model


def last_blocks(task: Modelled, batch: Batch, blocks: int) -> Float[Tensor, "B blocks 2 D"]:
    """[class] and the patches' mean after each of the last blocks and the final norm, as DINOv2's linear probe reads
    them (dinov2/eval/linear.py)."""
    model, images = inner(task), task.input(batch["images"])
    z, places, found = model.embed(images), model.places(images), []
    for block in model.blocks:
        z = block(z) if places is None else block(z, None, places)
        found.append(model.norm(z))
    means = [z[:, model.config.prefix :].mean(1) for z in found[-blocks:]]
    firsts = [z[:, 0] if model.config.prefix else mean for z, mean in zip(found[-blocks:], means, strict=True)]
    return torch.stack([torch.stack(pair, 1) for pair in zip(firsts, means, strict=True)], 1)


def _key(task: Modelled, data: Validation, blocks: int) -> str:
    """A digest of all that features follow from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(task.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    source = data.source
    for content in digests(source, "looking for kept features, image", len(source)):
        digest.update(content)
    labels = [source.target(index) for index in range(len(source))]
    config = asdict(task.get_submodule("model").config)
    how = [asdict(data.preprocessing), config, code(), torch.__version__, str(data.device)]
    about = [*how, blocks, labels]
    digest.update(json.dumps(about, default=str).encode())
    return digest.hexdigest()[:32]
