"""Checkpoints of divided weights: any number of processes loads what any number wrote, bit for bit, or names the fault.

The processes are forks of one that has torch: their start costs no import.
"""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import socket
import traceback
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import small
from torch import nn

from vitrail import checkpoint
from vitrail import run as runs
from vitrail.models import vit
from vitrail.optim import build as optim
from vitrail.optim.ema import Ema
from vitrail.optim.shards import divided, whole
from vitrail.train import Trainer

FORKS = multiprocessing.get_context("forkserver")
# What this file imports: it is no module of its own to the server of forks.
HEAVY = ["torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "vitrail.runtime.together"]
FORKS.set_forkserver_preload(["pytest", "numpy.ctypeslib", "vitrail.train", "vitrail.recipes.demo", *HEAVY])


def made(name="adamw", size=1, world=1, seed=0, width=24):
    """A small ViT's task, divided among groups of `size` processes, its optimiser and its average."""
    task = nn.Module()
    task.model = vit.Config((16, 16), (8, 8), 3, width, 1, 2, 36, 10).build()
    task.model.init_weights(seed)
    if size > 1:
        from vitrail.runtime.together import grouped, shard

        shard(task, grouped("cpu", size, world), half=False)
    return task, optim.build(task, optim.Config(name, lr=1e-2)), Ema(task, 0.5)


def updated(task, optimizer, ema, steps=2):
    """After updates by gradients that are functions of the parameter and the step alone."""
    for step in range(steps):
        for number, p in enumerate(task.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + number))
            if divided(p):
                from torch.distributed.tensor import distribute_tensor

                p.grad = distribute_tensor(p.grad, p.device_mesh, p.placements)
        optimizer.step()
        ema.update(step)
    return task, optimizer, ema


def bits(parts):
    return {name: whole(tensor.detach()).clone().numpy() for name, tensor in checkpoint.tensors(*parts).items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def started(rank, world, port, out, work, words):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    from vitrail.runtime.distributed import Gone, join

    try:
        found = work(join(), *words)
    except Gone as error:
        found = str(error)
    except BaseException:
        found = traceback.format_exc()
    out.put((rank, found))
    out.close()
    out.join_thread()
    if not isinstance(found, str):
        join().flags(False)  # none leaves before the others have what it holds
    os._exit(0)


def among(world, work, *words, gone=()):
    """What work(ranks, *words) returned on each of so many processes, or raised; not of those that will die."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out = FORKS.Queue()
    how = (world, port, out, work, words)
    processes = [FORKS.Process(target=started, args=(rank, *how)) for rank in range(world)]
    for process in processes:
        process.start()
    found = dict(out.get(timeout=60) for _ in range(world - len(gone)))
    for process in processes:
        process.join(60)
    assert not [text for text in found.values() if "Traceback" in str(text)], found
    return [found[rank] for rank in sorted(found)]


@contextmanager
def nothing_unpickled():
    def refused(*_, **__):
        raise AssertionError("unpickled")

    with pytest.MonkeyPatch.context() as patch:
        for place, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
            patch.setattr(place, name, refused)
        patch.setattr(torch.distributed.distributed_c10d, "_unpickler", refused)
        yield


def saves(ranks, folder, size, name):
    parts = updated(*made(name, size, ranks.world))
    with nothing_unpickled(), checkpoint.Writer(folder, 2, ranks, size > 1) as writer:
        writer.save(2, checkpoint.tensors(*parts))
        expected = bits(parts)
        updated(*parts, steps=1)  # while it is written
    return expected


def loads(ranks, path, name, size=None):
    parts = made(name, size or ranks.world, ranks.world, seed=1)
    with nothing_unpickled():
        assert checkpoint.restore(path, *parts) == 2
    return bits(parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "size", "name", "others"), [(8, 8, "adamw", (1, 3)), (4, 2, "muon", (1, 2)), (1, 1, "muon", (3,))]
)
def test_any_number_of_processes_loads_what_any_number_wrote(tmp_path, world, size, name, others):
    expected, *_ = among(world, saves, tmp_path, size, name)
    (path,) = tmp_path.iterdir()
    state = json.loads((path / "state.json").read_text())
    assert state == {"step": 2, "files": {file: checkpoint.identity(path / file) for file in state["files"]}}
    assert names(path) == sorted([*state["files"], "state.json"])
    written = [tensor for file in state["files"] for tensor in load_file(path / file).values()]
    assert sum(tensor.numel() for tensor in written) == sum(array.size for array in expected.values())  # copies once
    for number in others:
        for found in among(number, loads, path, name):
            assert_same(found, expected)


def keeps(ranks, folder):
    with checkpoint.Writer(folder, 2, ranks, True) as writer:
        parts = updated(*made(size=2, world=2))
        for step in range(1, 6):
            writer.save(step, checkpoint.tensors(*parts), best=2)
    found = names(folder)
    with pytest.MonkeyPatch.context() as patch:
        if not ranks.first:

            def full(*_):
                raise OSError(28, "No space left on device")

            patch.setattr(checkpoint, "_write_part", full)
        writer = checkpoint.Writer(folder, 2, ranks, True)
        writer.save(6, checkpoint.tensors(*parts))
        with pytest.raises(ValueError, match="step-6") as refused:
            writer.wait()
    return found, str(refused.value), names(folder)


@pytest.mark.slow
def test_the_newest_and_the_best_stay_and_one_full_disk_is_told_by_all(tmp_path):
    for rank, (before, said, after) in enumerate(among(2, keeps, tmp_path)):
        assert before == ["step-2", "step-4", "step-5"]
        assert after == [".step-6.partial", *before]  # which the next run deletes
        assert re.search(r"step-6 could not be written .*No space left", said)
        assert said.endswith("(rank 1)") == (rank == 0)


def trains(ranks, folder, run, killed=False):
    run = replace(run, shard=0)
    if killed and not ranks.first:
        inner = checkpoint._write_part

        def dies(partial, *more):
            if "step-4" in partial.name:
                partial.mkdir(exist_ok=True)
                (partial / "shard-00002-model-00001-of-00001.safetensors").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(partial, *more)

        checkpoint._write_part = dies
    trainer = Trainer(run, folder, ranks=ranks)
    done = trainer.done
    trainer.fit()
    return done, bits((trainer.task, trainer.optimizer, trainer.ema))


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_checkpoint_before_and_the_run_goes_on_from_it(tmp_path):
    run = small(ema=0.9, duration="5 steps", checkpoint_every="2 steps", evaluate_every="3 steps")
    for name in ("whole", "cut"):
        runs.write(run, tmp_path / name)
    (_, expected), _ = among(2, trains, tmp_path / "whole", run)
    (said,) = among(2, trains, tmp_path / "cut", run, True, gone=(1,))
    assert re.search(r"rank 1 on \S+ does not answer", said)
    assert names(tmp_path / "cut" / "checkpoints") == [
        ".step-4.partial",
        "step-2",
        "step-3",
    ]  # the best, which all save
    (done, found), _ = among(2, trains, tmp_path / "cut", run)
    assert done == 3
    assert_same(found, expected)
    assert names(tmp_path / "cut" / "checkpoints") == ["step-3", "step-4", "step-5"]


def as_two(tensors, folder):
    """A checkpoint as two processes write it."""
    folder.mkdir()
    for number in (0, 1):
        found, offsets = {}, {}
        for name, tensor in tensors.items():
            cut = (len(tensor) + 1) // 2 if tensor.ndim else 0
            part = (tensor[cut:] if number else tensor[:cut]) if tensor.ndim else tensor
            if part.numel() and (tensor.ndim or not number):  # numbers are written by the first
                found[name] = part.detach().clone()
                offsets[name] = {"saved_offsets": [cut * number, *[0] * (tensor.ndim - 1)][: tensor.ndim]}
        save_file(found, folder / f"shard-{number + 1}.safetensors", {"DCP_SHARDING_INFO": json.dumps(offsets)})
    state(folder)
    return folder


@pytest.fixture
def path(tmp_path):
    return as_two(checkpoint.tensors(*updated(*made())), tmp_path / "step-2")


def state(folder):
    files = {path.name: checkpoint.identity(path) for path in folder.glob("*.safetensors")}
    (folder / "state.json").write_text(json.dumps({"step": 2, "files": files}))


def test_one_process_reads_what_several_wrote(path):
    parts = made(seed=1)
    with nothing_unpickled():
        assert checkpoint.restore(path, *parts) == 2
    assert_same(bits(parts), bits(updated(*made())))


def without(path):
    """A part of a tensor is not in it, and its size is the one that is listed."""
    found = load_file(path / "shard-2.safetensors")
    found.pop("task/model.blocks.0.attn.qkv.weight")
    offsets = {name: {"saved_offsets": [0] * tensor.ndim} for name, tensor in found.items()}
    save_file(found, path / "shard-2.safetensors", {"DCP_SHARDING_INFO": json.dumps(offsets)})
    state(path)


def of_another_step(path):
    """A part of the run's next checkpoint, as large as the one that it replaces."""
    later = as_two(checkpoint.tensors(*updated(*made(), steps=3)), path.with_name("step-3"))
    part = path / "shard-2.safetensors"
    assert part.stat().st_size == (later / part.name).stat().st_size
    shutil.copy(later / part.name, part)


def pickled(path):
    torch.save({"a": torch.ones(1)}, path / "shard-1.safetensors")
    sizes = {part.name: part.stat().st_size for part in path.glob("*.safetensors")}  # as before there were digests
    (path / "state.json").write_text(json.dumps({"step": 2, "files": sizes}))


@pytest.mark.parametrize(("damage", "words"), [
    (lambda path: os.truncate(path / "shard-2.safetensors", 1000), r"shard-2\.safetensors has 1,000 bytes, not \d+,"),
    (lambda path: (path / "shard-1.safetensors").unlink(), r"shard-1\.safetensors is missing"),
    (lambda path: shutil.copy(path / "shard-1.safetensors", path / "shard-3.safetensors"),
     r"step-2/shard-3\.safetensors is not of the checkpoint"),
    (of_another_step, r"step-2 is damaged \(shard-2\.safetensors is of another checkpoint"),
    (without, r"step-2 is damaged \(a part of \S+ is missing\)"),
    (pickled, r"step-2 is damaged"),
    (lambda path: (path / "state.json").write_text('{"step": 2, "files": [3]}'), r"step-2 is damaged"),
    (lambda path: (path / "state.json").unlink(), r"step-2 is damaged"),
])  # fmt: skip
def test_damage_is_named(path, damage, words):
    damage(path)
    parts = made(seed=1)
    before = bits(parts)
    with nothing_unpickled(), pytest.raises(ValueError, match=words):
        checkpoint.restore(path, *parts)
    assert_same(bits(parts), before)


def test_a_part_of_another_step_is_told_by_what_is_trained_where_the_rest_is_frozen(path):
    found, head = load_file(path / "shard-1.safetensors"), json.dumps({})
    save_file(found, path / "a.safetensors", {"DCP_SHARDING_INFO": head})
    moved = {name: value + 1 for name, value in found.items() if name.startswith("optimizer/") and value.ndim}
    save_file(found | moved, path / "b.safetensors", {"DCP_SHARDING_INFO": head})
    ours, theirs = (checkpoint.identity(path / one) for one in ("a.safetensors", "b.safetensors"))
    assert ours[0] == theirs[0]
    assert ours[1] != theirs[1]


def test_another_model_is_named(path):
    with pytest.raises(ValueError, match=r"of another model: \S+ is \(.*24.*\) in it and \(.*32.*\) here"):
        checkpoint.restore(path, *made(width=32))


def test_a_whole_checkpoint_names_its_faults_too_and_one_without_a_list_is_read(tmp_path):
    parts = updated(*made())
    path = checkpoint.write(tmp_path, 2, checkpoint.tensors(*parts), keep=1)
    (path / "state.json").write_text('{"step": 2}')
    checkpoint.restore(path, *(again := made(seed=1)))
    assert_same(bits(again), bits(parts))
    later = checkpoint.write(tmp_path / "later", 3, checkpoint.tensors(*updated(*parts)), keep=1)
    (later / "tensors.safetensors").write_bytes((path / "tensors.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"step-3 is damaged \(tensors\.safetensors is of another checkpoint"):
        checkpoint.restore(later, *again)
    shutil.copy(path / "tensors.safetensors", path / "shard-1.safetensors")
    with pytest.raises(ValueError, match=r"shard-1\.safetensors is not of the checkpoint"):
        checkpoint.restore(path, *again)


def test_the_package_reads_and_writes_no_pickles_of_tensors():
    source = "\n".join(path.read_text() for path in Path(checkpoint.__file__).parent.rglob("*.py"))
    assert not re.search(
        r"pickle\.(loads?|Unpickler|dump)|FileSystem(Reader|Writer)|\b(dcp|checkpoint)\.load\(", source
    )
    assert re.findall(r"torch\.load\((?!.*weights_only=True)", source) == []
