"""Pre-training through the command line: what is refused, which images it takes, what it leaves, and how it stops."""

import json
import math
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from command_line import photos, printed, refused, status
from judging import source
from PIL import Image
from safetensors.torch import load_file
from small_runs import saved

from vitrail import Pipeline
from vitrail import run as runs
from vitrail.runtime.deferred import DeferredMetrics
from vitrail.runtime.guard import Guard

RECIPES = """
from dataclasses import replace
from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.open import Data
from vitrail.evaluate.watch import Watch
from vitrail.models import resnet, vit
from vitrail.models.config import ResNetFields, Rotary
from vitrail.optim import build as optim
from vitrail.optim.schedule import Schedule
from vitrail.run import Run
from vitrail.tasks import ClassifyConfig
from vitrail.tasks.mae import MaeConfig
from vitrail.tasks.patches import PatchesConfig
from vitrail.tasks.views import ViewsConfig

def tiny(data, task, channels=3):
    model = vit.Config((16, 16), (4, 4), channels, 16, 1, 2, 16, 10)
    how = Preprocessing((16, 16), (0.5,) * channels, (0.5,) * channels)
    adamw = optim.Config(lr=1e-3, schedule=Schedule(warmup="0 steps"))
    return Run("tiny", model, how, Data(data), Augment(flip=0.5), task, adamw, batch=16,
               duration="2 steps", log_every=1, device="cpu", evaluate=(Watch(),))

def patches(data):
    return tiny(data, PatchesConfig())

def mae(data):
    return tiny(data, MaeConfig(depth=1, width=32))

def views(data):
    return tiny(data, ViewsConfig(local_views=1, hidden=16, width=8, directions=16))

def classify(data):
    return replace(tiny(data, ClassifyConfig()), evaluate=())

def bands(name):
    def made(data):
        run = globals()[name](data)
        return replace(tiny(data, run.task, 5))
    return made

patches5, mae5, views5 = map(bands, ("patches", "mae", "views"))

def of_resnet(task):
    def made(data):
        run = tiny(data, task)
        return replace(run, model=resnet.Config(blocks=(1, 1), width_factor=0.5, classes=10))
    return made

patches_resnet, mae_resnet = of_resnet(PatchesConfig()), of_resnet(MaeConfig(depth=1, width=32))
views_resnet = of_resnet(ViewsConfig(local_views=1, hidden=16, width=8, directions=16))

def turned(data):
    run = mae(data)
    return replace(run, model=replace(run.model, rotary=Rotary()))

def hybrid(data, task=mae):
    run = task(data)
    stem = ResNetFields(blocks=(1,), width_factor=0.5, classes=0)
    return replace(run, model=replace(run.model, patch_size=(1, 1), stem=stem))


def hybrid_patches(data):
    return hybrid(data, patches)
"""
CLASSES = ("ash", "beech", "elm")
every_task = pytest.mark.parametrize("kind", ["patches", "mae", "views"])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    photos(tmp_path / "photos", CLASSES, count=10)
    (tmp_path / "p.py").write_text(RECIPES)
    return tmp_path


def train(kind, *words, data="photos", out="run"):
    return ["train", f"p.py:{kind}", "--data", data, "--out", out, *words]


def lines(out="run"):
    return [json.loads(line) for line in Path(out, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("words", "named"), [
    ("views --batch 8", ["8", "16", "--micro-batch"]),
    ("views --model.patch-size 8", ["8 x 8 is 1 x 1 patches"]),
    ("views --task.global-views 0", ["0 global", "one global"]),
    ("views --task.regulariser 1.5", ["1.5", "below 1"]),
    ("patches --task.corrupted 0", ["corrupted is 0.0"]),
    ("patches --task.corrupted 0.01", ["of 16 patches"]),
    ("mae --task.masked 0.99", ["of 16 patches 16"]),
    ("mae --task.masked 0.01", ["of 16 patches 0"]),
    ("mae --task.masked 1", ["masked is 1.0"]),
    ("mae --task.width 40", ["width 40"]),
    ("mae --model.relative geometric", ["relative positions", "take views"]),
    ("turned", ["rotary", "take views"]),
    ("patches_resnet", ["masked patch prediction", "ResNet"]),
    ("mae_resnet", ["MAE", "ResNet"]),
    ("mae --image-size 18", ["18 x 18", "4 x 4", "--image-size"]),
    ("patches --image-size 16 18", ["16 x 18", "4 x 4"]),
    ("hybrid", ["MAE", "stem"]),
    ("hybrid_patches", ["masked patch prediction", "stem"]),
])  # fmt: skip
def test_what_cannot_be_is_one_sentence(capsys, here, words, named):
    kind, *more = words.split()
    sentence = refused(capsys, *train(kind, *more))
    assert all(part in sentence for part in named), sentence
    assert not (here / "run").exists()


def of_all_kinds(folder, bands=3):
    """Images without classes, of many sizes and kinds."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number, (height, width) in enumerate([(20, 30), (16, 16), (50, 17), (33, 40), (9, 12)] * 5):
        pixels = draw.integers(0, 256, (height, width, bands), np.uint8)
        if bands != 3:
            np.save(folder / f"{number}.npy", pixels)
        elif number % 5 == 1:
            Image.fromarray(pixels[..., 0]).save(folder / f"{number}.png")
        elif number % 5 == 2:
            Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / f"{number}.png")
        else:
            Image.fromarray(pixels).save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
    if bands != 3:
        (folder / "images.csv").write_text("\n".join(["image", *(path.name for path in folder.glob("*.npy"))]))
    return folder


@every_task
@pytest.mark.parametrize("bands", [3, 5])
def test_folders_without_classes_are_trained_on(capsys, here, kind, bands):
    of_all_kinds(here / "mixed", bands)
    result, err = printed(
        capsys, *train(kind if bands == 3 else f"{kind}5", data="mixed" if bands == 3 else "mixed/images.csv")
    )
    assert result["metrics"].keys() == {"rank", "spread", "samples"}
    assert result["metrics"]["samples"] == 2
    found = [line["loss"] for line in lines() if "loss" in line]
    assert len(found) == 2
    assert all(map(math.isfinite, found))
    assert "rank" in err
    assert (here / "run" / "report.html").is_file()


def test_views_train_a_resnet(capsys):
    result, _ = printed(capsys, *train("views_resnet"))
    assert result["metrics"]["samples"] == 3


@every_task
def test_the_model_folder_is_the_backbone_alone(capsys, here, kind):
    result, _ = printed(capsys, *train(kind))
    assert result["metrics"].keys() == {"knn", "knn_low", "knn_high", "rank", "spread", "samples"}
    evaluations = [line for line in lines() if "evaluation" in line]
    assert [line["step"] for line in evaluations] == [0, 2]
    # timm's names, and no others
    state = load_file(here / "run" / "model" / "model.safetensors")
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1}
    model = timm.create_model("vit_base_patch16_224", **shape, num_classes=0).eval()
    model.load_state_dict(state)
    assert {path.name for path in (here / "run" / "model").iterdir()} == {"config.json", "model.safetensors"}
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pipeline = Pipeline.load(here / "run")
    with torch.no_grad():
        ours = pipeline.task.model.represent(images)
        torch.testing.assert_close(model(images), ours, rtol=0, atol=1e-4)
    # what it is not for
    capsys.readouterr()
    assert status("predict", "run", "photos/ash/0.png") == 2
    out, err = capsys.readouterr()
    assert (out, "no head" in err, "fine-tune it" in err) == ("", True, True)
    # a checkpoint is the same
    assert status("convert", "run/checkpoints/step-2", "out") == 0
    other = load_file(here / "out" / "model.safetensors")
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert json.loads((here / "out" / "config.json").read_text()) == json.loads(
        (here / "run" / "model" / "config.json").read_text()
    )
    extra = {name for name in saved(here / "run" / "checkpoints" / "step-2") if name.startswith("task/extra")}
    assert extra


def test_a_backbone_is_fine_tuned(capsys, here):
    printed(capsys, *train("patches"))
    more = ["--batch", "4", "--optim.schedule.warmup", "1 step", "--duration", "2 steps", "--rates", "0.001"]
    _, err = printed(capsys, "finetune", "photos", "--weights", "run", "--out", "tuned", *more)
    assert "started from run, with a new head, because the weights name no classes" in err
    assert runs.read(here / "tuned").model.classes == 3


@every_task
def test_a_classifier_is_trained_further_and_judged_before_the_first_step(capsys, here, kind):
    printed(capsys, *train("classify", "--optim.lr", "0.01", out="classifier"))
    _, err = printed(capsys, *train(kind, "--start", "classifier", "--head", "probe", "--optim.lr", "0"))
    first, last = (line["evaluation"] for line in lines() if "evaluation" in line)
    assert first == last
    theirs, ours = (load_file(here / place / "model" / "model.safetensors") for place in ("classifier", "run"))
    assert theirs.keys() - ours.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert "started from classifier, without a head" in err


def test_weights_of_another_width_are_one_sentence(capsys, here):
    printed(capsys, *train("classify", out="classifier"))
    sentence = refused(capsys, *train("mae", "--start", "classifier", "--model.width", "24"))
    assert all(part in sentence for part in ("classifier", "16", "24")), sentence
    assert not (here / "run").exists()


def step(number, healthy):
    numbers = {"loss": 1.0, "gradient_norm": 1.0, "spread": 0.5 if healthy else 0.01}
    return DeferredMetrics(number, {name: torch.tensor(value) for name, value in numbers.items()}, {"lr": 0.1})


def guarded(folder):
    def alarm(values):
        return "all is grey" if values["spread"] < 0.1 else ""

    checkpoints = map("step-{}".format, count(40))
    return Guard(alarm, folder, source(4), lambda number: [number % 4], lambda: next(checkpoints))


def test_a_task_may_be_alarmed_for_twenty_steps(tmp_path):
    guard = guarded(tmp_path)
    assert guard([step(number, False) for number in range(50, 70)])["spread"] == pytest.approx(0.01)
    guard([step(69, False)])  # one that was read already
    with pytest.raises(ValueError, match=r"since step 51 all is grey\. .* step-40\."):
        guard([step(70, False)])


def test_a_healthy_step_ends_the_alarm(tmp_path):
    guard = guarded(tmp_path)
    for start in (0, 20, 40, 60):
        guard([step(number, number % 20 == 19) for number in range(start, start + 20)])
    with pytest.raises(ValueError, match=r"since step 81 .* step-44\."):
        guard([step(number, False) for number in range(80, 101)])


def test_a_loss_that_is_no_number_is_refused_at_once_with_its_images(tmp_path):
    bad = DeferredMetrics(6, {name: torch.tensor(math.nan) for name in ("loss", "gradient_norm")}, {"lr": 0.1})
    with pytest.raises(ValueError, match=r"nan .* at step 7, on noise\[2\]"):
        guarded(tmp_path)([bad])
    assert (tmp_path / "bad-batch.txt").read_text() == "noise[2]\n"


def test_images_that_are_all_the_same_are_named_as_a_collapse(capsys, here):
    folder = here / "same"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (16, 16), (90, 120, 60)).save(folder / f"{number}.png")
    words = ["--task.preset", "none", "--duration", "60 steps", "--checkpoint-every", "5 steps"]
    assert status(*train("views", *words, data="same")) == 2
    err = capsys.readouterr().err
    assert "since step 1 the images are all alike (variety 0)" in err
    assert "the last good checkpoint is none." in err
    assert ("Traceback" in err, "vitrail resume" in err) == (False, False)
    assert max(line["step"] for line in lines()) < 25
