"""The page shows what was found, with images, needs nothing from outside, and a file's name is only text in it."""

import re

import numpy as np
from pages import Outline
from PIL import Image

from vitrail.data.audit.findings import check
from vitrail.data.sources.open import Data, find_splits
from vitrail.data.sources.source import Arrays, Subset
from vitrail.report.data_page import CASES, write

RANDOM = np.random.default_rng(0)


def noise(*size):
    return RANDOM.integers(0, 256, (*(size or (20, 30)), 3), np.uint8)


def arrays(count, labels=None):
    numbers = np.zeros(count, np.int64) if labels is None else np.array(labels)
    return Arrays(noise(count, 9, 9), numbers, tuple(f"class {n}" for n in range(int(numbers.max()) + 1)), "x")


def page(splits, folder):
    write(check(splits, progress=False), folder / "check.html", splits)
    html = (folder / "check.html").read_text(encoding="utf-8")
    Outline(html)
    return html


def test_findings_come_first_with_their_images_and_names_are_text(tmp_path):
    same, again = noise(), noise()
    files = {
        "train/cat/1.png": same, "train/cat/2.png": noise(), "train/dog/3.png": same, "train/dog/4.png": again,
        "val/dog/<script>alert(1)<b>.png": again, "val/cat/5.png": np.full((30, 30, 3), 9, np.uint8),
        "val/cat/6.png": noise(4, 4),
    }  # fmt: skip
    for name, pixels in files.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "data/train/cat/broken.png").write_bytes(b"<html>")
    splits = find_splits(Data(str(tmp_path / "data")))
    html = page(splits, tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "6 things to look at", "1 image that cannot be read", "1 image in more than one split",
        "1 image with different labels on its copies", "1 image of one colour only",
        "1 image with a side below 8 pixels", "2 classes with fewer than 10 images to train on", "In numbers",
        "Images of each class", "Some images of train",
    ]  # fmt: skip
    leak = html.split("in more than one split</h2>")[1].split("</section>")[0]
    assert leak.count("<img") == 2
    assert "same file\ntrain/dog/4.png (dog)\nval/dog/&lt;script&gt;alert(1)&lt;b&gt;.png (dog)" in leak
    for words in ("broken.png is a web page", "4 to 30 pixels, half of them up to 30", "PNG RGB 7"):
        assert words in html
    # What has gone since is left out.
    report = check(splits, progress=False)
    for path in (tmp_path / "data").rglob("*.png"):
        path.unlink()
    write(report, tmp_path / "check.html", splits)
    assert "<img" not in (tmp_path / "check.html").read_text()


def test_a_pair_shows_the_images_that_differ_in_split_or_label(tmp_path):
    image = noise()
    train = Arrays(np.stack([image, image]), np.array([0, 0]), ("a",), "train")
    val = Arrays(np.stack([image]), np.array([0]), ("a",), "val")
    html = page({"train": train, "val": val}, tmp_path)
    assert "same file, 3 images\ntrain[0] (a)\nval[0] (a)" in html


def test_long_lists_are_cut(tmp_path):
    flat = np.full((40, 9, 9, 3), np.arange(40, dtype=np.uint8)[:, None, None, None] * 5)
    html = page({"all": Arrays(flat, None, (), "x")}, tmp_path)
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
    many = page({"train": arrays(200, np.arange(200))}, tmp_path)
    names = re.findall(r"<h3>(.*?)</h3>", many)
    assert (len(names), names[0], names[-1]) == (40, "class 0", "class 199")
    assert "All 200 classes" in many


def test_a_clean_set_and_an_empty_one_have_a_page(tmp_path):
    assert "<h2>Nothing wrong was found</h2>" in page({"train": arrays(30)}, tmp_path)
    assert "0 images: all 0" in page({"all": Subset(arrays(3), [])}, tmp_path)
