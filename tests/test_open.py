"""The door to the data: the right source for a place, which images are held back, and a sentence where it is shut."""

import os
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_cifar import files as cifar_files
from test_cifar import write as write_cifar
from test_source import Tagged, arrays

from vitrail.data.sources import arrow, mnist, open, table, tar
from vitrail.data.sources.mnist import FASHION, FILES, fashion
from vitrail.data.sources.open import Data, Parts, describe, find_splits, open_source, open_splits


@pytest.fixture
def photos(tmp_path):
    """Makes `photos(train={"cats": 3})`: 3 files in train/cats; split "" has no folder of its own."""

    def photos(name="photos", **splits):
        for split, classes in splits.items():
            for label, count in classes.items():
                folder = tmp_path / name / ("" if split == "whole" else split) / label
                folder.mkdir(parents=True)
                for number in range(count):
                    (folder / f"{number}.jpg").write_text(f"{split} {label} {number}")
        return str(tmp_path / name)

    return photos


@pytest.fixture
def seen(monkeypatch):
    """Which of the readers that have files of their own was asked, and for what."""
    calls = []
    for module in (arrow, tar, table):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(
            module, "splits", lambda *asked, name=name: calls.append((name, *asked)) or {"all": arrays([])}
        )
    return calls


def classes(source):
    """How many images each class has, by name."""
    return Counter(source.class_names[source.target(index)] for index in range(len(source)))


# Which place is what


def test_the_packaged_images_are_the_default():
    train, val = open_splits(Data())
    assert np.array_equal(train.images, fashion("train").images)
    assert np.array_equal(val.images, fashion("test").images)
    assert train.class_names == val.class_names == FASHION
    assert describe(Data()) == "11,000 images to train on, 2,000 held back: the test images of fashion"


def test_the_packaged_name_is_no_folder(tmp_path, monkeypatch, photos):
    """A folder that happens to be called "fashion" does not replace the images in the package."""
    photos("fashion", whole={"cats": 20, "dogs": 20})
    monkeypatch.chdir(tmp_path)
    assert len(find_splits(Data("fashion"))["train"]) == len(fashion("train"))
    assert len(find_splits(Data("./fashion"))["all"]) == 40


def test_idx_files_are_told_by_content(tmp_path):
    folder = Path(mnist.__file__).parents[1] / "fashion"
    for stem in FILES["test"]:
        (tmp_path / f"{stem}.gz").symlink_to(folder / f"{stem}.gz")
    assert list(find_splits(Data(str(tmp_path)))) == ["test"]


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
        (["dataset_dict.json", "train/data.arrow"], "arrow"),
        (["dataset_info.json", "state.json"], "arrow"),
        (["a.tar", "b.tar", ".hidden"], "tar"),
        (["a.tar.gz", "README.md"], "tar"),
        (["train/a.tar", "val/b.tar"], "tar"),
        (["data/train-0.tar"], "tar"),
        (["train.csv"], "table"),
        (["Train.JSONL", "images/1.jpg", "images/2.jpg"], "table"),
        (["validation-00000-of-00001.tsv"], "table"),
        (["anything.parquet"], "table"),
        (["data/train-00000-of-00001.parquet", "README.md"], "table"),
        (["train/0000.parquet", "test/0000.parquet"], "table"),
    ],
)
def test_folders_are_told_by_content(tmp_path, seen, files, reader):
    place = tmp_path / "place"
    for file in files:
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(b"")
    find_splits(Data(str(place), image_column="photo", label_column="kind"))
    find_splits(Data(str(tmp_path)))  # a folder in a folder, as archives unpack
    columns = [(), ()] if reader == "tar" else [("photo", "kind"), (None, None)]
    assert seen == [(reader, place, *asked) for asked in columns]


@pytest.mark.parametrize(("name", "reader"), [("a.CSV", "table"), ("a.parquet", "table"), ("a.tgz", "tar")])
def test_files_are_told_by_their_suffix(tmp_path, seen, name, reader):
    (tmp_path / name).write_bytes(b"")
    find_splits(Data(str(tmp_path / name)))
    assert [call[:2] for call in seen] == [(reader, tmp_path / name)]


@pytest.mark.parametrize("beside", ["photos.tar", "labels.csv", "noisy_labels.csv", "data_batch_1.txt", "pixels.json"])
def test_class_folders_are_the_rest(photos, beside):
    """As in fastai's Imagenette, which has a table beside its folders."""
    place = photos(train={"cats": 2, "dogs": 2}, val={"cats": 1, "dogs": 1})
    (Path(place) / beside).touch()
    assert {split: len(source) for split, source in find_splits(Data(place)).items()} == {"train": 4, "val": 2}


def test_an_archive_may_unpack_to_a_folder_in_a_folder(photos):
    found = find_splits(Data(str(Path(photos("outer/inner", train={"cats": 2, "dogs": 1})).parent)))
    assert found["train"].class_names == ("cats", "dogs")


def test_a_packed_class_folder_gives_what_the_folder_gives(tmp_path, photos, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    place = photos(train={"cats": 3, "dogs": 2}, test={"cats": 1, "dogs": 1})
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(place, "photos")
    for split in ("train", "val", "test"):
        whole, packed = (open_source(Data(path), split) for path in (place, str(tmp_path / "photos.tar")))
        assert whole.class_names == packed.class_names
        assert sorted(whole[i][:2] for i in range(len(whole))) == sorted(packed[i][:2] for i in range(len(packed)))


@pytest.mark.parametrize("name", ["notes.txt", "photos.zip", "pipe.csv"])
def test_files_of_another_kind_are_refused(tmp_path, name):
    if name.startswith("pipe"):
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_text("hello")
    with pytest.raises(ValueError, match=rf"{name} is no file of images \(\.tar, .*\.parquet\); name one, or a folder"):
        find_splits(Data(str(tmp_path / name)))


def test_places_that_are_missing_or_closed_are_named(photos, monkeypatch):
    with pytest.raises(ValueError, match="nowhere does not exist; name a folder or file of images"):
        open_splits(Data("nowhere"))
    with pytest.raises(ValueError, match=r"x cannot be read \(File name too long\); check its name and permissions"):
        open_splits(Data("x" * 300))
    place = photos(whole={"cats": 1})

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ValueError, match=r"photos cannot be read \(Permission denied\)"):
        open_splits(Data(place))


# Which images are held back


ALL = {"train": {"cats": 20, "dogs": 10}, "val": {"cats": 3, "dogs": 2}, "test": {"cats": 2, "dogs": 2}}


@pytest.mark.parametrize(
    ("splits", "how", "train", "val", "test", "words"),
    [
        (["train", "val", "test"], {}, 30, "val", 4, "30 images to train on, 5 held back: the val images of PLACE"),
        (["train", "val"], {}, 30, "val", 5, "30 images to train on, 5 held back: the val images of PLACE"),
        (["train", "test"], {}, 30, "test", 4, "30 images to train on, 4 held back: the test images of PLACE"),
        (["train"], {}, 27, "train", 3, "27 images to train on, 3 held back: a tenth of each class, by seed 0"),
        (["train", "val", "test"], {"hold_back": 0.2, "split_seed": 3}, 24, "train", 4,
         "24 images to train on, 6 held back: 0.2 of each class, by seed 3"),
        (["train"], {"balance": True}, 36, "train", 3,
         "27 images to train on, each class equally often, 3 held back: a tenth of each class, by seed 0"),
    ],
)  # fmt: skip
def test_which_images_are_held_back(photos, splits, how, train, val, test, words):
    data = Data(photos(**{split: ALL[split] for split in splits}), **how)
    parts = open_splits(data)
    assert isinstance(parts, Parts)
    assert len(parts.train) == train
    assert parts.val[0][0].decode().split()[0] == val
    assert len(open_source(data, "test")) == test
    assert parts.words == describe(data) == words.replace("PLACE", data.path)
    # All of them open the same images.
    for split, source in zip(("train", "val"), open_splits(data), strict=True):
        opened = open_source(data, split)
        assert [source.name(i) for i in range(len(source))] == [opened.name(i) for i in range(len(opened))]


def test_an_undivided_place_holds_back_a_tenth(photos):
    train, val = open_splits(Data(photos(whole={"cats": 30, "dogs": 20, "emus": 1})))
    assert classes(train) == {"cats": 27, "dogs": 18, "emus": 1}
    assert classes(val) == {"cats": 3, "dogs": 2}
    names = [source.name(i) for source in (train, val) for i in range(len(source))]
    assert len(set(names)) == 51


@pytest.mark.parametrize(
    ("other", "found", "words"),
    [
        ({"whole": {"cats": 1}}, 1, "1 held back: PLACE"),
        (
            {"val": {"cats": 1}, "test": {"cats": 2}, "train": {"cats": 9, "emus": 9}},
            1,
            "1 held back: the val images of",
        ),
        ({"test": {"cats": 2}, "train": {"emus": 9}}, 2, "2 held back: the test images of PLACE"),
    ],
)
def test_another_place_may_be_held_back(photos, other, found, words):
    place = photos("other", **other)
    data = Data(photos(train=ALL["train"], val=ALL["val"]), val=place)
    train, val = open_splits(data)
    assert (len(train), len(val)) == (30, found)
    assert words.replace("PLACE", place) in describe(data)


def test_a_place_without_images_to_train_on_is_refused(photos):
    place = photos(val={"cats": 2, "dogs": 1}, test={"cats": 1})
    with pytest.raises(ValueError, match=r"photos has only val and test images; name a place with some to train on"):
        open_splits(Data(place))
    other = photos("other", train=ALL["train"])
    with pytest.raises(ValueError, match="other has only images to train on; name a place with a val or test split"):
        open_splits(Data(photos("more", train=ALL["train"]), val=other))


def test_unlabelled_test_images_are_not_held_back(photos):
    """As Kaggle gives them."""
    data = Data(photos(train=ALL["train"], test={"": 5}))
    assert describe(data).endswith("3 held back: a tenth of each class, by seed 0")
    assert len(open_source(data, "test")) == 3
    assert len(find_splits(data)["test"]) == 5


# Whether they go together


def test_classes_keep_their_names_whatever_their_order(photos):
    train, val = open_splits(Data(photos(train={"ant": 3, "bee": 3, "cat": 3}, val={"bee": 2, "cat": 1})))
    assert val.class_names == train.class_names == ("ant", "bee", "cat")
    assert classes(val) == {"bee": 2, "cat": 1}
    for index in range(3):
        assert val[index][0].decode().split()[1] == val.class_names[val[index][1]]


def test_classes_that_were_not_trained_on_are_named(photos):
    many = {f"new{number}": 1 for number in range(7)}
    place = photos(train={"cat": 3, "dog": 3}, val={"cat": 1, **many}, test={"cat": 1, "eel": 1, "dog": 1})
    sentence = r"the val images of .*photos: the classes new0, new1, new2, new3, new4 and 2 more are not in .*photos, "
    with pytest.raises(ValueError, match=sentence + "which has dog instead; give both the same classes"):
        open_splits(Data(place))
    with pytest.raises(ValueError, match=r"the test images of .*: the classes eel are not in .*photos; give both"):
        open_source(Data(place, val_fraction=0.5), "test")
    open_splits(Data(place, val_fraction=0.5))  # the test images are not in the way of training


def test_images_without_labels_are_not_trained_on(photos, monkeypatch):
    with pytest.raises(
        ValueError, match=r"photos: 4 of the 4 images have no label; put each class's images into a fold"
    ):
        open_splits(Data(photos(whole={"": 4})))
    with pytest.raises(ValueError, match=r"loose: 4 of the 4 images have no label"):
        open_splits(Data(photos("labelled", train=ALL["train"]), val=photos("loose", whole={"": 4})))
    monkeypatch.setattr(open, "find_splits", lambda _: {"train": arrays([0, 1, -1, 1])})
    with pytest.raises(ValueError, match=r"some: 1 of the 4 images have no label"):
        open_splits(Data("some"))


def test_one_class_is_not_enough(photos):
    with pytest.raises(
        ValueError, match=r"photos has one class only \(cats\); a classifier needs two or more: put each"
    ):
        open_splits(Data(photos(whole={"cats": 4})))


@pytest.mark.parametrize("splits", [{"train": arrays([])}, {"train": arrays([0, 1]), "val": arrays([])}])
def test_empty_splits_are_named(monkeypatch, splits):
    monkeypatch.setattr(open, "_labelled", lambda _: True)
    monkeypatch.setattr(open, "find_splits", lambda _: splits)
    with pytest.raises(ValueError, match="photos: there are no images; check the path"):
        open_splits(Data("photos"))


def test_several_labels(monkeypatch):
    tagged = Tagged((0, 1), (0,), (), (0, 1))
    monkeypatch.setattr(open, "find_splits", lambda data: {"train": tagged, "val": tagged, "test": arrays([0, 1])})
    train, val = open_splits(Data("tagged"))
    assert train.multi_label
    assert val.multi_label
    with pytest.raises(
        ValueError, match=r"the test images of tagged: images have one label each, and those of tagged "
    ):
        open_source(Data("tagged"), "test")
    with pytest.raises(ValueError, match="balance needs one label an image"):
        open_splits(Data("tagged", balance=True))


def test_balance_is_for_training_alone(photos):
    train, val = open_splits(Data(photos(train={"cats": 8, "dogs": 2}, val={"cats": 4, "dogs": 1}), balance=True))
    assert classes(train) == {"cats": 8, "dogs": 8}
    assert classes(val) == {"cats": 4, "dogs": 1}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"hold_back": 0.0}, r"hold_back is 0\.0; it is a share above 0 and up to 0\.9"),
        ({"hold_back": 0.95}, r"hold_back is 0\.95; it is a share"),
        ({"hold_back": float("nan")}, "hold_back is nan; it is a share"),
        (
            {"hold_back": 0.1, "val": "other"},
            r"val \(other\) and hold_back \(0\.1\) both name held-back images; give one",
        ),
        ({"split_seed": -1}, r"split_seed is -1; it must be at least 0 and below 2\^64"),
    ],
)
def test_values_that_cannot_be_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Data(**values)
