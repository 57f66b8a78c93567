"""Positions at other sizes: each named kind against its author's function, and sizes with a remainder."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import perturb
from scipy import ndimage
from timm.layers import resample_abs_pos_embed
from torchvision.models.vision_transformer import interpolate_embeddings

from vitrail.models import resnet
from vitrail.models.positions import resample, sincos
from vitrail.models.vit import Config, ViT

SMALL = {"image_size": (12, 8), "patch_size": (4, 4), "width": 16, "depth": 1, "heads": 2, "mlp_dim": 24, "classes": 5}
GRIDS = [((14, 14), (24, 24)), ((14, 14), (10, 17)), ((6, 9), (11, 5)), ((6, 9), (9, 6))]


def model(**overrides):
    return perturb(ViT(Config(**{**SMALL, **overrides})))


def table(old, width=8, dtype=torch.float64):
    return torch.randn(old[0] * old[1], width, generator=torch.Generator().manual_seed(3), dtype=dtype)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bilinear_corners_is_scipys_zoom(old, new):
    positions = table(old)
    image = positions.numpy().reshape(*old, -1)
    expected = ndimage.zoom(image, (new[0] / old[0], new[1] / old[1], 1), order=1)
    ours = resample(positions, old, new, "bilinear_corners").reshape(*new, -1)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["bicubic", "bilinear", "bilinear_antialias", "bicubic_antialias"])
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_each_kind_is_torchs_interpolation_channel_by_channel(old, new, kind):
    positions = table(old)
    mode, _, antialias = kind.partition("_")
    for channel in (0, 5):
        image = positions[:, channel].reshape(1, 1, *old)
        expected = F.interpolate(image, new, mode=mode, antialias=bool(antialias)).flatten()
        torch.testing.assert_close(resample(positions, old, new, kind)[:, channel], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_bicubic_antialias_is_timms(old, new):
    positions = table(old, dtype=torch.float32)
    expected = resample_abs_pos_embed(positions[None], new, old, num_prefix_tokens=0)[0]
    torch.testing.assert_close(resample(positions, old, new, "bicubic_antialias"), expected, rtol=0, atol=1e-6)


def test_bicubic_corners_is_torchvisions():
    positions = table((14, 14), dtype=torch.float32)
    state = {"encoder.pos_embedding": torch.cat([torch.zeros(1, 8), positions])[None]}
    expected = interpolate_embeddings(384, 16, state)["encoder.pos_embedding"][0, 1:]
    torch.testing.assert_close(resample(positions, (14, 14), (24, 24), "bicubic_corners"), expected, rtol=0, atol=1e-6)


def test_half_precision_is_resampled_in_float32():
    positions = table((6, 9)).to(torch.bfloat16)
    ours = resample(positions, (6, 9), (7, 12), "bicubic_antialias")
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, resample(positions.float(), (6, 9), (7, 12), "bicubic_antialias").to(torch.bfloat16))


def big_vision(h, w, width):
    """posemb_sincos_2d of big_vision's models/vit.py."""
    y, x = np.mgrid[:h, :w]
    omega = np.arange(width // 4) / (width // 4 - 1)
    omega = 1.0 / (10_000**omega)
    y = np.einsum("m,d->md", y.flatten(), omega)
    x = np.einsum("m,d->md", x.flatten(), omega)
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)


def mae(h, w, width):
    """get_2d_sincos_pos_embed of MAE's util/pos_embed.py."""

    def one(positions, width):
        omega = 1.0 / 10000 ** (np.arange(width // 2, dtype=np.float64) / (width / 2.0))
        out = np.outer(positions.reshape(-1), omega)
        return np.concatenate([np.sin(out), np.cos(out)], axis=1)

    grid = np.meshgrid(np.arange(w, dtype=np.float64), np.arange(h, dtype=np.float64))  # "here w goes first"
    return np.concatenate([one(grid[0], width // 2), one(grid[1], width // 2)], axis=1)


@pytest.mark.parametrize(("kind", "author"), [("sincos", big_vision), ("sincos_mae", mae)])
@pytest.mark.parametrize("grid", [(7, 7), (3, 5), (5, 3)])
def test_sincos_is_its_authors_also_where_rows_and_columns_differ(kind, author, grid):
    ours = sincos(grid, 16, mae=kind == "sincos_mae")
    np.testing.assert_allclose(ours, author(*grid, 16), rtol=0, atol=1e-12)
    vit = model(positions=kind, image_size=(4 * grid[0], 4 * grid[1]))
    assert "pos_embed" not in vit.state_dict()
    positions = vit.position_table(grid)[0]
    assert not positions[0].any()  # [class]
    np.testing.assert_allclose(positions[1:], author(*grid, 16), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "shape", [{}, {"class_position": False}, {"registers": 2}, {"class_token": False, "pool": "avg"}]
)
def test_class_and_registers_stand_aside_when_the_grid_is_resampled(shape):
    vit = model(**shape)
    with torch.no_grad():
        positions = vit.position_table((5, 7))[0]
    rows = vit.pos_embed.shape[1] - 6
    expected = resample(vit.pos_embed[0, rows:], (3, 2), (5, 7), "bicubic_antialias")
    prefix = vit.config.prefix
    assert torch.equal(positions[prefix:], expected)
    assert torch.equal(positions[:rows], vit.pos_embed[0, :rows])
    assert not positions[rows:prefix].any()


@pytest.mark.parametrize("before", [torch.no_grad, torch.inference_mode])
def test_gradients_and_steps_reach_the_positions_at_another_size_also_after_an_evaluation(before):
    vit, images = model(), torch.randn(2, 3, 20, 28, dtype=torch.float64)
    with before():
        evaluated = vit(images)
    for _ in range(2):  # the first leaves no graph behind
        logits = vit(images)
        assert torch.equal(logits, evaluated)
        logits.square().sum().backward()
    assert (vit.pos_embed.grad != 0).all()
    torch.optim.AdamW([vit.pos_embed], lr=0.1).step()
    with before():
        assert (vit(images) - evaluated).abs().max() > 1e-3


def build(stem, remainder, size):
    """A model and an image size that leaves the remainder in patches of 4 that `size` leaves; a hybrid has 8."""
    if not stem:
        return model(remainder=remainder), size
    hybrid = {"patch_size": (2, 2), "stem": resnet.Config(blocks=(), classes=0), "image_size": (24, 16)}
    return model(remainder=remainder, **hybrid), (2 * size[0], 2 * size[1])


@pytest.mark.parametrize("stem", [False, True], ids=["plain", "hybrid"])
@pytest.mark.parametrize("remainder", ["pad", "crop"])
@pytest.mark.parametrize("size", [(11, 10), (12, 9), (9, 8)])
def test_padding_is_by_zeros_and_cropping_away_at_the_bottom_and_right(size, remainder, stem):
    vit, (height, width) = build(stem, remainder, size)
    images = torch.randn(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    down, right = vit.config.stride
    pad = remainder == "pad"
    rows, columns = (-(-height // down), -(-width // right)) if pad else (height // down, width // right)
    whole = F.pad(images, (0, columns * right - width, 0, rows * down - height))  # by less than nothing, it crops
    assert vit.config.grid((height, width)) == (rows, columns)
    torch.testing.assert_close(vit(images), vit(whole), rtol=0, atol=1e-12)
    vit(images).sum().backward()
    assert (images.grad != 0).all() == (pad or images.shape == whole.shape)


def test_sizes_that_do_not_agree_are_refused_with_the_numbers():
    for remainder, height, message in (("refuse", 11, r"11 x 10 .*4 x 4.* 12 x 8"), ("crop", 3, "3 x 10 .*4 x 4")):
        with pytest.raises(ValueError, match=message):
            model(remainder=remainder)(torch.zeros(1, 3, height, 10, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"54 .*6 rows x 8 columns"):
        resample(table((6, 9)), (6, 8), (7, 12), "bicubic")
    with pytest.raises(ValueError, match=r"1 channels.* 3"):
        model()(torch.zeros(1, 1, 12, 8, dtype=torch.float64))
