"""`vitrail evaluate` and `vitrail data check`: the run's own number again, classes by name, and what is wrong."""

import json
import math

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


def answers(model, folder):
    """What the pipeline says of every image, by class: counted with nothing of ours but the pipeline."""
    found = {}
    for place in sorted(folder.iterdir()):
        files = sorted(place.iterdir())
        found[place.name] = [best.label for [best] in Pipeline.load(model)(files, top=1)]
    return found


@pytest.fixture
def run(capsys, here):
    """A run on MNIST's files, and what it printed."""
    write_mnist(here / "mnist")
    return printed(capsys, "train", "demo", "--data", "mnist", *TINY, "--duration", "3 steps", "--out", "run")[0]


def test_a_runs_own_images_give_its_own_numbers_exactly(capsys, run):
    found, err = printed(capsys, "evaluate", "run")
    assert found["metrics"] == run["metrics"]
    assert found["interval"] == run["interval"]
    assert found["samples"] == 16
    assert "16 images" in err
    assert printed(capsys, "evaluate", "run", "mnist")[0] == found

    for split, samples in (("train", 64), ("val", 16), ("test", 16)):
        assert printed(capsys, "evaluate", "run", "--split", split)[0]["samples"] == samples
    assert status("evaluate", "run") == 0
    score, weakest = capsys.readouterr().out.splitlines()
    low, high = run["interval"]
    assert score.startswith(f"accuracy {run['metrics']['accuracy']:.1%} ({low:.1%} to {high:.1%}) on 16 images; top5 ")
    assert weakest.startswith("the weakest classes, by F1: ")
    assert weakest.count(",") == 3


def test_every_image_of_a_folder_counts_once_and_classes_go_by_name(capsys, here, model):
    folder = photos(here / "photos", reversed(CLASSES), count=3)
    found, _ = printed(capsys, "evaluate", model, "photos")
    expected = answers(model, folder)
    right = sum(answer == name for name, given in expected.items() for answer in given)
    assert (found["samples"], found["metrics"]["accuracy"]) == (18, right / 18)
    assert [row["label"] for row in found["per_class"]] == list(CLASSES)
    for row in found["per_class"]:
        assert row["images"] == 3
        assert row["recall"] == expected[row["label"]].count(row["label"]) / 3


def test_data_may_have_fewer_classes(capsys, here, model):
    folder = photos(here / "photos", ["elm", "beech"], count=4)
    found, err = printed(capsys, "evaluate", model, "photos")
    assert "photos has 2 of the model's 6 classes" in err
    expected = answers(model, folder)
    assert found["metrics"]["accuracy"] == sum(a == n for n, given in expected.items() for a in given) / 8
    assert [row["images"] for row in found["per_class"]] == [0, 4, 0, 0, 4, 0]
    assert found["per_class"][0]["recall"] is None


def arrays(*names):
    return Arrays(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), names, "x")


@pytest.mark.parametrize(
    ("theirs", "ours", "said"), [("01", "ab", "photos has"), ("ab", "01", "the model has"), ("ab", "ab", "")]
)
def test_classes_without_names_go_by_position(capsys, theirs, ours, said):
    source = arrays(*theirs)
    assert matched(source, tuple(ours), "photos") is source
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (("cat", "yak"), ("cat", "dog"), "photos: .* yak; .* cat, dog"),
        (("cat", "yak"), ("0", "1", "2"), "photos: .* cat, yak; .* 0, 1, 2"),
        (("cat", "dog"), ("cat", "dog", "cat"), "photos: .* several classes called cat"),
        (("cat", "dog"), (), "no head"),
    ],
)
def test_classes_that_the_model_lacks_are_named(theirs, ours, message):
    with pytest.raises(ValueError, match=message):
        matched(arrays(*theirs), ours, "photos")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("model", ["model is not a run", "DATA"]),
        ("model gone", ["gone does not exist"]),
        ("gone photos", ["gone does not exist"]),
        ("model photos --split test", ["photos", "--split test"]),
        ("model divided --split test", ["divided has train and val images", "--split test"]),
        ("model photos/ash", ["photos/ash", "without labels"]),
        ("model photos --split best", ["--split", "'best'", "val or test or train"]),
        ("model photos --josn", ["--josn", "did you mean --json?"]),
    ],
)
def test_bad_words_are_one_sentence(capsys, here, model, words, parts):
    photos(here / "photos", CLASSES[:2], count=1)
    for split in ("train", "val"):
        photos(here / "divided" / split, CLASSES[:2], count=1)
    said = refused(capsys, "evaluate", *words.split())
    assert [part for part in parts if part not in said] == []


def test_an_image_that_cannot_be_read_ends_it_or_is_left_out_and_counted(capsys, here, model):
    photos(here / "photos", CLASSES[:2], count=3)
    (here / "photos" / "ash" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert status("evaluate", model, "photos") == 2
    assert "vitrail: photos/ash/1.png " in capsys.readouterr().err
    assert status("evaluate", model, "photos", "--skip-unreadable") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].endswith("left out: 1")
    assert "photos/ash/1.png" in err
    assert status("evaluate", model, "photos", "--skip-unreadable", "--int8", "--json") == 1
    out, err = capsys.readouterr()
    assert (json.loads(out)["samples"], json.loads(out)["metrics"]["unreadable"]) == (5, 1)
    assert err.count("photos/ash/1.png") == 1  # it is judged twice


def test_int8_is_measured_beside_the_model_itself(capsys, here, model):
    folder = photos(here / "photos", CLASSES, count=3)
    plain, _ = printed(capsys, "evaluate", model, "photos")
    found, _ = printed(capsys, "evaluate", model, "photos", "--int8")
    small = found.pop("int8")
    assert found == plain
    assert small.keys() == {"metrics", "interval", "same"}
    assert small["metrics"]["loss"] != plain["metrics"]["loss"]
    files = [file for place in sorted(folder.iterdir()) for file in sorted(place.iterdir())]
    ours, theirs = ([best.label for [best] in Pipeline.load(model, int8=int8)(files, top=1)] for int8 in (True, False))
    right = sum(answer == file.parent.name for answer, file in zip(ours, files, strict=True))
    assert small["metrics"]["accuracy"] == right / 18
    assert small["same"] == sum(a == b for a, b in zip(ours, theirs, strict=True)) / 18
    assert status("evaluate", model, "photos", "--int8") == 0
    line = f"in int8: accuracy {right / 18:.1%} ("
    assert [row.startswith(line) for row in capsys.readouterr().out.splitlines()] == [False, False, True]


@pytest.fixture
def table(here):
    """A table of images with several labels each."""
    photos(here / "photos", CLASSES[:2], count=4)
    lines = ["image,labels"]
    for n in range(4):
        lines += [f"photos/ash/{n}.png,ash", f"photos/beech/{n}.png,beech|ash"]
    (here / "table.csv").write_text("\n".join(lines) + "\n")
    return "table.csv"


def test_images_with_several_labels_are_judged_class_by_class(capsys, here, table):
    words = ["train", "small", "--data", table, *TINY, "--duration", "2 steps", "--image-size", "24"]
    trained, _ = printed(capsys, *words, "--out", "run")
    assert trained["interval"] is None
    found, _ = printed(capsys, "evaluate", "run")
    assert found["metrics"] == trained["metrics"]
    assert found["metrics"].keys() == {"mAP", "f1", "loss", "samples"}
    assert status("evaluate", "run/model", table) == 0
    assert capsys.readouterr().out.startswith("mAP ")
    small = printed(capsys, "evaluate", "run/model", table, "--int8")[0]["int8"]
    assert (small["metrics"].keys(), small["interval"]) == (found["metrics"].keys(), None)
    assert 0.5 < small["same"] <= 1


def test_an_undefined_rate_is_null():
    nothing = {"indices": np.array([0]), "losses": np.array([0.5]), "problems": (), "targets": np.array([0])}
    one = np.array([1.0])
    single = SingleLabel(("a", "b"), **nothing, predicted=np.array([0]), confidence=one, truth=one)
    several = MultiLabel(
        ("a", "b"), **{**nothing, "targets": np.array([[True, False]])}, logits=np.array([[1.0, -1.0]])
    )
    for examination in (single, several):
        found = json.loads(json.dumps(document((examination.metrics, {"classification": examination}))))
        assert found["per_class"][1] == {"label": "b", "images": 0, "precision": None, "recall": None, "f1": None}
        assert math.isclose(found["per_class"][0]["f1"], 1)


def test_faults_in_data_have_status_1_and_are_shown_on_a_page(capsys, here):
    photos(here / "photos", CLASSES[:2], count=12)
    found, _ = printed(capsys, "data", "check", "photos")
    assert (found["images"], found["faults"], found["splits"]) == (24, 0, {"all": 24})
    photos(here / "val", CLASSES[:2], count=12, seed=1)
    Image.open(here / "photos" / "ash" / "0.png").save(here / "val" / "beech" / "3.png")
    assert status("data", "check", "photos", "--val", "val", "--page", "check.html") == 1
    out = capsys.readouterr().out
    assert "1 image in more than one split" in out
    assert "<html" in (here / "check.html").read_text()
    assert status("data", "check", "photos", "--val", "val", "--json") == 1
    assert json.loads(capsys.readouterr().out)["splits"] == {"train": 24, "val": 24}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("gone", ["gone does not exist"]),
        (". --page no/check.html", ["--page no/check.html"]),
        (". --pag x", ["--pag;", "did you mean --page?"]),
    ],
)
def test_a_check_that_cannot_be_is_one_sentence(capsys, words, parts):
    said = refused(capsys, "data", "check", *words.split())
    assert [part for part in parts if part not in said] == []
