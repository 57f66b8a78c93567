"""A Run is written once, never overwritten, and read back equal."""

import json
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest

from vitrail import run as runs
from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import resnet, vit
from vitrail.recipes.demo import demo

DATA = {"train": {"images": 10_000, "classes": ["cat", "dog"], "pixels": "ab"}}
THREE = Preprocessing((28, 28), (0.5,) * 3, (0.5,) * 3)


def test_a_package_that_lies_there_without_being_installed_has_a_version(monkeypatch):
    monkeypatch.setattr(runs, "PACKAGES", ("numpy", "no-such-package"))
    assert runs.versions() == {"numpy": np.__version__, "no-such-package": "source"}


def test_a_hybrid_run_is_read_back_equal_and_never_overwritten(tmp_path):
    model = vit.Config(patch_size=(1, 1), stem=resnet.Config(blocks=(1, 2), classes=0), layer_scale=1e-5)
    run, path = replace(demo(), model=model, preprocessing=THREE), tmp_path / "a" / "b"
    runs.write(run, path)
    assert runs.read(path) == run
    record = json.loads((path / "run.json").read_text())
    assert set(record["versions"]) == {"torch", "numpy", "pillow", "vitrail"}
    assert record["machine"]["cores"] >= 1
    with pytest.raises(ValueError, match=r"exists already; continue it with `vitrail resume .*b`"):
        runs.write(demo(seed=1), path)
    with pytest.raises(ValueError, match="exists already; name another folder"):
        runs.write(demo(), tmp_path)
    assert runs.read(path) == run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a run folder: it has no run.json"),
        ("{", "run.json is damaged"), ("[]", "is damaged"), ('{"run": {"recipe": "demo"}}', "is damaged"),
        ('{"run": {"recipe": "demo", "colour": 1}}', "has no field colour"),
    ],
)  # fmt: skip
def test_a_damaged_run_json_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        runs.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch is 0"), ({"keep": 0}, "keep is 0"), ({"workers": -1}, "workers is -1"),
        ({"micro_batch": 129}, "micro_batch is 129; it must be from 1 to the batch of 128"),
        ({"micro_batch": 0}, "micro_batch is 0"), ({"ema": 1.0}, "ema is 1.0"), ({"seed": 2**64}, "seed is 18446744"),
        ({"batch": 1, "augment": Augment(mixup=0.2)}, "mixed in pairs, but the batch is 1"),
        ({"preprocessing": THREE}, "3 channels, the model reads 1"),
    ],
)  # fmt: skip
def test_a_run_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(demo(), **change)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({"images": 10_001}, ["the train images (10,000 before, 10,001 now)"]),
        ({"classes": ["cat", "cow"]}, ["the train classes (gone: dog; new: cow)"]),
        ({"pixels": "cd"}, ["the train pixels (differ)"]),
    ],
)
def test_what_has_changed_of_data_code_and_packages_is_said(tmp_path, monkeypatch, now, words):
    runs.write(demo(), folder := tmp_path / "run", DATA)
    assert runs.changes(folder, DATA) == ([], [])
    assert runs.changes(folder, {"train": {**DATA["train"], **now}}) == (words, [])
    monkeypatch.setattr(runs, "version", lambda name: "9.9" if name == "torch" else version(name))
    monkeypatch.setattr(runs, "code", lambda: "other")
    code = [f"torch ({version('torch')} before, 9.9 now)", "the code of vitrail"]
    assert runs.changes(folder, DATA) == ([], code)
