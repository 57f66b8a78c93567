"""Sums that do not depend on their order: the same bits on any number of processes and cores, however they divide."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from processes import alone, bits, cut_back, losses, trained

from vitrail.batch import Batch
from vitrail.runtime.gradients import Alone, Exact, without_order
from vitrail.train import Backward


class Small(torch.nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.model, self.scale = torch.nn.Linear(6, 3), scale
        torch.nn.init.normal_(self.model.weight, generator=torch.Generator().manual_seed(0))
        torch.nn.init.zeros_(self.model.bias)

    def forward(self, batch):
        loss = self.model(batch["x"]).square().sum(1).mean() * self.scale
        return loss, {"loss": loss}


def numbers(count=24):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
    return Batch(x=x, keys=torch.arange(count))


def gradient(how, batches):
    found = how(batches, Backward(24, nullcontext()))
    return found, [p.grad.clone() for p in how.replicas.modules[0].parameters()]


def test_exact_sums_are_the_gradient_whatever_the_order_and_the_cores():
    parts = numbers().split(5)
    expected = gradient(Alone(Small(), 1), [numbers()])
    first = None
    for cores in (1, 2, 3):
        for order in (parts, parts[::-1]):
            metrics, grads = gradient(Exact(Small(), cores, 1, len(parts)), order)
            torch.testing.assert_close(metrics["loss"], expected[0]["loss"])
            torch.testing.assert_close(grads, expected[1])
            first = first or (metrics, grads)
            assert all(map(torch.equal, first[1], grads))
            assert torch.equal(first[0]["loss"], metrics["loss"])


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 1e9])
def test_exact_sums_that_do_not_fit_are_not_finite(scale):
    metrics, grads = gradient(Exact(Small(scale), 2, 1, 5), numbers().split(5))
    assert metrics["loss"].isnan()
    assert all(grad.isnan().all() for grad in grads)


def test_what_draws_in_order_cannot_be_exact():
    with pytest.raises(ValueError, match=r"1 draws .*--exact"):
        without_order(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1)))


def test_exact_runs_are_the_same_bits_and_go_on_with_other_numbers_of_processes(here):
    alone(here, "one", "--exact", "True")
    assert "into three\n" in trained(here, 3, "three", "--exact", "True")
    assert bits(here, "three") == bits(here, "one")
    cut_back(here / "three")
    assert "going on after step 6" in trained(here, 2, "three", "--exact", "True", "--shard", "0")
    assert bits(here, "three") == bits(here, "one")
    np.testing.assert_array_equal(losses(here, "three"), losses(here, "one"))


@pytest.mark.slow
@pytest.mark.parametrize(("world", "shard", "name"), [(2, 0, "adamw"), (4, 2, "sgd"), (5, 1, "muon"), (3, 0, "muon")])
def test_exact_runs_are_the_same_bits(here, world, shard, name):
    more = ["--exact", "True", "--optim.name", name, "--micro-batch", "4"]  # 5 of them: not all have as many
    more += ["--optim.weight-decay", "0"] if name == "sgd" else []
    alone(here, "one", *more)
    trained(here, world, "many", "--shard", str(shard), *more)
    assert bits(here, "many") == bits(here, "one")
