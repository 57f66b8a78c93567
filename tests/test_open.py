"""The door to the data: the right source for a place, which images are for validation, and who is refused."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from test_cifar import files as cifar_files
from test_cifar import write as write_cifar
from test_source import Tagged, arrays, boxes, mask

from vitrail.config import attribute
from vitrail.data.sources import huggingface, open, table, tar
from vitrail.data.sources.mnist import fashion
from vitrail.data.sources.open import Data, find_splits, open_source, open_splits
from vitrail.data.sources.source import Found, counts


@pytest.fixture
def photos(tmp_path):
    """Makes `photos(train={"cats": 3})`: 3 files in train/cats; split "whole" has no folder of its own."""

    def photos(name="photos", **splits):
        for split, classes in splits.items():
            for label, count in classes.items():
                folder = tmp_path / name / ("" if split == "whole" else split) / label
                folder.mkdir(parents=True, exist_ok=True)
                for number in range(count):
                    (folder / f"{number}.jpg").write_text(f"{split} {label} {number}")
        return str(tmp_path / name)

    return photos


@pytest.fixture
def seen(monkeypatch):
    """Which of the readers that have files of their own was asked, and for what."""
    calls = []
    for module, name in ((huggingface, "splits"), (huggingface, "parquet"), (tar, "splits"), (table, "splits")):
        said = f"{module.__name__.rpartition('.')[2]} {name}"
        monkeypatch.setattr(module, name, lambda *asked, said=said: calls.append((said, *asked)) or {"all": arrays([])})
    return calls


def names(source):
    return [source.name(index) for index in range(len(source))]


def test_the_packaged_images_are_the_default_whatever_lies_in_the_folder(tmp_path, monkeypatch, photos):
    photos("fashion", whole={"cats": 20, "dogs": 20})
    monkeypatch.chdir(tmp_path)
    splits = open_splits(Data())
    assert np.array_equal(splits.train.images, fashion("train").images)
    assert np.array_equal(splits.val.images, fashion("test").images)
    assert splits.words == "11,000 images to train on, 2,000 for validation: the test images of fashion"
    assert len(find_splits(Data("./fashion"))["all"]) == 40


@pytest.mark.parametrize("packed", [None, ".tar.gz", ".tar"])
@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar_is_told_by_content(tmp_path, kind, packed):
    path = write_cifar(tmp_path / "any", cifar_files(kind, 10), packed)
    # Itself, and the folder that it lies in.
    for place in (path, tmp_path):
        found = find_splits(Data(str(place)))
        assert {split: len(source) for split, source in found.items()} == {"train": 20, "test": 4}


@pytest.mark.parametrize(
    ("files", "reader"),
    [
        (["dataset_dict.json", "train/data.arrow"], "huggingface splits"), (["state.json"], "huggingface splits"),
        (["a.tar.gz", "b.tar", ".hidden"], "tar splits"), (["train/a.tar", "val/b.tar"], "tar splits"),
        (["data/train-0.tar"], "tar splits"), (["Train.JSONL", "images/1.jpg", "images/2.jpg"], "table splits"),
        (["validation-00000-of-00001.tsv"], "table splits"), (["anything.parquet"], "huggingface parquet"),
        (["data/train-00000-of-00001.parquet", "README.md"], "huggingface parquet"), ("a.CSV", "table splits"),
        (["train/0.parquet", "test/0.parquet"], "huggingface parquet"), ("a.parquet", "huggingface parquet"),
        ("a.tgz", "tar splits"),
    ],
)  # fmt: skip
def test_files_and_folders_are_told_by_content(tmp_path, seen, files, reader):
    place = tmp_path / "place" / (files if isinstance(files, str) else "")
    for file in [files] if isinstance(files, str) else files:
        (tmp_path / "place" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "place" / file).write_bytes(b"")
    find_splits(Data(str(place), image_column="photo", label_column="kind"))
    assert seen.pop() == (reader, place, *(() if reader == "tar splits" else ("photo", "kind")))
    if place.is_dir():  # or a folder in a folder, as archives unpack
        find_splits(Data(str(tmp_path)))
        assert seen.pop()[:2] == (reader, place)


@pytest.mark.parametrize("beside", ["photos.tar", "noisy_labels.csv", "data_batch_1.txt"])
def test_class_folders_are_the_rest(photos, beside):
    """As in fastai's Imagenette, which has a table beside its folders."""
    place = photos("outer/inner", train={"cats": 2, "dogs": 2}, val={"cats": 1, "dogs": 1})
    (Path(place) / beside).touch()
    for path in (place, str(Path(place).parent)):
        assert {split: len(source) for split, source in find_splits(Data(path)).items()} == {"train": 4, "val": 2}


MINE = """
import numpy as np
from vitrail.data.sources.source import Arrays

def one():
    return Arrays(np.zeros((20, 2, 2, 3), np.uint8), np.arange(20) % 2, ("a", "b"), "mine")

def several():
    return {"train": one(), "val": one()}
"""


def test_a_function_of_the_users_gives_a_source_or_several(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    with pytest.raises(ValueError, match=r"--code .*mine\.py"):  # it runs only if the user says so
        find_splits(Data(f"{file}:one"))
    attribute(f"{file}:one", run=True)
    splits = open_splits(Data(f"{file}:one"))
    assert (len(splits.train), len(splits.val)) == (18, 2)
    splits = open_splits(Data(f"{file}:several"))
    assert (len(splits.train), len(splits.val)) == (20, 20)


def test_places_of_another_kind_missing_or_closed_are_named(tmp_path, photos, monkeypatch):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "photos.zip").touch()
    for name, words in [
        ("pipe.csv", "is not a file of images"), ("photos.zip", "is not a file of images"),
        ("nowhere", "does not exist"), ("x" * 300, r"cannot be read \(File name too long\)"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"{name[-9:]} {words}"):
            find_splits(Data(str(tmp_path / name)))
    place = photos(whole={"cats": 1})

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"photos cannot be read \(Permission denied\)"):
        open_splits(Data(place))


ALL = {"train": {"cats": 20, "dogs": 10}, "val": {"cats": 3, "dogs": 2}, "test": {"cats": 2, "dogs": 2}}


@pytest.mark.parametrize(
    ("splits", "how", "train", "val", "test", "words"),
    [
        (["train", "val", "test"], {}, 30, "val", 4, "5 for validation: the val images of PLACE"),
        (["train", "test"], {}, 30, "test", 4, "4 for validation: the test images of PLACE"),
        (["train"], {}, 27, "train", 3, "3 for validation: a tenth of each class, by seed 0"),
        (["train", "val", "test"], {"val_fraction": 0.2, "split_seed": 3}, 24, "train", 4,
         "24 images to train on, 6 for validation: 0.2 of each class, by seed 3"),
        (["train"], {"balance": True}, 36, "train", 3,
         "27 images to train on, each class equally often, 3 for validation: a tenth of each class, by seed 0"),
    ],
)  # fmt: skip
def test_which_images_are_for_validation(photos, splits, how, train, val, test, words):
    data = Data(photos(**{split: ALL[split] for split in splits}), **how)
    found = open_splits(data)
    assert len(found.train) == train
    assert found.val[0].image.decode().split()[0] == val
    assert len(open_source(data, "test")) == test
    assert found.words.endswith(words.replace("PLACE", data.path))
    assert re.match("(30|27|24) images to train on, ", found.words)
    # Both open the same images.
    for split in ("train", "val"):
        assert names(open_source(data, split)) == names(getattr(found, split))


def test_another_place_may_be_for_validation(photos):
    train, whole = photos(train=ALL["train"], val=ALL["val"]), photos("whole", whole={"cats": 1})
    several = photos("several", val={"cats": 1}, test={"cats": 2}, train={"emus": 9})
    for place, words in ((whole, f"1 for validation: {whole}"), (several, f"the val images of {several}")):
        splits = open_splits(Data(train, val=place))
        assert (len(splits.train), len(splits.val), words in splits.words) == (30, 1, True)


def test_places_that_cannot_be_divided_are_refused(photos, monkeypatch):
    one, more = photos("one", whole={"cats": 4}), photos("more", train=ALL["train"])
    for data, words in [
        (Data(photos(val={"cats": 2, "dogs": 1}, test={"cats": 1})), "photos has only val and test images"),
        (Data(photos("other", train=ALL["train"]), val=more), "more has only images to train on"),
        (Data(one), r"one has one class only \(cats\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            open_splits(data)
    monkeypatch.setattr(open, "find_splits", lambda _: Found({"train": arrays([0, 1]), "val": arrays([])}))
    with pytest.raises(ValueError, match="photos: there are no images"):
        open_splits(Data("photos"), "none")


def test_classes_keep_their_names_in_any_order(photos):
    splits = open_splits(Data(photos(train={"ant": 3, "bee": 8, "cat": 3}, val={"bee": 2, "cat": 1}), balance=True))
    assert splits.val.class_names == splits.train.class_names == ("ant", "bee", "cat")
    assert counts(splits.val).tolist() == [0, 2, 1]
    assert counts(splits.train).tolist() == [8, 8, 8]  # only training is balanced
    assert all(image.decode().split()[1] == splits.val.class_names[target] for image, target, _, _ in splits.val)


def test_classes_that_were_not_trained_on_are_named(photos):
    many = {f"new{number}": 1 for number in range(7)}
    place = photos(train={"cat": 3, "dog": 3}, val={"cat": 1, **many}, test={"eel": 1, "dog": 1})
    with pytest.raises(ValueError, match=r"val images of .*photos: .* new0, .*, new4 and 2 more .* has dog instead"):
        open_splits(Data(place))
    with pytest.raises(ValueError, match=r"the test images of .*: the classes eel are not in .*photos"):
        open_source(Data(place, val_fraction=0.5), "test")  # which are not in the way of training


def test_images_without_what_is_needed_are_counted(photos, monkeypatch):
    loose, mixed = photos("loose", whole={"": 4}), photos("mixed", whole={"": 3, "cats": 5, "dogs": 2})
    for data, words in [
        (Data(loose), rf"{loose}: 4 of the 4 images have no label, such as \S+0.jpg"),
        (Data(mixed), rf"{mixed}: 3 of the 10 images have no label, such as \S+0.jpg"),
        (Data(photos("labelled", train=ALL["train"]), val=loose), "loose: 4 of the 4 images have no label"),
    ]:
        with pytest.raises(ValueError, match=words):
            open_splits(data)
    found = {"boxes": Tagged(boxes(1), boxes(0), targets="boxes"), "masks": Tagged(mask(1), mask(0), targets="masks")}
    for needs, source in found.items():
        monkeypatch.setattr(open, "find_splits", lambda _, source=source: Found({"train": source, "val": source}))
        assert open_splits(Data("x"), needs).train is source
        for other in found.keys() - {needs}:
            with pytest.raises(ValueError, match=f"x: the task needs {other}, but the targets are '{needs}'"):
                open_splits(Data("x"), other)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"val_fraction": 0.0}, r"val_fraction is 0\.0"), ({"val_fraction": 0.95}, r"val_fraction is 0\.95"),
        ({"val_fraction": float("nan")}, "val_fraction is nan"), ({"split_seed": -1}, "split_seed is -1"),
        ({"val_fraction": 0.1, "val": "other"}, r"val \(other\) and .* \(0\.1\)"), ({"block": -1}, "block is -1"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Data(**values)
