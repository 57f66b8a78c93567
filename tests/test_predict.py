"""`vitrail predict` from end to end: answers for people and programs, bad files among good ones, exit statuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from vitrail import Pipeline, cli, pipeline
from vitrail.cli import main
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.mnist import fashion
from vitrail.models import vit
from vitrail.recipes.demo import demo
from vitrail.run import write

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
    Pipeline(model.eval(), how, names).save(folder)
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
    (folder / "notes.txt").write_text("not an image")
    return folder


def status(*arguments):
    try:
        main(["predict", *map(str, arguments)])
    except SystemExit as stop:
        return stop.code
    return 0


def test_people_get_one_line_for_each_file(capsys, model, photos):
    assert status(model, photos, "--top", "2") == 0
    out, err = capsys.readouterr()
    assert err == ""
    files = [str(photos / name) for name in ("a.png", "b.jpg", "c.webp", "more/d.tiff", "more/e.bmp")]
    for line, file, answers in zip(out.splitlines(), files, Pipeline.load(model)(files, top=2), strict=True):
        assert line == f"{file}: " + ", ".join(f"{answer.label} {answer.probability:.1%}" for answer in answers)


def test_int8_is_the_same_command_and_nearly_the_same_answers(capsys, model, photos):
    assert status(model, photos, "--json", "--top", "4") == 0
    exact = json.loads(capsys.readouterr().out)
    assert status(model, photos, "--json", "--top", "4", "--int8") == 0
    small = json.loads(capsys.readouterr().out)
    assert small != exact
    for one, other in zip(small, exact, strict=True):
        shares = [{p["label"]: p["probability"] for p in entry["predictions"]} for entry in (one, other)]
        assert shares[0] == pytest.approx(shares[1], abs=0.1)


def test_programs_get_the_contracts_document(capsys, model, photos):
    assert status(model, photos / "b.jpg", photos / "more", "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    assert [entry["file"] for entry in document] == [str(photos / n) for n in ("b.jpg", "more/d.tiff", "more/e.bmp")]
    for entry in document:
        assert entry.keys() == {"file", "predictions"}
        assert len(entry["predictions"]) == 4
        assert all(answer.keys() == {"label", "index", "probability"} for answer in entry["predictions"])
        assert all(answer["label"] == NAMES[answer["index"]] for answer in entry["predictions"])
        shares = [answer["probability"] for answer in entry["predictions"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "theirs"), [("crop", "center"), ("squash", "squash"), ("pad", "border")])
def test_probabilities_are_those_of_timms_transforms(capsys, tmp_path, photos, resize, theirs, interpolation):
    how = Preprocessing((32, 32), *STATISTIC, resize, 0.875, interpolation)
    folder = save(tmp_path / "model", how)
    transform = create_transform(
        (3, 32, 32), interpolation=interpolation, mean=how.mean, std=how.std, crop_pct=0.875, crop_mode=theirs
    )
    assert status(folder, photos, "--json") == 0
    network = Pipeline.load(folder).model
    for entry in json.loads(capsys.readouterr().out):
        with torch.no_grad(), Image.open(entry["file"]) as opened:
            expected = network(transform(opened.convert("RGB"))[None]).softmax(-1)[0]
        for answer in entry["predictions"]:
            assert answer["probability"] == pytest.approx(expected[answer["index"]].item(), abs=1e-5)


def test_a_bad_file_among_good_ones_is_reported_and_the_status_is_1(capsys, model, photos):
    (photos / "bad.jpg").write_bytes((photos / "b.jpg").read_bytes()[:300])
    (photos / "more" / "web.png").write_text("<html>Not Found</html>")
    assert status(model, photos, photos / "missing.gif") == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 5
    said = err.splitlines()
    assert len(said) == 4
    assert said[0].startswith(f"vitrail: {photos / 'bad.jpg'} is cut short or damaged (")
    assert said[1].startswith(f"vitrail: {photos / 'more' / 'web.png'} is a web page")
    assert said[2] == f"vitrail: {photos / 'missing.gif'} does not exist; check its name."
    assert said[3] == "vitrail: 3 of 8 images could not be read."


def test_the_document_has_the_errors_in_their_places(capsys, model, photos):
    (photos / "bad.jpg").write_bytes(b"")
    assert status(model, photos, "--json", "--top", "1") == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [set(entry) - {"file"} for entry in document] == [{"predictions"}] * 2 + [{"error"}] + [{"predictions"}] * 3
    sentence = f"{photos / 'bad.jpg'} is empty; copy or download it again."
    assert document[2] == {"file": str(photos / "bad.jpg"), "error": sentence}
    assert err == f"vitrail: {sentence}\nvitrail: 1 of 6 images could not be read.\n"


@pytest.mark.parametrize("json_too", [True, False])
def test_where_no_image_could_be_read_the_status_is_2(capsys, model, photos, json_too):
    bad = photos / "notes.txt"
    sentence = f"{bad} is not an image of a kind that is read here; convert it to JPEG, PNG, WebP, BMP, GIF or TIFF."
    assert status(model, bad, *(["--json"] if json_too else [])) == 2
    out, err = capsys.readouterr()
    assert err == f"vitrail: {sentence}\n"
    assert (json.loads(out) if json_too else out) == ([{"file": str(bad), "error": sentence}] if json_too else "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["MODEL"], "vitrail predict needs an image after the model; name files or folders."),
        (["MODEL", "--json"], "vitrail predict needs an image after the model; name files or folders."),
        (["MODEL", "empty"], "empty is a folder without images (.jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff)."),
        (["MODEL", "a.jpg", "--top", "0"], "--top is 0; it must be 1 or more."),
        (["MODEL", "a.jpg", "--top", "x"], "--top cannot be 'x'; see vitrail predict --help."),
        (["MODEL", "a.jpg", "--tops", "3"], "vitrail predict has no option --tops; did you mean --top?"),
        (["nowhere", "a.jpg"], "nowhere does not exist; name a file with weights, or a model folder."),
        (["empty", "a.jpg"], "empty is not a model folder: it has no config.json."),
        (["run", "a.jpg"], "run has no model yet: the run has not ended; go on with `vitrail resume run`."),
        (["page.npz", "a.jpg"], "page.npz is a web page, perhaps of a download that failed"),
    ],
)
def test_bad_input_is_one_sentence(capsys, model, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.npz").write_text("<html>Not Found</html>")
    write(demo(), tmp_path / "run")
    assert status(*[model if word == "MODEL" else word for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"vitrail: {sentence}")
    assert err.count("\n") == 1


def test_a_model_of_grey_images_reads_the_demos_images_from_files(capsys, tmp_path):
    """A saved run predicts from PNG files what it predicts from the arrays that they were."""
    source, folder = fashion("test"), tmp_path / "run" / "model"
    torch.manual_seed(0)
    network = vit.ViT(demo().model)
    torch.nn.init.normal_(network.head.weight)
    Pipeline(network.eval(), demo().preprocessing, source.class_names).save(folder)
    (tmp_path / "images").mkdir()
    for n in range(12):
        Image.fromarray(source[n][0][..., 0]).save(tmp_path / "images" / f"{n:02}.png")
    assert status(tmp_path / "run", tmp_path / "images", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document) == 12
    for n, entry in enumerate(document):
        for answer, expected in zip(entry["predictions"], Pipeline.load(folder)(source[n][0]), strict=True):
            assert (answer["label"], answer["index"]) == (expected.label, expected.index)
            assert answer["probability"] == pytest.approx(expected.probability, rel=1e-4)


def test_without_a_terminal_there_is_no_bar_but_a_line_now_and_then(capsys, model, photos, monkeypatch):
    monkeypatch.setattr("vitrail.progress.QUIET_SECONDS", 0.0)
    assert status(model, photos, "--json") == 0
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


def test_ctrl_c_has_status_130(capsys, model, photos, monkeypatch):
    def stop(self, images, top):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.Pipeline, "stream", stop)
    assert status(model, photos) == 130
    assert capsys.readouterr() == ("", "vitrail: interrupted\n")
    assert "predict" in cli.COMMANDS
