"""`vitrail info`: the paper's figures, at any size, for people and for programs."""

import google_files
import numpy as np
import pytest
import torch
import transformers
from command_line import printed, refused, status
from torch.utils._python_dispatch import TorchDispatchMode

from vitrail import Pipeline
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import resnet, vit
from vitrail.tasks import ClassifyConfig

CONTRACT = {"name", "config", "parameters", "flops", "tokens", "image_size", "preprocessing", "grid", "class_names"}
# name, size, remainder: parameters, tokens, GFLOP (2 x multiply-adds)
FIGURES = {
    ("ViT-B/16", 224, None): (86_567_656, 197, 35.13),
    ("ViT-L/16", 384, None): (304_326_632, 577, 382.13),
    ("ViT-H/14", 384, "crop"): (632_045_800, 730, 1006.96),
    ("R50+ViT-B/16", 224, None): (98_659_112, 197, None),
}


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
    assert shown(capsys, "ViT-B/16")[0]["image_size"] == [224, 224]


def test_a_size_that_the_patch_does_not_divide_shows_both_choices(capsys):
    card, text = shown(capsys, "ViT-H/14", "--image-size", 384)
    assert (card["tokens"], card["grid"]) == (785, [28, 28])
    assert set(card) == CONTRACT | {"other_remainders"}
    assert list(card["other_remainders"]) == ["crop"]
    assert card["other_remainders"]["crop"]["tokens"] == 730
    assert all(figure in text for figure in ("785 (", "28 x 28", "730 (", "27 x 27", "1006.96 GFLOP"))
    card, _ = shown(capsys, "ViT-B/16", "--remainder", "crop", "--image-size", 40, 32)
    assert (card["grid"], card["other_remainders"]["pad"]["grid"]) == ([2, 2], [3, 2])


@pytest.mark.parametrize("size", [(8, 8), (8, 100), (100, 15), (1, 1)])
def test_an_image_smaller_than_a_patch_is_padded_and_has_no_other_choice(capsys, size):
    card, text = shown(capsys, "ViT-B/16", "--image-size", *size)
    assert card["tokens"] == 1 + -(-size[0] // 16) * -(-size[1] // 16)
    assert card["other_remainders"] == {}
    assert "padded to" in text


def test_a_resnet_has_no_tokens(capsys):
    card, text = shown(capsys, "BiT-R50x1")
    assert card["tokens"] is None
    assert "tokens" not in text
    assert shown(capsys, "BiT-R50x1", "--image-size", 448)[0]["flops"] > 3.9 * card["flops"]


def saved(path, config, names):
    how = Preprocessing((8, 8), (0.25,), (0.5,), "crop", 0.8749999999999999)
    Pipeline(ClassifyConfig().task(config.build(), how, names)).save(path)


@pytest.mark.parametrize("inner", ["", "model"])
@pytest.mark.parametrize(
    "config", [vit.Config((8, 8), (4, 4), 1, 16, 1, 2, 32, classes=2), resnet.Config((1,), channels=1, classes=2)]
)
def test_a_trained_model_shows_its_preprocessing_and_classes(tmp_path, capsys, config, inner):
    saved(tmp_path / "run" / "model", config, ("cat", "dog"))
    path = str(tmp_path / "run" / inner)
    card, text = shown(capsys, path, "--image-size", 12, 8)
    assert (card["name"], card["class_names"]) == (path, ["cat", "dog"])
    assert (card["preprocessing"]["mean"], card["preprocessing"]["resize"]) == ([0.25], "crop")
    assert card["parameters"] == sum(p.numel() for p in config.build("meta").parameters())
    assert card["tokens"] == (7 if isinstance(config, vit.Config) else None)
    assert all(words in text for words in ("8 x 8, mean 0.25, std 0.5", "crop_fraction 0.875,", "cat, dog"))
    assert f"{path} " in refused(capsys, "info", path, "--classes", "3")


@pytest.mark.parametrize(("count", "words"), [(20, "17, 18, 19\n"), (21, "8, 9, ... (21 in all)\n")])
def test_of_many_classes_the_first_are_shown(tmp_path, capsys, count, words):
    saved(tmp_path, vit.Config((8, 8), (4, 4), 1, 16, 1, 2, 32, classes=count), tuple(map(str, range(count))))
    card, text = shown(capsys, tmp_path)
    assert len(card["class_names"]) == count
    assert words in text


def test_files_of_other_programs_show_their_preprocessing(tmp_path, capsys):
    np.savez(tmp_path / "w.npz", **google_files.arrays())
    card, text = shown(capsys, tmp_path / "w.npz", "--image-size", 64, 32)
    assert (card["preprocessing"]["mean"], card["class_names"], card["tokens"]) == ([0.5] * 3, None, 33)
    assert card["config"]["activation"] == "gelu_tanh"
    assert card["parameters"] == sum(a.size for a in google_files.arrays().values())
    assert "preprocessing image_size 32 x 32, mean 0.5 / 0.5 / 0.5" in text
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 518}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(tmp_path / "dinov2")
    card, text = shown(capsys, tmp_path / "dinov2")
    assert card["preprocessing"]["crop_fraction"] == 0.875
    assert "crop_fraction 0.875," in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.npz"], ["missing.npz does not exist"]),
        (["some/where.safetensors"], ["some/where.safetensors does not exist"]),
        (["ViT-B/17"], ["ViT-B/16"]),
        (["ViT-B/16", "--clases", "3"], ["clases", "classes"]),
        (["ViT-B/16", "--image-size", "0", "16"], ["0 x 16"]),
        (["ViT-B/16", "--remainder", "refuse", "--image-size", "225", "224"], ["225 x 224", "16 x 16"]),
        (["ViT-B/16", "--remainder", "crop", "--image-size", "8", "16"], ["8 x 16", "16 x 16"]),
        (["ViT-B/16", "--width", "9999999996"], ["ViT-B/16", "too large"]),
    ],
)
def test_what_cannot_be_described_is_refused(capsys, arguments, words):
    said = refused(capsys, "info", *arguments)
    assert all(word in said for word in words)


@pytest.mark.parametrize("name", ["ViT-B/16", "R50+ViT-B/16", "BiT-R50x1", "vit_giant_patch14_reg4_dinov2"])
def test_every_field_has_a_line_for_people(capsys, name):
    card, text = shown(capsys, name)
    fields = [line.split()[0] for line in text.splitlines() if line.startswith("    ")]
    assert fields == list(card["config"])
    assert not any(line != line.rstrip() for line in text.splitlines())


class Devices(TorchDispatchMode):
    """Notes where the results of torch's operations lie."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        self.seen |= {found.device.type} if isinstance(found, torch.Tensor) else set()
        return found


def test_describing_allocates_nothing(capsys):
    """ViT-G/14 has 1.8 billion parameters; on the meta device that is a moment, and no memory."""
    with Devices() as devices:
        card, _ = printed(capsys, "info", "ViT-G/14")
    assert card["parameters"] > 1.8e9
    assert devices.seen == {"meta"}
