"""Splits and classes by the paths of folders: the same answer on the disk and in a tar, or a refusal."""

import os
from pathlib import PurePosixPath

import pytest
from made_sources import PLACES, PNGS, put, tarred

from vitrail.data.sources import folder, tar
from vitrail.data.sources.layout import layout
from vitrail.data.sources.open import Data, find_splits
from vitrail.data.sources.source import speaks

AB = {"train": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}
VAL = {"train": {"a": 1, "b": 1}, "val": {"a": 1, "b": 1}}


def read(*folders, images=1):
    """split -> class -> images."""
    found = {}
    for split, name in layout("x", dict.fromkeys(folders, images)).places.values():
        counts = found.setdefault(split, {})
        counts[name] = counts.get(name, 0) + images
    return found


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("seg_train/seg_train/{a,b}|seg_test/seg_test/{a,b}|seg_pred/seg_pred", AB), ("x/y/z/{train,val}/{a,b}", VAL),
        ("{a,b}/{train,test}", AB), ("x/{a,b}/{Train,VALID}", VAL), ("{a,b}_{train,test}", AB),
        ("{train,dev}2017/{a,b}", VAL),
        ("{training,test}_set/{a,b}", AB), ("Train Images/{a,b}|testImages/{a,b}", AB),
        ("train/{a,b}|docs/x|test/{a,b}", AB),
        ("my_{train,eval}_files/x/{a,b}", AB), ("c/c/{train,val}/{a,b}|c/{train,val}/{a,b}", VAL),
        ("train/x/{a,b}|val/{a,b}", VAL), ("training/{train,val}/{a,b}|testing/{a,b}", AB | VAL),
        ("train/{a,b}|test/test", {**AB, "test": {"": 1}}),
        ("train_{1,2}/{a,b}|test/{a,b}", {**AB, "train": {"a": 2, "b": 2}}),
        ("train/{x/a,y/b}|val/x/a", {"train": {"x/a": 1, "y/b": 1}, "val": {"x/a": 1}}),
        ("{car,train,bus}", {"": {"car": 1, "train": 1, "bus": 1}}), ("x/{car,bus}", {"": {"car": 1, "bus": 1}}),
        ("railway/train|road/{car,bus}", {"": {"railway/train": 1, "road/car": 1, "road/bus": 1}}),
        ("train/{steam,fast}|car/{van,taxi}", {"": {"train/steam": 1, "train/fast": 1, "car/van": 1, "car/taxi": 1}}),
        ("test_{tube,bench}", {"": {"test_tube": 1, "test_bench": 1}}), ("{train,val}/{car,train}", {
            "train": {"car": 1, "train": 1}, "val": {"car": 1, "train": 1}}),
    ],
)  # fmt: skip
def test_folders_that_speak_of_splits_are_splits_at_any_depth(tmp_path, folders, expected):
    names = [name for pattern in folders.split("|") for name in braces(pattern)]
    assert read(*names) == expected
    files = {f"{name}/{row}.png": b"" for row, name in enumerate(names)}
    place = put(tmp_path / "place", files)
    put(tmp_path, {"place.tar": tarred(files)})
    for found in (folder.splits(place), tar.splits(tmp_path / "place.tar")):
        for split, source in found.items():
            classes = [source.class_names[t] if t is not None else "" for t in map(source.target, range(len(source)))]
            assert {name: classes.count(name) for name in classes} == expected["" if split == "all" else split]


def braces(pattern):
    before, brace, rest = pattern.partition("{")
    if not brace:
        return [pattern]
    inner, _, after = rest.partition("}")
    return [before + one + end for one in inner.split(",") for end in braces(after)]


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ("x_train/a x_train/b y/a y/b", "x_train and y have classes of the same names"),
        ("f1_train/a f1_test/a f2_train/a f2_test/a", "f1_train, .*f2_test are several"),
        ("test/train/a test/val/a", "test is test by its name, but has train, val"),
        ("train/a Train/b test/a", "both train and Train"),
    ],
)
def test_what_is_uncertain_is_refused(folders, words):
    with pytest.raises(ValueError, match=words):
        read(*folders.split())


def test_folders_that_are_no_classes_are_refused_beside_files_that_may_have_the_labels(tmp_path):
    files = {"x_part_1/1.png": b"", "x_part_2/2.png": b"", "labels.xlsx": b""}
    put(tmp_path, {"place.tar": tarred(files)})
    for read, place in ((folder.splits, put(tmp_path / "place", files)), (tar.splits, tmp_path / "place.tar")):
        with pytest.raises(ValueError, match=r"place\S*: x_part_1, x_part_2 are no .*1 .xlsx"):
            read(place)


def test_what_is_left_out_is_counted(tmp_path):
    files = ["train/a/1.png", "train/b/1.png", "val/a/1.png", "extra/1.png", "0.png", "train/a/x.txt", "val/b/2.mp4",
             "train/c/.DS_Store", ".x/1.png", "__MACOSX/train/a/1.png", "Thumbs.db"]  # fmt: skip
    put(tmp_path, {"place.tar": tarred(dict.fromkeys(files, b""))})
    (put(tmp_path / "place", dict.fromkeys(files, b"")) / "train" / "b" / "up").symlink_to("..")
    for found, links in ((folder.splits(tmp_path / "place"), 1), (tar.splits(tmp_path / "place.tar"), 0)):
        assert {split: len(source) for split, source in found.items()} == {"train": 2, "val": 1}
        said = "; ".join(found.left_out)
        parts = ["1 image in extra", "1 image beside train, val", "1 .txt", "1 .mp4", *["1 links"] * links]
        assert [part for part in parts if part not in said] == []
        assert not [part for part in ("DS_Store", "MACOSX", "Thumbs", "db") if part in said]
        assert [name for name in found.lost if not name.startswith("train/c")] == ["val/b (1 .mp4)"]


@pytest.mark.parametrize("name", ["seg_train", "Train", "my train-set", "TRAIN2017", "imagesTrain", "trainset"])
def test_names_that_speak(name):
    assert speaks(name)[0] == "train"
    assert [speaks(os.fspath(PurePosixPath(other))) for other in ("strain", "train_test", "trains")] == [None] * 3


@pytest.mark.parametrize(
    "kind", ["idx", "CIFAR for Python", "CIFAR binary", "Parquet", "saved", "webdataset", "packed", "packed as JPEG"]
)
def test_images_beside_an_archive_are_counted(tmp_path, kind):
    place = PLACES[kind](tmp_path)
    place = place if place.is_dir() else place.parent
    assert find_splits(Data(str(place))).left_out == ()
    put(place, {"new.png": PNGS[0], "new2.png": PNGS[0]})
    (said,) = find_splits(Data(str(place))).left_out
    assert said == ("2 .png" if kind == "webdataset" else f"2 images beside them, such as {place}/new.png")


def test_images_without_a_row_in_tables_of_splits_are_counted(tmp_path):
    files = {f"images/{n}.png": PNGS[n] for n in range(6)}
    rows = {
        split: f"image,label\n./images/{n}.png,a\nimages/{n + 1}.png,b\n" for split, n in {"train": 0, "val": 2}.items()
    }
    place = put(tmp_path / "place", files | {f"{split}.csv": text for split, text in rows.items()})
    assert find_splits(Data(str(place))).left_out == (f"2 images beside them, such as {place}/images/4.png",)
