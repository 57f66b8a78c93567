"""The command line: help that answers at once, results for people and programs, and one sentence for bad input."""

import json
import subprocess
import sys

import pytest
from command_line import refused, status

import vitrail
from vitrail import cli
from vitrail.cli import main

MODULE = [sys.executable, "-m", "vitrail"]


def call(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


PROBE = """
import contextlib, io, sys
from vitrail.cli import COMMANDS, main
for words in (["--help"], ["--version"], ["demo", "--sed", "1"], *([*name.split(), "--help"] for name in COMMANDS)):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main(words)
    assert said.getvalue()
    heavy = {"torch", "numpy", "jaxtyping", "safetensors", "PIL"} & set(sys.modules)
    assert not heavy, (words, heavy)
"""


def test_help_and_refusals_do_not_wait_for_torch():
    done = call(sys.executable, "-c", PROBE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


EVERY = ["demo", "train", "finetune", "resume", "evaluate", "predict", "info", "convert"]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--help", [*EVERY, "data check", "vitrail COMMAND --help", "The Vision Transformer"]),
        ("-h", EVERY),
        ("data --help", ["data check", "data pack"]),
        ("demo --help", ["--out FOLDER", "--data FOLDER", "--duration TIME", "--seed N", "--json", "three minutes"]),
        ("train --help", ["RECIPE", "--data PATH", "--out FOLDER", "--json", "--optim.lr 3e-4", "vit_b16_imagenet21k"]),
        ("finetune --help", ["DATA", "--weights W", "--rates R...", "--recipe {auto,paper,small}", "the same command"]),
        ("resume --help", ["FOLDER", "--anyway", "--json", "exactly as if it had not been"]),
        ("evaluate --help", ["MODEL", "[DATA]", "--split {val,test,train}", "--skip-unreadable", "by name", "--json"]),
        ("predict --help", ["MODEL", "IMAGE...", "(one or more)", "--top N", "--json", "1 where some could not"]),
        ("info --help", ["MODEL", "--image-size H [W]", "--json", "--classes 10", "docs/zoo.md", "FLOPs"]),
        ("convert --help", ["SOURCE", "TARGET", "--heads N", "bit for bit"]),
        ("data check --help", ["DATA", "--val PATH", "--page FILE", "--json", "copies across splits"]),
        ("data pack --help", ["DATA", "FOLDER", "--size INT", "--kind {raw,jpeg}", "--unreadable", "in every epoch"]),
        ("--version", [vitrail.__version__]),
    ],
)
def test_help_says_what_there_is_at_any_width(capsys, monkeypatch, arguments, words, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert status(*arguments.split()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    text = " ".join(out.replace("│", " ").split())
    assert [word for word in words if word not in text] == []
    usage = [line for line in out.splitlines() if line.startswith("usage: ")]
    assert all(len(line) <= columns for line in out.splitlines() if line not in usage)


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
        ("xyz", "there is no command 'xyz'; the commands are demo, train, finetune, resume, evaluate, predict, info, "),
        ("data", "say what to do with the data: vitrail data check DATA"),
        ("data chek x", "say what to do with the data: vitrail data check DATA"),
        ("data check", "vitrail data check needs data; name it before the options."),
        ("data pack x", "vitrail data pack needs a folder; name it before the options."),
        ("info", "vitrail info needs a model; name it before the options."),
        ("info --classes 10 ViT-B/16", "vitrail info needs a model; name it before the options."),
        ("predict", "vitrail predict needs a model; name it before the options."),
        ("evaluate", "vitrail evaluate needs a model; name it before the options."),
        ("train", "vitrail train needs --data PATH; see vitrail train --help."),
        ("train demo", "vitrail train needs --data PATH; see vitrail train --help."),
        ("finetune", "vitrail finetune needs data; name it before the options."),
        ("finetune x", "vitrail finetune needs --weights W; see vitrail finetune --help."),
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
        ("demo --data nowhere", "nowhere does not exist; name a folder or file of images."),
        ("resume nowhere", "nowhere is not a run folder: it has no run.json."),
        ("info ViT-B/17", "no model is called 'ViT-B/17'; did you mean ViT-B/16"),
        ("info vit_bas_patch16_224", "no model is called 'vit_bas_patch16_224'; did you mean vit_base_patch16_224"),
        ("info B/16 L/16", "'L/16' belongs to no option; vitrail info takes one model."),
        ("info B/16 --classes 10 --classes 20", "--classes is given twice; leave one."),
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


def test_ctrl_c_elsewhere_has_status_130_and_no_traceback(capsys, monkeypatch):
    def stop(command, rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Info, "run", stop)
    with pytest.raises(SystemExit) as left:
        main(["info", "B/16"])
    assert left.value.code == 130
    assert capsys.readouterr() == ("", "vitrail: interrupted\n")
