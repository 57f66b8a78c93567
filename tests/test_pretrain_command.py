"""`vitrail pretrain`: what it chooses, says and writes."""

import json

import numpy as np
import pytest
from command_line import status
from PIL import Image

from vitrail import Pipeline
from vitrail import run as runs
from vitrail.data.sources.open import Data, open_splits
from vitrail.models import vit
from vitrail.recipes.fast import look_through
from vitrail.recipes.unlabelled import unlabelled, why
from vitrail.tasks import MaeConfig, PatchesConfig, ViewsConfig


def folder(place, count=40, side=32, grey=False, classes=0):
    draw = np.random.default_rng(0)
    for number in range(count):
        home = place / (f"class{number % classes}" if classes else ".")
        home.mkdir(parents=True, exist_ok=True)
        size = (side, side) if side else (70 + number, 90)
        shape = size if grey else (*size, 3)
        Image.fromarray(draw.integers(0, 255, shape, np.uint8)).save(home / f"{number}.png")
    return place


QUICK = ["--duration", "2 steps", "--batch", "16", "--device", "cpu", "--workers", "0"]


@pytest.mark.parametrize(("task", "kind"), [("views", ViewsConfig), ("mae", MaeConfig), ("patches", PatchesConfig)])
def test_a_folder_without_labels_becomes_a_backbone(tmp_path, capsys, task, kind):
    data = folder(tmp_path / "photos", side=0)
    assert status("pretrain", data, "--task", task, "--out", tmp_path / "run", *QUICK, "--json") == 0
    out, err = capsys.readouterr()
    assert set(json.loads(out)["metrics"]) == {"rank", "spread", "samples"}
    assert "36 photographs" in err  # a tenth are for validation
    assert isinstance(runs.read(tmp_path / "run").task, kind)
    assert {p.name for p in (tmp_path / "run" / "model").iterdir()} >= {"model.safetensors", "config.json"}
    assert not (tmp_path / "run" / "model" / "task.safetensors").exists()
    found = Pipeline.load(tmp_path / "run")
    assert isinstance(found.task.model, vit.ViT)
    assert found.class_names == ()
    assert status("evaluate", tmp_path / "run") == 0
    assert "rank" in capsys.readouterr().out
    assert status("evaluate", tmp_path / "run", "--with", "knn") == 2
    assert "no labels" in capsys.readouterr().err


def test_labels_judge_from_the_first_step_on(tmp_path, capsys):
    data = folder(tmp_path / "photos", classes=2)
    assert status("pretrain", data, "--task", "views", "--out", tmp_path / "run", *QUICK) == 0
    out, err = capsys.readouterr()
    assert "step 0/2: knn" in err
    assert out.startswith("knn ")
    assert f"next: vitrail finetune DATA --weights {tmp_path / 'run'}\n" in out
    assert runs.read(tmp_path / "run").model.image_size == (32, 32)
    assert status("evaluate", tmp_path / "run", data, "--with", "knn") == 0
    assert status("predict", tmp_path / "run", data / "class0" / "0.png") == 2
    assert "no head" in capsys.readouterr().err


def test_the_task_and_the_numbers_are_the_images(tmp_path):
    data = Data(str(folder(tmp_path / "grey", grey=True)))
    look = look_through(open_splits(data, "none").train)
    assert look.channels == 1
    run = unlabelled(data.path)
    assert isinstance(run.task, MaeConfig)
    assert run.preprocessing.mean == pytest.approx((0.498,), abs=0.01)
    assert run.preprocessing.std == pytest.approx((0.289,), abs=0.01)
    assert "grey" in why(look, "auto", None)
    assert why(look, "views", None) == ""


def test_weights_are_gone_on_from(tmp_path, capsys):
    data = folder(tmp_path / "photos", classes=2)
    assert status("pretrain", data, "--task", "mae", "--out", tmp_path / "one", *QUICK) == 0
    first = runs.read(tmp_path / "one")
    words = ["--task", "views", "--start", tmp_path / "one", "--out", tmp_path / "two", *QUICK]
    assert status("pretrain", data, *words) == 0
    run = runs.read(tmp_path / "two")
    assert run.model == first.model
    assert run.preprocessing.mean == first.preprocessing.mean
    assert run.optim.lr < first.optim.lr
    assert "started from" in capsys.readouterr().err


def test_too_few_images_in_a_step_are_refused(tmp_path, capsys):
    data = folder(tmp_path / "photos")
    assert status("pretrain", data, "--task", "views", "--out", tmp_path / "run", "--batch", "8") == 2
    assert "--batch 16" in capsys.readouterr().err
    assert status("pretrain", data, "--task", "mae", "--out", tmp_path / "run", "--augment.mixup", "0.2") == 2
    assert "--augment.mixup" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
