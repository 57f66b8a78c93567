"""The model folder: what was written is read bit for bit, and every damage is a sentence that names the file."""

import json
import re
from dataclasses import replace

import pytest
import torch
from model_folders import names_of, preprocessing_of, write_folder
from safetensors.torch import load_file, save_file

import vitrail
from vitrail.models import resnet, vit
from vitrail.weights.load import read

CONFIG = vit.Config((8, 8), (4, 4), 1, width=16, depth=1, heads=2, mlp_dim=32, classes=3)
TASK = {"kind": "classify", "config": {"loss": "sigmoid"}}
VARIANTS = {
    "plain": CONFIG,
    "average, registers, scale": replace(CONFIG, pool="avg", registers=2, layer_scale=1e-3, class_position=False),
    "map, swiglu, no [class]": replace(CONFIG, pool="map", class_token=False, activation="swiglu"),
    "pre-logits, sin-cos": replace(CONFIG, representation=24, positions="sincos"),
    "pre-norm, no bias": replace(CONFIG, pre_norm=True, patch_bias=False, qkv_bias=False, qk_norm=True),
    "norm after, crop": replace(CONFIG, pool="avg", norm_first=False, remainder="crop", drop_path=0.1),
    "hybrid": replace(CONFIG, patch_size=(1, 1), stem=resnet.Config((1,), channels=1, classes=0)),
    "ResNet": resnet.Config((1,), channels=1, classes=3, image_size=(8, 8)),
}


@pytest.fixture
def saved(tmp_path):
    write_folder(tmp_path / "model", CONFIG)
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_was_written_is_read_bit_for_bit(tmp_path, name, dtype):
    config, extra = VARIANTS[name], {"queries": torch.randn(2, 3).to(dtype)}
    before, _ = write_folder(tmp_path / "a", config, dtype, extra, TASK)
    found = read(tmp_path / "a")
    assert (found.config, found.format, found.task) == (config, "vitrail", TASK)
    assert (found.preprocessing, found.class_names) == (preprocessing_of(config), names_of(config))
    for tensors, expected in ((found.tensors, before.to(dtype).float().state_dict()), (found.extra, extra)):
        torch.testing.assert_close(tensors, dict(expected), rtol=0, atol=0)
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert {stored[name].dtype for names in found.origin.values() for name in names} == {dtype}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_folder_is_loaded_for_evaluation_and_can_be_trained(tmp_path, name):
    before, images = write_folder(tmp_path, VARIANTS[name])[0], torch.randn(2, 1, 8, 8)
    after = vitrail.load(tmp_path)
    assert not any(module.training for module in after.modules())
    # not bit for bit: where a tensor lies in memory decides which kernel multiplies it
    torch.testing.assert_close(after(images), before(images), rtol=1e-5, atol=1e-5)
    after(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in after.parameters())
    assert vitrail.load(tmp_path, classes=5)(images).shape == (2, 5)


@pytest.mark.parametrize("text", [b"", b'{"vitrail": {"model"', b"\xff\xfe\x00", b"[]"])
@pytest.mark.parametrize("inside", [b"%s", b'{"vitrail": %s}'])
def test_a_config_that_is_damaged_or_of_another_kind_is_named(saved, inside, text):
    (saved / "config.json").write_bytes(inside % text)
    with pytest.raises(ValueError, match=r"config\.json"):
        read(saved)


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("model", "width", "16", "width: '16'"), ("model", "patch_size", [4], r"patch_size: \[4\] has 1 .* 2"),
        ("model", "heads", 3, "3 heads .* 16"), ("model", "classes", 4, "4 classes.* 3 names"),
        ("model", "channels", 3, "1 channels.* 3"), ("preprocessing", "std", [0.0], "std is "),
        (None, "class_names", ["a", "b", 3], "class_names: 3"), (None, "task", {"kind": "classify"}, "task"),
        (None, "model", {"kind": "cnn", "config": {}}, "cnn.* resnet, vit"), ("model", "colour", 1, "colour"),
        *((None, section, ..., section) for section in ("model", "preprocessing", "class_names", "task")),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_or_is_missing_is_named(saved, section, field, value, message):
    content = json.loads((saved / "config.json").read_text())
    card = content["vitrail"]
    inside = {"model": card["model"]["config"], None: card}.get(section, card["preprocessing"])
    inside[field] = value
    if value is ...:
        del inside[field]
    (saved / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"config\.json cannot be used: .*{message}"):
        read(saved)


@pytest.mark.parametrize("file", ["model.safetensors", "task.safetensors"])
@pytest.mark.parametrize("left", [0, 100, -1, None])
def test_weights_that_are_cut_short_or_missing_are_named(tmp_path, left, file):
    write_folder(tmp_path, CONFIG, extra={"queries": torch.randn(100)})
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:left])
    if left is None:  # and in its place a folder
        (tmp_path / file).unlink()
        (tmp_path / file).mkdir()
    with pytest.raises(ValueError, match=re.escape(file)):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.weight": None}, "head.weight"),
        ({"extra": torch.zeros(2)}, "extra (2,)"),
        ({"head.bias": torch.zeros(4)}, "head.bias (4,) cannot become head.bias (3,)"),
        ({"head.weight": torch.zeros(16, 3)}, "head.weight (16, 3) cannot become head.weight (3, 16)"),
    ],
)
def test_tensors_that_do_not_fit_are_named_with_their_shapes(saved, change, message):
    tensors = load_file(saved / "model.safetensors") | change
    save_file({name: t for name, t in tensors.items() if t is not None}, saved / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{re.escape(str(saved))}.*{re.escape(message)}"):
        read(saved)
