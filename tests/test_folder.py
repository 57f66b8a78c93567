"""The model folder: what was saved is loaded bit for bit, and every damage is a sentence that names the file."""

import json
import pickle
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.models import resnet, vit
from vitrail.weights.folder import load, save

CONFIG = vit.Config((8, 8), (4, 4), 1, width=16, depth=1, heads=2, mlp_dim=32, classes=3)
HOW = Preprocessing((8, 8), (0.25,), (0.5,))
NAMES = ("cat", "dog", "chaise longue")
VARIANTS = {
    "plain": CONFIG,
    "average, registers, scale": replace(CONFIG, pool="avg", registers=2, layer_scale=1e-3, class_position=False),
    "map, swiglu, no [class]": replace(CONFIG, pool="map", class_token=False, activation="swiglu"),
    "pre-logits, sin-cos": replace(CONFIG, representation=24, positions="sincos"),
    "pre-norm, no bias": replace(CONFIG, pre_norm=True, patch_bias=False, qkv_bias=False, qk_norm=True),
    "norm after, crop": replace(CONFIG, pool="avg", norm_first=False, remainder="crop", drop_path=0.1),
    "hybrid": replace(CONFIG, patch_size=(1, 1), stem=resnet.Config((1,), channels=1, classes=0)),
}


def model(config=CONFIG):
    torch.manual_seed(0)
    made = vit.ViT(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter))
    return made.eval()


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "model", model(), HOW, NAMES)
    return tmp_path / "model"


@pytest.mark.parametrize("name", VARIANTS)
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path, name):
    before = model(VARIANTS[name])
    save(tmp_path / "a" / "b", before, HOW, NAMES)
    after, preprocessing, names = load(tmp_path / "a" / "b")
    assert (after.config, preprocessing, names) == (before.config, HOW, NAMES)
    ours, theirs = before.state_dict(), after.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():  # not bit for bit: where a tensor lies in memory decides which kernel multiplies it
        assert torch.allclose(before(images), after(images), rtol=1e-5, atol=1e-5)


def test_a_loaded_model_is_in_evaluation_mode_and_can_be_trained(folder):
    found = load(folder)[0]
    assert not any(module.training for module in found.modules())
    found(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())


def test_half_precision_is_kept_to_the_bit_and_read_as_float32(tmp_path):
    before = model().to(torch.bfloat16)
    save(tmp_path, before, HOW, NAMES)
    for name, tensor in load(tmp_path)[0].state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before.state_dict()[name].float())


def test_saving_again_replaces_the_folders_content(folder):
    other = model(replace(CONFIG, width=8))
    save(folder, other, HOW, NAMES)
    assert load(folder)[0].config.width == 8


def test_names_that_do_not_fit_the_head_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="the head has 3 classes, but there are 2 names"):
        save(tmp_path / "model", model(), HOW, NAMES[:2])
    assert not (tmp_path / "model").exists()


def test_a_disk_that_refuses_is_a_sentence(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    with pytest.raises(ValueError, match=r"model\.safetensors could not be written"):
        save(folder, model(), HOW, NAMES)


@pytest.mark.parametrize("path", ["missing", "empty", "file"])
def test_what_is_no_model_folder_is_named(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    with pytest.raises(ValueError, match=f"{path} is not a model folder: it has no config.json"):
        load(tmp_path / path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"<!DOCTYPE html><html>Not Found</html>", "Expecting value"),
        (b'{"vitrail": {"model"', "Expecting ':'"),
        (b"\xff\xfe\x00", "'utf-8' codec can't decode"),
        (b"[]", 'it has no section "vitrail", so it is of another program'),
        (b"null", "it has no section"),
        (b'{"architecture": "vit_base_patch16_224"}', "it has no section"),
        (b'{"vitrail": {}}', "Card needs the field class_names, model, preprocessing"),
        (b'{"vitrail": []}', r"\[\] is not Card"),
        (b'{"vitrail": "ViT"}', "'ViT' is not Card"),
    ],
)
def test_a_config_that_is_damaged_or_of_another_kind_is_named(folder, text, message):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"config\.json cannot be used: {message}"):
        load(folder)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("model", "colour", 1, "Config has no field colour"),
        ("model", "width", "16", "width: '16' is not a whole number"),
        ("model", "width", 16.0, "width: 16.0 is not a whole number"),
        ("model", "class_token", 1, "class_token: 1 is not True or False"),
        ("model", "patch_size", [4], r"patch_size: \[4\] has 1 elements, not 2"),
        ("model", "pool", "max", "pool: 'max' is none of token or avg or map"),
        ("model", "heads", 3, "3 heads do not divide the width 16"),
        ("model", "classes", 4, "the head has 4 classes, but there are 3 names"),
        ("model", "channels", 3, "the preprocessing has 1 channels, the model reads 3"),
        ("preprocessing", "std", [0.0], "std is .*each must be above 0"),
        ("preprocessing", "mean", [0.5, 0.5], "mean has 2 channels and std has 1"),
        ("preprocessing", "mean", None, "mean: None is not a list"),
    ],
)
def test_a_field_that_cannot_be_is_named(folder, section, field, value, message):
    card = json.loads((folder / "config.json").read_text())
    card["vitrail"][section][field] = value
    (folder / "config.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=rf"config\.json cannot be used: .*{message}"):
        load(folder)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"], [], "abc", ["a", "b", 3], None])
def test_class_names_that_do_not_fit_are_refused(folder, names):
    card = json.loads((folder / "config.json").read_text())
    card["vitrail"]["class_names"] = names
    (folder / "config.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"config\.json cannot be used: .*(names|class_names)"):
        load(folder)


@pytest.mark.parametrize("section", ["model", "preprocessing", "class_names"])
def test_a_missing_section_is_named(folder, section):
    card = json.loads((folder / "config.json").read_text())
    del card["vitrail"][section]
    (folder / "config.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=rf"config\.json cannot be used: Card needs the field {section}\.$"):
        load(folder)


@pytest.mark.parametrize("left", [0, 4, 100, 0.5, 0.99, -1])
def test_weights_that_are_cut_short_are_named(folder, left):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data)) if isinstance(left, float) else left])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        load(folder)


def test_missing_weights_are_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        load(folder)


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_in_the_weights_place_is_never_unpickled(folder, tmp_path, writer):
    trap = {"head.weight": Trap(tmp_path / "sprung")}
    if writer == "pickle":
        (folder / "model.safetensors").write_bytes(pickle.dumps(trap))
    else:
        torch.save(trap, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("head.weight"), "head.weight is missing in it, (3, 16) by config.json"),
        (lambda t: t.update(extra=torch.zeros(2)), "extra is (2,) in it, missing by config.json"),
        (lambda t: t.update({"head.bias": torch.zeros(4)}), "head.bias is (4,) in it, (3,) by config.json"),
        (
            lambda t: t.update({"head.weight": torch.zeros(16, 3)}),
            "head.weight is (16, 3) in it, (3, 16) by config.json",
        ),
    ],
    ids=["missing", "extra", "shape", "transposed"],
)
def test_tensors_that_do_not_fit_are_named_with_both_shapes(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors does not fit config\.json: {re.escape(message)}"):
        load(folder)
