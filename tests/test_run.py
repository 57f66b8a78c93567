"""A Run is written once, never overwritten, and read back equal."""

import json
from dataclasses import replace
from importlib.metadata import version

import pytest

from vitrail import run as runs
from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import resnet, vit
from vitrail.optim.build import Config
from vitrail.optim.rules import Rule
from vitrail.recipes.demo import demo


def test_a_run_is_read_back_equal(tmp_path):
    run = replace(
        demo(seed=3, duration="7 steps"), optim=Config(rules=(Rule("head", lr=2.0),), clip=None, layer_decay=0.7)
    )
    runs.write(run, tmp_path / "a" / "b")
    assert runs.read(tmp_path / "a" / "b") == run


def test_a_hybrid_run_is_read_back_equal(tmp_path):
    model = vit.Config(patch_size=(1, 1), stem=resnet.Config(blocks=(1, 2), classes=0), layer_scale=1e-5)
    run = replace(demo(), model=model, preprocessing=Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3))
    runs.write(run, tmp_path / "run")
    assert runs.read(tmp_path / "run") == run


def test_run_json_tells_versions_and_machine(tmp_path):
    runs.write(demo(), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(record["versions"]) == {"torch", "numpy", "pillow", "vitrail"}
    assert record["run"]["seed"] == 0
    assert record["machine"]["cores"] >= 1


def test_a_folder_that_exists_is_left_alone(tmp_path):
    runs.write(demo(), tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"exists already; continue it with `vitrail resume .*run`"):
        runs.write(demo(seed=1), tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    with pytest.raises(ValueError, match="exists already; name another folder"):
        runs.write(demo(), tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a run folder: it has no run.json"),
        ("{", "run.json is damaged"),
        ("[]", "run.json is damaged"),
        ('{"run": {"recipe": "demo"}}', "run.json is damaged"),
        ('{"run": {"recipe": "demo", "colour": 1}}', "has no field colour"),
    ],
)
def test_a_damaged_run_json_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        runs.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"keep": 0}, "keep is 0"),
        ({"log_every": 0}, "log_every is 0"),
        ({"micro_batch": 129}, "micro_batch is 129; it must be from 1 to the batch of 128"),
        ({"micro_batch": 0}, "micro_batch is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"ema": 1.0}, "ema is 1.0; it must be 0"),
        ({"seed": 2**64}, "seed is"),
        ({"batch": 1, "augment": Augment(mixup=0.2)}, "mixed in pairs, but the batch is 1"),
        ({"preprocessing": Preprocessing((28, 28), (0.5,) * 3, (0.5,) * 3)}, "3 channels, the model reads 1"),
    ],
)
def test_a_run_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(demo(), **change)


DATA = {"train": {"images": 10_000, "classes": ["cat", "dog"], "pixels": "ab"}}


def test_nothing_has_changed_right_after_the_start(tmp_path):
    runs.write(demo(), tmp_path / "run", DATA)
    assert runs.changes(tmp_path / "run", DATA) == ([], [])


@pytest.mark.parametrize(
    ("name", "now", "words"),
    [
        ("images", 10_001, "the train images (10,000 before, 10,001 now)"),
        ("classes", ["cat", "cow"], "the train classes (gone: dog; new: cow)"),
        ("pixels", "cd", "the train pixels (differ)"),
    ],
)
def test_what_has_changed_of_the_data_is_said(tmp_path, name, now, words):
    runs.write(demo(), tmp_path / "run", DATA)
    assert runs.changes(tmp_path / "run", {"train": {**DATA["train"], name: now}}) == ([words], [])


def test_what_has_changed_of_code_and_packages_is_said(tmp_path, monkeypatch):
    runs.write(demo(), tmp_path / "run", DATA)
    monkeypatch.setattr(runs, "version", lambda name: "9.9" if name == "torch" else version(name))
    monkeypatch.setattr(runs, "code", lambda: "other")
    data, code = runs.changes(tmp_path / "run", DATA)
    assert data == []
    assert code == [f"torch ({version('torch')} before, 9.9 now)", "the code of vitrail"]
