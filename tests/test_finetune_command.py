"""`vitrail finetune`: one run from weights, or the choice of a learning rate that goes on where it was interrupted."""

import json
import os
import signal
from dataclasses import replace
from itertools import count

import pytest
import torch
from command_line import photos, printed, refused, status

from vitrail import Pipeline, train
from vitrail import run as runs
from vitrail.cli import launch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import resnet, vit
from vitrail.recipes.finetune import LEAST
from vitrail.tasks import Classify

CLASSES = ("ash", "beech", "chestnut")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Weights for images of 32 x 32 and four classes, and a folder with three others."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = vit.ViT(vit.Config((32, 32), (8, 8), 3, 16, 1, 2, 16, 4))
    how = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, interpolation="bicubic")
    Pipeline(Classify(model, how, class_names=("a", "b", "c", "d"))).save(tmp_path / "weights")
    photos(tmp_path / "photos", CLASSES, count=10)
    return tmp_path


RATES = ["--rates", "0.001", "0.01"]


def finetune(*words, steps=2):
    given = ["--weights", "weights"] if "--weights" not in words else []
    given += ["--batch", "4", "--optim.schedule.warmup", "1 step"]
    return ["finetune", "photos", *given, "--duration", f"{steps} steps", *words]


def test_the_small_recipe_is_taken_on_a_cpu(capsys, here):
    result, err = printed(capsys, *finetune("--device", "cpu"))
    assert (result["run"], result["choices"]) == ("runs/finetune_small", [])
    run = runs.read(here / "runs" / "finetune_small")
    assert (run.recipe, run.start, run.model.classes, run.optim.name) == ("finetune_small", "weights", 3, "adamw")
    assert "27 images to train on, 3 " in err


def test_few_images_get_a_probe_and_steps_of_their_own_and_the_same_classes_keep_their_head(capsys, here):
    _, err = printed(capsys, "finetune", "photos", "--weights", "weights", "--device", "cpu", "--out", "first")
    run = runs.read(here / "first")
    assert (run.head, run.duration, run.optim.lr) == ("probe", f"{LEAST} steps", 1e-4)
    assert "a linear probe, by ridge regression on 27 training images" in err
    step = next(
        json.loads(line) for line in (here / "first" / "metrics.jsonl").read_text().splitlines() if "evaluation" in line
    )
    assert step["step"] == 0
    _, err = printed(capsys, *finetune("--weights", "first", "--data.split-seed", "1"))
    assert "with its head, because the 3 classes are the same" in err
    assert "linear probe" not in err


def test_a_probe_that_was_better_is_said_to_have_been(capsys, monkeypatch):
    scores = iter([1.0, 0.0, 0.0])
    real = train.judge
    monkeypatch.setattr(train, "judge", lambda *given: ({**real(*given)[0], "accuracy": next(scores)}, real(*given)[1]))
    _, err = printed(capsys, *finetune("--evaluate-every", "2 steps"))
    assert "it was better before its first step: accuracy 100.0%" in err


@pytest.mark.parametrize("recipe", ["small", "paper"])
def test_a_resnet_is_fine_tuned_too(capsys, here, recipe):
    """It has no blocks, by which rates could fall from layer to layer."""
    model = resnet.ResNet(resnet.Config((1,), 0.5, classes=4, image_size=(32, 32)))
    how = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    Pipeline(Classify(model, how, class_names=("a", "b", "c", "d"))).save(here / "resnet")
    printed(capsys, *finetune("--weights", "resnet", "--recipe", recipe, "--device", "cpu", "--image-size", "32", "32"))
    (run,) = (here / "runs").iterdir()
    assert runs.read(run).model.kind == "resnet"


def test_the_papers_recipe_and_one_rate(capsys, here):
    words = ["--recipe", "paper", "--rates", "0.02", "--image-size", "40", "--out", "mine", "--data.val-fraction=0.2"]
    result, _ = printed(capsys, *finetune(*words))
    assert result["choices"] == []
    run = runs.read(here / "mine")
    assert (run.recipe, run.optim.name, run.optim.lr, run.data.val_fraction) == ("finetune", "sgd", 0.02, 0.2)
    assert run.model.image_size == run.preprocessing.image_size == (40, 40)
    assert refused(capsys, *finetune("--out", "mine")).startswith("mine exists already; continue it with")


def test_the_best_of_several_rates_is_taken_for_all_images(capsys, here):
    result, _ = printed(capsys, *finetune(*RATES, "1e-2"))
    assert [choice["lr"] for choice in result["choices"]] == [0.001, 0.01]
    best = max(result["choices"], key=lambda choice: choice["outcome"]["metrics"]["accuracy"])["lr"]
    final = runs.read(here / "runs" / "finetune_small")
    assert (final.optim.lr, final.data.val_fraction) == (best, None)
    for rate in ("0.001", "0.01"):
        folder = here / "runs" / "finetune_small.choice" / f"lr-{rate}"
        run = runs.read(folder)
        assert run == replace(final, data=run.data, optim=replace(final.optim, lr=float(rate)))
        assert run.data.val_fraction == 0.1
    assert result["choices"][0]["outcome"]["metrics"]["samples"] == 3


def test_the_papers_rates_and_a_table_for_people(capsys):
    assert status(*finetune("--recipe", "paper", "--rates", "paper", "--image-size", "32")) == 0
    lines = capsys.readouterr().out.splitlines()[:5]
    assert [line.split()[:2] for line in lines[:4]] == [["lr", rate] for rate in ("0.001", "0.003", "0.01", "0.03")]
    assert sum(line.endswith("  the best") for line in lines[:4]) == 1
    assert lines[4].startswith("accuracy ")


@pytest.mark.parametrize(("out", "run"), [("mine", 0), ("", 2)])
def test_the_same_command_goes_on_where_it_was_interrupted(capsys, monkeypatch, out, run):
    words = finetune(*RATES, *(["--out", out] if out else []), steps=3)
    whole, _ = printed(capsys, *finetune(*RATES, "--out", "whole", steps=3))
    inner, steps = train.Trainer._step, count()

    def interrupted(trainer, step, parts):
        if next(steps) == 3 * run + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(trainer, step, parts)

    with monkeypatch.context() as patched:
        patched.setattr(train.Trainer, "_step", interrupted)
        assert status(*words, "--json") == 130
    said, err = capsys.readouterr()
    assert (said, err.splitlines()[-1]) == ("", "stopped after step 2 of 3; go on with: the same command")
    result, err = printed(capsys, *words)
    assert err.count("has ended; there is nothing left to train") == run
    assert err.count("going on after step 2") == 1
    assert result["metrics"] == whole["metrics"]
    assert result["run"] == (out or "runs/finetune_small")


def test_a_choice_that_is_of_other_runs_is_left_alone(capsys, here):
    names = [printed(capsys, *finetune(*RATES, steps=steps))[0]["run"] for steps in (2, 1)]
    assert names == ["runs/finetune_small", "runs/finetune_small-2"]
    again = finetune(*RATES, "--out", "runs/finetune_small", steps=1)
    assert refused(capsys, *again).startswith("runs/finetune_small exists already")
    (here / "runs" / "finetune_small").rename(here / "elsewhere")
    assert refused(capsys, *again).startswith("runs/finetune_small.choice holds other runs")


def test_a_rate_at_which_the_loss_diverges_is_not_chosen(capsys, monkeypatch):
    inner = train.Trainer.fit

    def diverges(trainer):
        if trainer.run.optim.lr >= 0.01:
            (trainer.folder / launch.DIVERGED).write_text("all\n")
            raise ValueError("the loss is nan")
        if trainer.run.optim.lr == 0.005:
            raise ValueError("a.png is damaged.")
        return inner(trainer)

    monkeypatch.setattr(train.Trainer, "fit", diverges)
    result, err = printed(capsys, *finetune(*RATES))
    assert [choice["outcome"] is None for choice in result["choices"]] == [False, True]
    assert "NaN at learning rate 0.01" in err
    assert status(*finetune("--rates", "0.02", "0.01", "--out", "mine", "--json")) == 2
    assert "(0.02, 0.01)" in capsys.readouterr().err.splitlines()[-1]
    assert status(*finetune("--rates", "0.005", "0.001", "--out", "other", "--json")) == 2  # any other fault ends it
    assert capsys.readouterr().err.splitlines()[-1] == "vitrail: a.png is damaged."


@pytest.mark.parametrize(("words", "parts"), [
    ("--rates x 0.1", ["--rates", "'x 0.1'"]), ("--rates 0.1 paper", ["--rates", "paper"]), ("--rates -1", ["-1"]),
    ("--recipe big", ["--recipe", "'big'", "auto or paper or small"]),
    ("--model.classes 9", ["photos", "3 classes", "9"]), ("--start gone.npz", ["gone.npz does not exist"]),
])  # fmt: skip
def test_bad_words_are_one_sentence_and_leave_nothing_behind(capsys, here, words, parts):
    said = refused(capsys, *finetune(*words.split()))
    assert [part for part in parts if part not in said] == []
    assert sorted(path.name for path in here.iterdir()) == ["photos", "weights"]
