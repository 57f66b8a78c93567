"""The command line: help that answers at once, results for people and programs, and one sentence for bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest

import vitrail
from vitrail import cli, train
from vitrail import run as runs
from vitrail.cli import main
from vitrail.recipes.demo import demo

MODULE = [sys.executable, "-m", "vitrail"]


def call(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def refused(capsys, *arguments):
    """The sentence with which the command refuses its input."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.startswith("vitrail: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert len(err) < 400
    return err.removeprefix("vitrail: ").strip()


PROBE = """
import sys
from vitrail.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "numpy", "jaxtyping", "safetensors"} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["demo", "resume", "info", "predict", "vitrail COMMAND --help", "The Vision Transformer"]),
        (["-h"], ["demo", "resume", "info"]),
        (
            ["demo", "--help"],
            ["--out FOLDER", "--data FOLDER", "--duration TIME", "--seed N", "--json", "three minutes"],
        ),
        (["info", "--help"], ["MODEL", "--image-size H [W]", "--json", "--classes 10", "docs/zoo.md", "FLOPs"]),
        (["predict", "--help"], ["MODEL", "IMAGE...", "(one or more)", "--top N", "--json", "1 where some could not"]),
        (["resume", "--help"], ["FOLDER", "--json", "exactly as if it had not been"]),
        (["--version"], [vitrail.__version__]),
    ],
    ids=" ".join,
)
def test_help_says_what_there_is_without_importing_torch(arguments, words):
    done = call(sys.executable, "-c", PROBE, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.replace("│", " ").split())
    assert [word for word in words if word not in text] == []


def test_bad_words_are_refused_without_importing_torch():
    done = call(sys.executable, "-c", PROBE, "demo", "--sed", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vitrail: vitrail demo has no option --sed; did you mean --seed?\n"


def test_info_as_a_process_of_its_own():
    done = call(*MODULE, "info", "ViT-B/16", "--image-size", "384")
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("86,567,656", "577 (24 x 24 patches)", "110.97 GFLOP", "384 x 384"):
        assert words in done.stdout


def card(capsys, *arguments):
    """What --json prints, which is one document."""
    main(["info", *arguments, "--json"])
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


@pytest.mark.parametrize(
    ("arguments", "parameters", "tokens", "gflop"),
    [
        (["ViT-B/16"], 86_567_656, 197, 35.13),
        (["ViT-B/16", "--image-size", "384", "384"], 86_567_656, 577, 110.97),
        (["ViT-L/16"], 304_326_632, 197, 123.11),
        (["L/16", "--image-size=384"], 304_326_632, 577, 382.13),
        (["ViT-H/14"], 632_045_800, 257, 334.59),
        (["ViT-H/14", "--remainder", "crop", "--image-size", "384"], 632_045_800, 730, 1006.96),
        (["R50+ViT-B/16"], 98_659_112, 197, None),
    ],
)
def test_infos_document_has_the_papers_figures(capsys, arguments, parameters, tokens, gflop):
    found = card(capsys, *arguments)
    assert {"name", "config", "parameters", "flops", "tokens", "image_size", "preprocessing"} <= found.keys()
    assert (found["parameters"], found["tokens"]) == (parameters, tokens)
    assert gflop is None or round(found["flops"] / 1e9, 2) == gflop


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--classes", "10"], "classes", 10),
        (["--classes=10"], "classes", 10),
        (["--patch-size", "8"], "patch_size", [8, 8]),
        (["--patch-size", "8", "16"], "patch_size", [8, 16]),
        (["--patch_size", "8", "16"], "patch_size", [8, 16]),
        (["--pool", "avg"], "pool", "avg"),
        (["--layer-scale", "1e-5"], "layer_scale", 1e-5),
        (["--layer-scale", "None"], "layer_scale", None),
        (["--qkv-bias", "False"], "qkv_bias", False),
        (["--qkv-bias", "false", "--dropout", "0.1"], "dropout", 0.1),
    ],
)
@pytest.mark.parametrize("size_first", [True, False])
def test_any_field_is_an_option(capsys, words, field, value, size_first):
    size = ["--image-size", "64", "32"]
    found = card(capsys, "ViT-Ti/16", *(size + words if size_first else words + size))
    assert found["config"][field] == value
    assert found["image_size"] == [64, 32]


@pytest.mark.parametrize("given", [["info", "B/16", "--json"], ["info", "--json", "B/16"]])
def test_a_flag_may_stand_anywhere(capsys, given):
    main(given)
    assert json.loads(capsys.readouterr().out)["name"] == "ViT-B/16"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("", "name a command; vitrail --help lists them."),
        ("inof", "there is no command 'inof'; did you mean info?"),
        ("xyz", "there is no command 'xyz'; the commands are demo, info, predict, convert, resume."),
        ("info", "vitrail info needs a model; name it before the options."),
        ("info --classes 10 ViT-B/16", "vitrail info needs a model; name it before the options."),
        ("predict", "vitrail predict needs a model; name it before the options."),
        ("resume", "vitrail resume needs a folder; name it before the options."),
        ("resume a b", "vitrail resume has no place for b; see vitrail resume --help."),
        ("demo extra", "vitrail demo has no place for extra; see vitrail demo --help."),
        ("demo --sed 1", "vitrail demo has no option --sed; did you mean --seed?"),
        ("demo --wxyz 1", "vitrail demo has no option --wxyz; see vitrail demo --help."),
        ("demo --out", "--out needs a value; see vitrail demo --help."),
        ("demo --seed one", "--seed cannot be 'one'; see vitrail demo --help."),
        ("demo --seed -1", "seed is -1; it must be 0 or more, and below 2**64."),
        ("demo --seed 99999999999999999999", "seed is 99999999999999999999; it must be 0 or more, and below 2**64."),
        ("demo --duration 5", "duration '5' has no unit: did you mean '5 steps'?"),
        ("demo --duration 5epocs", "duration '5epocs' has an unknown unit 'epocs': did you mean '5 epochs'?"),
        ("demo --duration 0steps", "the duration '0steps' is no training; give it one step or more."),
        ("demo --data nowhere", "the data folder nowhere does not exist; name a folder with MNIST's four idx files."),
        ("resume nowhere", "nowhere is not a run folder: it has no run.json."),
        ("info ViT-B/17", "no model is called 'ViT-B/17'; did you mean ViT-B/16"),
        ("info vit_bas_patch16_224", "no model is called 'vit_bas_patch16_224'; did you mean vit_base_patch16_224"),
        ("info B/16 L/16", "'L/16' belongs to no option; vitrail info takes one model."),
        ("info B/16 --clases 10", "B/16 has no field 'clases'; did you mean classes?"),
        ("info B/16 --imagesize 384", "B/16 has no field 'imagesize'; did you mean image_size?"),
        ("info B/16 --classes", "--classes needs a value."),
        ("info B/16 --jsn", "--jsn needs a value; did you mean --json?"),
        ("info B/16 --classes ten", "classes is 'ten'; it must be a whole number."),
        ("info B/16 --classes 1 2", "classes is (1, 2); it must be a whole number."),
        ("info B/16 --classes -1", "classes is -1; it must be 0 or more."),
        ("info B/16 --pool max", "pool is 'max'; it must be token or avg or map."),
        ("info B/16 --heads 7", "7 heads do not divide the width 768; choose a divisor, such as 6."),
        ("info B/16 --heads 0", "heads is 0; it must be 1 or more."),
        ("info B/16 --patch-size 0", "patch_size is (0, 0); it must be (height, width), each 1 pixel or more."),
        ("info B/16 --image-size", "--image-size takes height and width, not 0 numbers."),
        ("info B/16 --image-size 1 2 3", "--image-size takes height and width, not 3 numbers."),
        ("info B/16 --image-size 12 x", "--image-size cannot be '12' 'x'; see vitrail info --help."),
        ("info B/16 --image-size 1.5", "--image-size cannot be '1.5'; see vitrail info --help."),
        ("info B/16 --image-size 0", "an image of 0 x 0 has no pixels; height and width must be 1 or more."),
        ("info B/16 --image-size -5", "an image of -5 x -5 has no pixels; height and width must be 1 or more."),
        (
            "info B/16 --remainder refuse --image-size 225 230",
            "an image of 225 x 230 is not divisible by the patch 16 x 16; resize it to 224 x 224, or choose",
        ),
        ("info B/16 --remainder crop --image-size 8", "an image of 8 x 8 is smaller than one patch of 16 x 16."),
        ("info B/16 --remainder keep", "remainder is 'keep'; it must be pad or refuse or crop."),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(capsys, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, *arguments.split()).startswith(sentence)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("info", "vitrail info needs a model; name it before the options.\n"),
        ("demo --out", "--out needs a value; see vitrail demo --help.\n"),
        ("demo --seed one", "--seed cannot be 'one'; see vitrail demo --help.\n"),
        ("info B/16 --pool max", "pool is 'max'; it must be token or avg or map.\n"),
    ],
)
def test_the_sentence_is_the_same_in_every_terminal(monkeypatch, arguments, sentence, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)  # tyro draws other frames where there are no box characters
    done = call(*MODULE, *arguments.split())
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"vitrail: {sentence}")


def idx(*shape, top=255):
    array = np.random.default_rng(0).integers(0, top + 1, shape, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + np.array(shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for split, length in (("train", 64), ("t10k", 16)):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(length, 28, 28))
        labels = bytes([0, 0, 8, 1, 0, 0, 0, length]) + bytes(n % 10 for n in range(length))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return folder


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (None, "has neither"),
        (lambda data: data[:-5], "is cut short"),
        (lambda data: data + b"\0", "is too long"),
        (lambda data: b"", "it is empty"),
        (lambda data: b"\x89PNG\r\n\x1a\n" + data, "looks like a PNG image"),
        (lambda data: b"<!DOCTYPE html><html>", "looks like an HTML page"),
        (lambda data: b"\x1f\x8b\x08\x00" + data, "corrupt or incomplete gzip"),
        (lambda data: b"\x80\x04\x95" + data, "looks like a Python pickle"),
        (lambda data: idx(64, 2), "holds 2 dimensions"),
    ],
    ids=["missing", "cut short", "too long", "empty", "png", "html", "gzip", "pickle", "rank"],
)
def test_a_data_file_that_is_missing_or_damaged_is_named(capsys, mnist, tmp_path, name, damage, words):
    path = mnist / name
    data = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(data))
    sentence = refused(capsys, "demo", "--data", str(mnist), "--out", str(tmp_path / "run"))
    assert name in sentence
    assert words in sentence
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_exists_is_left_alone(capsys, tmp_path):
    (tmp_path / "other").mkdir()
    assert "other exists already; name another folder with --out." in refused(
        capsys, "demo", "--out", str(tmp_path / "other")
    )
    runs.write(demo(), tmp_path / "run")
    sentence = refused(capsys, "demo", "--out", str(tmp_path / "run"))
    assert f"run exists already; continue it with `vitrail resume {tmp_path / 'run'}`, or name another" in sentence
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"run": {"recipe"', "is damaged (Expecting ':'"),
        ("<html>", "is damaged (Expecting value"),
        ('{"run": {"recipe": "demo", "colour": 1}}', "Run has no field colour"),
        ('{"run": {"recipe": "demo"}}', "Run needs the field model, preprocessing"),
        ("[]", "is damaged"),
    ],
)
def test_a_damaged_run_json_is_named(capsys, tmp_path, text, words):
    (tmp_path / "run.json").write_text(text)
    sentence = refused(capsys, "resume", str(tmp_path))
    assert f"{tmp_path / 'run.json'} is damaged" in sentence
    assert words in sentence


def test_a_run_json_with_values_that_cannot_be_is_named(capsys, tmp_path):
    runs.write(demo(), tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    for old, new, words in (('"batch": 64', '"batch": 0', "batch is 0"), ('"batch": 0', '"batch": "8"', "batch: '8'")):
        path.write_text(path.read_text().replace(old, new))
        assert f"run.json is damaged ({words}" in refused(capsys, "resume", str(tmp_path / "run"))


def test_a_demo_trains_and_resume_gives_the_same_result(capsys, mnist, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["demo", "--data", "mnist", "--duration", "3 steps", "--out", "runs/tiny", "--json"])
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result.keys() == {"run", "seconds", "metrics", "predictions"}
    assert result["run"] == "runs/tiny"
    assert result["metrics"].keys() == {"accuracy", "loss", "samples"}
    assert result["metrics"]["samples"] == 16
    assert len(result["predictions"]) == 5
    assert all(p.keys() == {"file", "truth", "label", "probability"} for p in result["predictions"])
    assert "demo: 803,338 parameters, 64 images, 3 steps = 3 steps of 64, on" in err
    inside = {path.name for path in (tmp_path / "runs" / "tiny").iterdir()}
    assert inside == {"run.json", "metrics.jsonl", "checkpoints", "model"}
    main(["resume", "runs/tiny", "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["metrics"] == result["metrics"]
    assert "going on after step 3" in err
    assert card(capsys, "runs/tiny")["class_names"] == [str(n) for n in range(10)]


def test_a_demo_of_its_own_process_speaks_to_people(mnist, tmp_path):
    out = tmp_path / "run"
    done = call(*MODULE, "demo", "--data", str(mnist), "--duration", "2 steps", "--out", str(out))
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("accuracy ")
    assert "on 16 held-back images" in lines[0]
    assert all(": right" in line or ": wrong" in line for line in lines[1:6])
    assert lines[6] == f"the model is in {out / 'model'}; look at it with: vitrail info {out}"
    assert "step 2/2" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupted_run_says_how_to_go_on_and_has_status_130(capsys, mnist, tmp_path, monkeypatch):
    def stop(trainer):
        raise train.Interrupted("stopped after step 1 of 3")

    monkeypatch.setattr(train.Trainer, "fit", stop)
    with pytest.raises(SystemExit) as left:
        main(["demo", "--data", str(mnist), "--duration", "3 steps", "--out", str(tmp_path / "run")])
    assert left.value.code == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(f"stopped after step 1 of 3; go on with: vitrail resume {tmp_path / 'run'}\n")


def test_ctrl_c_elsewhere_has_status_130_and_no_traceback(capsys, monkeypatch):
    def stop(command, rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Info, "run", stop)
    with pytest.raises(SystemExit) as left:
        main(["info", "B/16"])
    assert left.value.code == 130
    assert capsys.readouterr() == ("", "vitrail: interrupted\n")
