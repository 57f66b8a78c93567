"""Google's own checkpoints: `.npz` of vision_transformer (JAX) and big_vision, in both directions.

Arrays have paths for names. Kernels are (inputs, outputs), convolutions (H, W, inputs, outputs), and attention keeps
its heads apart: query, key and value (D, heads, D_h), out (heads, D_h, D). There are two dialects,

    older   Transformer/encoderblock_0/{LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2, MlpBlock_3}
            Transformer/posembed_input/pos_embedding, one row of which is the [class] token's
    newer   Transformer/encoderblock_0/{LayerNorm_0, MultiHeadDotProductAttention_0, LayerNorm_1, MlpBlock_0}
            pos_embedding for the patches alone, or none (sin-cos); MAPHead_0; blocks may be stacked in one array

with a prefix in front (params/, opt/target/, params/img/), and bfloat16 as two raw bytes. The numerics come with the
format: tanh GELU, eps 1e-6, positions resampled bilinearly with aligned corners, a VALID patch convolution.
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import vit
from vitrail.progress import few
from vitrail.weights.format import Place, Weights
from vitrail.weights.google_names import NEWER, OLDER, entries
from vitrail.weights.mapping import gather, scatter
from vitrail.weights.npz import Form, Npz
from vitrail.weights.shapes import Shapes, placed

PREFIXES = ("", "opt/target/", "params/img/", "params/", "img/")
BLOCK = "Transformer/encoderblock_0/"
PROBE = f"{BLOCK}{NEWER[1]}/query/kernel"  # of the newer dialect alone


class Google:
    """The format. Google's models, all of them, read pixels in [-1, 1]. original: the forms of the file's arrays."""

    name = "google"

    def recognise(self, place: Place) -> bool:
        return place.arrays is not None and prefix_of(place.arrays.forms) is not None

    def read(self, place: Place) -> Weights:
        arrays = place.arrays
        assert arrays is not None
        view = strip(arrays.forms)
        # In a stack, the first dimension is that of the blocks.
        shapes = {n: arrays.forms[name][0][0 if index is None else 1 :] for n, (name, index) in view.items()}
        config = infer(Shapes(shapes), place.asked.image_size)

        def get(name: str) -> Tensor | None:
            return _tensor(arrays, *view[name]) if name in view else None

        tensors, origin = gather(entries(config, PROBE in view), get, config)
        how = Preprocessing(config.image_size, mean=(0.5,) * config.channels, std=(0.5,) * config.channels)
        # What is outside the prefix, a text tower or the optimiser's state, is listed; inside, it would be the model's.
        used, inside = set(itertools.chain(*origin.values())), {name for name, _ in view.values()}
        read = {view[name][0] for name in used}
        rest = {name: torch.empty(form[0], device="meta") for name, form in arrays.forms.items() if name not in read}
        left = tuple(name for name in rest if name in inside and not place.ignores(name))
        if gone := [name for name in rest if name in inside and place.ignores(name)]:
            place.notes.append(f"left out as asked: {few(gone, 3)}")
        return Weights(self.name, config, tensors, origin, how, extra=rest, original=arrays.forms, left=left)

    def write(self, weights: Weights, target: Path) -> list[str]:
        config, forms, prefix = weights.vit(self.name), dict[str, Form](), ""
        # The dialect that can hold it.
        newer = config.class_token != config.class_position or config.positions != "learned" or config.pool == "map"
        if weights.format == self.name:
            forms = weights.original
            prefix, newer = prefix_of(forms) or "", PROBE in strip(forms)
        found = {name: t.numpy() for name, t in scatter(entries(config, newer), weights.tensors).items()}
        if any(index is not None for _, index in strip(forms).values()):
            found = _stack(found, config.depth)
        named = {prefix + name: array for name, array in found.items()}
        arrays: dict[str, Any] = {name: _formed(array, forms.get(name)) for name, array in named.items()}
        with target.open("wb") as file:  # numpy would append .npz to a path
            np.savez(file, **arrays)
        return []


def prefix_of(forms: Mapping[str, Form]) -> str | None:
    """The prefix of Google's names, or None where these are not Google's."""
    return next((prefix for prefix in PREFIXES if f"{prefix}embedding/kernel" in forms), None)


def strip(forms: Mapping[str, Form]) -> dict[str, tuple[str, int | None]]:
    """Name without prefix -> (name in the file, index into a stack of blocks or None).

    Names without the prefix are left out: a text tower, the optimiser's state.
    """
    prefix, view = prefix_of(forms) or "", dict[str, tuple[str, int | None]]()
    for name, (shape, _) in forms.items():
        if not name.startswith(prefix):
            continue
        inside = name.removeprefix(prefix)
        if found := re.fullmatch(r"Transformer/encoderblock/(.+)", inside):
            view |= {f"Transformer/encoderblock_{i}/{found[1]}": (name, i) for i in range(shape[0] if shape else 0)}
        else:
            view[inside] = (name, None)
    return view


def infer(shapes: Shapes, image_size: tuple[int, int] | None) -> vit.Config:
    """The configuration that arrays of these shapes belong to. ValueError where they are of another model.

    image_size: (height, width), used where the positions make no square grid.
    """
    _, attention, _, hidden = NEWER if PROBE in shapes else OLDER
    rows, columns, channels, width = shapes.sizes("embedding/kernel", 4)
    stem = None
    if "conv_root/kernel" in shapes:
        *_, channels, outputs = shapes.sizes("conv_root/kernel", 4)
        stem = shapes.stem(r"block(\d+)/unit(\d+)/", outputs, channels)
    table = next((n for n in ("pos_embedding", "Transformer/posembed_input/pos_embedding") if n in shapes), None)
    token = "cls" in shapes
    config = vit.Config(
        patch_size=(rows, columns),
        channels=channels,
        width=width,
        depth=shapes.depth(r"Transformer/encoderblock_(\d+)/"),
        heads=shapes.sizes(f"{BLOCK}{attention}/query/kernel", 3)[1],
        mlp_dim=shapes.sizes(f"{BLOCK}{hidden}/Dense_0/kernel", 2)[1],
        classes=shapes.size("head/kernel", 1),
        representation=shapes.size("pre_logits/kernel", 1) or None,
        pool="map" if "MAPHead_0/probe" in shapes else "token" if token else "avg",
        class_token=token,
        class_position=token and "pos_embedding" not in shapes,
        positions="sincos" if table is None else "learned",
        resample="bilinear_corners",
        remainder="crop",
        activation="gelu_tanh",
        stem=stem,
    )
    if table is None:  # sin-cos: any size will do, and the authors trained such models at this one
        return replace(config, image_size=image_size or (224, 224))
    return placed([(config, shapes.sizes(table, 3)[1] - config.prefix_rows)], image_size)


def _tensor(arrays: Npz, name: str, index: int | None) -> Tensor:
    """An array, or one block of a stack, as float32; two raw bytes are bfloat16."""
    array = arrays[name] if index is None else arrays[name][index]
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        bits = np.ascontiguousarray(array).view(np.int16)
        return torch.from_numpy(bits).view(torch.bfloat16).float()
    if array.dtype.kind != "f":
        raise ValueError(f"{name} is of type {array.dtype}, not a floating-point type.")
    return torch.from_numpy(array.astype(np.float32))


def _stack(arrays: dict[str, NDArray[np.generic]], depth: int) -> dict[str, NDArray[np.generic]]:
    """The same, all blocks in one array."""
    stacked = {name: array for name, array in arrays.items() if not name.startswith("Transformer/encoderblock_")}
    for inside in (name.removeprefix(BLOCK) for name in arrays if name.startswith(BLOCK)):
        blocks = [arrays[f"Transformer/encoderblock_{i}/{inside}"] for i in range(depth)]
        stacked[f"Transformer/encoderblock/{inside}"] = np.stack(blocks)
    return stacked


def _formed(array: NDArray[np.generic], form: Form | None) -> NDArray[np.generic]:
    """The array in the shape and type that the file had. A value that came from bfloat16 is one, so nothing is lost."""
    if form is None:
        return array
    shape, dtype = form
    # A table of another grid or a head of other classes keeps its own shape.
    array = array.reshape(shape) if array.size == math.prod(shape) else array
    if dtype.kind == "V":
        return torch.from_numpy(array).bfloat16().view(torch.int16).numpy().view(dtype)
    return array.astype(dtype)
