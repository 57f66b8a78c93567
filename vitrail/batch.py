"""A Batch: what travels from the loader to the task, named fields with one entry an image.

    batch = Batch(images=uint8_images, targets=torch.tensor([3, 1]), names=["a.jpg", "b.jpg"])
    batch["images"]; "lam" in batch; len(batch)         # 2
    moved = batch.to(device)
    first, second = batch.split(1)

A field is a tensor whose first dimension is the images, or, for what differs in shape from image to image (boxes,
masks) or is no tensor, a list. Whatever a task puts in stays in.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


class Batch:
    """Fields by name. ValueError where they differ in their first dimension, or there are none."""

    def __init__(self, **fields: Any) -> None:
        lengths = {n: v.shape[0] if isinstance(v, Tensor) else len(v) for n, v in fields.items()}
        first, *others = lengths.values() or (0, 1)
        if any(other != first for other in others):
            raise ValueError(f"the fields of a batch have one entry for each image, but there are {lengths}.")
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
        return len(next(iter(self._fields.values())))

    def plus(self, **fields: Any) -> "Batch":
        """The batch with more fields, or others of these names."""
        return Batch(**{**self._fields, **fields})

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with function(tensor) for every tensor, those in lists, dicts and dataclasses, too."""
        return Batch(**{name: _map(function, value) for name, value in self._fields.items()})

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; from pinned memory the copy goes on while the program does."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in memory that a GPU reads by itself."""
        return self.map(lambda tensor: tensor.pin_memory())

    def split(self, size: int) -> list["Batch"]:
        """Batches of `size` images, the last of what is left. Where neighbours are mixed, `size` must be even."""
        places = range(0, len(self), size)
        return [Batch(**{name: value[p : p + size] for name, value in self._fields.items()}) for p in places]


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {name: _map(function, item) for name, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _map(function, getattr(value, f.name)) for f in fields(value)})
    if isinstance(value, tuple) and type(value) is not tuple:  # a named tuple
        return type(value)(*(_map(function, item) for item in value))
    return type(value)(_map(function, item) for item in value) if isinstance(value, list | tuple) else value
