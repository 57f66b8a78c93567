"""Pre-training that learns nothing is named: eight planted collapses, each within 300 steps, and no healthy run."""

import math
import re
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_runs import history, saved

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
FREE = replace(VIEWS, regulariser=0.0)


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
    """Trains; returns the error that it ends with, if any, its folder, and the step to go on from."""
    teacher = vit.Config((16, 16), (8, 8), 3, 24, 1, 2, 48, 0).build("cpu")
    teacher.init_weights(5)
    Pipeline(Classify(teacher, HOW)).save(tmp_path / "teacher")

    def trained(task, images=None, rate=1e-3, seed=0, frozen=False, steps=300, ends="", **changes):
        if task.kind == "distill":
            task = DistillConfig(str(tmp_path / "teacher"), outputs=24)
        crop = Augment(flip=0.0) if task.kind == "views" else Augment("inception", scale=(0.3, 1.0))
        images, folder = (images or scenes)(), tmp_path / "run"
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
        with pytest.raises(ValueError, match=ends) if ends else nullcontext() as error:
            trainer.fit()
        left = Trainer(runs.read(folder), folder, Splits(images, images, ""))  # which goes on, or another does
        assert all(tensor.isfinite().all() for tensor in left.task.state_dict().values())
        return error and error.value, folder, left.done

    return trained


ALIKE = r"since step 1 the images are all alike \(variety 0\); look at the data"
COLLAPSE = r"since step \d+ the (features|outputs) collapse: (spread|said) .* all images have the same; "
FREED = COLLAPSE.replace("features|", "") + r"--task\.regulariser is 0"
RATE = COLLAPSE + r"a lower --optim\.lr"


@pytest.mark.parametrize(("task", "how", "sentence"), [
    ("free", {"rate": 3e-3}, FREED),
    ("free", {"rate": 3e-3, "frozen": True}, FREED),
    ("views", {"images": same}, ALIKE),
    ("mae", {"images": same}, ALIKE),
    ("patches", {"images": same}, ALIKE),
    ("distill", {"images": same}, ALIKE),
    ("views", {"rate": 1.0}, RATE),
    ("mae", {"rate": 1.0}, RATE),
    ("patches", {"rate": 1.0}, RATE),
    ("mae", {"images": same, "micro_batch": 4}, ALIKE),
])  # fmt: skip
def test_a_planted_collapse_is_named_with_the_last_good_checkpoint(pretrain, task, how, sentence):
    error, folder, done = pretrain({**TASKS, "free": FREE}[task], ends=sentence, **how)
    assert isinstance(error, Collapsed)
    since = int(re.search(r"since step (\d+)", str(error))[1])
    assert max(record["step"] for record in history(folder)) <= since + 30 <= 300
    good = (since - 1) // 10 * 10  # checkpoints are those of every tenth step
    assert done >= good
    if since <= 10:
        assert str(error).endswith("the last good checkpoint is none.")
    else:
        assert str(error).endswith(f"the last good checkpoint is {folder / 'checkpoints' / f'step-{good}'}.")
        assert saved(folder / "checkpoints" / f"step-{good}")


def test_a_rate_that_leaves_no_number_is_named_at_once(pretrain):
    error, folder, _ = pretrain(TASKS["mae"], ends=r"the loss is .* lower learning rate", rate=1e20)
    assert not isinstance(error, Collapsed)
    assert (folder / "bad-batch.txt").exists()


def test_a_batch_that_has_no_distribution_is_refused_before_the_run(pretrain):
    with pytest.raises(ValueError, match=r"a batch of 4 images is too small .* 16 or more"):
        pretrain(VIEWS, batch=4)


@pytest.mark.parametrize(("task", "rate", "seed"), [
    ("views", 1e-3, 1), ("mae", 3e-3, 2), ("patches", 3e-4, 3), ("distill", 1e-3, 4),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ("views", 3e-3, 6), ("mae", 3e-4, 7), ("patches", 3e-3, 8), ("distill", 3e-3, 9)])
])  # fmt: skip
def test_healthy_runs_are_far_from_any_alarm(pretrain, task, rate, seed):
    _, folder, done = pretrain(TASKS[task], rate=rate, seed=seed, steps=40)
    assert done == 40
    lines = [record for record in history(folder) if "loss" in record]
    assert min(line["spread"] for line in lines) > 0.25
    assert min(line["said"] for line in lines) > (0.3 if task == "views" else 0.06)
    assert min(line["variety"] for line in lines) > 0.5


def by_places(values, places, count):
    """The same in NumPy, place by place."""
    apart, free = 0.0, 0
    for place in range(count):
        those = values[places == place]
        apart += ((those - those.mean(0)) ** 2).sum() if len(those) else 0
        free += max(0, len(those) - 1)
    return math.sqrt(apart / free / (values**2).sum() * places.size)


def test_values_differ_between_images_at_the_same_place():
    draw = np.random.default_rng(0)
    values = draw.standard_normal((5, 3, 4)) + np.arange(4)
    places = np.stack([draw.permutation(7)[:3] for _ in range(5)])
    found = differing(torch.from_numpy(values), torch.from_numpy(places), 7)
    assert float(found) == pytest.approx(by_places(values, places, 7), rel=1e-12)
    # what depends on its place alone does not differ
    alone = draw.standard_normal((7, 4))[places]
    assert float(differing(torch.from_numpy(alone), torch.from_numpy(places), 7)) == pytest.approx(0, abs=1e-12)
    assert float(differing(torch.from_numpy(values[:, :1]))) == pytest.approx(
        by_places(values[:, :1], np.zeros((5, 1), int), 1), rel=1e-12
    )


def test_one_image_alarms_nobody_and_parts_of_few_say_the_same_on_average():
    x = torch.randn(4096, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 2
    assert float(differing(x[:1])) == 1
    whole = float(differing(x))
    for size in (2, 8):
        parts = torch.stack([differing(part) for part in x.split(size)])
        assert float(parts.mean()) == pytest.approx(whole, rel=0.1)
    assert float(differing(torch.zeros(3, 1, 4))) == 0
