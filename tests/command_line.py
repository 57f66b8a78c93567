"""The command line in this process, and images in small files for it."""

import json
import re

import numpy as np
from PIL import Image

from vitrail.cli import main

# A model that learns nothing and costs nothing.
TINY = ["--model.width", "16", "--model.depth", "1", "--model.heads", "2", "--model.mlp-dim", "16", "--batch", "8"]


def status(*arguments):
    try:
        main([str(word) for word in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def refused(capsys, *arguments):
    """The sentence with which the command refuses its input."""
    assert status(*arguments) == 2
    out, err = capsys.readouterr()
    assert (out, re.sub(r"vitrail: .{1,480}\n", "one sentence", err)) == ("", "one sentence")
    return err.removeprefix("vitrail: ").strip()


def printed(capsys, *arguments):
    """(the one JSON document on standard output, what standard error said) of a command that succeeds."""
    capsys.readouterr()
    assert status(*arguments, "--json") == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def idx(*shape, top=255):
    array = np.random.default_rng(0).integers(0, top + 1, shape, np.uint8)
    return bytes([0, 0, 8, array.ndim]) + np.array(shape, ">u4").tobytes() + array.tobytes()


def write_mnist(folder):
    """64 images to train on and 16 to test on, noise in MNIST's four files."""
    folder.mkdir()
    for split, length in (("train", 64), ("t10k", 16)):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(length, 28, 28))
        labels = bytes([0, 0, 8, 1, 0, 0, 0, length]) + bytes(n % 10 for n in range(length))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return folder


def photos(folder, classes, count=6, size=32, seed=0, signal=100):
    """A folder of PNG files for each class, each class with a colour of its own, as strong as the signal."""
    draw = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = draw.integers(0, 100, (size, size, 3), np.uint8)
            pixels[..., number % 3] += signal
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder
