"""Checkpoints of divided weights: any number of processes loads what any number wrote, bit for bit, or names the fault.

The processes are forks of one that has torch: a start costs no import.
"""

import builtins
import json
import multiprocessing
import os
import pickle
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from vitrail import checkpoint
from vitrail.optim import build as optim
from vitrail.optim.ema import Ema
from vitrail.optim.shards import whole

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["vitrail.train", "torch.distributed.checkpoint", "vitrail.runtime.together"])
MODEL = """vit.Config((16, 16), (8, 8), 3, 24, 2, 2, 36, 10)"""


def made(name="adamw", size=1, world=1, seed=0, width=24):
    """A small ViT's task, divided among groups of `size` processes, its optimiser and its average."""
    from vitrail.models import vit
    from vitrail.runtime.together import shard

    task = nn.Module()
    task.model = vit.Config((16, 16), (8, 8), 3, width, 1, 2, 36, 10).build()
    task.model.init_weights(seed)
    if size > 1:
        shard(task, size, world)
    return task, optim.build(task, optim.Config(name, lr=1e-2)), Ema(task, 0.5)


def updated(task, optimizer, ema, steps=2):
    """After updates by gradients that are functions of the name and the step alone."""
    from torch.distributed.tensor import distribute_tensor

    for step in range(steps):
        for number, p in enumerate(task.parameters()):
            grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + number))
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if hasattr(p, "placements") else grad
        optimizer.step()
        ema.update(step)


def bits(parts):
    return {name: whole(tensor.detach()).clone() for name, tensor in checkpoint.tensors(*parts).items()}


def started(rank, world, port, out, work, words):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    from vitrail.runtime.distributed import join

    try:
        found = work(join(), *words)
    except ValueError as error:
        found = str(error)
    if rank == 0 or isinstance(found, str):
        out.put((rank, found))
        out.close()
        out.join_thread()
    join().flags(False)
    os._exit(0)


def among(world, work, *words, wait=60):
    """What rank 0 returned of work(ranks, *words) on so many processes; by rank, the sentences that they refuse with."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out = FORKS.SimpleQueue() if False else FORKS.Queue()
    processes = [FORKS.Process(target=started, args=(rank, world, port, out, work, words)) for rank in range(world)]
    for process in processes:
        process.start()
    found = dict([out.get(timeout=wait)])
    for process in processes:
        process.join(wait)
    while not out.empty():
        found |= dict([out.get()])
    return found[0] if set(found) == {0} else found


def saves(ranks, folder, size, name, step=2):
    parts = made(name, size, ranks.world)
    updated(*parts)
    with checkpoint.Writer(Path(folder), 2, ranks, size > 1) as writer:
        writer.save(step, checkpoint.tensors(*parts))
        expected = bits(parts)
        updated(*parts, steps=1)  # while it is written
    return {name: tensor.numpy() for name, tensor in expected.items()}


def loads(ranks, path, size, name):
    parts = made(name, size, ranks.world, seed=1)
    assert checkpoint.restore(Path(path), *parts) == 2
    return {name: tensor.numpy() for name, tensor in bits(parts).items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all((ours[n] == theirs[n]).all() for n in ours)


@pytest.mark.parametrize(("world", "size", "name"), [(4, 4, "adamw"), (4, 2, "muon")])
def test_any_number_of_processes_loads_what_any_number_wrote(tmp_path, world, size, name):
    expected = among(world, saves, tmp_path, size, name)
    path = tmp_path / "step-2"
    print(sorted(p.name for p in path.iterdir()))
    for others in (2, 3):
        assert same(among(others, loads, path, others, name), expected)
    alone = made(name, seed=1)
    checkpoint.restore(path, *alone)
    assert same({n: t.numpy() for n, t in bits(alone).items()}, expected)
