"""`vitrail finetune`: one run from weights, or the choice of a learning rate that goes on where it was interrupted."""

import os
import signal
from dataclasses import replace
from itertools import count

import pytest
import torch
from command_line import photos, printed, refused, status

from vitrail import Pipeline, train
from vitrail import run as runs
from vitrail.cli import launch as fitting
from vitrail.cli.finetune import numbers
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import vit

CLASSES = ("ash", "beech", "chestnut")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Weights for images of 32 x 32 and four classes, and a folder with three others."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = vit.ViT(vit.Config((32, 32), (8, 8), 3, 16, 1, 2, 16, 4))
    how = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, interpolation="bicubic")
    Pipeline(model.eval(), how, ("a", "b", "c", "d")).save(tmp_path / "weights")
    photos(tmp_path / "photos", CLASSES, count=10)
    return tmp_path


def finetune(*words, steps=2):
    given = ["--weights", "weights", "--batch", "4", "--optim.schedule.warmup", "1 step"]
    return ["finetune", "photos", *given, "--duration", f"{steps} steps", *words]


def test_the_small_recipe_is_taken_on_a_cpu(capsys, here):
    result, err = printed(capsys, *finetune("--device", "cpu"))
    assert (result["run"], result["choices"]) == ("runs/finetune_small", [])
    run = runs.read(here / "runs" / "finetune_small")
    assert (run.recipe, run.start, run.model.classes, run.optim.name) == ("finetune_small", "weights", 3, "adamw")
    assert run.preprocessing.interpolation == "bicubic"
    assert "finetune_small: " in err
    assert "27 images to train on, 3 held back" in err
    assert printed(capsys, *finetune())[0]["run"] == "runs/finetune_small-2"


def test_the_papers_recipe_and_one_rate(capsys, here):
    words = ["--recipe", "paper", "--rates", "0.02", "--image-size", "40", "--out", "mine", "--data.hold-back=0.2"]
    result, _ = printed(capsys, *finetune(*words))
    assert result["choices"] == []
    run = runs.read(here / "mine")
    assert (run.recipe, run.optim.name, run.optim.lr, run.data.hold_back) == ("finetune", "sgd", 0.02, 0.2)
    assert run.model.image_size == run.preprocessing.image_size == (40, 40)
    assert refused(capsys, *finetune("--out", "mine")).startswith("mine exists already; continue it with")


def test_the_best_of_several_rates_is_taken_for_all_images(capsys, here):
    words = ["--rates", "0.001", "0.01", "--optim.clip", "None"]
    result, _ = printed(capsys, *finetune(*words))
    assert [choice["lr"] for choice in result["choices"]] == [0.001, 0.01]
    best = max(result["choices"], key=lambda choice: choice["outcome"]["metrics"]["accuracy"])["lr"]
    final = runs.read(here / "runs" / "finetune_small")
    assert (final.optim.lr, final.optim.clip, final.data.hold_back) == (best, None, None)
    for rate in ("0.001", "0.01"):
        folder = here / "runs" / "finetune_small.choice" / f"lr-{rate}"
        run = runs.read(folder)
        assert run == replace(final, data=run.data, optim=replace(final.optim, lr=float(rate)))
        assert run.data.hold_back == 0.1
        assert (folder / "report.html").is_file()
    assert result["choices"][0]["outcome"]["metrics"]["samples"] == 3


def test_the_papers_rates_and_a_table_for_people(capsys):
    assert status(*finetune("--recipe", "paper", "--rates", "paper", "--image-size", "32")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[:4]] == [
        ["lr", rate, "accuracy"] for rate in ("0.001", "0.003", "0.01", "0.03")
    ]
    assert sum(line.endswith("  the best") for line in lines[:4]) == 1
    assert lines[4].startswith("accuracy ")
    assert lines[-1] == "next: vitrail predict runs/finetune IMAGE"


@pytest.mark.parametrize(("out", "run"), [("mine", 0), ("", 1), ("", 2)])
def test_the_same_command_goes_on_where_it_was_interrupted(capsys, monkeypatch, out, run):
    words = finetune("--rates", "0.001", "0.01", *(["--out", out] if out else []), steps=3)
    whole, _ = printed(capsys, *finetune("--rates", "0.001", "0.01", "--out", "whole", steps=3))
    inner, steps = train.Trainer._step, count()

    def interrupted(trainer, step, parts):
        if next(steps) == 3 * run + 1:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(trainer, step, parts)

    with monkeypatch.context() as patched:
        patched.setattr(train.Trainer, "_step", interrupted)
        assert status(*words, "--json") == 130
    said, err = capsys.readouterr()
    assert said == ""
    assert err.endswith("stopped after step 2 of 3; go on with: the same command\n")
    result, err = printed(capsys, *words)
    assert err.count("has ended; there is nothing left to train") == run
    assert err.count("going on after step 2") == 1
    assert result["metrics"] == whole["metrics"]
    assert result["run"] == (out or "runs/finetune_small")


def test_a_choice_that_is_of_other_runs_is_left_alone(capsys, here):
    first, _ = printed(capsys, *finetune("--rates", "0.001", "0.01"))
    second, _ = printed(capsys, *finetune("--rates", "0.001", "0.01", steps=1))
    assert (first["run"], second["run"]) == ("runs/finetune_small", "runs/finetune_small-2")
    sentence = refused(capsys, *finetune("--rates", "0.001", "0.01", "--out", "runs/finetune_small"))
    assert sentence.startswith("runs/finetune_small exists already")
    (here / "runs" / "finetune_small").rename(here / "elsewhere")
    sentence = refused(capsys, *finetune("--rates", "0.001", "0.01", "--out", "runs/finetune_small", steps=1))
    assert sentence == "runs/finetune_small.choice holds other runs; name another folder with --out."


def test_a_rate_at_which_the_loss_diverges_is_not_chosen(capsys, monkeypatch):
    inner = train.Trainer.fit

    def diverges(trainer):
        if trainer.run.optim.lr >= 0.01:
            (trainer.folder / fitting.DIVERGED).write_text("all\n")
            raise ValueError("the loss is nan")
        return inner(trainer)

    monkeypatch.setattr(train.Trainer, "fit", diverges)
    result, err = printed(capsys, *finetune("--rates", "0.001", "0.01"))
    assert [choice["outcome"] is None for choice in result["choices"]] == [False, True]
    assert "at a learning rate of 0.01 the loss became no number.\n" in err
    assert status(*finetune("--rates", "0.02", "0.01", "--out", "mine", "--json")) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "vitrail: the loss was no number at any rate (0.02, 0.01); give lower --rates."


def test_what_else_goes_wrong_ends_the_choice(capsys, monkeypatch):
    def fails(trainer):
        raise ValueError("a.png is damaged.")

    monkeypatch.setattr(train.Trainer, "fit", fails)
    assert status(*finetune("--rates", "0.001", "0.01", "--json")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "vitrail: a.png is damaged."


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--rates x 0.1", "--rates has 'x'; give numbers above 0, or the word paper alone."),
        ("--rates 0.1 paper", "--rates has 'paper'; give numbers above 0, or the word paper alone."),
        ("--rates -1", "--rates has '-1'; give numbers above 0, or the word paper alone."),
        ("--recipe big", "--recipe cannot be 'big'; choose one of auto, paper, small."),
        ("--weigths x", "there is no --weigths; did you mean --weights?"),
        ("--data.holdback 0.1", "there is no --data.holdback; did you mean --data.hold-back?"),
        ("--data.hold-back x", "--data.hold-back is 'x'; it must be a number or None."),
        ("--model.classes 9", "photos has 3 classes, but the model's head has 9."),
        ("--device tpu", "the device 'tpu' is not available here"),
    ],
)
def test_bad_words_are_one_sentence_and_leave_nothing_behind(capsys, here, words, sentence):
    assert refused(capsys, *finetune(*words.split())).startswith(sentence)
    assert sorted(path.name for path in here.iterdir()) == ["photos", "weights"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gone", "--weights", "weights"], "gone does not exist; name a folder or file of images."),
        (["photos", "--weights", "gone.npz"], "gone.npz does not exist; name a file with weights, or a model folder."),
    ],
)
def test_what_does_not_exist_is_named(capsys, words, sentence):
    assert refused(capsys, "finetune", *words) == sentence


def test_rates_are_numbers_once_each():
    assert numbers(["0.1", "1e-1", ".2"]) == [0.1, 0.2]
    assert numbers(["paper"]) == numbers([]) == []
