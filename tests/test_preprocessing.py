"""Pixels to the model's input, by the formula and as timm has them; and augmentations that a key alone decides."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from vitrail.config import parse
from vitrail.data.images.preprocessing import Preprocessing, normalise, prepare

STATISTICS = {
    "paper": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "identity": ((0.0,), (1.0,)),
    "grey": ((0.2860,), (0.3530,)),
    "narrow": ((0.9, 0.01), (0.003, 2.0)),
}


def pixels(channels, height=16, width=16):
    """Every value from 0 to 255 in each channel."""
    generator = np.random.default_rng(channels)
    planes = [generator.permutation(256).reshape(height, width) for _ in range(2 * channels)]
    return torch.from_numpy(np.stack(planes).reshape(2, channels, height, width).astype(np.uint8))


def reference(images, mean, std):
    mean, std = (np.array(v, np.float64).reshape(-1, 1, 1) for v in (mean, std))
    return (images.numpy().astype(np.float64) / 255 - mean) / std


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.float16, 2**-11), (torch.bfloat16, 2**-8)],
    ids=str,
)
@pytest.mark.parametrize("name", STATISTICS)
def test_normalise_is_the_formula(name, dtype, bound):
    """The error is a rounding of the result, or of the mean over std that the formula subtracts."""
    mean, std = STATISTICS[name]
    images = pixels(len(mean))
    found = normalise(images, Preprocessing((16, 16), mean, std), dtype)
    expected = reference(images, mean, std)
    assert found.dtype == dtype
    assert found.shape == images.shape
    lost = 2e-7 * max(m / s for m, s in zip(mean, std, strict=True)) if dtype != torch.float64 else 0
    assert (np.abs(found.double().numpy() - expected) <= bound * np.maximum(np.abs(expected), 1e-3) + lost).all()


def test_normalise_leaves_its_input_alone():
    images = pixels(3)
    before = images.clone()
    normalise(images, Preprocessing((16, 16), *STATISTICS["paper"]), torch.float32)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 8), (0.5,), (0.5,)), r"image_size is \(0, 8\); height and width"),
        (((8, -1), (0.5,), (0.5,)), r"image_size is \(8, -1\)"),
        (((8, 8), (0.5,), (0.5, 0.5)), "mean has 1 channels and std has 2"),
        (((8, 8), (), ()), "mean has 0 channels and std has 0; they must agree, and be 1 or more"),
        (((8, 8), (0.5, 0.5), (0.5, 0.0)), r"std is \(0\.5, 0\.0\); each must be above 0"),
        (((8, 8), (0.5,), (-0.5,)), "each must be above 0"),
        (((8, 8), (0.5,), (math.nan,)), "std is .*nan"),
        (((8, 8), (0.5,), (math.inf,)), "std is .*inf"),
        (((8, 8), (math.nan,), (0.5,)), "mean is .*nan.*finite"),
        (((8, 8), (math.inf,), (0.5,)), "mean is .*inf.*finite"),
        (((8, 8), (0.5,), (0.5,), "center"), "resize is 'center'; choose one of squash, crop, pad, native"),
        (((8, 8), (0.5,), (0.5,), "crop", 0.0), r"crop_fraction is 0\.0; it must be from 0\.01 to 1"),
        (((8, 8), (0.5,), (0.5,), "crop", 1.01), r"crop_fraction is 1\.01"),
        (((8, 8), (0.5,), (0.5,), "crop", math.nan), "crop_fraction is nan"),
        (((8, 8), (0.5,), (0.5,), "crop", 1.0, "area"), "interpolation is 'area'; choose one of bilinear, bicubic"),
    ],
)
def test_settings_that_cannot_be_are_refused(unchecked, arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(*arguments)


def photo(height, width, channels=3):
    """Shapes and noise: edges in it are as sharp as a photograph's."""
    generator = np.random.default_rng((height, width))
    rows, columns = np.mgrid[:height, :width]
    waves = [127 * (1 + np.sin(rows / 7 + c) * np.cos(columns / (11 - c))) for c in range(channels)]
    noise = generator.integers(-40, 41, (height, width, channels))
    return np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


TIMMS = {"squash": "squash", "crop": "center", "pad": "border"}
# The model's image -> photographs that are halved, enlarged, leave odd pixels on a side, fit already, are lines.
SHAPES = {
    (224, 224): [(375, 500), (501, 333), (60, 41)],
    (32, 32): [(75, 131), (64, 64), (37, 35), (32, 32), (17, 300), (1, 1)],
    (48, 80): [(201, 133), (49, 81), (100, 50), (3, 2)],
    (97, 31): [(200, 65), (65, 200), (9, 9)],
    (80, 81): [(93, 93), (94, 91)],  # the same on both sides, once divided by some fractions
}
STATISTIC = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def timms(how):
    """timm's evaluation transforms, of an image to normalised floats."""
    settings = {"interpolation": how.interpolation, "crop_pct": how.crop_fraction, "crop_mode": TIMMS[how.resize]}
    return create_transform((3, *how.image_size), mean=how.mean, std=how.std, **settings)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fraction", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("resize", TIMMS)
def test_prepare_is_timms_transform_to_the_last_bit(resize, fraction, interpolation):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTIC)
    for size, shapes in SHAPES.items():
        how = Preprocessing(size, *STATISTIC, resize, fraction, interpolation)
        theirs = timms(how)
        for shape in shapes:
            pixels = photo(*shape)
            found, expected = prepare(pixels, how), theirs(Image.fromarray(pixels))
            assert torch.equal(found, torch.round((expected * std + mean) * 255).to(torch.uint8)), (size, shape)
            assert torch.allclose(normalise(found[None], how, torch.float32)[0], expected, atol=2e-6)


@pytest.mark.parametrize("resize", TIMMS)
def test_a_grey_image_is_prepared_as_each_channel_of_a_grey_rgb_one(resize):
    grey = photo(75, 131, 1)
    for size in [(32, 32), (48, 20)]:
        one = prepare(grey, Preprocessing(size, (0.4,), (0.2,), resize, 0.9, "bicubic"))
        three = prepare(grey.repeat(3, 2), Preprocessing(size, (0.4,) * 3, (0.2,) * 3, resize, 0.9, "bicubic"))
        assert one.shape == (1, *size)
        assert torch.equal(one.expand(3, -1, -1), three)


def test_other_numbers_of_channels_are_resized_one_by_one():
    image, how = photo(40, 30, 4), Preprocessing((16, 24), (0.5,) * 4, (0.5,) * 4)
    ones = [prepare(image[..., c : c + 1], Preprocessing((16, 24), (0.5,), (0.5,))) for c in range(4)]
    assert torch.equal(prepare(image, how), torch.cat(ones))


@pytest.mark.parametrize("resize", ["squash", "crop", "pad", "native"])
def test_an_image_of_the_models_size_is_not_touched(resize):
    image = photo(28, 36)
    found = prepare(image, Preprocessing((28, 36), *STATISTIC, resize, 1.0, "bicubic"))
    assert np.array_equal(found.permute(1, 2, 0), image)
    assert found.is_contiguous()
    assert found.data_ptr() != torch.from_numpy(image).data_ptr()


def test_native_leaves_every_size_alone():
    for shape in [(1, 1), (9, 400), (500, 3)]:
        found = prepare(photo(*shape), Preprocessing((8, 8), *STATISTIC, "native"))
        assert np.array_equal(found.permute(1, 2, 0), photo(*shape))


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.floats(0.3, 1))
def test_every_size_becomes_the_models(resize, height, width, rows, columns, fraction):
    how = Preprocessing((rows, columns), (0.5,), (0.5,), resize, fraction)
    grey = np.full((height, width, 1), 77, np.uint8)
    found = prepare(grey, how)
    assert found.shape == (1, rows, columns)
    border = {128} if resize == "pad" else set()
    assert {77} <= set(found.unique().tolist()) <= {77} | border


def test_a_line_is_no_bomb():
    """1 x 700,000 would be enlarged to 224 x 156,800,000."""
    line = np.zeros((1, 700_000, 1), np.uint8)
    with pytest.raises(ValueError, match="1 x 700000 would become 224 x 156800000; cut it into less extreme shapes"):
        prepare(line, Preprocessing((224, 224), (0.5,), (0.5,), "crop"))
    for resize in ("squash", "pad"):
        assert prepare(line, Preprocessing((224, 224), (0.5,), (0.5,), resize)).shape == (1, 224, 224)


def test_folders_from_before_there_was_a_choice_are_read():
    old = {"image_size": [28, 28], "mean": [0.5], "std": [0.5]}
    assert parse(Preprocessing, old) == Preprocessing((28, 28), (0.5,), (0.5,), "squash", 1.0, "bilinear")
    new = {**old, "resize": "crop", "crop_fraction": 0.875, "interpolation": "bicubic"}
    assert parse(Preprocessing, new) == Preprocessing((28, 28), (0.5,), (0.5,), "crop", 0.875, "bicubic")
    with pytest.raises(TypeError, match="resize: 'centre' is none of squash or crop or pad or native"):
        parse(Preprocessing, {**old, "resize": "centre"})
