"""The page shows what was found, in pictures, needs nothing from outside, and cannot be taken over by a file's name."""

import re

import numpy as np
import pytest
from PIL import Image

from vitrail.data.audit.findings import check
from vitrail.data.sources.open import Data, find_splits
from vitrail.data.sources.source import Arrays, Subset
from vitrail.report.data_page import CASES, write

RANDOM = np.random.default_rng(0)


def picture(size=(20, 30)):
    return RANDOM.integers(0, 256, (*size, 3), np.uint8)


def arrays(count, labels=None, name="x"):
    images = RANDOM.integers(0, 256, (count, 9, 9, 3), np.uint8)
    numbers = np.zeros(count, np.int64) if labels is None else np.array(labels)
    return Arrays(images, numbers, tuple(f"class {n}" for n in range(int(numbers.max()) + 1)), name)


def page(splits, folder):
    path = write(check(splits, progress=False), folder / "check.html", splits)
    assert path == folder / "check.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture
def planted(tmp_path):
    same, again = picture(), picture()
    files = {
        "train/cat/1.png": same, "train/cat/2.png": picture(), "train/dog/3.png": same, "train/dog/4.png": again,
        "val/dog/<script>alert(1)<b>.png": again, "val/cat/5.png": np.full((30, 30, 3), 9, np.uint8),
        "val/cat/6.png": picture((4, 4)),
    }  # fmt: skip
    for name, pixels in files.items():
        path = tmp_path / "data" / name.replace("</", "<")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "data/train/cat/broken.png").write_bytes(b"<html>")
    return find_splits(Data(str(tmp_path / "data")))


def test_findings_come_first_with_their_pictures(planted, tmp_path):
    html = page(planted, tmp_path)
    titles = re.findall(r"<h2>(.*?)</h2>", html)
    assert titles == [
        "6 things to look at", "1 image that cannot be read", "1 image in more than one split",
        "1 image with different labels on its copies", "1 image of one colour only",
        "1 image with a side below 8 pixels",
        "2 classes with fewer than 10 images to train on", "In numbers", "Images of each class", "Some images of train",
    ]  # fmt: skip
    leak = html.split("in more than one split</h2>")[1].split("</section>")[0]
    assert leak.count("<img") == 2
    assert "same file\ntrain/dog/4.png (dog)\nval/dog/" in leak
    assert "broken.png is a web page" in html


def test_the_page_is_self_contained_and_names_are_text(planted, tmp_path):
    html = page(planted, tmp_path)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;b&gt;.png" in html
    assert set(re.findall(r'src="([^,]*),', html)) <= {"data:image/png;base64", "data:image/jpeg;base64"}
    assert "http" not in re.sub(r"http-equiv", "", html)


def test_a_pair_shows_the_images_that_differ_in_split_or_label(tmp_path):
    image = picture()
    train = Arrays(np.stack([image, image]), np.array([0, 0]), ("a",), "train")
    val = Arrays(np.stack([image]), np.array([0]), ("a",), "val")
    html = page({"train": train, "val": val}, tmp_path)
    assert "same file, 3 images\ntrain[0] (a)\nval[0] (a)" in html


def test_long_lists_are_cut(tmp_path):
    flat = np.full((40, 9, 9, 3), np.arange(40, dtype=np.uint8)[:, None, None, None] * 5)
    splits = {"all": Arrays(flat, np.full(40, -1), (), "x")}
    html = page(splits, tmp_path)
    assert f"... and {40 - CASES} more; --json lists all." in html
    assert "Images of each class" not in html
    assert html.count("<img") == CASES + 24


def test_samples_are_of_every_class_and_always_the_same(tmp_path):
    splits = {"train": arrays(90, np.arange(90) % 3)}
    html = page(splits, tmp_path)
    samples = html.split("Some images of train</h2>")[1]
    assert re.findall(r"<h3>(.*?)</h3>", samples) == ["class 0", "class 1", "class 2"]
    assert samples.count("<img") == 3 * 24
    assert page(splits, tmp_path) == html
    many = page({"train": arrays(200, np.arange(200))}, tmp_path).split("Some images of train</h2>")[1]
    assert many.count("<h3>") == 40
    assert "class 0<" in many
    assert "class 199<" in many


def test_a_clean_set_and_an_empty_one_have_a_page(tmp_path):
    assert "<h2>Nothing wrong was found</h2>" in page({"train": arrays(30)}, tmp_path)
    assert "0 images: all 0" in page({"all": Subset(arrays(3), [])}, tmp_path)


def test_images_that_went_missing_since_are_left_out(planted, tmp_path):
    report = check(planted, progress=False)
    for path in (tmp_path / "data").rglob("*.png"):
        path.unlink()
    html = write(report, tmp_path / "check.html", planted).read_text()
    assert "<img" not in html


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path):
    splits = {"train": arrays(20)}
    with pytest.raises(ValueError, match=r"none.check\.html cannot be written \(No such file or directory\); name"):
        write(check(splits, progress=False), tmp_path / "none" / "check.html", splits)
