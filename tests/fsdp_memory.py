"""What torch's FSDPMemTracker finds that a step needs, on the first of many processes that do not exist.

`python fsdp_memory.py` prints {case: bytes at the peak} for CASES; a process of its own, because of the process group.
"""

import json
from dataclasses import replace

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models.zoo import configure
from vitrail.runtime.blocks import checkpoint_blocks
from vitrail.runtime.together import grouped, shard
from vitrail.tasks.classify import Classify

# name: config, devices, images on each, whether in bf16; each with checkpointing and without
SHAPES = {
    "few": (replace(configure("ViT-S/16"), depth=6), 2, 2, False),
    "some": (replace(configure("ViT-S/16"), depth=6), 8, 8, True),
    "wide": (replace(configure("ViT-B/16"), depth=4), 8, 4, False),
    "many": (replace(configure("ViT-B/16"), depth=4), 64, 4, True),
}
CASES = {f"{name}, again: {again}": (*shape, again) for name, shape in SHAPES.items() for again in (False, True)}


def peak(config, devices, images, half, again):
    dist.init_process_group("fake", rank=0, world_size=devices, store=FakeStore())
    mesh = grouped("cpu", devices, devices)
    with FakeTensorMode(allow_non_fake_inputs=True):
        task = Classify(config.build("meta"), Preprocessing(config.image_size, (0.5,) * 3, (0.5,) * 3))
        if again:
            checkpoint_blocks(task)
        shard(task, mesh, half)
        task.to_empty(device="cpu")
        optimizer = torch.optim.AdamW(task.parameters(), fused=True)
        pixels = torch.zeros(images, 3, *config.image_size, dtype=torch.uint8)
        batch = Batch(images=pixels, targets=torch.zeros(images, dtype=torch.int64))

        def step():
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = task(batch)[0]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()  # the averages are there afterwards, and what DTensor computes shapes with is not counted
        with FSDPMemTracker(task, optimizer) as tracker:
            step()
    dist.destroy_process_group()
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


if __name__ == "__main__":
    print(json.dumps({name: peak(*case) for name, case in CASES.items()}))
