"""The command line: help that answers at once, results for people and programs, and one sentence for bad input."""

import json
import re
import subprocess
import sys

import pytest
from command_line import refused, status

import vitrail
from vitrail.cli import COMMANDS, Info, main
from vitrail.cli.reading import describe

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


def call(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120, check=False)


def test_help_and_refusals_do_not_wait_for_torch():
    done = call("-c", PROBE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("name", "columns"), [(name, 80) for name in COMMANDS] + [("demo", 120)])
def test_help_explains_every_option_at_any_width(capsys, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert status(*name.split(), "--help") == 0
    out, err = capsys.readouterr()
    text = " ".join(out.replace("│", " ").split())
    assert (err, [about for about in describe(COMMANDS[name]).values() if about not in text]) == ("", [])
    assert all(len(line) <= columns for line in out.splitlines() if not line.startswith("usage: "))


@pytest.mark.parametrize("words", ["--help", "-h", "data --help"])
def test_the_commands_are_listed(capsys, words):
    assert status(*words.split()) == 0
    out = capsys.readouterr().out
    assert [name for name in COMMANDS if not re.search(rf"^  {name}  +[A-Z]", out, re.MULTILINE)] == []
    assert status("--version") == 0
    assert capsys.readouterr().out == f"{vitrail.__version__}\n"


def test_any_field_of_a_configuration_is_an_option_in_any_order(capsys):
    words = "--classes=10 --patch_size 8 16 --layer-scale None --qkv-bias false"
    for given in (f"ViT-Ti/16 --image-size 64 32 {words} --json", f"--json ViT-Ti/16 {words} --image-size 64 32"):
        main(["info", *given.split()])
        found = json.loads(capsys.readouterr().out)
        expected = {"classes": 10, "patch_size": [8, 16], "layer_scale": None, "qkv_bias": False}
        assert (found["config"] | expected, found["image_size"]) == (found["config"], [64, 32])


REFUSED = [
    ("", ["vitrail --help"]), ("inof", ["'inof'", "did you mean info?"]), ("xyz", ["'xyz'", "data check, data pack"]),
    ("data", ["'data'", "data pack"]), ("data chek x", ["did you mean data check?"]),
    ("info --classes 10 ViT-B/16", ["needs MODEL", "before"]), ("predict", ["needs MODEL and IMAGES"]),
    ("finetune x", ["needs DATA and --weights"]), ("train small", ["needs --data PATH"]),
    ("resume a b", ["no place for b"]), ("demo --sed 1", ["--sed;", "did you mean --seed?"]),
    ("demo --learning-rate 1", ["--learning-rate;", "vitrail demo --help"]), ("demo --out", ["--out needs a value"]),
    ("demo --json --seed --out x", ["--seed needs a value"]), ("demo --seed 1 --seed=2", ["--seed", "twice"]),
    ("demo --seed one", ["--seed", "'one'", "a whole number"]), ("demo --data=nowhere.py:x", ["nowhere.py"]),
    ("demo --duration 5epocs", ["'5epocs'", "'5 epochs'"]), ("demo --data nowhere", ["nowhere does not exist"]),
    ("resume nowhere", ["nowhere", "run.json"]), ("resume nowhere --code gone", ["gone"]),
    ("info B/16 --clases 10", ["--clases;", "did you mean --classes?"]), ("info B/16 --heads 7", ["7 heads", "768"]),
    ("info B/16 --classes", ["--classes needs a value"]), ("info B/16 --classes -1", ["classes is -1"]),
    ("demo --seed -1", ["seed is -1"]), ("info B/16 --image-size", ["--image-size needs a value"]),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "parts"), REFUSED)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(capsys, tmp_path, monkeypatch, arguments, parts):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, *arguments.split())
    assert ([part for part in parts if part not in said], list(tmp_path.iterdir())) == ([], [])


def test_the_sentence_is_the_same_in_every_terminal(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")  # tyro draws other frames where there are no box characters
    done = call("-m", "vitrail", "demo", "--seed", "one")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"vitrail: [ -~]+\n", done.stderr)


def test_ctrl_c_elsewhere_has_status_130_and_no_traceback(capsys, monkeypatch):
    def stop(command, given):
        raise KeyboardInterrupt

    monkeypatch.setattr(Info, "run", stop)
    assert status("info", "B/16") == 130
    assert capsys.readouterr() == ("", "vitrail: interrupted\n")
