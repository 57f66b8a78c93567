"""A Batch: what goes from the loader to the task, named fields with one entry for each image.

    batch = Batch(images=uint8_images, targets=torch.tensor([3, 1]), names=["a.jpg", "b.jpg"])
    batch["images"]; "lam" in batch; len(batch)         # 2
    moved = batch.to(device)
    first, second = batch.split(1)

A field is a tensor whose first dimension is the images, or, for what differs in shape from image to image (boxes,
masks) or is not a tensor, a list. Everything that a task puts in stays in.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Batch:
    """Fields by name. ValueError, with the numbers, where they differ in their first dimension, or there is nothing."""

    def __init__(self, **fields: Any) -> None:
        lengths = {name: _length(name, value) for name, value in fields.items()}
        first = next(iter(lengths.values()), 0)
        if first == 0 or any(length != first for length in lengths.values()):
            raise ValueError(f"the fields of a batch have one entry for each image, but there are {lengths or 'none'}.")
        self._fields = fields

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        """The names of the fields."""
        return iter(self._fields)

    def __len__(self) -> int:
        """How many images there are."""
        return int(_length(*next(iter(self._fields.items()))))

    def plus(self, **fields: Any) -> "Batch":
        """The batch with more fields, or others of these names."""
        return Batch(**{**self._fields, **fields})

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with function(tensor) for every tensor, also those in lists, dicts and dataclasses."""
        return Batch(**{name: _map(function, value) for name, value in self._fields.items()})

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; from pinned memory the copy is asynchronous."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU reads by itself."""
        return self.map(lambda tensor: tensor.pin_memory())

    def split(self, size: int) -> list["Batch"]:
        """Batches of `size` images, and one of what is left. Where neighbours are mixed, `size` must be even."""
        places = range(0, len(self), size)
        return [Batch(**{name: value[p : p + size] for name, value in self._fields.items()}) for p in places]


def _length(name: str, value: Any) -> int | torch.SymInt:
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return value.shape[0]  # len() of a tensor would fix the size of a graph that is traced
    if isinstance(value, list | tuple):
        return len(value)
    kind = type(value).__name__
    raise ValueError(f"the field {name!r} of a batch, {kind}, has no entry for each image; make it a tensor or a list.")


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _map(function, item) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _map(function, getattr(value, f.name)) for f in fields(value) if f.init})
    if not isinstance(value, list | tuple):
        return value
    make = getattr(type(value), "_make", type(value))  # which a named tuple has
    return make([_map(function, item) for item in value])
