"""A checkpoint brings back every bit, appears only when whole, and is refused where it does not belong."""

import json
import threading

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vitrail import checkpoint
from vitrail.optim import build as optim
from vitrail.optim.ema import Ema


def trained(width=4, name="adamw", steps=3):
    torch.manual_seed(0)
    task = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    config = optim.Config(name, weight_decay=0.0 if name == "sgd" else 0.1)
    optimizer = optim.build(task, config)
    for _ in range(steps):
        task(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return task, optimizer


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_everything_comes_back_bit_for_bit(tmp_path, name):
    task, optimizer = trained(name=name)
    path = checkpoint.write(tmp_path, 3, checkpoint.tensors(task, optimizer), keep=2)
    other, other_optimizer = trained(name=name, steps=0)
    assert checkpoint.restore(path, other, other_optimizer) == 3
    before, after = checkpoint.tensors(task, optimizer), checkpoint.tensors(other, other_optimizer)
    assert before.keys() == after.keys()
    assert any(key.startswith("optimizer/0.weight/") for key in before)
    for key in before:
        assert torch.equal(before[key], after[key]), key


def test_the_update_after_a_restore_is_the_same(tmp_path):
    task, optimizer = trained()
    path = checkpoint.write(tmp_path, 3, checkpoint.tensors(task, optimizer), keep=2)
    other, other_optimizer = trained(steps=0)
    checkpoint.restore(path, other, other_optimizer)
    x = torch.randn(5, 3)
    for t, o in ((task, optimizer), (other, other_optimizer)):
        t(x).square().sum().backward()
        o.step()
    for a, b in zip(task.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_newest_are_kept_and_counted_as_numbers(tmp_path):
    task, optimizer = trained()
    (tmp_path / "step-by-step").mkdir()  # somebody's own
    for step in (9, 10, 100):
        checkpoint.write(tmp_path, step, checkpoint.tensors(task, optimizer), keep=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-10", "step-100"]
    assert checkpoint.newest(tmp_path).name == "step-100"
    assert checkpoint.newest(tmp_path / "nothing") is None


def test_a_checkpoint_cut_short_is_not_seen(tmp_path):
    task, optimizer = trained()
    checkpoint.write(tmp_path, 1, checkpoint.tensors(task, optimizer), keep=2)
    (tmp_path / ".step-2.partial").mkdir()
    (tmp_path / ".step-2.partial" / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path).name == "step-1"
    checkpoint.write(tmp_path, 2, checkpoint.tensors(task, optimizer), keep=2)
    assert checkpoint.newest(tmp_path).name == "step-2"
    assert not (tmp_path / ".step-2.partial").exists()


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    task, optimizer = trained()
    checkpoint.write(tmp_path, 1, checkpoint.tensors(task, optimizer), keep=1)

    def full(tensors, path):
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ValueError, match=r"step-2 could not be written .*No space left.*intact"):
        checkpoint.write(tmp_path, 2, checkpoint.tensors(task, optimizer), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_saving_the_same_step_again_replaces_it(tmp_path):
    task, optimizer = trained()
    checkpoint.write(tmp_path, 1, checkpoint.tensors(task, optimizer), keep=1)
    with torch.no_grad():
        task[0].weight.fill_(7.0)
    path = checkpoint.write(tmp_path, 1, checkpoint.tensors(task, optimizer), keep=1)
    other, other_optimizer = trained(steps=0)
    checkpoint.restore(path, other, other_optimizer)
    assert other[0].weight.eq(7.0).all()


def test_another_model_is_refused_by_name_and_shape(tmp_path):
    path = checkpoint.write(tmp_path, 1, checkpoint.tensors(*trained(width=4)), keep=1)
    with pytest.raises(ValueError, match=r"of another model: \S+ is \(.*\) in it and \(.*\) here"):
        checkpoint.restore(path, *trained(width=5))
    task = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"1\.(weight|bias) is \(.*\) in it and missing here"):
        checkpoint.restore(path, task, optim.build(task, optim.Config()))


@pytest.mark.parametrize("damage", ["truncated", "pickle", "missing", "state", "step"])
def test_damage_is_named(tmp_path, damage):
    task, optimizer = trained()
    path = checkpoint.write(tmp_path, 1, checkpoint.tensors(task, optimizer), keep=1)
    tensors, state = path / "tensors.safetensors", path / "state.json"
    if damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif damage == "pickle":
        torch.save({"a": 1}, tensors)
    elif damage == "missing":
        tensors.unlink()
    elif damage == "state":
        state.write_text("{")
    else:
        state.write_text(json.dumps({"step": "many"}))
    with pytest.raises(ValueError, match="step-1 is damaged"):
        checkpoint.restore(path, task, optimizer)


def test_the_best_is_kept_besides_the_newest(tmp_path):
    tensors = checkpoint.tensors(*trained())
    for step in range(1, 6):
        checkpoint.write(tmp_path, step, tensors, keep=2, best=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-2", "step-4", "step-5"]


def test_the_average_of_the_weights_comes_back_bit_for_bit(tmp_path):
    task, optimizer = trained()
    ema = Ema(task, 0.9)
    ema.update(0)
    path = checkpoint.write(tmp_path, 3, checkpoint.tensors(task, optimizer, ema), keep=2)
    other, other_optimizer = trained(steps=0)
    other_ema = Ema(other, 0.9)
    checkpoint.restore(path, other, other_optimizer, other_ema)
    assert ema.tensors.keys() == other_ema.tensors.keys()
    assert all(torch.equal(ema.tensors[name], other_ema.tensors[name]) for name in ema.tensors)


def test_what_is_saved_is_what_was_there_at_the_call(tmp_path, monkeypatch):
    task, optimizer = trained()
    before = {name: tensor.clone() for name, tensor in checkpoint.tensors(task, optimizer).items()}
    changed = threading.Event()
    inner = checkpoint.save_file

    def late(tensors, path):
        assert changed.wait(10)
        inner(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", late)
    with checkpoint.Writer(tmp_path, keep=1) as writer:
        writer.save(7, checkpoint.tensors(task, optimizer))
        with torch.no_grad():
            task[0].weight.zero_()
        changed.set()
    saved = load_file(tmp_path / "step-7" / "tensors.safetensors")
    assert all(torch.equal(saved[name], before[name]) for name in before)


def test_a_checkpoint_that_the_disk_refused_is_told_by_the_next_call(tmp_path, monkeypatch):
    tensors = checkpoint.tensors(*trained())

    def full(tensors, path):
        raise OSError(28, "No space left on device")

    writer = checkpoint.Writer(tmp_path, keep=1)
    writer.save(1, tensors)
    writer.wait()
    monkeypatch.setattr(checkpoint, "save_file", full)
    writer.save(2, tensors)
    with pytest.raises(ValueError, match=r"step-2 could not be written .*No space left.*make room"):
        writer.save(3, tensors)
    writer.pool.shutdown()
    assert checkpoint.newest(tmp_path).name == "step-1"


def test_a_checkpoint_half_deleted_is_not_seen(tmp_path, monkeypatch):
    tensors = checkpoint.tensors(*trained())
    checkpoint.write(tmp_path, 1, tensors, keep=1)

    def killed(path, **options):
        (path / "tensors.safetensors").unlink(missing_ok=True)
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        with pytest.raises(MemoryError):
            checkpoint.write(tmp_path, 2, tensors, keep=1)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-2"]
    checkpoint.write(tmp_path, 3, tensors, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
