"""A checkpoint appears only when whole, and is refused where it does not belong; test_resume.py has its every bit."""

import threading

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vitrail import checkpoint
from vitrail.optim import build as optim


def trained(width=4):
    torch.manual_seed(0)
    task = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    optimizer = optim.build(task, optim.Config())
    task(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return task, optimizer


def names(folder):
    return [path.name for path in checkpoint.checkpoints(folder)]


def test_the_newest_are_kept_counted_as_numbers_and_the_best_besides(tmp_path):
    tensors = checkpoint.tensors(*trained())
    (tmp_path / "step-by-step").mkdir()  # somebody's own
    for step in (9, 10, 100):
        checkpoint.write(tmp_path, step, tensors, keep=2)
    assert names(tmp_path) == ["step-10", "step-100"]
    path = checkpoint.write(tmp_path, 100, {"other": torch.ones(1)}, keep=2)  # once more
    assert list(load_file(path / "tensors.safetensors")) == ["other"]
    assert checkpoint.newest(tmp_path) == path
    for step in (101, 102):
        checkpoint.write(tmp_path, step, tensors, keep=2, best=10)
    assert names(tmp_path) == ["step-10", "step-101", "step-102"]
    assert checkpoint.newest(tmp_path / "nothing") is None


def test_a_checkpoint_cut_short_is_not_seen(tmp_path):
    tensors = checkpoint.tensors(*trained())
    checkpoint.write(tmp_path, 1, tensors, keep=2)
    (tmp_path / ".step-2.partial").mkdir()
    (tmp_path / ".step-2.partial" / "tensors.safetensors").write_bytes(b"half")
    assert names(tmp_path) == ["step-1"]
    checkpoint.write(tmp_path, 3, tensors, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-3"]


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
    assert names(tmp_path) == ["step-2"]
    checkpoint.write(tmp_path, 3, tensors, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_a_full_disk_is_told_by_the_next_call_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    tensors = checkpoint.tensors(*trained())
    writer = checkpoint.Writer(tmp_path, keep=1)
    writer.save(1, tensors)
    writer.wait()

    def full(tensors, path):
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    writer.save(2, tensors)
    with pytest.raises(ValueError, match=r"step-2 could not be written .*No space left.*intact, make room"):
        writer.save(3, tensors)
    writer.pool.shutdown()
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_another_model_is_refused_by_name_and_shape(tmp_path):
    path = checkpoint.write(tmp_path, 1, checkpoint.tensors(*trained(width=4)), keep=1)
    with pytest.raises(ValueError, match=r"of another model: \S+ is \(.*\) in it and \(.*\) here"):
        checkpoint.restore(path, *trained(width=5))
    task = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(ValueError, match=r"1\.(weight|bias) is \(.*\) in it and missing here"):
        checkpoint.restore(path, task, optim.build(task, optim.Config()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, state: tensors.write_bytes(tensors.read_bytes()[:-5]),
        lambda tensors, state: torch.save({"a": 1}, tensors),
        lambda tensors, state: tensors.unlink(),
        lambda tensors, state: state.write_text("{"),
        lambda tensors, state: state.write_text('{"step": "many"}'),
    ],
)
def test_damage_is_named(tmp_path, damage):
    task, optimizer = trained()
    path = checkpoint.write(tmp_path, 1, checkpoint.tensors(task, optimizer), keep=1)
    damage(path / "tensors.safetensors", path / "state.json")
    with pytest.raises(ValueError, match="step-1 is damaged"):
        checkpoint.restore(path, task, optimizer)


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
        nn.init.zeros_(task[0].weight)
        changed.set()
    saved = load_file(tmp_path / "step-7" / "tensors.safetensors")
    assert all(torch.equal(saved[name], before[name]) for name in before)
