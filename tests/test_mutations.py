"""Damaged files of weights: 2,000 of them, and never anything but a model or a sentence."""

import json
import pickle
import random

import google_files
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import vit
from vitrail.weights import folder
from vitrail.weights.load import load, read
from vitrail.weights.save import save

CONFIG = vit.Config((16, 16), (8, 8), 3, 16, 1, 2, 16, 2)
CARD = folder.Card(CONFIG, Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3), ("a", "b"), {"kind": "x", "config": {}})


def make_npz(path, write=np.savez):
    write(path / "w.npz", **google_files.arrays(depth=1))
    return path / "w.npz"


def make_compressed(path):
    return make_npz(path, np.savez_compressed)


def make_safetensors(path):
    save_file(vit.ViT(CONFIG).state_dict(), path / "w.safetensors")
    return path / "w.safetensors"


def make_pth(path):
    torch.save({"model": vit.ViT(CONFIG).state_dict()}, path / "w.pth")
    return path / "w.pth"


def make_legacy(path):
    torch.save(vit.ViT(CONFIG).state_dict(), path / "w.pth", _use_new_zipfile_serialization=False)
    return path / "w.pth"


def make_folder(path):
    folder.write(path, vit.ViT(CONFIG).state_dict(), CARD)
    return path / "config.json"


def make_task(path):
    folder.write(path, vit.ViT(CONFIG).state_dict(), CARD, {"queries": torch.ones(2, 3)})
    return path / "task.safetensors"


def make_index(path):
    make_timm(path)
    (path / "model.safetensors").rename(path / "w.safetensors")
    index = {"weight_map": dict.fromkeys(vit.ViT(CONFIG).state_dict(), "w.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path / "model.safetensors.index.json"


def make_timm(path, to="timm", file="config.json"):
    make_folder(path / "ours")
    save(read(path / "ours"), path / "theirs", to)
    for made in (path / "theirs").iterdir():
        made.rename(path / made.name)
    return path / file


def make_huggingface(path):
    return make_timm(path, "huggingface")


def make_processor(path):
    return make_timm(path, "huggingface", "preprocessor_config.json")


FILES = [make_npz, make_compressed, make_safetensors, make_pth, make_legacy]
FOLDERS = [make_folder, make_task, make_index, make_timm, make_huggingface, make_processor]


def mutated(content, rng):
    """A few bytes flipped, the file cut, two parts of it swapped, or a part of it repeated; in its headers, mostly."""
    content = bytearray(content)
    kind = rng.choice(["flip", "flip", "head", "cut", "swap", "repeat"])
    if kind in ("flip", "head"):
        region = len(content) if kind == "flip" else min(400, len(content))
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(region)] = rng.randrange(256)
    elif kind == "cut":
        del content[rng.randrange(len(content)) :]
    else:
        a, b = sorted(rng.randrange(len(content)) for _ in range(2))
        length = rng.randint(1, 64)
        first, second = bytes(content[a : a + length]), bytes(content[b : b + length])
        content[b : b + length] = first
        if kind == "swap":
            content[a : a + length] = second
    return bytes(content)


def refusals(path, make, count, seed):
    """The sentences with which damaged files are refused; anything else is raised."""
    file, rng = make(path), random.Random(seed)
    content, sentences = file.read_bytes(), []
    heads = {"heads": 2} if make in (make_safetensors, make_pth, make_legacy) else {}
    for _ in range(count):
        file.write_bytes(mutated(content, rng))
        try:
            load(path if make in FOLDERS else file, **heads)
        except ValueError as error:
            sentences.append(str(error))
    assert all("\n" not in sentence and str(path) in sentence for sentence in sentences), "one line that names the file"
    return sentences


@pytest.mark.parametrize("make", FILES + FOLDERS)
def test_a_damaged_file_is_loaded_or_refused(tmp_path, make):
    assert refusals(tmp_path, make, 40, seed=0)


@pytest.mark.slow
def test_two_thousand_damaged_files(tmp_path):
    assert 190 * len(FILES + FOLDERS) >= 2000
    for number, make in enumerate(FILES + FOLDERS):
        (tmp_path / str(number)).mkdir()
        assert refusals(tmp_path / str(number), make, 190, seed=1)


def test_a_mutation_changes_the_file():
    rng = random.Random(0)
    content = pickle.dumps(list(range(100)))
    assert sum(mutated(content, rng) != content for _ in range(100)) > 90
