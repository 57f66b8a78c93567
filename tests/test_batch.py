"""A batch keeps all that a task puts in, of any type, wherever it goes; and says what cannot be a field."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from vitrail.batch import Batch
from vitrail.data.stream import Loaded


@dataclass(frozen=True)
class Objects:
    corners: Tensor
    name: str
    score: float | None = None


class Pair(NamedTuple):
    image: Tensor
    size: tuple[int, int]


def fields():
    """Three images."""
    return {
        "images": torch.arange(12, dtype=torch.uint8).view(3, 4),
        "ragged": [torch.ones(n, 2) for n in (1, 0, 5)],
        "names": ["a", "b", "c"],
        "unknown": [None, 3, None],
        "objects": [Objects(torch.ones(n, 4), f"{n}") for n in (2, 0, 1)],
        "nested": [{"masks": [torch.ones(2), "crowd"], "size": torch.Size((4, 5))}, {}, {"a": {"b": (torch.ones(1),)}}],
        "pairs": (Pair(torch.ones(2), (1, 2)), Pair(torch.ones(1), (3, 4)), Pair(torch.ones(0), (0, 0))),
        "arrays": np.arange(6).reshape(3, 2),
    }


def contents(batch):
    """Values and types of all that is in it."""
    return {name: repr(batch[name]) for name in batch}


def tensors(batch):
    found = []
    batch.map(lambda tensor: found.append(tensor) or tensor)
    return found


def test_every_tensor_is_mapped_and_all_else_stays():
    batch = Batch(**fields())
    assert contents(batch.map(lambda tensor: tensor)) == contents(batch.to("cpu")) == contents(fields())
    assert len(tensors(batch)) == 1 + 3 + 3 + 2 + 3
    assert {tensor.device.type for tensor in tensors(batch.to("meta"))} == {"meta"}
    assert [t.sum().item() for t in tensors(batch.map(lambda t: 2 * t))] == [2 * t.sum().item() for t in tensors(batch)]


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="memory is pinned for an accelerator")
def test_every_tensor_is_pinned():
    pinned = Loaded(Batch(**fields()), ("a problem",)).pin_memory()
    assert all(tensor.is_pinned() for tensor in tensors(pinned.batch))
    assert contents(pinned.batch) == contents(fields())
    assert Loaded(None, ("a problem",)).pin_memory() == Loaded(None, ("a problem",))


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_a_batch_is_split_and_nothing_is_lost(size):
    parts = Batch(**fields()).split(size)
    assert [len(part) for part in parts] == [size] * (3 // size) + [3 % size] * bool(3 % size)
    for name, whole in fields().items():
        assert all(type(part[name]) is type(whole) for part in parts)
        assert repr([item for part in parts for item in part[name]]) == repr(list(whole))


def test_fields_are_added_and_replaced_in_another_batch():
    batch = Batch(**fields())
    more = batch.plus(names=["x", "y", "z"], lam=torch.ones(3))
    assert (list(more), list(batch)) == ([*fields(), "lam"], [*fields()])
    assert (more["names"], batch["names"]) == (["x", "y", "z"], ["a", "b", "c"])


REFUSED = {
    r"'images': 3, 'names': 1": {"images": torch.zeros(3), "names": ["a"]},
    r"'images': 0": {"images": torch.zeros(0, 3)},
    r"'lam' .*Tensor": {"lam": torch.tensor(0.5)},
    r"'names' .*str": {"images": torch.zeros(2), "names": "ab"},
    r"'targets' .*dict": {"images": torch.zeros(1), "targets": {"boxes": []}},
    r"'targets' .*None": {"images": torch.zeros(1), "targets": None},
    r"none": {},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_entry_for_each_image_is_refused(message):
    with pytest.raises(ValueError, match=message):
        Batch(**REFUSED[message])
