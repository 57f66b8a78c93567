"""A batch keeps all that a task puts in, of any type, wherever it goes; and says what cannot be a field."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitrail.batch import Batch
from vitrail.data.stream import Loaded


@dataclass(frozen=True)
class Objects:
    corners: Tensor
    labels: Tensor
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
        "objects": [Objects(torch.ones(n, 4), torch.zeros(n), f"{n}") for n in (2, 0, 1)],
        "nested": [{"masks": [torch.ones(2), "crowd"], "size": torch.Size((4, 5))}, {}, {"deep": {"er": (torch.ones(1),)}}],
        "pairs": (Pair(torch.ones(2), (1, 2)), Pair(torch.ones(1), (3, 4)), Pair(torch.ones(0), (0, 0))),
        "arrays": np.arange(6).reshape(3, 2),
    }  # fmt: skip


def plain(value):
    """A value in which tensors are lists, to be compared."""
    if isinstance(value, Tensor | np.ndarray):
        return type(value).__name__, str(value.dtype), value.tolist()
    if isinstance(value, Objects):
        return replace(value, corners=plain(value.corners), labels=plain(value.labels))
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value).__name__, [plain(item) for item in value]
    return value


def contents(batch):
    return {name: plain(batch[name]) for name in batch}


def tensors(batch):
    found = []
    batch.map(lambda tensor: found.append(tensor) or tensor)
    return found


def test_every_tensor_is_mapped_and_all_else_stays():
    batch = Batch(**fields())
    assert contents(batch.map(lambda tensor: tensor)) == contents(batch.to("cpu")) == plain(fields())
    assert len(tensors(batch)) == 1 + 3 + 6 + 2 + 3
    assert {tensor.device.type for tensor in tensors(batch.to("meta"))} == {"meta"}
    doubled = batch.map(lambda tensor: tensor * 2)
    assert doubled["objects"][0].corners.sum() == 16
    assert doubled["nested"][2]["deep"]["er"][0].item() == doubled["pairs"][0].image[0].item() == 2
    assert torch.equal(batch["images"], fields()["images"])


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="memory is pinned for an accelerator")
def test_every_tensor_is_pinned():
    pinned = Loaded(Batch(**fields()), ("a problem",)).pin_memory()
    assert all(tensor.is_pinned() for tensor in tensors(pinned.batch))
    assert contents(pinned.batch) == plain(fields())
    assert Loaded(None, ("a problem",)).pin_memory() == Loaded(None, ("a problem",))


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_a_batch_is_split_and_nothing_is_lost(size):
    parts = Batch(**fields()).split(size)
    assert [len(part) for part in parts] == [size] * (3 // size) + [3 % size] * bool(3 % size)
    for name, whole in fields().items():
        pieces = [part[name] for part in parts]
        assert all(type(piece) is type(whole) for piece in pieces)
        assert [plain(item) for piece in pieces for item in piece] == [plain(item) for item in whole]


def test_fields_are_added_and_replaced_in_another_batch():
    batch = Batch(**fields())
    more = batch.plus(names=["x", "y", "z"], lam=torch.ones(3))
    assert list(more) == [*fields(), "lam"]
    assert more["names"] == ["x", "y", "z"]
    assert "lam" not in batch
    assert batch["names"] == ["a", "b", "c"]
    assert len(more) == len(batch) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": torch.zeros(3), "names": ["a"]}, r"'images': 3, 'names': 1"),
        ({}, "none"),
        ({"images": torch.zeros(0, 3)}, "'images': 0"),
        ({"lam": torch.tensor(0.5)}, "'lam' of a batch, Tensor"),
        ({"images": torch.zeros(2), "names": "ab"}, "'names' of a batch, str"),
        ({"images": torch.zeros(1), "targets": {"boxes": []}}, "'targets' of a batch, dict"),
        ({"images": torch.zeros(1), "targets": None}, "'targets' of a batch, NoneType"),
    ],
)
def test_what_has_no_entry_for_each_image_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Batch(**given)
    if given:
        with pytest.raises(ValueError, match="of a batch"):
            Batch(images=torch.zeros(7)).plus(**given)


def test_a_graph_with_a_batch_in_it_is_one_for_any_size():
    class Module(nn.Module):
        def forward(self, images):
            batch = Batch(images=images, twice=images * 2)
            return batch["images"] + batch["twice"]

    dynamic = ({0: torch.export.Dim("batch")},)
    graph = torch.export.export(Module(), (torch.ones(3, 4),), dynamic_shapes=dynamic, strict=False).module()
    assert graph(torch.ones(7, 4)).tolist() == [[3.0] * 4] * 7
