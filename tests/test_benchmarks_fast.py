"""The contest of time to accuracy: what runs, in which order, and what the table says of it."""

import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from command_line import write_mnist
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks import fast
from benchmarks.fast import SETTINGS
from benchmarks.jobs import Job, printed, run_all
from vitrail.data.sources.open import Data, open_splits


def job(folder, name, seed=0, code=""):
    says = f"import json; print(json.dumps({{'metrics': {{'accuracy': 0.9}}}})); {code}"
    return Job(name, seed, [sys.executable, "-c", says], folder / f"{name}-2.2-{seed}", printed)


def test_jobs_run_on_every_core_and_end_with_their_accuracy(tmp_path):
    jobs = [job(tmp_path, "fast", seed) for seed in range(3)] + [job(tmp_path, "bad", code="1 / 0")]
    run_all(jobs, [[], []])
    assert [one.curve for one in jobs] == [*(3 * [[(0, 0.9)]]), []]
    assert "ZeroDivisionError" in jobs[3].record()["errors"]["bad, seed 0"]
    assert all(one.seconds > 0 for one in jobs)


def test_the_table_puts_fast_beside_each_peer_seed_by_seed():
    def record(name, seed, seconds, accuracy):
        return {"runner": name, "seed": seed, "seconds": seconds, "curve": [(0, accuracy)]}

    records = [record("timm", 0, 1200.0, 0.86)]
    records += [record("bare, 400 s", seed, 400.0 + seed, 0.87) for seed in range(3)]
    records += [record("fast, 2 epochs", seed, 200.0, 0.88 + seed / 100) for seed in range(3)]
    said = fast.text([*records, {**record("fast, 3 epochs", 0, 9.0, 0.0), "curve": []}])
    assert "not measured (1 of 3 rounds, spread 0.167 to 0.167) of its time, +3.00 points" in said
    assert "0.499 (0.498 to 0.500) of its time, +2.00 points" in said
    assert "3 epochs" not in said


def test_every_runner_is_there_and_the_peers_train_one_model(tmp_path):
    data = tmp_path / "data"
    for name in ("train", "test"):
        (data / name / "a").mkdir(parents=True)
    options = fast.parser().parse_args(["cifar10", "--data", str(data), "--timm-script", __file__, "--seeds", "1", "2"])
    jobs = fast.jobs_of(options, tmp_path)
    ours = [f"fast, {duration}" for duration in SETTINGS["cifar10"].durations]
    both = [(name, seed) for seed in (1, 2) for name in ("bare, 400 s", *ours)]
    assert [(one.name, one.seed) for one in jobs] == [("timm", 0), *both]
    assert "embed_dim=128" in jobs[0].command


def test_the_bare_loop_learns_for_as_long_as_it_may(monkeypatch):
    seconds = itertools.count()  # one passes in each step, however long it takes
    monkeypatch.setattr(fast, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert 0.4 < fast.bare("fashion_mnist", "fashion", 60.0, 0) <= 1
    assert next(seconds) == 61


def test_the_worker_prints_json_and_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fast, "bare", lambda name, data, seconds, seed: seconds / 100 + seed)
    assert fast.main(["--worker", "fashion_mnist", "x", "50", "3"]) == 0
    assert json.loads(capsys.readouterr().out) == {"accuracy": 3.5}
    assert fast.main(["cifar10", "--data", str(tmp_path / "none"), "--seeds", "0"]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_mnists_files_become_folders_of_the_same_images(tmp_path):
    data = open_splits(Data(str(write_mnist(tmp_path / "mnist"))))
    folder = fast.folders(tmp_path / "mnist", tmp_path / "folders", SETTINGS["fashion_mnist"].recipe)
    for split, source in (("train", data.train), ("test", data.val)):
        assert len(list((folder / split).rglob("*.png"))) == len(source)
        example = source[3]
        with Image.open(folder / split / f"{example.target:03d}" / "000003.png") as image:
            assert np.array_equal(np.asarray(image), np.asarray(example.image)[..., 0])
