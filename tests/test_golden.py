"""Golden losses: every recipe, made tiny, trains 20 steps just as it did when its file in tests/golden was written.

A change that is meant (of a recipe, an optimiser, the order of the images, an augmentation) writes the files anew, and
git shows which recipes it concerned:

    python tests/test_golden.py --write
"""

import inspect
import json
import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.open import Data, open_splits
from vitrail.models import resnet, vit
from vitrail.pipeline import Pipeline
from vitrail.recipes import RECIPES
from vitrail.tasks import Classify
from vitrail.train import Trainer

GOLDEN = Path(__file__).parent / "golden"
STEPS = 20
# Measured: 1 and 2 threads differ by 2e-16, AVX-512 and plain code by 4e-8 (of the initial values, which are float32);
# a hundredth more or less of a learning rate is 2e-4.
TOLERANCE = 1e-6
SHAPE = {
    "image_size": (28, 28),
    "patch_size": (7, 7),
    "channels": 1,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "mlp_dim": 32,
}


def tiny(run):
    """The run with its own loss, optimiser, schedule and augmentation, but a model of a few thousand parameters."""
    model = replace(run.model, **SHAPE, stem=None, representation=16 if run.model.representation else None)
    if run.model.stem:
        model = replace(model, patch_size=(1, 1), stem=resnet.Config(blocks=(1,), channels=1, classes=0))
    how = run.preprocessing
    return replace(
        run,
        recipe="tiny",  # models that differ in size alone are one here, and trained once
        model=model,
        data=replace(run.data, val_fraction=0.005),  # 55 images: how the model is judged is not what is tested here
        preprocessing=replace(how, image_size=(28, 28), mean=how.mean[:1], std=how.std[:1]),
        optim=replace(run.optim, schedule=replace(run.optim.schedule, warmup="25%")),
        batch=8,
        duration=f"{STEPS} steps",
        precision="fp64",
        device="cpu",
        workers=0,
        log_every=1,
    )


def weights(folder):
    """What the recipes for fine-tuning start from."""
    model = vit.ViT(vit.Config(**SHAPE, classes=3, representation=16))
    model.init_weights(1)
    Pipeline(Classify(model, Preprocessing((28, 28), (0.5,), (0.5,)), None, ("a", "b", "c"))).save(folder)
    return str(folder)


def made(name, start):
    """A recipe's tiny run, from the weights in the folder `start` where it needs some."""
    recipe = RECIPES[name]
    more = {"weights": start} if "weights" in inspect.signature(recipe).parameters else {}
    run = tiny(recipe("fashion", **more))
    return run.task.adapt(run, opened())


@cache
def opened():
    return open_splits(Data()).train


@cache
def losses(run):
    """The losses of the 20 steps."""
    with tempfile.TemporaryDirectory() as folder:
        Trainer(run, Path(folder)).fit()
        records = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        return [record["loss"] for record in records if "loss" in record]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return weights(tmp_path_factory.mktemp("start") / "weights")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_trains_as_it_did(start, name):
    found = losses(made(name, start))
    assert len(found) == STEPS
    assert found == pytest.approx(json.loads((GOLDEN / f"{name}.json").read_text()), rel=TOLERANCE)


def test_every_file_is_of_a_recipe():
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(RECIPES)


def write():
    """Writes the losses of every recipe."""
    with tempfile.TemporaryDirectory() as folder:
        start = weights(Path(folder) / "weights")
        for name in RECIPES:
            found = json.dumps(losses(made(name, start)), indent=0)
            (GOLDEN / f"{name}.json").write_text(found + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python tests/test_golden.py --write")
    write()
