"""Metrics that are read late are those of their step."""

import pytest
import torch

from vitrail.runtime.deferred import DeferredMetrics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_are_those_of_the_moment_and_no_bit_is_lost(dtype):
    loss, norm = torch.rand((), dtype=dtype, requires_grad=True), torch.tensor(0.5)
    deferred = DeferredMetrics(7, {"loss": loss, "gradient_norm": norm}, {"lr": 1e-3})
    expected = {"loss": loss.item(), "gradient_norm": 0.5, "lr": 1e-3}
    with torch.no_grad():
        loss.fill_(9)
    assert deferred.step == 7
    assert deferred.values() == deferred.values() == expected


class OnDevice(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def is_cuda(self):
        return True


def test_a_gpu_is_waited_for_only_when_the_numbers_are_asked_for(monkeypatch):
    said = []

    class Event:
        def record(self):
            said.append("recorded")

        def synchronize(self):
            said.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    deferred = DeferredMetrics(0, {"loss": torch.tensor(1.0).as_subclass(OnDevice)}, {})
    assert said == ["recorded"]
    assert deferred.values() == {"loss": 1.0}
    assert said == ["recorded", "waited"]
