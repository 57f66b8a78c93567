"""The recipe that fits itself to whatever small images there are."""

import sys

import pytest
from PIL import Image

from vitrail.data.sources.open import Data
from vitrail.models.cost import parameters, tokens
from vitrail.optim.schedule import steps_of
from vitrail.recipes.fast import Look, fast, look_at


def photos(folder, sizes, mode="RGB"):
    """Two classes of noise, of these (width, height) in turn."""
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(12):
            noise = Image.merge("RGB", [Image.effect_noise(sizes[index % len(sizes)], 64) for _ in "RGB"])
            noise.convert(mode).save(folder / name / f"{index}.png")
    return str(folder)


def test_small_images_of_one_size_keep_it_and_others_become_a_square(tmp_path):
    run = fast(photos(tmp_path / "small", [(40, 30)]))
    assert (run.model.image_size, run.model.channels, run.model.grid((30, 40))) == ((30, 40), 3, (4, 4))
    for name, sizes in (("mixed", [(40, 30), (30, 40)]), ("large", [(100, 100)])):
        run = fast(photos(tmp_path / name, sizes))
        assert (run.model.image_size, run.augment.crop, tokens(run.model, (96, 96))) == ((96, 96), "inception", 37)


def test_grey_files_make_a_grey_model(tmp_path):
    assert look_at(Data(photos(tmp_path / "grey", [(20, 20)], "L"))) == Look((20, 20), 1, 22)
    assert parameters(fast("fashion").model) == 803_338
    mixed = tmp_path / "mixed"
    photos(mixed, [(20, 20)], "L")
    for file in (mixed / "cat" / "0.png", *(mixed / "dog").iterdir()):
        Image.new("RGB", (20, 20), "red").save(file)
    assert look_at(Data(str(mixed))).channels == 3


def test_unreadable_images_tell_nothing(tmp_path):
    folder = tmp_path / "bad"
    photos(folder, [(20, 20)])
    for name in ("0.png", "5.png"):
        (folder / "cat" / name).write_bytes(b"no image")
    assert look_at(Data(str(folder))) == Look((20, 20), 3, 22)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no image")
    assert look_at(Data(str(folder))) == Look(None, 3, 22)


@pytest.mark.parametrize(
    ("count", "epochs", "often"), [(60_000, 4, False), (50_000, 5, False), (11_000, 22, True), (500, 100, True)]
)
def test_few_images_are_seen_often_and_changed_more(monkeypatch, count, epochs, often):
    monkeypatch.setattr(sys.modules["vitrail.recipes.fast"], "look_at", lambda data: Look((32, 32), 3, count))
    run = fast("data")
    assert run.duration == f"{epochs} epochs"
    assert bool(run.augment.randaugment) == bool(run.augment.mixup) == often
    assert steps_of(run.duration, batch=run.batch, examples=count) > 100
    monkeypatch.setattr(sys.modules["vitrail.recipes.fast"], "look_at", lambda data: Look(None, 3, count))
    assert fast("data").duration == f"{max(3, min(100, round(150_000 / count)))} epochs"
