"""The door to the data: the right source for a path, and a sentence where there is none."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from vitrail.data.idx import FASHION, fashion
from vitrail.data.source import Data, open_source

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write(folder, zipped):
    """MNIST's four files: 6 images to train on, of classes 0 to 2, and 3 to test on."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    arrays = []
    for length in (6, 3):
        arrays += [generator.integers(0, 256, (length, 5, 4), np.uint8), np.arange(length, dtype=np.uint8) % 3]
    for name, array in zip(FILES, arrays, strict=True):
        data = idx(array)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(data) if zipped else data)
    return arrays


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_packaged_images_are_the_default(split):
    source, expected = open_source(Data(), split), fashion(split)
    assert np.array_equal(source.images, expected.images)
    assert np.array_equal(source.labels, expected.labels)
    assert source.class_names == FASHION


@pytest.mark.parametrize("zipped", [True, False])
def test_a_folder_with_mnists_four_files_is_read(tmp_path, zipped):
    arrays = write(tmp_path, zipped)
    for split, (images, labels) in {"train": arrays[:2], "test": arrays[2:]}.items():
        source = open_source(Data(str(tmp_path)), split)
        assert len(source) == len(images)
        for index in range(len(source)):
            image, target, name = source[index]
            assert np.array_equal(image[:, :, 0], images[index])
            assert target == labels[index]
            assert name.endswith(f"[{index}]")


def test_the_zipped_file_wins_where_both_are_there(tmp_path):
    write(tmp_path, True)
    for name in FILES:
        (tmp_path / name).write_bytes(b"not read")
    assert len(open_source(Data(str(tmp_path)), "train")) == 6


@pytest.mark.parametrize("folder", ["fashion-mnist", "My-Fashion"])
def test_classes_are_numbers_unless_the_folder_is_called_fashion(tmp_path, folder):
    write(tmp_path / "mnist", True)
    assert open_source(Data(str(tmp_path / "mnist")), "train").class_names == ("0", "1", "2")
    write(tmp_path / folder, True)
    assert open_source(Data(str(tmp_path / folder)), "train").class_names == FASHION


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"the data folder .*nowhere does not exist; name a folder"):
        open_source(Data(str(tmp_path / "nowhere")), "train")


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    write(tmp_path, True)
    path = tmp_path / f"{FILES[0]}.gz"
    with pytest.raises(ValueError, match=rf"the data folder .*{FILES[0]}\.gz is a file; name a folder"):
        open_source(Data(str(path)), "train")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("missing", FILES)
def test_each_missing_file_is_named(tmp_path, missing, zipped):
    write(tmp_path, zipped)
    (tmp_path / (f"{missing}.gz" if zipped else missing)).unlink()
    split, other = ("train", "test") if missing.startswith("train") else ("test", "train")
    with pytest.raises(ValueError, match=rf"has neither {missing}\.gz nor {missing}; put MNIST's four"):
        open_source(Data(str(tmp_path)), split)
    assert len(open_source(Data(str(tmp_path)), other)) in (3, 6)


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path, True)
    path = tmp_path / f"{FILES[2]}.gz"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ValueError, match=rf"{FILES[2]}\.gz is "):
        open_source(Data(str(tmp_path)), "test")


def test_the_packaged_name_is_no_folder(tmp_path, monkeypatch):
    """A folder that happens to be called "fashion" does not replace the images in the package."""
    monkeypatch.chdir(tmp_path)
    write(Path("fashion"), True)
    assert len(open_source(Data("fashion"), "train")) == len(fashion("train"))
    assert len(open_source(Data("./fashion"), "train")) == 6
