"""`vitrail predict` from end to end: answers for people and programs, bad files among good ones, exit statuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from command_line import refused, status
from PIL import Image
from timm.data import create_transform

from vitrail import Pipeline
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.mnist import fashion
from vitrail.models import vit
from vitrail.recipes.demo import demo
from vitrail.run import write
from vitrail.tasks import Classify

NAMES = ("ash", "beech", "chaise longue", "Zürich")
STATISTIC = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def photo(height, width, seed):
    """Smooth shapes, so that other decoders or resizings would be seen to differ."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def save(folder, how, channels=3, names=NAMES):
    torch.manual_seed(0)
    model = vit.ViT(vit.Config((32, 32), (8, 8), channels, 24, 2, 3, 48, len(names)))
    torch.nn.init.normal_(model.head.weight)
    Pipeline(Classify(model, how, class_names=names)).save(folder)
    return folder


@pytest.fixture
def model(tmp_path):
    return str(save(tmp_path / "model", Preprocessing((32, 32), *STATISTIC, "crop", 0.9, "bicubic")))


@pytest.fixture
def photos(tmp_path):
    """Five good files in a folder and below."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for n, name in enumerate(["a.png", "b.jpg", "c.webp", "more/d.tiff", "more/e.bmp"]):
        Image.fromarray(photo(40 + 9 * n, 60, n)).save(folder / name)
    return folder


def test_people_get_one_line_for_each_file(capsys, model, photos):
    assert status("predict", model, photos, "--top", "2") == 0
    out, err = capsys.readouterr()
    assert err == ""
    files = [str(photos / name) for name in ("a.png", "b.jpg", "c.webp", "more/d.tiff", "more/e.bmp")]
    for line, file, answers in zip(out.splitlines(), files, Pipeline.load(model)(files, top=2), strict=True):
        assert line == f"{file}: " + ", ".join(f"{answer.label} {answer.probability:.1%}" for answer in answers)


def test_int8_is_the_same_command_and_nearly_the_same_answers(capsys, model, photos):
    assert status("predict", model, photos, "--json", "--top", "4") == 0
    exact = json.loads(capsys.readouterr().out)
    assert status("predict", model, photos, "--json", "--top", "4", "--int8") == 0
    small = json.loads(capsys.readouterr().out)
    assert small != exact
    for one, other in zip(small, exact, strict=True):
        first, second = ({p["label"]: p["probability"] for p in entry["predictions"]} for entry in (one, other))
        assert first == pytest.approx(second, abs=0.1)


def test_programs_get_the_contracts_document(capsys, model, photos):
    assert status("predict", model, photos / "b.jpg", photos / "more", "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    assert [entry["file"] for entry in document] == [str(photos / n) for n in ("b.jpg", "more/d.tiff", "more/e.bmp")]
    for entry in document:
        assert entry.keys() == {"file", "predictions"}
        assert len(entry["predictions"]) == 4
        assert all(answer.keys() == {"label", "index", "probability"} for answer in entry["predictions"])
        assert all(answer["label"] == NAMES[answer["index"]] for answer in entry["predictions"])
        probabilities = [answer["probability"] for answer in entry["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "theirs"), [("crop", "center"), ("squash", "squash"), ("pad", "border")])
def test_probabilities_are_those_of_timms_transforms(capsys, tmp_path, photos, resize, theirs, interpolation):
    how = Preprocessing((32, 32), *STATISTIC, resize, 0.875, interpolation)
    folder = save(tmp_path / "model", how)
    transform = create_transform(
        (3, 32, 32), interpolation=interpolation, mean=how.mean, std=how.std, crop_pct=0.875, crop_mode=theirs
    )
    assert status("predict", folder, photos, "--json") == 0
    network = Pipeline.load(folder).task.model
    for entry in json.loads(capsys.readouterr().out):
        with torch.no_grad(), Image.open(entry["file"]) as opened:
            expected = network(transform(opened.convert("RGB"))[None]).softmax(-1)[0]
        for answer in entry["predictions"]:
            assert answer["probability"] == pytest.approx(expected[answer["index"]].item(), abs=1e-5)


def test_a_bad_file_among_good_ones_is_reported_and_the_status_is_1(capsys, model, photos):
    (photos / "bad.jpg").write_bytes((photos / "b.jpg").read_bytes()[:300])
    (photos / "more" / "web.png").write_text("<html>Not Found</html>")
    assert status("predict", model, photos, photos / "missing.gif") == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 5
    files = [str(photos / name) for name in ("bad.jpg", "more/web.png", "missing.gif")]
    for line, part in zip(err.splitlines(), [*files, "3 of 8 images"], strict=True):
        assert line.startswith(f"vitrail: {part}")


def test_the_document_has_the_errors_in_their_places(capsys, model, photos):
    (photos / "bad.jpg").write_bytes(b"")
    assert status("predict", model, photos, "--json", "--top", "1") == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [set(entry) - {"file"} for entry in document] == [{"predictions"}] * 2 + [{"error"}] + [{"predictions"}] * 3
    assert document[2]["file"] == str(photos / "bad.jpg")
    assert document[2]["error"].startswith(str(photos / "bad.jpg"))
    assert err.splitlines()[0] == f"vitrail: {document[2]['error']}"
    assert "1 of 6 images" in err


@pytest.mark.parametrize("json_too", [True, False])
def test_where_no_image_could_be_read_the_status_is_2(capsys, model, photos, json_too):
    bad = photos / "notes.txt"
    bad.write_text("not an image")
    assert status("predict", model, bad, *(["--json"] if json_too else [])) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"vitrail: {bad} ")
    assert err.count("\n") == 1
    document = [{"file": str(bad), "error": err.removeprefix("vitrail: ").strip()}]
    assert (json.loads(out) if json_too else out) == (document if json_too else "")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("MODEL --json", ["needs", "image"]), ("MODEL empty", ["empty", "PNG"]),
        ("MODEL a.jpg --top x", ["--top", "'x'", "a whole number"]), ("empty a.jpg", ["empty", "config.json"]),
        ("MODEL a.jpg --tops 3", ["--tops;", "did you mean --top?"]), ("nowhere a.jpg", ["nowhere does not exist"]),
        ("run a.jpg", ["`vitrail resume run`"]), ("page.npz a.jpg", ["page.npz is a web page"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(capsys, model, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.npz").write_text("<html>Not Found</html>")
    write(demo(), tmp_path / "run")
    said = refused(capsys, "predict", *[model if word == "MODEL" else word for word in arguments.split()])
    assert [part for part in parts if part not in said] == []


def test_a_model_of_grey_images_reads_the_demos_images_from_files(capsys, tmp_path):
    """A saved run predicts from PNG files what it predicts from the arrays that they were."""
    source, folder = fashion("test"), tmp_path / "run" / "model"
    torch.manual_seed(0)
    network = vit.ViT(demo().model)
    torch.nn.init.normal_(network.head.weight)
    Pipeline(Classify(network, demo().preprocessing, class_names=source.class_names)).save(folder)
    (tmp_path / "images").mkdir()
    for n in range(12):
        Image.fromarray(source[n][0][..., 0]).save(tmp_path / "images" / f"{n:02}.png")
    assert status("predict", tmp_path / "run", tmp_path / "images", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document) == 12
    for n, entry in enumerate(document):
        for answer, expected in zip(entry["predictions"], Pipeline.load(folder)(source[n][0]), strict=True):
            assert (answer["label"], answer["index"]) == (expected.label, expected.index)
            assert answer["probability"] == pytest.approx(expected.probability, rel=1e-4)


def test_without_a_terminal_there_is_no_bar_but_a_line_now_and_then(capsys, model, photos, monkeypatch):
    monkeypatch.setattr("vitrail.progress.QUIET_SECONDS", 0.0)
    assert status("predict", model, photos, "--json") == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 5
    assert [line.rpartition("  ")[0] for line in err.splitlines()] == [f"predicting {n}/5" for n in range(1, 6)]
    assert all(line.endswith("/s") for line in err.splitlines())


def test_a_reader_that_leaves_is_no_error(model, photos):
    command = [sys.executable, "-m", "vitrail", "predict", model, *[str(photos)] * 40]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(bytes(photos / "a.png") + b": ")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_names_that_a_terminal_cannot_show_are_escaped(model, tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9 \xc3\xbc.png"  # Latin-1 and UTF-8
    Image.fromarray(photo(20, 20, 0)).save(os.fsdecode(name))
    command = [sys.executable, "-m", "vitrail", "predict", model, name]
    for encoding, shown in (("ascii", b"caf\\udce9 \\xfc.png: "), ("utf-8", b"caf\\udce9 \xc3\xbc.png: ")):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, timeout=120, check=False, env=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        assert shown in done.stdout
