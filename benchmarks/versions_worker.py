"""What `benchmarks.versions` times inside a process of either checkout; nothing of this folder is imported.

    PYTHONPATH=CHECKOUT python -P versions_worker.py '{"topic": "step", "data": "photos", "tiny": false}'

Prints {"steps": seconds of each, "batch": images, "warm": uncounted steps}. In the folder is "run", of `vitrail train`.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

SMALL = {"width": 384, "depth": 12, "heads": 6, "mlp_dim": 1536}
TINY = {"width": 16, "depth": 1, "heads": 2, "mlp_dim": 32}
PLAIN = {"scale": (0.08, 1.0), "randaugment": 0, "mixup": 0.0, "erase": 0.0}
HOW = {"evaluate_every": "100%", "checkpoint_every": "100%", "ema": 0.0, "device": "cpu", "precision": "fp32"}
WARM = 3


def either(new: str, old: str) -> Any:
    """The module that the checkout has: where it lacks one, an installed copy of Vitrail would fill the gap."""
    root = Path(import_module("vitrail").__file__ or "").parents[1]
    return import_module(new if (root / new.replace(".", "/")).with_suffix(".py").is_file() else old)


def trainer(data: str, shape: dict[str, int], batch: int, steps: int, out: Path) -> Any:
    """The Trainer of the run with another model, images of 224 px and plain crops."""
    from vitrail import run as runs
    from vitrail.train import Trainer

    run, size = runs.read(Path("run")), (224, 224)
    model = replace(run.model, image_size=size, patch_size=(16, 16), drop_path=0.0, **shape)
    images = {"preprocessing": replace(run.preprocessing, image_size=size), "augment": replace(run.augment, **PLAIN)}
    images["data"] = replace(run.data, path=data)
    run = replace(run, model=model, batch=batch, duration=f"{steps} steps", workers=0, **images, **HOW)
    runs.write(run, out)
    return Trainer(run, out)


def step(data: str, tiny: bool, batch: int, steps: int, out: Path) -> list[float]:
    """The clock after each training step of S/16."""
    ends: list[float] = []
    trains = trainer(data, TINY if tiny else SMALL, batch, steps, out)
    trains.task.after_step = lambda step: ends.append(time.perf_counter())
    trains.fit()
    return ends


def loader(data: str, tiny: bool, batch: int, steps: int, out: Path) -> Iterator[float]:
    """The clock after each batch of the data path, prepared by threads."""
    stream = either("vitrail.data.stream", "vitrail.data.loader").stream
    batches = trainer(data, TINY, batch, steps, out).batches
    for _ in stream(batches, batches.keys(0, steps), 0):
        yield time.perf_counter()


def inference(data: str, tiny: bool, batch: int, steps: int, out: Path) -> Iterator[float]:
    """The clock after each forward pass of S/16, as predict and evaluate compute it."""
    import torch

    prepared = either("vitrail.runtime.inference", "vitrail.inference").prepared
    model = prepared(import_module("vitrail").create("ViT-S/16", classes=1000, seed=0, **(TINY if tiny else {})))
    images = torch.randn(batch, 3, 224, 224)
    with torch.inference_mode():
        for _ in range(steps):
            model(images)
            yield time.perf_counter()


# topic: (what, images of a step, steps)
TOPICS = {"files": (loader, 64, 12), "packed": (loader, 64, 48), "step": (step, 8, 20)}
TOPICS |= {"one": (inference, 1, 40), "sixteen": (inference, 16, 10)}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    function, batch, steps = TOPICS[asked["topic"]]
    batch, steps = (min(batch, 4), 8) if asked["tiny"] else (batch, steps)
    with tempfile.TemporaryDirectory() as folder:
        ends = list(function(asked["data"], asked["tiny"], batch, steps + WARM, Path(folder) / "out"))
    print(json.dumps({"steps": [b - a for a, b in pairwise(ends)], "batch": batch, "warm": WARM - 1}))
