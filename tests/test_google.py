"""Google's files: the authors' own numerics, in both directions, for every dialect."""

import re
from dataclasses import replace

import google_files as files
import numpy as np
import pytest
import reference
import torch
from model_folders import write_folder
from scipy.ndimage import zoom

from vitrail.models import resnet, vit
from vitrail.weights.format import Asked
from vitrail.weights.load import load, load_and_report, read
from vitrail.weights.save import save

SIZES = {"width": files.WIDTH, "depth": 2, "heads": files.HEADS, "mlp_dim": files.MLP, "classes": 5}
NUMERICS = {"activation": "gelu_tanh", "resample": "bilinear_corners", "remainder": "crop"}
TOKENLESS = {"class_token": False, "class_position": False, "pool": "avg"}
BASE = vit.Config((32, 32), (8, 8), **SIZES, **NUMERICS)


def hybrid(*blocks):
    """The configuration of a hybrid whose feature map is 4 x 4."""
    stem = resnet.Config(blocks=blocks, classes=0)
    patch = 1 if blocks else files.PATCH
    return {"stem": stem, "patch_size": (patch, patch), "image_size": (4 * stem.stride * patch,) * 2}


# name: (how the file is made, what is different from BASE)
CASES = {
    "plain": ({}, {}), "pre-logits": ({"representation": 16}, {"representation": 16}),
    "no head": ({"classes": 0}, {"classes": 0}), "averaged": ({"token": False}, TOKENLESS),
    "R50": ({"stem": (1, 2, 1)}, hybrid(1, 2, 1)),
    "R26": ({"stem": (2, 2, 2, 2), "depth": 1}, {"depth": 1, **hybrid(2, 2, 2, 2)}), "R+Ti": ({"stem": ()}, hybrid()),
    "newer, [class]": ({"newer": True}, {"class_position": False}),
    "newer, MAP": ({"newer": True, "token": False, "pool": "map"}, TOKENLESS | {"pool": "map"}),
    "newer, sin-cos": ({"newer": True, "token": False, "positions": False}, TOKENLESS | {"positions": "sincos"}),
}  # fmt: skip
# How it is written down: the same numbers each time.
DRESSES = {
    "bare": lambda found: found, "params": lambda found: files.prefixed(found, "params/"),
    "opt/target": lambda found: files.prefixed(found, "opt/target/"), "stacked": files.stacked,
    "tower": lambda found: files.prefixed(files.stacked(found), "params/img/"),
}  # fmt: skip
TYPES = {
    "float32": lambda found: found,
    "bfloat16": files.half,
    "float16": lambda found: {name: array.astype(np.float16) for name, array in found.items()},
}


def made(name):
    """(arrays, configuration)."""
    how, change = CASES[name]
    return files.arrays(**how), replace(BASE, **change)


def file(tmp_path, found):
    np.savez(tmp_path / "w.npz", **found)
    return tmp_path / "w.npz"


def pixels(height, width, seed=1):
    return np.random.default_rng(seed).normal(size=(2, 3, height, width))


def assert_agrees(model, weights, config, images):
    """The model's float32 logits against the reference in float64: at most 1e-5."""
    expected = reference.forward(weights, config, images)
    with torch.no_grad():
        logits = model(torch.from_numpy(images).float()).numpy()
    assert logits.std() > 0.1, "logits of no size prove nothing"
    print(f"largest difference {np.abs(logits - expected).max():.1e}")  # pytest -rP shows it
    assert np.abs(logits - expected).max() <= 1e-5


@pytest.mark.parametrize(("name", "half"), [(name, False) for name in CASES if name != "no head"] + [("plain", True)])
def test_logits_are_the_authors_whatever_else_the_file_holds(tmp_path, name, half):
    found, config = made(name)
    other = {"params/txt/Embed_0/embedding": np.zeros((3, 2), np.float32)}
    path = file(tmp_path, DRESSES["tower"](files.half(found) if half else found) | other)
    expected = files.reference_weights(files.from_half(files.half(found)) if half else found, **CASES[name][0])
    assert_agrees(load(path), expected, config, pixels(*config.image_size))


def test_an_array_of_the_blocks_that_is_not_known_is_refused_unless_it_is_said(tmp_path):
    found, _ = made("plain")
    block = next(name for name in found if "encoderblock_0" in name).rpartition("encoderblock_0")[0]
    path = file(tmp_path, found | {f"{block}encoderblock_0/gate": np.ones(8, np.float32)})
    with pytest.raises(ValueError, match=r"encoderblock_0/gate.*--ignore"):
        load(path)
    model, report = load_and_report(path, ignore=("*gate",))
    assert any("gate" in note for note in report.notes)
    images = torch.from_numpy(pixels(32, 32)).float()
    assert torch.equal(model(images), load(file(tmp_path, found))(images))


def resampled(weights, first, old, new):
    """Positions at another grid, by the authors' function."""
    table = zoom(weights["pos_embed"][0, first:].reshape(*old, -1), (new[0] / old[0], new[1] / old[1], 1), order=1)
    table = np.concatenate([weights["pos_embed"][:, :first], table.reshape(1, new[0] * new[1], -1)], axis=1)
    return weights | {"pos_embed": table}


@pytest.mark.parametrize("size", [(48, 48), (40, 64), (16, 24), (16, 64)])  # the last has as many patches as before
@pytest.mark.parametrize("name", ["plain", "averaged", "newer, [class]"])
def test_positions_at_another_size_are_the_authors(tmp_path, name, size):
    found, config = made(name)
    path, grid = file(tmp_path, found), (size[0] // 8, size[1] // 8)
    first = int(config.class_token and config.class_position)
    w = resampled(files.reference_weights(found, **CASES[name][0]), first, (4, 4), grid)
    # The same when the table itself is resampled while loading.
    for model in (load(path), load(path, image_size=size)):
        assert_agrees(model, w, replace(config, image_size=size), pixels(*size))
    assert model.pos_embed.shape[1] == first + grid[0] * grid[1]


def test_a_size_that_the_patch_does_not_divide_is_cropped_as_by_the_authors(tmp_path):
    found, config = made("plain")
    model, images = load(file(tmp_path, found)), pixels(37, 39)
    assert_agrees(
        lambda whole: model(torch.from_numpy(images).float()),
        files.reference_weights(found),
        config,
        images[..., :32, :32],
    )


NARROW = [("plain", "bfloat16"), ("plain", "float16")]


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize(("name", "type"), [(name, "float32") for name in CASES] + NARROW)
def test_the_configuration_is_inferred_and_what_is_read_is_written_back_bit_for_bit(tmp_path, name, type, dress):
    found, config = made(name)
    weights = assert_written_back(tmp_path, DRESSES[dress](TYPES[type](found)))
    # Sin-cos files do not tell what image size they were made for.
    assert replace(weights.config, image_size=config.image_size) == config
    assert weights.config.image_size == (config.image_size if config.positions == "learned" else (224, 224))
    assert weights.tensors.keys() == config.build("meta").state_dict().keys()


def test_group_norms_with_ones_around_are_written_back_bit_for_bit(tmp_path):
    found, config = made("R50")
    wide = found | {n: a.reshape(1, 1, 1, -1) for n, a in found.items() if re.search("gn[^/]*/(scale|bias)", n)}
    assert sum(array.ndim == 4 and array.shape[0] == 1 for array in wide.values()) > 10
    assert_written_back(tmp_path, wide)
    weights = files.reference_weights(found, **CASES["R50"][0])
    assert_agrees(load(file(tmp_path, wide)), weights, config, pixels(*config.image_size))


def assert_written_back(tmp_path, found):
    weights = read(file(tmp_path, found))
    save(weights, tmp_path / "back.npz", "google")
    with np.load(tmp_path / "back.npz") as back:
        assert set(back) == set(found)
        for name, array in found.items():
            assert (back[name].shape, back[name].dtype) == (array.shape, array.dtype), name
            assert back[name].tobytes() == array.tobytes(), name
    return weights


@pytest.mark.parametrize("name", CASES)
def test_a_model_of_ours_is_written_in_the_dialect_that_holds_it(tmp_path, name):
    found, config = made(name)
    write_folder(tmp_path / "ours", config)
    weights = read(tmp_path / "ours")
    assert all(note.startswith(("its prep", "the names")) for note in save(weights, tmp_path / "w.npz", "google"))
    with np.load(tmp_path / "w.npz") as back:
        assert {n: a.shape for n, a in back.items()} == {n: a.shape for n, a in found.items()}
    again = read(tmp_path / "w.npz", Asked(config.image_size))
    assert again.config == config
    assert all(torch.equal(again.tensors[n], tensor) for n, tensor in weights.tensors.items())


POSITIONS = "Transformer/posembed_input/pos_embedding"


@pytest.mark.parametrize(("name", "shape", "message"), [
    ("embedding/kernel", None, "is of an architecture"),
    ("Transformer/encoder_norm/scale", None, "tensor Transformer/encoder_norm/scale"),
    ("head/bias", (4,), r"head/bias \(4,\) .* head\.bias \(5,\)"),
    ("head/kernel", (5,), r"head/kernel is \(5,\).* 2 "), ("cls", (1, 1, 32), "cls .*int64"),
    ("embedding/kernel", (3,), r"embedding/kernel is \(3,\).* 4 "), (POSITIONS, (1, 16, 32), "15 .*image_size"),
    (POSITIONS, (32,), r"pos_embedding is \(32,\).* 3 "),
])  # fmt: skip
def test_damage_is_named(tmp_path, name, shape, message):
    found = {other: array for other, array in made("plain")[0].items() if other != name}
    found |= {} if shape is None else {name: np.zeros(shape, np.int64 if name == "cls" else np.float32)}
    with pytest.raises(ValueError, match=rf"w\.npz.*{message}"):
        read(file(tmp_path, found))


def test_a_grid_that_is_not_square_is_asked_for(tmp_path):
    found, config = made("plain")
    found[POSITIONS] = np.ones((1, 1 + 2 * 6, 32), np.float32)
    path = file(tmp_path, found)
    with pytest.raises(ValueError, match=r"w\.npz: 12 positions"):
        load(path)
    assert load(path, image_size=(16, 48)).config == replace(config, image_size=(16, 48))


def test_fine_tuning_loads_at_384_with_the_head_kept_dropped_or_replaced(tmp_path):
    how = {"grid": 14, "representation": 16}
    found = files.arrays(**how)
    path, w = file(tmp_path, found), resampled(files.reference_weights(found, **how), 1, (14, 14), (48, 48))
    config, images = replace(BASE, image_size=(384, 384), representation=16), pixels(384, 384)
    assert_agrees(load(path, image_size=384), w, config, images)
    w["head.weight"], w["head.bias"] = np.eye(files.WIDTH), np.zeros(files.WIDTH)
    dropped, report = load_and_report(path, image_size=384, classes=0)
    replaced = load(path, image_size=384, classes=7)
    for features in (dropped, replaced.represent):
        assert_agrees(features, w, replace(config, representation=None), images)
    assert not replaced(torch.from_numpy(images).float()).any()
    assert report["ignored"] == ["pre_logits.fc.weight", "pre_logits.fc.bias", "head.weight", "head.bias"]
