"""Damaged files of weights: 2,000 of them, and never anything but a model or a sentence."""

import json
import random

import google_files
import numpy as np
import pytest
import torch
from made_sources import damaged
from model_folders import write_folder
from safetensors.torch import save_file

from vitrail.models import vit
from vitrail.weights.load import load, read
from vitrail.weights.save import save

CONFIG = vit.Config((16, 16), (8, 8), 3, 16, 1, 2, 16, 2)
STATE = vit.ViT(CONFIG).state_dict()
FILES = {
    "w.npz": lambda path: np.savez(path, **google_files.arrays(depth=1)),
    "compressed.npz": lambda path: np.savez_compressed(path, **google_files.arrays(depth=1)),
    "w.safetensors": lambda path: save_file(STATE, path),
    "w.pth": lambda path: torch.save({"model": STATE}, path),
    "legacy.pth": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
}
# format: the files in its folder that are damaged, one at a time
FOLDERS = {
    "vitrail": ("config.json", "task.safetensors"),
    "timm": ("config.json", "model.safetensors.index.json"),
    "huggingface": ("config.json", "preprocessor_config.json"),
}
CASES = [(None, file) for file in FILES] + [(form, file) for form, files in FOLDERS.items() for file in files]


def make(path, form, file):
    """The file to damage, and what is loaded: the file itself, or a folder of this format around it."""
    if form is None:
        FILES[file](path / file)
        return path / file, path / file
    write_folder(path / "vitrail", CONFIG, extra={"queries": torch.ones(2, 3)})
    if form != "vitrail":
        save(read(path / "vitrail"), path / form, form)
    if "index" in file:
        (path / form / "model.safetensors").rename(path / form / "w.safetensors")
        (path / form / file).write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "w.safetensors")}))
    return path / form / file, path / form


def refusals(path, form, file, count, seed):
    """The sentences with which damaged files are refused; anything else is raised."""
    (victim, target), rng = make(path, form, file), random.Random(seed)
    content, sentences = victim.read_bytes(), []
    for _ in range(count):
        victim.write_bytes(damaged(content, rng))
        try:
            load(target, **({"heads": 2} if form is None and "npz" not in file else {}))
        except ValueError as error:
            sentences.append(str(error))
    assert all("\n" not in sentence and str(path) in sentence for sentence in sentences), "one line that names the file"
    return sentences


@pytest.mark.parametrize(("form", "file"), CASES)
def test_a_damaged_file_is_loaded_or_refused(tmp_path, form, file):
    assert refusals(tmp_path, form, file, 40, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "file"), CASES)
def test_two_thousand_damaged_files(tmp_path, form, file):
    assert refusals(tmp_path, form, file, 2000 // len(CASES) + 1, seed=1)
