"""MNIST's four files in a folder, under all their names, and the part of Fashion-MNIST that is in the package."""

import gzip
import hashlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from test_mnist_files import encode, noise, zipped

from vitrail.data.sources.mnist import FASHION, FILES, fashion, is_mnist, splits

PACKAGED = Path(__file__).parents[1] / "vitrail" / "data" / "fashion"


@pytest.fixture
def mnist(tmp_path):
    """Writes the four files: 6 images to train on, of classes 0 to 2, and 3 to test on; gives what they hold."""

    def mnist(folder="mnist", suffix=".gz", dash="-idx"):
        (tmp_path / folder).mkdir(exist_ok=True)
        held = {}
        for (split, stems), length in zip(FILES.items(), (6, 3), strict=True):
            held[split] = noise(length, 5, 4), np.arange(length, dtype=np.uint8) % 3
            for stem, array in zip(stems, held[split], strict=True):
                data = zipped(encode(array)) if suffix else encode(array)
                (tmp_path / folder / f"{stem.replace('-idx', dash)}{suffix}").write_bytes(data)
        return tmp_path / folder, held

    return mnist


@pytest.mark.parametrize("dash", ["-idx", ".idx"])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_the_four_files_are_read(mnist, suffix, dash):
    folder, held = mnist(suffix=suffix, dash=dash)
    assert is_mnist(folder)
    found = splits(folder)
    assert list(found) == ["train", "test"]
    for split, (images, labels) in held.items():
        assert np.array_equal(found[split].images[..., 0], images)
        assert found[split].labels.tolist() == labels.tolist()
        assert found[split].class_names == ("0", "1", "2")


def test_the_zipped_file_wins_where_both_are_there(mnist):
    folder, _ = mnist()
    for stem in (*FILES["train"], *FILES["test"]):
        (folder / stem).write_bytes(b"not read")
    assert len(splits(folder)["train"]) == 6


@pytest.mark.parametrize("name", ["fashion-mnist", "My-Fashion"])
def test_classes_are_numbers_unless_the_folder_is_called_fashion(mnist, name):
    assert splits(mnist(name)[0])["train"].class_names == FASHION


@pytest.mark.parametrize("missing", [*FILES["train"], *FILES["test"]])
def test_each_missing_file_is_named(mnist, missing):
    folder, _ = mnist()
    (folder / f"{missing}.gz").unlink()
    with pytest.raises(ValueError, match=rf"has neither {missing}\.gz nor {missing}; put MNIST's four"):
        splits(folder)


@pytest.mark.parametrize("split", ["train", "test"])
def test_one_split_is_enough_and_none_is_not(mnist, split):
    folder, _ = mnist()
    for stem in FILES["test" if split == "train" else "train"]:
        (folder / f"{stem}.gz").unlink()
    assert list(splits(folder)) == [split]
    for file in folder.iterdir():
        file.unlink()
    assert not is_mnist(folder)
    with pytest.raises(ValueError, match=r"has neither .*; put MNIST's four idx files there"):
        splits(folder)


# The part of Fashion-MNIST in the package


@pytest.mark.parametrize(("split", "count", "prefix"), [("train", 11_000, "train"), ("test", 2_000, "t10k")])
def test_fashion(split, count, prefix):
    source = fashion(split)
    assert source.images.shape == (count, 28, 28, 1)
    assert source.labels.shape == (count,)
    assert source.class_names == FASHION
    assert set(source.labels.tolist()) == set(range(10))
    assert source[0][2] == f"{prefix}-images-idx3-ubyte.gz[0]"
    assert 60 < source.images.mean() < 80  # the official training images have 72.9


def test_fashion_files_are_the_described_part():
    sums = re.findall(r"([0-9a-f]{64})  (\S+)", (PACKAGED / "README.md").read_text())
    assert len(sums) == 4
    for digest, name in sums:
        assert hashlib.sha256(gzip.decompress((PACKAGED / f"{name}.gz").read_bytes())).hexdigest() == digest
    assert fashion("train").labels[:5].tolist() == [9, 0, 0, 3, 0]  # as in every tutorial
    assert fashion("test").labels[:5].tolist() == [9, 2, 1, 1, 6]
    assert sum(path.stat().st_size for path in PACKAGED.iterdir()) <= 6_000_000
    assert "2017 Zalando SE" in (PACKAGED / "LICENSE").read_text()


def test_no_test_image_is_among_the_training_images():
    train, test = ({image.tobytes() for image in fashion(split).images} for split in ("train", "test"))
    assert not train & test


def test_fashion_refuses_another_split():
    with pytest.raises(ValueError, match=r"'val'.*'train' and 'test'"):
        inspect.unwrap(fashion)("val")  # conftest.py's checks of types would refuse it first
