"""The command line: help that answers at once, results for people and programs, and one sentence for bad input."""

import json
import re
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
        ("train --help", ["[RECIPE]", "--data PATH", "--out FOLDER", "--optim.lr 3e-4", "vit_b16_imagenet21k"]),
        ("finetune --help", ["DATA", "--weights W", "--rates R...", "--recipe {auto,paper,small}", "--json"]),
        ("resume --help", ["FOLDER", "--anyway", "--json", "--code FILE.py...", "exactly as if it had not been"]),
        ("evaluate --help", ["MODEL", "[DATA]", "--split {val,test,train}", "--skip-unreadable", "--json", "--code"]),
        ("predict --help", ["MODEL", "IMAGE...", "(one or more)", "--top N", "--json", "--code", "1 where some could"]),
        ("info --help", ["MODEL", "--image-size H [W]", "--json", "--code", "--classes 10", "docs/zoo.md", "FLOPs"]),
        ("convert --help", ["SOURCE", "TARGET", "--heads N", "--code", "bit for bit"]),
        ("data check --help", ["DATA", "--val PATH", "--page FILE", "--json", "copies across splits"]),
        ("data pack --help", ["DATA", "FOLDER", "--size N", "--kind {raw,jpeg}", "--unreadable", "in every epoch"]),
        ("--version", [vitrail.__version__]),
    ],
)
def test_help_shows_every_option_at_any_width(capsys, monkeypatch, arguments, words, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert status(*arguments.split()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    text = " ".join(out.replace("│", " ").split())
    assert [word for word in words if word not in text] == []
    usage = [line for line in out.splitlines() if line.startswith("usage: ")]
    assert all(len(line) <= columns for line in out.splitlines() if line not in usage)


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
        ("--classes 10", "classes", 10),
        ("--classes=10", "classes", 10),
        ("--patch-size 8", "patch_size", [8, 8]),
        ("--patch_size 8 16", "patch_size", [8, 16]),
        ("--layer-scale None --pool avg", "layer_scale", None),
        ("--qkv-bias false --dropout 0.1", "qkv_bias", False),
    ],
)
def test_any_field_of_a_configuration_is_an_option_in_any_order(capsys, words, field, value):
    for given in (f"ViT-Ti/16 --image-size 64 32 {words} --json", f"--json ViT-Ti/16 {words} --image-size 64 32"):
        main(["info", *given.split()])
        found = json.loads(capsys.readouterr().out)
        assert found["config"][field] == value
        assert found["image_size"] == [64, 32]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("", ["vitrail --help"]),
        ("inof", ["'inof'", "did you mean info?"]),
        ("xyz", ["'xyz'", *EVERY]),
        ("data", ["vitrail data check DATA"]),
        ("data chek x", ["vitrail data check DATA"]),
        ("data check", ["needs DATA"]),
        ("data pack x", ["needs DATA FOLDER"]),
        ("info", ["needs MODEL"]),
        ("info --classes 10 ViT-B/16", ["needs MODEL", "before"]),
        ("predict", ["needs MODEL and IMAGE..."]),
        ("evaluate", ["needs MODEL"]),
        ("train", ["needs --data PATH"]),
        ("train small", ["needs --data PATH"]),
        ("finetune", ["needs DATA and --weights W"]),
        ("finetune x", ["needs DATA and --weights W"]),
        ("resume", ["needs FOLDER"]),
        ("resume a b", ["no place for b"]),
        ("demo extra", ["no place for extra"]),
        ("demo --sed 1", ["--sed;", "did you mean --seed?"]),
        ("demo --wxyz 1", ["--wxyz;", "vitrail demo --help"]),
        ("demo --learning-rate 1", ["--learning-rate;", "vitrail demo --help"]),
        ("demo --out", ["--out needs a value"]),
        ("demo --out --seed 1", ["--out needs a value"]),
        ("demo --json --seed", ["--seed needs a value"]),
        ("demo --seed 1 --seed=2", ["--seed", "twice"]),
        ("demo --seed one", ["--seed", "'one'", "a whole number"]),
        ("demo --seed -1", ["seed is -1"]),
        ("demo --seed 99999999999999999999", ["seed is 99999999999999999999"]),
        ("demo --duration 5", ["'5'", "'5 steps'"]),
        ("demo --duration 5epocs", ["'5epocs'", "'5 epochs'"]),
        ("demo --duration 0steps", ["'0steps'"]),
        ("demo --data nowhere", ["nowhere does not exist"]),
        ("demo --data nowhere.py:x", ["nowhere.py"]),
        ("resume nowhere", ["nowhere", "run.json"]),
        ("resume nowhere --code gone.py", ["gone.py"]),
        ("resume nowhere --code gone", ["gone"]),
        ("info ViT-B/17", ["'ViT-B/17'", "ViT-B/16"]),
        ("info vit_bas_patch16_224", ["vit_base_patch16_224"]),
        ("info B/16 L/16", ["no place for L/16"]),
        ("info B/16 --classes 10 --classes 20", ["--classes", "twice"]),
        ("info B/16 --clases 10", ["--clases;", "did you mean --classes?"]),
        ("info B/16 --imagesize 384", ["--imagesize;", "did you mean --image-size?"]),
        ("info B/16 --classes", ["--classes needs a value"]),
        ("info B/16 --jsn", ["--jsn;", "did you mean --json?"]),
        ("info B/16 --classes ten", ["--classes", "'ten'", "a whole number"]),
        ("info B/16 --classes 1 2", ["--classes", "'1 2'"]),
        ("info B/16 --classes -1", ["classes is -1"]),
        ("info B/16 --pool max", ["--pool", "'max'", "token or avg or map"]),
        ("info B/16 --heads 7", ["7 heads", "768"]),
        ("info B/16 --patch-size 0", ["patch_size is (0, 0)"]),
        ("info B/16 --image-size", ["--image-size needs a value"]),
        ("info B/16 --image-size 1 2 3", ["--image-size", "'1 2 3'"]),
        ("info B/16 --image-size 12 x", ["--image-size", "'12 x'"]),
        ("info B/16 --image-size 1.5", ["--image-size", "'1.5'"]),
        ("info B/16 --image-size 0", ["0 x 0"]),
        ("info B/16 --image-size -5", ["-5 x -5"]),
        ("info B/16 --remainder refuse --image-size 225 230", ["225 x 230", "16 x 16", "224 x 224"]),
        ("info B/16 --remainder crop --image-size 8", ["8 x 8", "16 x 16"]),
        ("info B/16 --remainder keep", ["--remainder", "'keep'", "pad or refuse or crop"]),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(capsys, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, *arguments.split())
    assert [part for part in parts if part not in said] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("arguments", ["info", "demo --out", "demo --seed one", "info B/16 --heads 7"])
def test_the_sentence_is_the_same_in_every_terminal(monkeypatch, arguments, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)  # tyro draws other frames where there are no box characters
    done = call(*MODULE, *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"vitrail: [ -~]+\n", done.stderr)


def test_ctrl_c_elsewhere_has_status_130_and_no_traceback(capsys, monkeypatch):
    def stop(command, given):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Info, "run", stop)
    with pytest.raises(SystemExit) as left:
        main(["info", "B/16"])
    assert left.value.code == 130
    assert capsys.readouterr() == ("", "vitrail: interrupted\n")
