"""The contest of time to accuracy: what runs, in which order, and what the table says of it."""

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import write_mnist
from PIL import Image

from benchmarks import fast
from benchmarks.fast import SETTINGS, Job, run_all, summary, text
from benchmarks.machine import describe
from vitrail.data.sources.open import Data, open_splits


def job(folder, name, accuracy, seed=0, code=""):
    says = f"import json; print(json.dumps({{'metrics': {{'accuracy': {accuracy}}}}})); {code}"
    return Job(name, seed, [sys.executable, "-c", says], folder / f"{name}-{seed}.out")


def test_jobs_run_on_every_core_and_end_with_their_accuracy(tmp_path):
    jobs = [job(tmp_path, "fast", 0.9, seed) for seed in range(3)] + [job(tmp_path, "bad", 0, code="1 / 0")]
    run_all(jobs, [None, None])
    assert [one.accuracy for one in jobs] == [0.9, 0.9, 0.9, None]
    assert "ZeroDivisionError" in jobs[3].error
    assert all(one.seconds > 0 for one in jobs)


def test_the_table_puts_fast_beside_each_peer():
    jobs = [Job("timm", 0, [], Path(), 1200.0, 0.86)]
    jobs += [Job("bare, 400 s", seed, [], Path(), 400.0 + seed, 0.87) for seed in range(3)]
    jobs += [Job("fast, 2 epochs", seed, [], Path(), 200.0, 0.88 + seed / 100) for seed in range(3)]
    found = summary(jobs)
    assert [row["runner"] for row in found] == ["timm", "bare, 400 s", "fast, 2 epochs"]
    assert found[2]["median"] == pytest.approx(0.89)
    said = text({"machine": describe(), "summary": found, "settings": {"side_by_side": True}, "jobs": []})
    assert "0.17 of its time, +3.00 points" in said
    assert "0.50 of its time, +2.00 points" in said


def test_every_runner_is_there_and_the_peers_train_one_model(tmp_path):
    data = tmp_path / "data"
    for name in ("train", "test"):
        (data / name / "a").mkdir(parents=True)
    words = ["cifar10", "--data", str(data), "--timm-script", "train.py", "--seeds", "1", "2"]
    options = parsed(words)
    jobs = fast.jobs_of(options, tmp_path)
    assert [(one.name, one.seed) for one in jobs] == [
        ("timm", 0),
        ("bare, 400 s", 1),
        *((f"fast, {d}", 1) for d in SETTINGS["cifar10"].durations),
        ("bare, 400 s", 2),
        *((f"fast, {d}", 2) for d in SETTINGS["cifar10"].durations),
    ]
    assert "embed_dim=128" in jobs[0].command
    assert SETTINGS["cifar10"].shape.vitrail().width == 128


def parsed(words):
    return fast.parser().parse_args(words)


def test_the_bare_loop_learns_for_as_long_as_it_may(monkeypatch):
    seconds = itertools.count()  # one passes in each step, however long it takes
    monkeypatch.setattr(fast, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert 0.4 < fast.bare("fashion_mnist", "fashion", 60.0, 0) <= 1
    assert next(seconds) == 61


def test_the_worker_prints_json(monkeypatch, capsys):
    monkeypatch.setattr(fast, "bare", lambda name, data, seconds, seed: seconds / 100 + seed)
    assert fast.main(["--worker", "fashion_mnist", "x", "50", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == {"accuracy": 3.5}


def test_what_is_missing_is_said_in_a_sentence(tmp_path, capsys):
    assert fast.main(["cifar10", "--data", str(tmp_path / "none"), "--seeds", "0"]) == 2
    assert capsys.readouterr().err.startswith("benchmarks.fast: ")


def test_mnists_files_become_folders_of_the_same_images(tmp_path):
    data = open_splits(Data(str(write_mnist(tmp_path / "mnist"))))
    folder = fast.folders(tmp_path / "mnist", tmp_path / "folders", 1)
    for split, source in (("train", data.train), ("test", data.val)):
        assert len(list((folder / split).rglob("*.png"))) == len(source)
        pixels, target, _ = source[3]
        with Image.open(folder / split / f"{target:03d}" / "000003.png") as image:
            assert np.array_equal(np.asarray(image), pixels[..., 0])
