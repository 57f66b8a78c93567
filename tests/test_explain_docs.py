"""docs/explain.md does what it says."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line import status
from model_folders import write_folder
from PIL import Image
from test_vit import tiny

PAGE = (Path(__file__).parents[1] / "docs" / "explain.md").read_text()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("model_folders.names_of", lambda config: ("cat", "dog", "fox", "hare", "owl"))
    write_folder(tmp_path / "runs" / "pets", tiny(image_size=(224, 224), patch_size=(16, 16)))
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "dog.jpg", "photos/owl.png", "photos/hare.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(name)
    return tmp_path


def test_its_commands_run(place):
    commands = [shlex.split(line) for line in re.search(r"```sh\n(.*?)```", PAGE, re.S)[1].splitlines()]
    assert [words[1] for words in commands] == ["install", *["explain"] * 4]
    for words in commands[1:]:
        assert status(*["runs/pets" if word.startswith("hf-hub:") else word for word in words[1:]]) == 0
        assert (place / words[words.index("--out") + 1] / "model.png").is_file()


def test_its_python_runs(place, capsys):
    exec(re.search(r"```python\n(.*?)```", PAGE, re.S)[1], {})
    labels, shapes, numbers = capsys.readouterr().out.splitlines()
    assert labels.endswith("torch.Size([2, 14, 14])")
    assert shapes == "torch.Size([2, 197]) torch.Size([2, 2, 2])"
    assert "'gain'" in numbers
    assert (place / "maps.png").is_file()
    assert (place / "tokens.png").is_file()
