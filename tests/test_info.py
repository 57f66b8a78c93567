"""`vitrail info`: the paper's figures, at any size, for people and for programs."""

from dataclasses import replace

import google_files
import numpy as np
import pytest
import torch
from command_line import printed, refused, status
from torch.utils._python_dispatch import TorchDispatchMode

from vitrail import Pipeline
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import resnet, vit
from vitrail.tasks import ClassifyConfig

CONTRACT = {"name", "config", "parameters", "flops", "tokens", "image_size", "preprocessing", "grid", "class_names"}
# name, size, remainder: parameters, tokens, GFLOP (2 x multiply-adds)
FIGURES = {
    ("ViT-B/16", 224, None): (86_567_656, 197, 35.13), ("ViT-L/16", 384, None): (304_326_632, 577, 382.13),
    ("ViT-H/14", 384, "crop"): (632_045_800, 730, 1006.96), ("R50+ViT-B/16", 224, None): (98_659_112, 197, None),
}  # fmt: skip


def shown(capsys, *arguments):
    """(the card of the command, its text for people)."""
    card, _ = printed(capsys, "info", *arguments)
    assert status("info", *arguments) == 0
    return card, capsys.readouterr().out


@pytest.mark.parametrize(("name", "size", "remainder"), FIGURES)
def test_the_papers_figures(capsys, name, size, remainder):
    parameters, tokens, gflop = FIGURES[name, size, remainder]
    card, text = shown(capsys, name, "--image-size", size, *(["--remainder", remainder] if remainder else []))
    assert (card["parameters"], card["tokens"], card["image_size"]) == (parameters, tokens, [size, size])
    assert gflop is None or round(card["flops"] / 1e9, 2) == gflop
    assert gflop is None or f"{gflop:.2f} GFLOP" in text
    assert all(figure in text for figure in (f"{parameters:,}", f"{tokens} (", f"{size} x {size}"))


def test_a_card_has_the_contracts_keys_and_what_was_overridden(capsys):
    card, text = shown(capsys, "B/16", "--classes", 10, "--image-size", 32, 64)
    assert set(card) == CONTRACT
    assert (card["name"], card["preprocessing"], card["config"]["classes"]) == ("ViT-B/16", None, 10)
    assert (card["config"]["patch_size"], card["image_size"], card["grid"]) == ([16, 16], [32, 64], [2, 4])
    assert text.startswith("ViT-B/16\n")
    assert "9 (2 x 4 patches)" in text


def test_a_size_that_the_patch_does_not_divide_shows_both_choices(capsys):
    card, text = shown(capsys, "ViT-H/14", "--image-size", 384)
    assert (card["tokens"], card["grid"], set(card)) == (785, [28, 28], CONTRACT | {"other_remainders"})
    assert {how: other["tokens"] for how, other in card["other_remainders"].items()} == {"crop": 730}
    assert all(figure in text for figure in ("785 (", "28 x 28", "730 (", "27 x 27", "1006.96 GFLOP"))
    card, _ = shown(capsys, "ViT-B/16", "--remainder", "crop", "--image-size", 40, 32)
    assert (card["grid"], card["other_remainders"]["pad"]["grid"]) == ([2, 2], [3, 2])
    card, text = shown(capsys, "ViT-B/16", "--image-size", 100, 15)  # smaller than a patch: padded, and no other choice
    assert (card["tokens"], card["other_remainders"], "padded to" in text) == (8, {}, True)


SMALL = vit.Config((8, 8), (4, 4), 1, 16, 1, 2, 32, classes=20)


@pytest.mark.parametrize(("config", "words"), [
    (SMALL, "17, 18, 19\n"), (replace(SMALL, classes=21), "8, 9, ... (21 in all)\n"),
    (resnet.Config((1,), channels=1, classes=2), "0, 1\n"),
])  # fmt: skip
def test_a_trained_model_shows_its_preprocessing_and_first_classes(tmp_path, capsys, config, words):
    names = tuple(map(str, range(config.classes)))
    how = Preprocessing((8, 8), (0.25,), (0.5,), "crop", 0.8749999999999999)
    Pipeline(ClassifyConfig().task(config.build(), how, names)).save(tmp_path / "run" / "model")
    path = str(tmp_path / ("run" if config.classes == 20 else "run/model"))
    card, text = shown(capsys, path, "--image-size", 12, 8)
    assert (card["name"], card["class_names"]) == (path, list(names))
    assert (card["preprocessing"]["mean"], card["preprocessing"]["resize"]) == ([0.25], "crop")
    assert card["parameters"] == sum(p.numel() for p in config.build("meta").parameters())
    assert card["tokens"] == (7 if isinstance(config, vit.Config) else None)
    assert ("tokens" in text) == isinstance(config, vit.Config)
    assert all(words in text for words in ("8 x 8, mean 0.25, std 0.5", "crop_fraction 0.875,", words))
    assert f"{path} " in refused(capsys, "info", path, "--classes", "3")


def test_a_file_of_another_program_shows_its_preprocessing(tmp_path, capsys):
    np.savez(tmp_path / "w.npz", **google_files.arrays())
    card, text = shown(capsys, tmp_path / "w.npz", "--image-size", 64, 32)
    assert (card["preprocessing"]["mean"], card["class_names"], card["tokens"]) == ([0.5] * 3, None, 33)
    assert card["config"]["activation"] == "gelu_tanh"
    assert card["parameters"] == sum(a.size for a in google_files.arrays().values())
    assert "preprocessing image_size 32 x 32, mean 0.5 / 0.5 / 0.5" in text


@pytest.mark.parametrize(("arguments", "words"), [
    ("missing.npz", ["missing.npz does not exist"]), ("ViT-B/17", ["ViT-B/16"]),
    ("ViT-B/16 --image-size 0 16", ["0 x 16"]),
    ("ViT-B/16 --remainder refuse --image-size 225 224", ["225 x 224", "16 x 16"]),
    ("ViT-B/16 --remainder crop --image-size 8 16", ["8 x 16", "16 x 16"]),
    ("ViT-B/16 --width 9999999996", ["ViT-B/16", "too large"]),
])  # fmt: skip
def test_what_cannot_be_described_is_refused(capsys, arguments, words):
    said = refused(capsys, "info", *arguments.split())
    assert all(word in said for word in words)


def test_describing_allocates_nothing(capsys):
    seen = set()

    class Devices(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            found = operation(*args, **(kwargs or {}))
            seen.update({found.device.type} if isinstance(found, torch.Tensor) else ())
            return found

    with Devices():
        card, _ = printed(capsys, "info", "ViT-G/14")
    assert (card["parameters"] > 1.8e9, seen) == (True, {"meta"})
