"""What `vitrail info` says: the paper's figures, at any size, for people and for programs."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vitrail import Pipeline
from vitrail.cli import model_card as info
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import vit

CONTRACT = {"name", "config", "parameters", "flops", "tokens", "image_size", "preprocessing"}

# name, size, remainder: parameters, tokens, GFLOP (2 x multiply-adds)
FIGURES = {
    ("ViT-B/16", 224, None): (86_567_656, 197, 35.13),
    ("ViT-B/16", 384, None): (86_567_656, 577, 110.97),
    ("ViT-L/16", 224, None): (304_326_632, 197, 123.11),
    ("ViT-L/16", 384, None): (304_326_632, 577, 382.13),
    ("ViT-H/14", 224, None): (632_045_800, 257, 334.59),
    ("ViT-H/14", 384, "crop"): (632_045_800, 730, 1006.96),
    ("R50+ViT-B/16", 224, None): (98_659_112, 197, None),
}


@pytest.mark.parametrize(("name", "size", "remainder"), FIGURES)
def test_the_papers_figures(name, size, remainder):
    parameters, tokens, gflop = FIGURES[name, size, remainder]
    card = info.describe(name, {"remainder": remainder} if remainder else {}, (size, size))
    assert card["parameters"] == parameters
    assert card["tokens"] == tokens
    assert gflop is None or round(card["flops"] / 1e9, 2) == gflop
    said = info.text(card)
    assert f"{parameters:,}" in said
    assert f"{tokens} (" in said
    assert gflop is None or f"{gflop:.2f} GFLOP" in said
    assert f"{size} x {size}" in said


def test_a_card_has_the_contracts_keys_and_survives_json():
    card = info.describe("ViT-B/16", {"classes": 10})
    assert set(card) == CONTRACT | {"grid", "class_names"}
    assert card["name"] == "ViT-B/16"
    assert card["image_size"] == [224, 224]
    assert card["preprocessing"] is None
    assert card["config"]["classes"] == 10
    assert json.loads(json.dumps(card))["config"]["patch_size"] == [16, 16]


@pytest.mark.parametrize("short", ["B/16", "ViT-B/16"])
def test_a_short_name_is_shown_in_full(short):
    assert info.text(info.describe(short, {})).startswith("ViT-B/16\n")


def test_without_a_size_the_models_own_is_taken():
    assert info.describe("ViT-B/16", {"image_size": (64, 32)})["image_size"] == [64, 32]
    assert info.describe("ViT-B/16", {"image_size": (64, 32)})["tokens"] == 1 + 4 * 2


def test_height_comes_before_width():
    card = info.describe("ViT-B/16", {}, (32, 64))
    assert card["grid"] == [2, 4]
    assert "32 x 64" in info.text(card)
    assert "9 (2 x 4 patches)" in info.text(card)


def test_a_size_that_the_patch_does_not_divide_shows_both_choices():
    card = info.describe("ViT-H/14", {}, (384, 384))
    assert (card["tokens"], card["grid"]) == (785, [28, 28])
    assert set(card) == CONTRACT | {"grid", "class_names", "other_remainders"}
    other = card["other_remainders"]
    assert set(other) == {"crop"}
    assert other["crop"]["tokens"] == 730
    assert round(other["crop"]["flops"] / 1e9, 2) == 1006.96
    assert "785 (padded to 28 x 28 patches)" in info.text(card)
    assert "730 (cropped to 27 x 27 patches)" in info.text(card)
    assert "1006.96 GFLOP   (--remainder crop)" in info.text(card)


def test_the_other_choice_of_a_cropping_model_is_padding():
    card = info.describe("ViT-B/16", {"remainder": "crop"}, (40, 32))
    assert card["grid"] == [2, 2]
    assert card["other_remainders"]["pad"]["grid"] == [3, 2]


@pytest.mark.parametrize("size", [(8, 8), (8, 100), (100, 15), (1, 1)])
def test_an_image_smaller_than_a_patch_is_padded_and_has_no_other_choice(size):
    card = info.describe("ViT-B/16", {}, size)
    assert card["tokens"] == 1 + -(-size[0] // 16) * -(-size[1] // 16)
    assert card["other_remainders"] == {}
    assert "padded to" in info.text(card)


def test_a_resnet_has_no_tokens():
    card = info.describe("BiT-R50x1", {})
    assert card["tokens"] is None
    assert "tokens" not in info.text(card)
    assert info.describe("BiT-R50x1", {}, (448, 448))["flops"] > 3.9 * card["flops"]


def test_a_size_changes_tokens_and_cost_but_not_parameters():
    small, large = (info.describe("ViT-Ti/16", {}, (n, n)) for n in (224, 384))
    assert small["parameters"] == large["parameters"]
    assert small["config"] == large["config"]
    assert small["flops"] < large["flops"]


@pytest.fixture
def folder(tmp_path):
    config = vit.Config((8, 8), (4, 4), 1, 16, 1, 2, 32, classes=2)
    Pipeline(vit.ViT(config), Preprocessing((8, 8), (0.25,), (0.5,)), ("cat", "dog")).save(tmp_path / "run" / "model")
    return tmp_path / "run"


@pytest.mark.parametrize("inner", ["", "model"])
def test_a_trained_model_shows_its_preprocessing_and_classes(folder, inner):
    path = str(folder / inner)
    card = info.describe(path, {}, (12, 8))
    assert card["name"] == path
    statistics = {"image_size": (8, 8), "mean": (0.25,), "std": (0.5,)}
    assert card["preprocessing"] == statistics | {"resize": "squash", "crop_fraction": 1.0, "interpolation": "bilinear"}
    assert card["class_names"] == ["cat", "dog"]
    assert card["tokens"] == 7
    assert card["parameters"] == sum(p.numel() for p in Pipeline.load(path).model.parameters())
    said = info.text(card)
    assert "image_size 8 x 8, mean 0.25, std 0.5, resize squash, crop_fraction 1.0, interpolation bilinear" in said
    assert "cat, dog" in said


@pytest.mark.parametrize(("count", "shown"), [(20, "17, 18, 19\n"), (21, "8, 9, ... (21 in all)\n")])
def test_of_many_classes_the_first_are_shown(tmp_path, count, shown):
    model = vit.ViT(vit.Config((8, 8), (4, 4), 1, 16, 1, 2, 32, classes=count))
    Pipeline(model, Preprocessing((8, 8), (0.25,), (0.5,)), tuple(map(str, range(count)))).save(tmp_path)
    card = info.describe(str(tmp_path), {})
    assert len(card["class_names"]) == count
    assert shown in info.text(card)


def test_a_file_with_weights_shows_its_preprocessing(tmp_path):
    model = vit.ViT(vit.Config((32, 32), (16, 16), 3, 64, 2, 1, 256, 7))
    how = Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3)
    Pipeline(model, how, tuple("abcdefg")).save(tmp_path)
    card = info.describe(str(tmp_path / "model.safetensors"), {}, (64, 32))
    assert card["name"] == str(tmp_path / "model.safetensors")
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    assert (card["class_names"], card["tokens"]) == (None, 9)
    assert {"image_size", "mean", "std", "resize", "crop_fraction", "interpolation"} == card["preprocessing"].keys()
    assert "preprocessing image_size 32 x 32, mean " in info.text(card)


@pytest.mark.parametrize("name", ["missing.npz", "some/where.safetensors"])
def test_a_file_that_is_not_there_is_no_misspelt_name(name):
    with pytest.raises(ValueError, match=f"{name} does not exist; name a file with weights"):
        info.describe(name, {})


def test_a_trained_model_cannot_be_overridden(folder):
    with pytest.raises(ValueError, match=r"is a trained model; its fields \(classes\) cannot be overridden"):
        info.describe(str(folder), {"classes": 3})


@pytest.mark.parametrize(
    ("name", "overrides", "size", "message"),
    [
        ("ViT-B/17", {}, None, "did you mean ViT-B/16"),
        ("ViT-B/16", {"clases": 3}, None, "did you mean classes"),
        ("ViT-B/16", {}, (0, 16), "0 x 16 has no pixels"),
        ("ViT-B/16", {"remainder": "refuse"}, (225, 224), "225 x 224 is not divisible by the patch 16 x 16"),
        ("ViT-B/16", {"remainder": "crop"}, (8, 16), "smaller than one patch"),
        ("ViT-B/16", {"width": 9_999_999_996}, None, "ViT-B/16 with these fields is too large to exist"),
    ],
)
def test_what_cannot_be_described_is_refused(name, overrides, size, message):
    with pytest.raises(ValueError, match=message):
        info.describe(name, overrides, size)


@pytest.mark.parametrize("name", ["ViT-B/16", "R50+ViT-B/16", "BiT-R50x1", "vit_giant_patch14_reg4_dinov2"])
def test_every_field_has_a_line_for_people(name):
    card = info.describe(name, {})
    lines = info.text(card).splitlines()
    for field, value in card["config"].items():
        [shown] = [text.split(maxsplit=1)[1] for text in lines if text.startswith(f"    {field} ")]
        assert shown == info._plain(value)
    assert not any(text != text.rstrip() for text in lines)


class Devices(TorchDispatchMode):
    """Notes where the results of torch's operations lie."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        self.seen |= {found.device.type} if isinstance(found, torch.Tensor) else set()
        return found


def test_describing_allocates_nothing():
    """ViT-G/14 has 1.8 billion parameters; on the meta device that is a moment, and no memory."""
    with Devices() as devices:
        card = info.describe("ViT-G/14", {})
    assert card["parameters"] > 1.8e9
    assert devices.seen == {"meta"}
