"""`vitrail data pack`: the same images, made small, in the same order; and all that can be wrong with a pack."""

import io
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command_line import printed, refused, status
from PIL import Image
from test_source import Tagged, boxes, targets

from vitrail.data import pack as module
from vitrail.data.images.augment import Augment
from vitrail.data.images.decode import decode
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.loader import Training, evaluation
from vitrail.data.pack import pack
from vitrail.data.sources.open import Data, find_splits, open_splits
from vitrail.data.sources.source import Arrays, Subset
from vitrail.data.sources.split import stratified
from vitrail.tasks import ClassifyConfig

MODEL = Preprocessing((48, 48), (0.5,) * 3, (0.5,) * 3)


def photo(height, width, seed):
    """Smooth, as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes in train and val, of many shapes; some are small, one is grey, one is turned by EXIF."""
    root = tmp_path_factory.mktemp("photos")
    shapes = [(150, 200), (200, 150), (64, 64), (40, 50), (300, 220), (160, 700)]
    for split, count in (("train", 12), ("val", 4)):
        for i in range(count):
            place = root / split / ("cat", "dög")[i % 2]
            place.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[0x0112] = 6 if i == 4 else 1
            image = photo(*shapes[i % 6], seed=i).convert("L" if i == 3 else "RGB")
            image.save(place / f"{i}.jpg", quality=95, exif=exif)
    return root


def found(place):
    return find_splits(Data(str(place)))


def packed(photos, tmp_path, **options):
    out = tmp_path / "small"
    return found(photos), pack(found(photos), out, 64, **options), out


def training(source, batch=6, **options):
    views, task = [Augment("inception", scale=(0.3, 1.0))], ClassifyConfig()
    return Training(source, MODEL, views, partial(task.collate, source=source), batch=batch, seed=3, **options)


def difference(a, b):
    return (a["images"].int() - b["images"].int()).abs().float().mean()


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_pack_has_the_same_records_in_the_same_order_made_small(photos, tmp_path, kind):
    before, done, out = packed(photos, tmp_path, kind=kind)
    after = found(out)
    assert (done.images, done.left_out) == ({"train": 12, "val": 4}, ())
    assert done.bytes == sum(file.stat().st_size for file in out.iterdir())
    assert list(after) == list(before)
    for split, source in after.items():
        assert (source.class_names, source.targets) == (before[split].class_names, "class")
        assert len(source) == len(before[split])
        for index in range(len(source)):
            content, target, name, size = source[index]
            original, *expected, _ = before[split][index]
            assert [target, name] == expected
            whole = decode(original)
            pixels = np.asarray(Image.open(io.BytesIO(content))) if kind == "jpeg" else content
            factor = min(1, 64 / min(whole.shape[:2]))
            assert pixels.shape == (int(whole.shape[0] * factor), int(whole.shape[1] * factor), 3)
            assert size == (None if factor == 1 else whole.shape[:2])
            if kind == "raw":
                assert not content.flags.writeable
                assert factor < 1 or np.array_equal(content, whole)


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_run_sees_the_same_images_as_from_the_originals(photos, tmp_path, kind):
    """Whether an image is remembered or not; a crop is drawn for the original's size."""
    before, _, out = packed(photos, tmp_path, kind=kind, quality=100)
    small = found(out)["train"]
    plain, fresh, kept = (
        training(source, remember=remember)
        for source, remember in ((before["train"], 0), (small, 0), (Subset(small, range(12)), 2**20))
    )
    steps = [[one[step].batch for one in (plain, fresh, kept)] for step in range(6)]
    for a, b, c in steps:
        assert a["targets"].tolist() == b["targets"].tolist()
        assert b["images"].equal(c["images"])
    # What is lost by shrinking and enlarging. Of crops that are drawn for the small image it is 1.27 and 1.34.
    assert np.mean([difference(a, b) for a, b, _ in steps]) < (1.15 if kind == "raw" else 1.2)
    assert bool(kept.images.known) == (kind == "jpeg")


def test_what_is_packed_again_is_no_larger_and_knows_the_original(photos, tmp_path):
    before, _, out = packed(photos, tmp_path)
    once = found(out)["train"]
    for size in (48, 80):
        pack(found(out), tmp_path / str(size), size)
        for index, example in enumerate(found(tmp_path / str(size))["train"]):
            assert min(example.image.shape[:2]) == min(size, *once[index].image.shape[:2])
            assert (example.size or example.image.shape[:2]) == decode(before["train"][index].image).shape[:2]


@pytest.mark.parametrize(("kind", "levels"), [("raw", 0.05), ("jpeg", 3)])
def test_an_evaluation_that_shrinks_to_that_size_sees_the_same_pixels(photos, tmp_path, kind, levels):
    before, _, out = packed(photos, tmp_path, kind=kind)
    how = Preprocessing((56, 56), (0.5,) * 3, (0.5,) * 3, "crop", 0.875, "bicubic")
    batches = zip(*(evaluation(splits["train"], how, batch=4) for splits in (before, found(out))), strict=True)
    assert all(difference(a, b) < levels for a, b in batches)


def test_the_same_images_are_for_validation(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 1), np.uint8)
    source = Arrays(images, np.arange(40) % 3, ("a", "b", "c"), "grey")
    pack({"all": source}, tmp_path / "out")
    assert all(np.array_equal(example.image, images[i]) for i, example in enumerate(found(tmp_path / "out")["all"]))
    splits = open_splits(Data(str(tmp_path / "out"), val_fraction=0.25))
    assert len(splits.train) == 30
    val = stratified(source, 0.25, 0)[1]
    assert [splits.val.name(i) for i in range(10)] == [val.name(i) for i in range(len(val))]


class Several(Tagged):
    """Images with odd names."""

    def __getitem__(self, index):
        return super().__getitem__(index)._replace(image=np.zeros((3, 3, 3), np.uint8))

    def name(self, index):
        return f"m\u00f6we\udcff {index}"


def test_targets_and_odd_names_are_kept(tmp_path):
    source = Several((), (0,), (0, 2), None)
    pack({"train": source, "test": Several(None, None, targets="none")}, tmp_path / "out")
    again = found(tmp_path / "out")
    assert {split: one.targets for split, one in again.items()} == {"train": "classes", "test": "none"}
    assert targets(again["train"]) == [*source.values]
    assert targets(again["test"]) == [None, None]
    assert again["train"][3].name == source.name(3)
    with pytest.raises(ValueError, match="boxes and masks"):
        pack({"all": Several(boxes(1), targets="boxes")}, tmp_path / "boxes")


def test_an_image_that_cannot_be_read_is_named_or_left_out(photos, tmp_path):
    place = tmp_path / "photos"
    shutil.copytree(photos, place)
    bad = place / "train" / "cat" / "0.jpg"
    bad.write_bytes(bad.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"0\.jpg is cut short or damaged .* --unreadable skip"):
        pack(found(place), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    done = pack(found(place), tmp_path / "out", unreadable="skip")
    assert done.images == {"train": 11, "val": 4}
    assert [str(bad) in problem for problem in done.left_out] == [True]
    assert json.loads((tmp_path / "out" / "pack.json").read_text())["left_out"] == list(done.left_out)


def test_what_cannot_be_written_leaves_nothing(photos, tmp_path, monkeypatch):
    for numbers in ({"size": 0}, {"quality": 101}):
        with pytest.raises(ValueError, match="must be 1 or more, and from 1 to 100"):
            pack(found(photos), tmp_path / "out", **numbers)
    with pytest.raises(ValueError, match=f"{tmp_path} exists already"):
        pack(found(photos), tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**28 + 1000)
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(ValueError, match=r"about 0\.0 GiB, and 0\.0 GiB are free; .* or --kind jpeg"):
            pack(found(photos), tmp_path / "out")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "prefetch", full)
    with pytest.raises(ValueError, match=r"out cannot be written .*No space left on device"):
        pack(found(photos), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def lie(path):
    index = np.fromfile(path, np.int64).reshape(-1, 8)
    index[2, 3] += 1
    index.tofile(path)


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("val.targets", cut, "val.targets is cut short or damaged: it has 3 entries, not 4"),
        ("val.index", cut, "val.index is not of 4 images"),
        ("val.index", lie, "val.index is damaged at image 2"),
        ("val.names", Path.unlink, "val.names cannot be read"),
        ("pack.json", lambda path: path.write_text('{"version": 1}'), "pack.json is of version 1"),
        ("pack.json", lambda path: path.write_text('{"version": 2, "splits": 3}'), "pack.json"),
    ],
)
def test_a_damaged_pack_is_named(photos, tmp_path, file, damage, words):
    _, _, out = packed(photos, tmp_path)
    damage(out / file)
    with pytest.raises(ValueError, match=words):
        found(out)["val"][2]


def test_the_command_says_what_it_made(photos, tmp_path, capsys):
    out = str(tmp_path / "small")
    assert status("data", "pack", photos, out, "--size", "64") == 0
    said = capsys.readouterr().out
    assert f"{out} has 12 train, 4 val images" in said
    assert "exists already" in refused(capsys, "data", "pack", photos, out)
    document, _ = printed(capsys, "data", "pack", photos, tmp_path / "again", "--size", "64")
    assert document["images"] == {"train": 12, "val": 4}
    assert document["bytes"] == sum(file.stat().st_size for file in Path(out).iterdir())
