"""`vitrail data pack`: the same images, made small, in the same order; and all that can be wrong with a pack."""

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import printed, refused, status
from PIL import Image

from vitrail.data import pack as module
from vitrail.data.images.augment import Augment
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.loader import Training, evaluation, stream
from vitrail.data.pack import pack
from vitrail.data.sources.open import Data, find_splits, open_splits
from vitrail.data.sources.source import Arrays, Subset, part_pixels
from vitrail.data.sources.split import stratified

MODEL = Preprocessing((48, 48), (0.5,) * 3, (0.5,) * 3)


def picture(height, width, seed):
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
            image = picture(*shapes[i % 6], seed=i).convert("L" if i == 3 else "RGB")
            image.save(place / f"{i}.jpg", quality=95, exif=exif)
    return root


def packed(photos, tmp_path, **options):
    out = tmp_path / "small"
    return find_splits(Data(str(photos))), pack(find_splits(Data(str(photos))), out, 64, **options), out


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_pack_has_the_same_records_in_the_same_order_made_small(photos, tmp_path, kind):
    before, done, out = packed(photos, tmp_path, kind=kind)
    after = find_splits(Data(str(out)))
    assert done.images == {"train": 12, "val": 4}
    assert done.left_out == ()
    assert done.bytes == sum(file.stat().st_size for file in out.iterdir())
    assert list(after) == list(before)
    for split, source in after.items():
        assert source.class_names == before[split].class_names
        assert len(source) == len(before[split])
        assert not source.multi_label
        for index in range(len(source)):
            content, target, name = source[index]
            original, expected, words = before[split][index]
            assert (target, name) == (expected, words) == (source.target(index), source.name(index))
            with Image.open(io.BytesIO(original)) as image:
                turned = image.getexif().get(0x0112) == 6
                height, width = image.size if turned else image.size[::-1]
            found = np.asarray(Image.open(io.BytesIO(content))) if kind == "jpeg" else content
            factor = min(1, 64 / min(height, width))
            assert found.shape == (int(height * factor), int(width * factor), 3)


def test_small_images_stay_as_they_are(photos, tmp_path):
    from vitrail.data.images.decode import decode

    before, _, out = packed(photos, tmp_path)
    source = find_splits(Data(str(out)))["train"]
    for index in range(12):
        whole = decode(before["train"][index][0])
        if min(whole.shape[:2]) <= 64:
            assert np.array_equal(source[index][0], whole)
        assert not source[index][0].flags.writeable


def test_a_run_sees_the_same_images_as_from_the_originals(photos, tmp_path):
    _, _, out = packed(photos, tmp_path)
    plain, small = (open_splits(Data(str(place)))[0] for place in (photos, out))
    how = {"how": MODEL, "augment": Augment("inception", scale=(0.3, 1.0)), "batch": 6, "seed": 3}
    for step in range(6):
        a, b = (Training(source, **how)[step].batch for source in (plain, small))
        assert a["targets"].tolist() == b["targets"].tolist()
        # Of images of 64 pixels: half a pixel of the crop's place, and what is lost by shrinking and enlarging.
        assert (a["images"].int() - b["images"].int()).abs().float().mean() < 4


def difference(a, b):
    return (a["images"].int() - b["images"].int()).abs().float().mean()


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_crop_is_drawn_for_the_original_whether_an_image_is_remembered_or_not(photos, tmp_path, kind):
    """Of version 1, which has not the originals' sizes, the same numbers show another part, by the size's rounding."""
    before, _, out = packed(photos, tmp_path, kind=kind, quality=100)
    how = {"how": MODEL, "augment": Augment("inception"), "batch": 12, "seed": 3}
    small = find_splits(Data(str(out)))["train"]
    plain, fresh, kept = (
        Training(source, **how, remember=remember)
        for source, remember in ((before["train"], 0), (small, 0), (Subset(small, range(12)), 2**20))
    )
    found = [[one[step].batch for one in (plain, fresh, kept)] for step in range(6)]
    assert all(a["images"].equal(b["images"]) for _, a, b in found)
    assert bool(kept.images.known) == (kind == "jpeg")
    (out / "pack.json").write_text((out / "pack.json").read_text().replace('"version": 2', '"version": 1'))
    index = np.fromfile(out / "train.index", np.int64).reshape(-1, 8)[:, :6]
    index.tofile(out / "train.index")
    np.fromfile(out / "val.index", np.int64).reshape(-1, 8)[:, :6].tofile(out / "val.index")
    old = Training(find_splits(Data(str(out)))["train"], **how)
    new = np.mean([difference(a, b) for a, b, _ in found])
    assert new < 0.9 * np.mean([difference(found[step][0], old[step].batch) for step in range(6)])


def test_what_is_packed_again_is_no_larger_and_knows_the_original(photos, tmp_path):
    before, _, out = packed(photos, tmp_path)
    for size in (48, 80):
        pack(find_splits(Data(str(out))), tmp_path / str(size), size)
        again = find_splits(Data(str(tmp_path / str(size))))["train"]
        for index in range(12):
            pixels, once = again[index][0], find_splits(Data(str(out)))["train"][index][0]
            assert min(pixels.shape[:2]) == min(size, *once.shape[:2])
            original = part_pixels(before["train"][index][0], lambda size: None, 3, "")[1]
            assert part_pixels(pixels, lambda size: None, 3, "")[1] == original


@pytest.mark.parametrize(("kind", "levels"), [("raw", 0.05), ("jpeg", 3)])
def test_an_evaluation_that_shrinks_to_that_size_sees_the_same_pixels(photos, tmp_path, kind, levels):
    before, _, out = packed(photos, tmp_path, kind=kind)
    after = find_splits(Data(str(out)))
    how = Preprocessing((56, 56), (0.5,) * 3, (0.5,) * 3, "crop", 0.875, "bicubic")
    batches = zip(*(evaluation(found["train"], how=how, batch=4) for found in (before, after)), strict=True)
    for a, b in batches:
        assert (a["images"].int() - b["images"].int()).abs().float().mean() < levels


def test_every_process_opens_it_for_itself(photos, tmp_path):
    _, _, out = packed(photos, tmp_path)
    source = open_splits(Data(str(out)))[0]
    assert np.array_equal(pickle.loads(pickle.dumps(source))[5][0], source[5][0])
    assert len(pickle.dumps(source)) < 2000
    training = Training(source, MODEL, Augment("inception"), batch=4, seed=0)
    alone, together = ([batch["images"] for batch in stream(training, range(6), workers)] for workers in (0, 2))
    assert all(a.equal(b) for a, b in zip(alone, together, strict=True))


def test_the_same_images_are_held_back(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 1), np.uint8)
    source = Arrays(images, np.arange(40) % 3, ("a", "b", "c"), "grey")
    pack({"all": source}, tmp_path / "out")
    found = find_splits(Data(str(tmp_path / "out")))["all"]
    assert all(np.array_equal(found[i][0], images[i]) for i in range(40))
    train, val = open_splits(Data(str(tmp_path / "out"), val_fraction=0.25))
    assert len(train) == 30
    held_back = stratified(source, 0.25, 0)[1]
    assert [val.name(i) for i in range(len(val))] == [held_back.name(i) for i in range(len(held_back))]


class Several:
    """Images with none, one or two labels, and one of which they are unknown."""

    LABELS = ((), (0,), (0, 2), -1)
    class_names = ("a", "b", "c")
    multi_label = True

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return np.zeros((3, 3, 3), np.uint8), self.target(index), self.name(index)

    def target(self, index):
        return self.LABELS[index]

    def name(self, index):
        return f"m\u00f6we\udcff {index}"


def test_several_labels_and_odd_names_are_kept(tmp_path):
    source = Several()
    pack({"train": source}, tmp_path / "out")
    found = find_splits(Data(str(tmp_path / "out")))["train"]
    assert found.multi_label
    assert [found.target(i) for i in range(4)] == list(Several.LABELS)
    assert [found[i][2] for i in range(4)] == [source.name(i) for i in range(4)]
    with pytest.raises(IndexError, match="images 0 to 3, but 4"):
        found[4]


def test_an_image_that_cannot_be_read_is_named_or_left_out(photos, tmp_path):
    place = tmp_path / "photos"
    shutil.copytree(photos, place)
    bad = place / "train" / "cat" / "0.jpg"
    bad.write_bytes(bad.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"0\.jpg is cut short or damaged .* --unreadable skip leaves such images out"):
        pack(find_splits(Data(str(place))), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]
    done = pack(find_splits(Data(str(place))), tmp_path / "out", unreadable="skip")
    assert done.images == {"train": 11, "val": 4}
    assert [str(bad) in problem for problem in done.left_out] == [True]
    assert json.loads((tmp_path / "out" / "pack.json").read_text())["left_out"] == list(done.left_out)


def test_a_disk_that_is_too_small_or_full_loses_nothing(photos, tmp_path, monkeypatch):
    splits = find_splits(Data(str(photos)))
    usage = shutil.disk_usage(tmp_path)._replace(free=2**28 + 1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"would need about 0\.0 GiB, and 0\.0 GiB are free; .* or --kind jpeg"):
        pack(splits, tmp_path / "out")
    monkeypatch.undo()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(ValueError, match=r"cannot be written .*No space left on device.*; nothing is left of it"):
        pack(splits, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_numbers_out_of_range_and_a_folder_that_exists_are_refused(photos, tmp_path):
    splits = find_splits(Data(str(photos)))
    for numbers in ({"size": 0}, {"quality": 101}):
        with pytest.raises(ValueError, match="must be 1 or more, and from 1 to 100"):
            pack(splits, tmp_path / "out", **numbers)
    with pytest.raises(ValueError, match="exists already"):
        pack(splits, tmp_path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("train.images", cut, "train.images is cut short or damaged: it has"),
        ("train.names", cut, "train.names is cut short or damaged: it has"),
        ("val.targets", cut, "val.targets is cut short or damaged: it has 3 entries, not 4"),
        ("val.index", cut, "val.index is not of 4 images"),
        ("val.names", Path.unlink, "val.names cannot be read"),
        ("pack.json", cut, "pack.json does not describe a packed data set"),
        ("pack.json", lambda path: path.write_text('{"version": 3}'), "pack.json is of version 3"),
        ("pack.json", lambda path: path.write_text('{"version": 1, "splits": 3}'), "pack.json does not describe"),
    ],
)
def test_a_damaged_pack_is_named(photos, tmp_path, file, damage, words):
    _, _, out = packed(photos, tmp_path)
    damage(out / file)
    with pytest.raises(ValueError, match=words):
        find_splits(Data(str(out)))


def test_an_index_that_lies_is_named(photos, tmp_path):
    _, _, out = packed(photos, tmp_path)
    index = np.fromfile(out / "val.index", np.int64).reshape(-1, 8)
    index[2, 3] += 1
    index.tofile(out / "val.index")
    with pytest.raises(ValueError, match=r"val\.index is damaged at image 2"):
        find_splits(Data(str(out)))["val"][2]


def test_the_command_says_what_it_made(photos, tmp_path, capsys):
    out = str(tmp_path / "small")
    assert status("data", "pack", photos, out, "--size", "64") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{out} has 12 train, 4 val images in ")
    assert said.rstrip().endswith(f"use it in place of {photos}.")
    assert "exists already" in refused(capsys, "data", "pack", photos, out)
    document, _ = printed(capsys, "data", "pack", photos, tmp_path / "again", "--size", "64")
    assert document["images"] == {"train": 12, "val": 4}
    assert document["bytes"] == sum(file.stat().st_size for file in Path(out).iterdir())
