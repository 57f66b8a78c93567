"""Pre-training that learns nothing is named: eight planted collapses, each within 300 steps, and no healthy run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import again, history, saved

from vitrail import run as runs
from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.open import Data, Splits
from vitrail.data.sources.source import Arrays
from vitrail.evaluate.watch import Watch
from vitrail.models import vit
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.pipeline import Pipeline
from vitrail.run import Run
from vitrail.runtime.guard import Collapsed
from vitrail.tasks import Classify, DistillConfig, MaeConfig, PatchesConfig, ViewsConfig
from vitrail.tasks.pretrain import differing
from vitrail.train import Trainer

MODEL = vit.Config((16, 16), (4, 4), 3, 32, 2, 2, 64, 0, class_token=False, pool="avg", positions="sincos")
HOW = Preprocessing((16, 16), (0.5,) * 3, (0.25,) * 3)
VIEWS = ViewsConfig(local_views=1, hidden=32, width=8, directions=32, local_scale=(0.1, 0.4))
TASKS = {"views": VIEWS, "mae": MaeConfig(depth=1, width=32), "patches": PatchesConfig(), "distill": DistillConfig()}
REST = replace(TASKS["views"], regulariser=0.0)


def scenes(count=160, seed=0):
    """Two colours that meet somewhere, and noise."""
    draw = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(16), np.arange(16))
    angle, off = draw.uniform(0, 2 * math.pi, (2, count, 1, 1))
    side = (np.cos(angle) * (across - 8) + np.sin(angle) * (down - 8) > 2 * off - 6)[..., None]
    first, second = draw.integers(0, 216, (2, count, 1, 1, 3))
    pixels = np.where(side, first, second) + draw.integers(0, 40, (count, 16, 16, 3))
    return Arrays(pixels.astype(np.uint8), None, (), "scene")


def same(count=160):
    return Arrays(np.full((count, 16, 16, 3), (90, 120, 60), np.uint8), None, (), "same")


@pytest.fixture
def pretrain(tmp_path):
    """Trains 300 steps; returns what the run ended with, and its folder."""
    how = {"norm_first": True}
    teacher = vit.Config((16, 16), (8, 8), 3, 24, 1, 2, 48, 0, **how).build("cpu")
    teacher.init_weights(5)
    Pipeline(Classify(teacher, HOW)).save(tmp_path / "teacher")

    def trained(task, images=None, rate=1e-3, seed=0, frozen=False, steps=300, **changes):
        if task.kind == "distill":
            task = DistillConfig(str(tmp_path / "teacher"), outputs=24)
        crop = Augment(flip=0.0) if task.kind == "views" else Augment("inception", scale=(0.3, 1.0))
        images, folder = images or scenes(), tmp_path / "run"
        run = Run(
            "tiny", MODEL, HOW, Data("scenes"), crop, task, optim.Config(lr=rate, schedule=Schedule(warmup="5%")),
            batch=16, duration=f"{steps} steps", seed=seed, log_every=5, checkpoint_every="10 steps", keep=100,
            evaluate=(Watch(images=16, bank=16),), evaluate_every=f"{steps} steps", device="cpu", workers=0,
        )  # fmt: skip
        run = replace(run, **changes)
        runs.write(run, folder)
        trainer = Trainer(run, folder, Splits(images, images, ""))
        if frozen:
            trainer.task.extra.requires_grad_(False)
        try:
            trainer.fit()
        except ValueError as error:
            return error, folder
        return None, folder

    return trained
