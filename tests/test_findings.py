"""Faults that were planted are found, each once and in words; sets without faults have none."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_sources import put
from photos import encode
from PIL import Image

from vitrail.data.audit.findings import KINDS, Item, check, line, text
from vitrail.data.audit.scan import Record
from vitrail.data.sources.mnist import fashion
from vitrail.data.sources.open import Data, find_splits
from vitrail.data.sources.source import Arrays, Subset


def photo(seed, size=(60, 80)):
    """A picture of its own for each seed: waves in all directions."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / 20
    angles = [np.sin(a * x + b * y + c)[..., None] for a, b, c in random.uniform(-3, 3, (12, 3))]
    return (128 + 20 * sum(random.normal(size=3) * wave for wave in angles)).clip(10, 240).astype(np.uint8)


def place(folder, files):
    """Writes {name: bytes or pixels}."""
    put(folder, {name: file if isinstance(file, bytes) else encode(file) for name, file in files.items()})


def clean():
    """Twelve images of each of two classes to train on, two to judge by."""
    numbers = [("train", 12), ("val", 2)]
    names = [f"{split}/{name}/{n}.png" for split, count in numbers for name in ("cat", "dog") for n in range(count)]
    return {name: photo(seed) for seed, name in enumerate(names)}


def checked(folder):
    return check(find_splits(Data(str(folder))), progress=False)


def found(report):
    """{kind: for each item the names of its images, or its note}."""
    short = {"train/cat/0.png": "O", "train/cat/x.png": "X"}

    def name(record):
        end = "/".join(Path(record.name).parts[-3:])
        return short.get(end, end)

    return {f.kind: [" ".join(map(name, item.records)) or item.note for item in f.items] for f in report.findings}


FIRST = clean()["train/cat/0.png"]
FLAT = np.full((30, 30, 3), 7, np.uint8)
# What is added to a clean set, and what is found then; X is train/cat/x.png, O train/cat/0.png.
FAULTS = {
    "cut": ({"train/cat/x.jpg": encode(photo(99), "JPEG")[:900]}, {"unreadable": ["train/cat/x.jpg"]}),
    "copy": ({"train/cat/x.png": FIRST}, {"copies": ["O X"]}),
    "same pixels": ({"train/cat/x.bmp": encode(FIRST, "BMP")}, {"copies": ["O train/cat/x.bmp"]}),
    "other label": ({"train/dog/x.png": FIRST}, {"copies under several labels": ["O train/dog/x.png"]}),
    "leak": ({"val/cat/x.png": FIRST}, {"copies across splits": ["O val/cat/x.png"]}),
    "leak under another label": ({"val/dog/x.png": FIRST}, {
        "copies across splits": ["O val/dog/x.png"], "copies under several labels": ["O val/dog/x.png"]}),
    "re-encoded": ({"train/cat/x.jpg": encode(FIRST, "JPEG", quality=60)}, {"alike": ["O train/cat/x.jpg"]}),
    "scaled leak": ({"val/cat/x.png": np.asarray(Image.fromarray(FIRST).resize((40, 30)))},
        {"alike across splits": ["O val/cat/x.png"]}),
    "mirrored": ({"train/dog/x.png": FIRST[:, ::-1]}, {"alike under several labels": ["O train/dog/x.png"]}),
    "blank": ({"train/cat/x.png": FLAT, "val/dog/x.png": FLAT}, {"blank": ["X", "val/dog/x.png"]}),
    "tiny": ({"train/cat/x.png": photo(98, (5, 40))}, {"tiny": ["X"]}),
    "misnamed": ({"train/cat/x.png": encode(photo(97), "JPEG")}, {"misnamed": ["X"]}),
    "few": ({f"{split}/owl/{n}.png": photo(60 + n + k) for k, split in ((0, "train"), (5, "val")) for n in range(2)},
        {"few": ["owl: 2 images"]}),
    "missing": ({f"train/owl/{n}.png": photo(60 + n) for n in range(10)}, {"missing": ["owl: none in val"]}),
    "uneven": ({f"train/cat/x{n}.png": photo(100 + n) for n in range(108)}, {"uneven": ["dog: 12 images of 120"]}),
}  # fmt: skip


def test_a_set_without_faults_has_none(tmp_path):
    place(tmp_path, clean())
    report = checked(tmp_path)
    assert (report.findings, report.faults, report.splits) == ((), 0, {"train": 24, "val": 4})
    assert report.classes == {name: {"train": 12, "val": 2} for name in ("cat", "dog")}
    assert (report.sizes["width"], report.kinds) == ((80, 80, 80), {"PNG RGB": 28})
    assert text(report).startswith("28 images (train 24, val 4) of 2 classes. Nothing wrong was found.")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_nothing_else(fault, tmp_path):
    files, expected = FAULTS[fault]
    place(tmp_path, clean() | files)
    report = checked(tmp_path)
    assert found(report) == expected
    assert report.faults == sum(KINDS[kind].serious for kind in expected)
    for finding in report.findings:
        assert finding.title in text(report)
        assert finding.advice in text(report)


def test_labels_that_are_unknown_contradict_none_and_are_counted():
    images = np.stack([photo(n) for n in (0, 1, 0, 2)])
    sources = {"all": Arrays(images, np.array([0, 1, -1, -1]), ("cat", "dog"), "x")}
    report = check(sources, progress=False)
    assert found(report)["copies"] == ["x[0] x[2]"]
    assert report.unlabelled == {"all": 2}
    assert "without a label" in text(report)
    report = check({"all": Arrays(images[:2], np.array([-1, -1]), ("cat", "dog"), "y")}, progress=False)
    assert (report.classes, report.unlabelled, report.findings) == ({}, {"all": 2}, ())


def test_nothing_at_all_and_nothing_readable_are_said(tmp_path):
    assert text(check({"all": Subset(fashion("test"), [])}, progress=False)).startswith("0 images without labels")
    place(tmp_path, {"a/1.png": b"", "b/2.png": b""})
    report = checked(tmp_path)
    assert (report.sizes, report.colours, report.kinds, report.small) == ({}, {}, {}, 0.0)
    assert "2 images that cannot be read" in text(report)


def test_the_text_cuts_long_lists_and_the_document_does_not(tmp_path):
    place(tmp_path, clean() | {f"train/cat/x{n}.png": b"" for n in range(12)})
    report = checked(tmp_path)
    assert text(report).count("is empty") == 5
    assert "... and 7 more; --json lists all" in text(report)
    document = json.loads(json.dumps(report.document()))
    assert (document["images"], document["faults"]) == (40, 1)
    items = document["findings"][0]["items"]
    assert (len(items), items[0]["records"][0]["split"], items[0]["records"][0]["label"]) == (12, "train", "cat")


def test_many_classes_are_cut_in_the_middle_and_tables_are_80_columns_wide():
    names = tuple("long " * 30 if n == 81 else f"class {n} [bold]" for n in range(100))
    labels = np.repeat(np.arange(100), np.arange(100) // 20 + 1)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 9, 9, 3), np.uint8)
    shown = text(check({"all": Arrays(images, labels, names, "x")}, progress=False))
    assert all(words in shown for words in ("... 90 classes between", "class 80 [bold]", "class 19 [bold]"))
    assert ("class 50 " in shown, shown.count("long")) == (False, 30)
    assert max(map(len, shown.splitlines())) <= 80
    assert [line for line in shown.splitlines() if line != line.rstrip()] == []


def test_names_cannot_command_the_terminal(tmp_path):
    place(tmp_path, clean() | {"train/cat/\x1b[31m\nx.png": b"", "train/cat/grün 猫.png": b""})
    shown = text(checked(tmp_path))
    assert "\\x1b[31m\\nx.png is empty" in shown
    assert "grün 猫.png is empty" in shown
    assert "\x1b" not in shown


def test_lines_say_what_is_equal_in_which_images_and_of_many_the_first():
    records = tuple(Record("all", n, f"{n}\udcff.png", "cat") for n in range(8))
    shown = ", ".join(f"{n}\udcff.png (cat)" for n in range(5))
    assert line(Item(records, "alike")) == f"alike: {shown} and 3 more"
