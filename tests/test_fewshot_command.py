"""`vitrail fewshot` and `vitrail evaluate --with`: features of a model are judged, and become a classifier."""

import json
import shutil

import numpy as np
import pytest
import torch
from command_line import TINY, photos, printed, refused, status
from PIL import Image

from vitrail import Pipeline
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import vit
from vitrail.tasks import Classify
from vitrail.tasks.classify import NONE

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "yellow": (220, 220, 20)}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def model(here):
    """Weights without a head."""
    torch.manual_seed(0)
    network = vit.ViT(vit.Config((16, 16), (4, 4), 3, 24, 2, 2, 32, 0))
    Pipeline(Classify(network, Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3))).save(here / "model")
    return "model"


def coloured(place, names, count, seed=0):
    draw = np.random.default_rng(seed)
    for name in names:
        (place / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.array(COLOURS[name]) + draw.integers(-30, 31, (20, 20, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / name / f"{number}.png")


def test_a_handful_of_images_makes_a_classifier_that_every_command_takes(capsys, here, model):
    coloured(here / "few", ("red", "green", "blue"), 4)
    coloured(here / "test", ("red", "green", "blue"), 10, seed=1)
    coloured(here / "other", ("yellow",), 10, seed=2)
    found, _ = printed(capsys, "fewshot", model, "few", "--out", "new")
    assert found["classes"] == ["blue", "green", "red"]
    assert found["images"] == 12
    assert found["accuracy"] == 1
    assert 0 <= found["false_positive_rate"] < 1
    assert printed(capsys, "evaluate", "new", "test")[0]["metrics"]["accuracy"] == 1
    predict = Pipeline.load("new")
    answers = predict(sorted((here / "other" / "yellow").iterdir()))
    strange = sum(answer[0].label == NONE for answer in answers)
    known = sum(answer[0].label == NONE for answer in predict(sorted((here / "test").rglob("*.png"))))
    assert known <= 8  # of 30
    assert strange >= 5  # of 10
    assert all(answer[0].index == -1 for answer in answers if answer[0].label == NONE)
    for answer in predict(sorted((here / "test").rglob("*.png"))):
        assert sum(one.probability for one in answer) == pytest.approx(1)
        assert len(answer) == 4
    assert "exists" in refused(capsys, "fewshot", model, "few", "--out", "new")

    again, _ = printed(capsys, "fewshot", "new", "other", "--out", "more", "--add")
    assert again["classes"] == ["blue", "green", "red", "yellow"]
    assert again["images"] == 22
    assert Pipeline.load("more")("other/yellow/0.png")[0].label == "yellow"
    words = "fewshot", "new", "other", "--out", "x", "--add", "--image-size", "8"
    assert "another preprocessing" in refused(capsys, *words)
    assert status("convert", "new", "timm", "--to", "timm") == 0
    assert "none of these" in "".join(capsys.readouterr())
    always, _ = printed(capsys, "fewshot", "new", "other", "--out", "sure", "--add", "--accept-all")
    assert always["none_below"] is None
    assert "one class" in refused(capsys, "fewshot", "new", "other", "--out", "alone")
    assert "images of its classes are not known" in refused(capsys, "fewshot", model, "few", "--out", "x", "--add")
    shutil.copytree(here / "new", here / "cut")
    (here / "cut" / "shots.safetensors").write_bytes((here / "new" / "shots.safetensors").read_bytes()[:200])
    assert "shots.safetensors is damaged" in refused(capsys, "fewshot", "cut", "other", "--out", "x", "--add")
    shutil.rmtree(here / "few" / "red")
    (here / "few" / "red").mkdir()
    (here / "few" / "red" / "0.png").write_bytes(b"\x89PNG\r\n")
    assert status("fewshot", model, "few", "--out", "x") == 2
    assert "no image of red can be read" in capsys.readouterr().err


def test_a_class_is_added_to_those_of_a_run(capsys, here):
    coloured(here / "photos", ("red", "green"), 12)
    coloured(here / "new", ("blue",), 5)
    printed(
        capsys,
        "train",
        "small",
        "--data",
        "photos",
        *TINY,
        "--duration",
        "1 steps",
        "--image-size",
        "16",
        "--out",
        "run",
    )
    found, _ = printed(capsys, "fewshot", "run", "new", "--out", "three", "--add")
    assert found["classes"] == ["green", "red", "blue"]
    assert found["images"] == 22 + 5
    assert Pipeline.load("three")("new/blue/0.png")[0].label in ("blue", NONE)


def test_features_are_judged_by_name(capsys, here, model):
    coloured(here / "photos" / "train", ("red", "green", "blue"), 8)
    coloured(here / "photos" / "val", ("red", "green", "blue"), 4, seed=5)
    found, said = printed(capsys, "evaluate", model, "photos", "--with", "knn", "fewshot", "linear", "labels", "copies")
    assert found["samples"] == 12
    assert found["metrics"]["knn"] == 1
    assert found["metrics"]["fewshot_5"] == 1
    assert "fewshot_10" not in found["metrics"]
    assert "8 training images" in said
    assert found["leaks"] == []
    assert status("evaluate", model, "photos", "--with", "knn", "linear") == 0
    out = capsys.readouterr().out
    assert "knn 100.0% (" in out
    assert "linear 100.0% (" in out
    assert "there is no evaluator 'nearest'" in refused(capsys, "evaluate", model, "photos", "--with", "nearest")
    assert "no head" in refused(capsys, "evaluate", model, "photos", "--with", "knn", "accuracy")


def test_images_that_cannot_be_read_are_left_out_and_counted_each_time(capsys, here, model):
    coloured(here / "photos" / "train", ("red", "green", "blue"), 5)
    coloured(here / "photos" / "val", ("red", "green", "blue"), 4, seed=5)
    (here / "photos" / "val" / "red" / "0.png").write_bytes(b"\x89PNG")
    assert status("evaluate", model, "photos", "--with", "knn") == 2
    assert "red/0.png" in capsys.readouterr().err
    for _ in range(2):
        assert status("evaluate", model, "photos", "--with", "knn", "--skip-unreadable") == 1
        out, err = capsys.readouterr()
        assert "on 11 images" in out
        assert "red/0.png" in err


def test_in_8_bits_features_are_others(capsys, here, model):
    coloured(here / "photos" / "train", ("red", "green", "blue"), 5)
    coloured(here / "photos" / "val", ("red", "green", "blue"), 4, seed=5)
    for _ in range(2):
        found, _ = printed(capsys, "evaluate", model, "photos", "--with", "knn", "--int8")
        assert found["metrics"]["knn"] == 1
        assert found["int8"]["metrics"]["knn"] > 0.5
    assert len([*(here / "cache" / "features").iterdir()]) == 2  # in 32 bits, of both splits


def test_classes_are_matched_by_name_and_folders_without_splits_are_divided(capsys, here, model):
    coloured(here / "photos" / "train", ("red", "blue"), 8)
    coloured(here / "photos" / "val", ("blue", "green", "red"), 4, seed=5)
    found, said = printed(capsys, "evaluate", model, "photos", "--with", "knn")
    assert found["samples"] == 8
    assert found["metrics"]["knn"] == 1
    assert "4 images of classes that the training images lack are left out: green" in said
    shutil.rmtree(here / "photos" / "train")
    coloured(here / "photos" / "train", ("yellow",), 3)
    assert "no class is in both" in refused(capsys, "evaluate", model, "photos", "--with", "knn")
    coloured(here / "whole", ("red", "blue"), 20)
    assert printed(capsys, "evaluate", model, "whole", "--with", "knn")[0]["samples"] == 4
    assert printed(capsys, "evaluate", model, "whole", "--with", "labels", "--split", "val")[0]["samples"] == 4


def test_a_run_is_judged_by_its_evaluators_as_it_goes(capsys, here):
    photos(here / "photos", ("ash", "elm"), count=12)
    (here / "mine.py").write_text(
        "from dataclasses import replace\nfrom vitrail.evaluate import Accuracy, Knn\n"
        "from vitrail.recipes.small import small\n"
        "def judged(data):\n    return replace(small(data), evaluate=(Accuracy(), Knn((3,))))\n"
    )
    words = [
        "train",
        "mine.py:judged",
        "--data",
        "photos",
        *TINY,
        "--duration",
        "2 steps",
        "--image-size",
        "16",
        "--out",
        "run",
    ]
    found, _ = printed(capsys, *words)
    assert {"accuracy", "knn", "knn_low", "knn_high"} <= found["metrics"].keys()
    rows = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "knn" in json.dumps(rows[-1])
    again, _ = printed(capsys, "evaluate", "run")
    assert again["metrics"] == found["metrics"]
