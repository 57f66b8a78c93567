"""Tasks, data and recipes in a file of the user's: what runs, when, and what is said where it may not or fails."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, printed, refused, status
from PIL import Image

from vitrail import run as runs

RECIPES_FILE = '''
"""A task, data and recipes of one's own."""
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar
import numpy as np
from vitrail.data.sources.source import Arrays
from vitrail.models import resnet
from vitrail.recipes.demo import demo
from vitrail.tasks import ClassifyConfig

Path("ran").write_text("once")

@dataclass(frozen=True)
class GuessConfig(ClassifyConfig):
    kind: ClassVar[str] = "guess"
    luck: float = 0.5
    """How lucky one is."""

def noise():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 1), np.uint8)
    return Arrays(pixels, np.arange(40) % 2, ("a", "b"), "noise")

def guess(data="guess.py:noise"):
    """Guesses."""
    return replace(demo(data, "2 steps"), task=GuessConfig(), batch=8)

def convolutional():
    """A BiT ResNet."""
    run = demo("guess.py:noise", "4 steps")
    return replace(run, model=resnet.Config((1, 1), channels=1, image_size=(28, 28)), batch=8)

def nothing(data):
    return 1

NUMBER = 1
'''


@pytest.fixture
def guess(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guess.py").write_text(RECIPES_FILE)
    yield
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == str(tmp_path / "guess.py"):
            del sys.modules[name]
    sys.path.remove(str(tmp_path))


def alone(*words):
    """In a process of its own, which has not run any file yet."""
    command = [sys.executable, "-m", "vitrail", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_file_of_ones_own_has_recipe_task_and_data(capsys, tmp_path, guess):
    words = ["--data", "guess.py:noise", *TINY, "--task.luck", "0.9", "--data.val-fraction", "0.2", "--out", "run"]
    printed(capsys, "train", "guess.py:guess", *words)
    run = runs.read(tmp_path / "run")
    assert (run.recipe, run.task.kind, run.task.luck, run.batch) == ("guess.py:guess", "guess", 0.9, 8)
    assert status("train", "guess.py:guess", "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith("Guesses.")
    assert re.search(r"--task.luck FLOAT.*\n.*How lucky one is. \(default: 0.5\)", out)
    (tmp_path / "ran").unlink()
    for command in (["resume", "run"], ["evaluate", "run"], ["predict", "run", "guess.py"]):
        done = alone(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"vitrail: .*'guess'.*--code.*\n", done.stderr)
        assert not (tmp_path / "ran").exists()  # nothing in a folder runs code
    assert alone("evaluate", "run", "--code", "guess.py").returncode == 0
    assert alone("info", "run", "--code", "guess.py").returncode == 0
    assert alone("data", "pack", "guess.py:noise", "packed").returncode == 0


def test_a_resnet_goes_through_every_command(capsys, tmp_path, guess):
    words = ["--out", "run", "--optim.name", "adamw", "--checkpoint-every", "2 steps"]
    trained, err = printed(capsys, "train", "guess.py:convolutional", *words)
    assert "guess.py:convolutional: " in err
    assert (tmp_path / "run" / "report.html").is_file()
    shutil.copytree("run", "cut")
    for name in ("report.html", "model", "checkpoints/step-4"):
        path = tmp_path / "cut" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert printed(capsys, "resume", "cut")[0]["metrics"] == trained["metrics"]
    assert printed(capsys, "evaluate", "run")[0]["metrics"] == trained["metrics"]
    Image.fromarray(np.zeros((40, 30), np.uint8)).save("a.png")
    [answer] = printed(capsys, "predict", "run", "a.png")[0]
    assert {p["label"] for p in answer["predictions"]} == {"a", "b"}
    assert printed(capsys, "info", "run")[0]["config"]["blocks"] == [1, 1]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("guess.py:nothing --data guess.py:noise", ["guess.py:nothing", "int", "Run"]),
        ("guess.py:nothing", ["--data PATH"]), ("guess.py:NUMBER", ["guess.py:NUMBER", "int", "Run"]),
        ("broken.py:x", ["broken.py", "KeyError"]), ("guess.py:gone", ["guess.py", "'gone'"]),
        ("small --data guess.py:gone", ["guess.py", "'gone'"]),
        ("guess.py:guess --task.lukc 1", ["--task.lukc", "did you mean --task.luck?"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_ones_own_code_is_a_sentence(capsys, guess, words, parts):
    Path("broken.py").write_text("{}['x']")
    said = refused(capsys, "train", *words.split())
    assert [part for part in parts if part not in said] == []
