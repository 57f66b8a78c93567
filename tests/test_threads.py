"""Shares of a batch, each on a core of its own, are the batch; how many threads torch has is as it was afterwards."""

import os
import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from small_runs import small, start
from test_steps import batch, tiny
from torch import nn

from vitrail.run import cores_for
from vitrail.runtime.gradients import Alone
from vitrail.runtime.threads import Cores, Replicas, share_out, shared, shares
from vitrail.train import Backward


@pytest.fixture
def two_threads():
    """torch's threads, for machines with one core, too."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_each_share_has_a_thread_of_its_own_and_one_of_torchs(two_threads):
    meet = threading.Barrier(3, timeout=30)  # which none would pass, were they one after the other

    def seen(item):
        meet.wait()
        return item, threading.get_ident(), torch.get_num_threads()

    found = Cores(3).map(seen, "abc")
    assert [(item, threads) for item, _, threads in found] == [("a", 1), ("b", 1), ("c", 1)]
    assert len({thread for _, thread, _ in found}) == 3
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("threads", "items", "each"), [(2, 1, 2), (5, 2, 2), (2, 3, 1)])
def test_torchs_threads_are_dealt_out(two_threads, threads, items, each):
    torch.set_num_threads(threads)
    for _ in range(2):
        assert Cores(3).map(lambda _: torch.get_num_threads(), range(items)) == [each] * items
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("threads", "items", "count"), [(2, 9, 2), (4, 3, 3), (20, 99, 8), (2, 0, 1)])
def test_shares_are_not_too_many(two_threads, threads, items, count):
    torch.set_num_threads(threads)
    assert share_out(items) == count


@pytest.mark.parametrize("bad", ["first", "second"])
def test_what_goes_wrong_in_a_share_is_raised_once_all_have_ended(two_threads, bad):
    ended = []

    def failing(item):
        if item == bad:
            raise ValueError(f"{item} is bad")
        threading.Event().wait(0.05)
        ended.append(item)

    with pytest.raises(ValueError, match=f"{bad} is bad"):
        Cores(2).map(failing, ["first", "second"])
    assert len(ended) == 1
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_shares_have_gradients_where_the_caller_has(mode):
    with mode():
        found = Cores(2).map(lambda _: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()), "ab")
        assert found == [(torch.is_grad_enabled(), torch.is_inference_mode_enabled())] * 2


def test_a_fork_has_threads_of_its_own():
    assert shared(2).map(lambda item: item, "ab") == ["a", "b"]
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, "".join(shared(2).map(lambda item: item, "cd")).encode())
        os._exit(0)
    assert os.read(read, 2) == b"cd"
    os.waitpid(child, 0)


@pytest.mark.parametrize(("size", "count", "sizes"), [(7, 2, [4, 3]), (6, 4, [2, 2, 2]), (1, 2, [1])])
def test_pairs_stay_together(size, count, sizes):
    given = batch(size)
    found = shares(given, count)
    assert [len(part) for part in found] == sizes
    assert all(torch.equal(torch.cat([part[name] for part in found]), given[name]) for name in given)


def test_replicas_have_the_tasks_weights_as_they_become(two_threads):
    task = tiny()
    replicas = Replicas(task, 2)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.mul_(0.5)
    losses = replicas.map(lambda own, _: own(batch(6))[0].item(), batch(6))
    assert losses == [task(batch(6))[0].item()] * 2


def test_the_same_bits_every_time_and_none_for_what_is_frozen(two_threads):
    """Whoever is first, gradients are added in the order of the shares."""
    found = []
    for _ in range(5):
        task = tiny().float()
        task.model.blocks[0].requires_grad_(False)
        add = Alone(task, 3)
        add([batch(12), batch(12, seed=1)], Backward(24, nullcontext()))
        assert all((p.grad is None) != p.requires_grad for p in task.parameters())
        assert all(p.grad is None for own in add.replicas.modules[1:] for p in own.parameters())
        found.append(torch.cat([p.grad.flatten() for p in task.parameters() if p.requires_grad]))
    assert all(torch.equal(found[0], other) for other in found[1:])


WIDE = replace(small().model, width=1024, mlp_dim=4096, dropout=0.0, drop_path=0.0)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"precision": "fp64"}, 2), ({"batch": 3}, 1), ({"micro_batch": 2}, 1), ({"checkpointing": True}, 1),
        ({"precision": "bf16"}, 1),
        ({"model": WIDE, "batch": 4}, 1),  # whose gradients are larger than the activations
    ],
)  # fmt: skip
def test_who_shares(tmp_path, quick, two_threads, changes, count):
    trainer = start(small(**changes), tmp_path / "run")
    assert len(trainer.gradient.replicas.modules) == count
    trainer.task.extra = nn.Dropout(0.1)  # which draws from torch's stream, of which there is one
    assert cores_for(trainer.run, trainer.task) == 1
