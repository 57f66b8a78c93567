"""`vitrail evaluate` and `vitrail data check`: the run's own number again, classes by name, and what is wrong."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from command_line import TINY, photos, printed, refused, status, write_mnist
from PIL import Image

from vitrail import Pipeline
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.source import Arrays
from vitrail.evaluate.matching import matched
from vitrail.evaluate.results import MultiLabel, SingleLabel
from vitrail.evaluate.summary import document
from vitrail.models import vit
from vitrail.tasks import Classify

CLASSES = ("ash", "beech", "chestnut", "dogwood", "elm", "fir")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(here):
    """A model folder that tells red, green and blue images apart, for six classes."""
    torch.manual_seed(0)
    network = vit.ViT(vit.Config((32, 32), (8, 8), 3, 16, 1, 2, 16, len(CLASSES)))
    torch.nn.init.normal_(network.head.weight)
    how = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    Pipeline(Classify(network, how, class_names=CLASSES)).save(here / "model")
    return "model"


@pytest.fixture
def trained(capsys, here):
    """A run that has held back a tenth of twenty photographs, and what it said of them."""
    photos(here / "photos", CLASSES[:2], count=20)
    words = ["train", "small", "--data", "photos", *TINY, "--duration", "2 steps", "--image-size", "24", "--out", "run"]
    return printed(capsys, *words)[0]


def test_the_images_of_a_run_are_known_by_what_they_are(capsys, here, trained):
    """Another spelling of the path, or a copy, counted the images that were trained on."""
    shutil.copytree("photos", "copy")
    (here / "link").symlink_to("photos")
    for place in ("photos", here / "photos", "./photos/", "link", "copy"):
        found, _ = printed(capsys, "evaluate", "run", place)
        assert (found["metrics"], found["samples"]) == (trained["metrics"], 4)
        assert "trained_on" not in found
    (here / "copy" / "ash" / "0.png").rename(here / "copy" / "ash" / "new.png")
    for model in ("run", "run/model"):
        found, _ = printed(capsys, "evaluate", model, "copy")
        assert (found["samples"], found["trained_on"]) == (40, 0.9)
    assert status("evaluate", "run", "copy") == 0
    assert "90.0% of these images were trained on" in capsys.readouterr().out
    photos(here / "new", CLASSES[:2], count=3, seed=5)
    assert "trained_on" not in printed(capsys, "evaluate", "run", "new")[0]


def test_what_describes_the_data_reaches_every_command(capsys, here):
    photos(here / "photos", CLASSES[:2], count=12)
    rows = "".join(f"photos/{c}/{n}.png,{c},x\n" for c in CLASSES[:2] for n in range(12))
    (here / "t.csv").write_text("where,kind,species\n" + rows)
    columns = ["--data.image-column", "where", "--data.label-column", "kind"]
    printed(capsys, "train", "--data", "t.csv", *columns, *TINY, "--duration", "1 steps", "--out", "run")
    assert printed(capsys, "data", "check", "t.csv", *columns)[0]["classes"].keys() == {"ash", "beech"}
    assert printed(capsys, "data", "pack", "t.csv", "packed", *columns)[0]["images"] == {"all": 24}
    (here / "u.csv").write_text((here / "t.csv").read_text().replace("where", "there"))
    assert printed(capsys, "evaluate", "run", "u.csv", "--data.image-column", "there")[0]["samples"] == 2
    assert "--data.block" in refused(capsys, "data", "check", "t.csv", "--data.block", "3")


def test_images_are_looked_at_before_a_run_begins(capsys, here):
    """The run died at its first evaluation, and nothing was saved."""
    for split in ("train", "val"):
        photos(here / "photos" / split, CLASSES[:2], count=6)
    for name, content in {"0.png": b"<html>404</html>", "1.png": b"", "2.png": b"\x89PNG\r\n\x1a\n"}.items():
        (here / "photos" / "val" / "ash" / name).write_bytes(content)
    words = ["train", "small", "--data", "photos", *TINY, "--duration", "1 steps", "--image-size", "24", "--out", "run"]
    said = refused(capsys, *words)
    assert [part for part in ("3 of the 12 validation images", "val/ash/0.png", "web page") if part not in said] == []
    assert not (here / "run").exists()
    found, err = printed(capsys, *words, "--data.unreadable", "skip")
    assert (found["metrics"]["samples"], "left out" in err) == (9, True)


def answers(model, folder, int8=False):
    """(class, what the pipeline says) of every image: counted with nothing of ours but the pipeline."""
    files = [file for place in sorted(folder.iterdir()) for file in sorted(place.iterdir())]
    found = Pipeline.load(model, int8=int8)(files, top=1)
    return [(file.parent.name, best.label) for file, [best] in zip(files, found, strict=True)]


def test_a_runs_own_images_give_its_own_numbers_exactly(capsys, here):
    write_mnist(here / "mnist")
    run, _ = printed(capsys, "train", "demo", "--data", "mnist", *TINY, "--duration", "3 steps", "--out", "run")
    found, err = printed(capsys, "evaluate", "run")
    assert (found["metrics"], found["interval"], found["samples"]) == (run["metrics"], run["interval"], 16)
    assert "16 images" in err
    assert printed(capsys, "evaluate", "run", "mnist")[0] == found
    assert printed(capsys, "evaluate", "run", "--split", "train")[0]["samples"] == 64
    assert status("evaluate", "run") == 0
    score, weakest = capsys.readouterr().out.splitlines()
    low, high = run["interval"]
    assert score.startswith(f"accuracy {run['metrics']['accuracy']:.1%} ({low:.1%} to {high:.1%}) on 16 images; top5 ")
    assert (weakest.partition(": ")[0], weakest.count(",")) == ("the weakest classes, by F1", 3)


@pytest.mark.parametrize("classes", [CLASSES[::-1], ("elm", "beech")])
def test_every_image_of_a_folder_counts_once_and_classes_go_by_name(capsys, here, model, classes):
    folder = photos(here / "photos", classes, count=3)
    found, err = printed(capsys, "evaluate", model, "photos")
    expected = answers(model, folder)
    right = [truth for truth, answer in expected if answer == truth]
    assert (found["samples"], found["metrics"]["accuracy"]) == (len(expected), len(right) / len(expected))
    rows = {row["label"]: (row["images"], row["recall"]) for row in found["per_class"]}
    assert rows == {name: (3, right.count(name) / 3) if name in classes else (0, None) for name in CLASSES}
    assert ("photos has 2 of the model's 6 classes" in err) == (len(classes) == 2)


def arrays(*names):
    return Arrays(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), names, "x")


@pytest.mark.parametrize(
    ("theirs", "ours", "said"), [("01", "ab", "photos has"), ("ab", "01", "the model has"), ("ab", "ab", "")]
)
def test_classes_without_names_go_by_position(capsys, theirs, ours, said):
    source = arrays(*theirs)
    assert matched(source, tuple(ours), "photos") is source
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(("theirs", "ours", "message"), [
    ("cy", "cd", "photos: .* y; .* c, d"), ("cy", "012", "photos: .* c, y; .* 0, 1, 2"),
    ("cd", "cdc", "photos: .* several classes called c"), ("cd", "", "no head"),
])  # fmt: skip
def test_classes_that_the_model_lacks_are_named(theirs, ours, message):
    with pytest.raises(ValueError, match=message):
        matched(arrays(*theirs), tuple(ours), "photos")


@pytest.mark.parametrize(("words", "parts"), [
    ("evaluate model", ["model is not a run", "DATA"]), ("evaluate model gone", ["gone does not exist"]),
    ("evaluate model divided --split test", ["divided has no test images", "train, val", "--split"]),
    ("evaluate model photos/ash", ["photos/ash", "without labels"]),
    ("evaluate model photos --split best", ["--split", "'best'", "val or test or train"]),
    ("data check photos --page no/check.html", ["--page no/check.html"]),
])  # fmt: skip
def test_bad_words_are_one_sentence(capsys, here, model, words, parts):
    photos(here / "photos", CLASSES[:2], count=1)
    for split in ("train", "val"):
        photos(here / "divided" / split, CLASSES[:2], count=1)
    said = refused(capsys, *words.split())
    assert [part for part in parts if part not in said] == []


def test_an_image_that_cannot_be_read_ends_it_or_is_left_out_and_counted(capsys, here, model):
    photos(here / "photos", CLASSES[:2], count=3)
    (here / "photos" / "ash" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert status("evaluate", model, "photos") == 2
    assert "vitrail: photos/ash/1.png " in capsys.readouterr().err
    assert status("evaluate", model, "photos", "--skip-unreadable", "--int8", "--json") == 1
    out, err = capsys.readouterr()
    assert (json.loads(out)["samples"], json.loads(out)["metrics"]["unreadable"]) == (5, 1)
    assert err.count("photos/ash/1.png") == 1  # it is judged twice


def test_int8_is_measured_beside_the_model_itself(capsys, here, model):
    folder = photos(here / "photos", CLASSES, count=3)
    plain, _ = printed(capsys, "evaluate", model, "photos")
    assert "--device cuda" in refused(capsys, "evaluate", model, "photos", "--int8", "--device", "cuda")
    assert "'gpu'" in refused(capsys, "evaluate", model, "photos", "--device", "gpu")
    found, _ = printed(capsys, "evaluate", model, "photos", "--int8", "--device", "cpu")
    small = found.pop("int8")
    assert (found, small.keys()) == (plain, {"metrics", "interval", "same"})
    assert small["metrics"]["loss"] != plain["metrics"]["loss"]
    ours, theirs = answers(model, folder, int8=True), answers(model, folder)
    right = sum(truth == answer for truth, answer in ours) / 18
    same = sum(one == other for one, other in zip(ours, theirs, strict=True)) / 18
    assert (small["metrics"]["accuracy"], small["same"]) == (right, same)


def test_images_with_several_labels_are_judged_class_by_class(capsys, here):
    photos(here / "photos", CLASSES[:2], count=4)
    lines = [f"photos/ash/{n}.png,ash\nphotos/beech/{n}.png,beech|ash" for n in range(4)]
    (here / "table.csv").write_text("\n".join(["image,labels", *lines]) + "\n")
    words = ["train", "small", "--data", "table.csv", *TINY, "--duration", "2 steps", "--image-size", "24"]
    trained, _ = printed(capsys, *words, "--out", "run")
    assert trained["interval"] is None
    found, _ = printed(capsys, "evaluate", "run")
    assert found["metrics"] == trained["metrics"]
    assert found["metrics"].keys() == {"mAP", "f1", "loss", "samples"}


def test_an_undefined_rate_is_null():
    rest = {"indices": np.array([0]), "losses": np.array([0.5]), "problems": ()}
    sure = {"predicted": np.array([0]), "confidence": np.ones(1), "truth": np.ones(1)}
    single = SingleLabel(("a", "b"), **rest, targets=np.array([0]), **sure)
    several = MultiLabel(("a", "b"), **rest, targets=np.array([[True, False]]), logits=np.array([[1.0, -1.0]]))
    for result in (single, several):
        found = json.loads(json.dumps(document((result.metrics, {"classification": result}))))
        assert found["per_class"][1] == {"label": "b", "images": 0, "precision": None, "recall": None, "f1": None}
        assert math.isclose(found["per_class"][0]["f1"], 1)


def test_faults_in_data_have_status_1_and_are_shown_on_a_page(capsys, here):
    photos(here / "photos", CLASSES[:2], count=12)
    found, _ = printed(capsys, "data", "check", "photos")
    assert (found["images"], found["faults"], found["splits"]) == (24, 0, {"all": 24})
    photos(here / "val", CLASSES[:2], count=12, seed=1)
    Image.open(here / "photos" / "ash" / "0.png").save(here / "val" / "beech" / "3.png")
    assert status("data", "check", "photos", "--val", "val", "--page", "check.html") == 1
    assert "1 image in more than one split" in capsys.readouterr().out
    assert "<html" in (here / "check.html").read_text()
