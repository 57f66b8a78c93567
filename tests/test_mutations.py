"""Damaged files of weights: 2,000 of them, and never anything but a model or a sentence."""

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
from vitrail.weights.load import load

CONFIG = vit.Config((16, 16), (8, 8), 3, 16, 1, 2, 16, 2)


def make_npz(path):
    np.savez(path / "w.npz", **google_files.arrays(depth=1))
    return path / "w.npz"


def make_compressed(path):
    np.savez_compressed(path / "w.npz", **google_files.arrays(depth=1))
    return path / "w.npz"


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
    folder.save(path, vit.ViT(CONFIG), Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3), ("a", "b"))
    return path / "config.json"


MAKERS = [make_npz, make_compressed, make_safetensors, make_pth, make_legacy, make_folder]


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


def outcomes(path, make, count, seed):
    """(loaded, refused); anything else is raised."""
    whole, rng = make(path), random.Random(seed)
    target = path if make is make_folder else whole
    content, loaded, refused = whole.read_bytes(), 0, 0
    for _ in range(count):
        whole.write_bytes(mutated(content, rng))
        message = attempt(target, {} if make in (make_npz, make_compressed, make_folder) else {"heads": 2})
        assert message is None or "\n" not in message, "a sentence is one line"
        loaded, refused = loaded + (message is None), refused + (message is not None)
    return loaded, refused


def attempt(target, overrides):
    """None where it loads, or the sentence with which it is refused."""
    try:
        load(target, **overrides)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("make", MAKERS)
def test_a_damaged_file_is_loaded_or_refused(tmp_path, make):
    loaded, refused = outcomes(tmp_path, make, 40, seed=0)
    assert loaded + refused == 40
    assert refused > 0


@pytest.mark.slow
def test_two_thousand_damaged_files(tmp_path):
    total = 0
    for number, make in enumerate(MAKERS):
        (tmp_path / str(number)).mkdir()
        total += sum(outcomes(tmp_path / str(number), make, 340, seed=1))
    assert total >= 2000


def test_a_mutation_changes_the_file():
    rng = random.Random(0)
    content = pickle.dumps(list(range(100)))
    assert sum(mutated(content, rng) != content for _ in range(100)) > 90
