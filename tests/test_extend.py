"""docs/extend.md does what it says: a source, a task, an evaluator and a recipe outside the package."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = (Path(__file__).parents[1] / "docs" / "extend.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.S))
COMMANDS = [shlex.split(line) for line in re.search(r"```sh\n(.*?)```", PAGE, re.S)[1].splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("extend")
    for name, text in FILES.items():
        (place / name).write_text(text)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(place / "sky.png")
    return place


def ran(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_one_file_of_each_and_the_commands_that_use_them():
    assert list(FILES) == ["stars.py", "regress.py", "error.py", "my_recipes.py", "in_python.py"]
    assert [command[1] for command in COMMANDS] == ["train", "evaluate", "predict", "resume"]


def test_the_commands_do_what_the_page_says(folder):
    train, evaluate, predict, resume = ([*command[1:], "--json"] for command in COMMANDS)
    trained = json.loads(ran(folder, "-m", "vitrail", *train))
    assert (trained["metrics"]["error"] < 0.5, trained["metrics"]["samples"]) == (True, 256)
    record = json.loads((folder / "runs" / "stars" / "run.json").read_text())["run"]
    chosen = record["task"], record["evaluate"], record["optim"]["lr"]
    assert chosen == ({"kind": "regress", "config": {}}, [{"kind": "error", "config": {}}], 2e-3)
    assert (folder / "runs" / "stars" / "report.html").is_file()
    judged = json.loads(ran(folder, "-m", "vitrail", *evaluate))
    assert judged["metrics"]["error"] == pytest.approx(trained["metrics"]["error"], rel=1e-5)
    (answer,) = json.loads(ran(folder, "-m", "vitrail", *predict))
    assert answer["file"] == "sky.png"
    assert abs(answer["predictions"]["value"]) < 1
    assert json.loads(ran(folder, "-m", "vitrail", *resume))["metrics"] == pytest.approx(trained["metrics"])


def test_python_does_what_the_page_says(folder):
    error, answer = ran(folder, "in_python.py").split(" ", 1)
    assert float(error) < 0.5
    assert re.fullmatch(r"\{'value': -?[\d.]+\}\s*", answer)
