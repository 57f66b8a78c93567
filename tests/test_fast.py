"""The recipe that fits itself to whatever small images there are."""

import sys

import numpy as np
import pytest
from command_line import printed, write_mnist
from PIL import Image

from vitrail.data.sources.open import open_splits
from vitrail.models.cost import parameters, tokens
from vitrail.optim.schedule import steps_of
from vitrail.recipes.fast import Look, fast, look_at


def photos(folder, sizes, mode="RGB", per_class=12):
    """Two classes of noise, of these (width, height) in turn."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            width, height = sizes[index % len(sizes)]
            noise = random.integers(0, 256, (height, width, 3), np.uint8)
            Image.fromarray(noise).convert(mode).save(folder / name / f"{index}.png")
    return str(folder)


def test_the_packaged_images_are_small_and_grey():
    assert look_at("fashion") == Look((28, 28), 1, 11_000)
    run = fast("fashion")
    assert (run.model.image_size, run.model.patch_size, run.model.channels) == ((28, 28), (7, 7), 1)
    assert parameters(run.model) == 803_338
    assert run.optim.name == "muon"
    assert run.preprocessing.image_size == run.model.image_size


def test_small_images_of_one_size_keep_it(tmp_path):
    run = fast(photos(tmp_path / "small", [(40, 30)]))
    assert (run.model.image_size, run.model.channels) == ((30, 40), 3)
    assert run.model.grid(run.model.image_size) == (4, 4)


@pytest.mark.parametrize("sizes", [[(40, 30), (30, 40)], [(100, 100)]])
def test_others_become_a_square(tmp_path, sizes):
    run = fast(photos(tmp_path / "large", sizes))
    assert (run.model.image_size, run.model.channels) == ((96, 96), 3)
    assert run.augment.crop == "inception"
    assert tokens(run.model, (96, 96)) == 37


def test_grey_files_make_a_grey_model(tmp_path):
    assert look_at(photos(tmp_path / "grey", [(20, 20)], "L")) == Look((20, 20), 1, 22)
    mixed = tmp_path / "mixed"
    photos(mixed, [(20, 20)], "L")
    Image.fromarray(np.full((20, 20, 3), (255, 0, 0), np.uint8)).save(mixed / "cat" / "0.png")
    for index in range(12):
        Image.fromarray(np.full((20, 20, 3), (255, 0, 0), np.uint8)).save(mixed / "dog" / f"{index}.png")
    assert look_at(str(mixed)).channels == 3


def test_unreadable_images_tell_nothing(tmp_path):
    folder = tmp_path / "bad"
    photos(folder, [(20, 20)])
    for name in ("0.png", "5.png"):
        (folder / "cat" / name).write_bytes(b"no image")
    assert look_at(str(folder)) == Look((20, 20), 3, 22)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no image")
    assert look_at(str(folder)) == Look(None, 3, 22)


@pytest.mark.parametrize(
    ("count", "epochs", "often"), [(60_000, 4, False), (50_000, 5, False), (11_000, 22, True), (500, 100, True)]
)
def test_few_images_are_seen_often_and_changed_more(monkeypatch, count, epochs, often):
    monkeypatch.setattr(sys.modules["vitrail.recipes.fast"], "look_at", lambda data: Look((32, 32), 3, count))
    run = fast("data")
    assert run.duration == f"{epochs} epochs"
    assert bool(run.augment.randaugment) == bool(run.augment.mixup) == often
    assert steps_of(run.duration, batch=run.batch, examples=count) > 100


def test_data_that_is_not_there_is_said_when_it_is_opened(tmp_path):
    run = fast(str(tmp_path / "none"))
    assert run.model.image_size == (32, 32)
    with pytest.raises(ValueError, match="does not exist"):
        open_splits(run.data)


def test_train_without_a_recipe_is_fast(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "mnist")
    result, err = printed(capsys, "train", "--data", "mnist", "--duration", "2 steps", "--model.depth", "1")
    assert result["run"] == "runs/fast"
    assert "fast: " in err
