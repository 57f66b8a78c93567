"""Metrics that are read late are those of their step."""

import pytest
import torch

from vitrail.batch import Batch
from vitrail.runtime import deferred as readings
from vitrail.runtime.deferred import DeferredMetrics, Mover


def test_the_numbers_are_those_of_the_moment():
    loss, norm = torch.tensor(2.5, requires_grad=True), torch.tensor(0.1, dtype=torch.float64)
    reading = DeferredMetrics(7, {"loss": loss, "gradient_norm": norm}, {"lr": 1e-3})
    with torch.no_grad():
        loss.fill_(9)
    assert reading.step == 7
    assert reading.values() == {"loss": 2.5, "gradient_norm": 0.1, "lr": 1e-3}
    assert reading.values() == reading.values()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_bit_is_lost(dtype):
    value = torch.rand((), dtype=dtype)
    assert DeferredMetrics(0, {"loss": value, "accuracy": torch.tensor(1.0)}, {}).values()["loss"] == float(value)


class Event:
    """torch.cuda.Event, which writes down what is done with it."""

    def __init__(self, said):
        self.said = said

    def record(self):
        self.said.append("recorded")

    def synchronize(self):
        self.said.append("waited")


class OnDevice(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def is_cuda(self):
        return True


def test_a_gpu_is_waited_for_only_when_the_numbers_are_asked_for(monkeypatch):
    said = []
    monkeypatch.setattr(readings.torch.cuda, "Event", lambda: Event(said))
    reading = DeferredMetrics(0, {"loss": torch.tensor(1.0).as_subclass(OnDevice)}, {})
    assert said == ["recorded"]
    assert reading.values() == {"loss": 1.0}
    assert said == ["recorded", "waited"]


def test_batches_are_moved_whole():
    batch = Batch(
        images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), names=["a", "b"], boxes=[torch.ones(1), torch.ones(3)]
    )
    moved = Mover(torch.device("cpu"))(batch)
    assert list(moved) == list(batch)
    assert torch.equal(moved["images"], batch["images"])
    assert moved["names"] == ["a", "b"]
    assert [len(boxes) for boxes in moved["boxes"]] == [1, 3]
