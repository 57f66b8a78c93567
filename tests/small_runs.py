"""Runs of seconds on the packaged images, for the tests of the Trainer."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from vitrail import checkpoint
from vitrail import run as runs
from vitrail.data.images.augment import Augment
from vitrail.recipes.demo import demo
from vitrail.tasks import ClassifyConfig
from vitrail.train import Trainer

EVERYTHING = {
    "ema": 0.9,
    "micro_batch": 4,
    "augment": Augment(crop="shift", shift=1, randaugment=1, erase=0.2, mixup=0.2, cutmix=0.5),
    "task": ClassifyConfig(smoothing=0.1),
}


def small(**changes):
    """Twelve steps of a tiny model with dropout and stochastic depth, so that their draws are tested, too."""
    model = replace(demo().model, width=16, depth=2, heads=2, mlp_dim=16, dropout=0.1, drop_path=0.1)
    tiny = {"model": model, "batch": 8}
    often = {"duration": "12 steps", "log_every": 1, "checkpoint_every": "4 steps", "evaluate_every": "6 steps"}
    return replace(demo(), **{**tiny, **often, **changes})


def start(run, folder):
    runs.write(run, folder)
    return Trainer(run, folder)


def again(folder):
    """A trainer for what is left of a run."""
    return Trainer(runs.read(folder), folder)


def history(folder):
    """What was logged, without what depends on the clock."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = "images_per_second", "data_wait", "tflops", "memory_gib"
    return [{k: v for k, v in r.items() if k not in measured} for r in records]


def logged(folder, name):
    return [record[name] for record in history(folder) if name in record]


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def assert_same_run(a, b):
    assert history(a) == history(b)
    assert_same_files(a, b, "model/model.safetensors")


def resumes(run, folder, step=7):
    """Whole, and crashed at this step: the trainer that went on after it."""
    start(run, folder / "whole").fit()
    crash_at(start(run, folder / "cut"), step)
    return goes_on(folder)


def goes_on(folder, done=None):
    trainer = again(folder / "cut")
    assert done is None or trainer.done == done
    trainer.fit()
    assert_same_run(folder / "whole", folder / "cut")
    return trainer


def assert_same_end(a, b, step):
    """Of weights, optimiser and average after the last step."""
    assert_same_files(a, b, f"checkpoints/step-{step}/tensors.safetensors")


def assert_same_files(a, b, name):
    ours, theirs = load_file(a / name), load_file(b / name)
    assert ours.keys() == theirs.keys()
    assert not [key for key, tensor in ours.items() if not torch.equal(tensor, theirs[key])]


def crash_at(trainer, step):
    """Lets the trainer die before `step`, as if the process had been killed."""
    inner = trainer._step

    def dies(number, parts):
        if number == step:
            raise MemoryError
        return inner(number, parts)

    trainer._step = dies
    with pytest.raises(MemoryError):
        trainer.fit()


def saved(path):
    """All tensors of a checkpoint, whole, whoever wrote it."""
    found = checkpoint.Saved(path)
    tensors = {name: torch.empty_like(like, device="cpu") for name, like in found.like.items()}
    found.read(tensors)
    return tensors
