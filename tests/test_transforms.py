"""Pixels to the model's input, by the formula; and augmentations that a key alone decides."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitrail.data.order import sample_seeds
from vitrail.data.transforms import Preprocessing, flip, normalise

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


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12), st.integers(1, 5))
def test_flip_mirrors_exactly_those_whose_key_is_odd(keys, width):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (len(keys), 2, 3, width), np.uint8))
    found = flip(images, np.array(keys, np.uint64)).numpy()
    for image, original, key in zip(found, images.numpy(), keys, strict=True):
        assert np.array_equal(image, original[:, :, ::-1] if key % 2 else original)


def test_flip_depends_on_the_key_and_not_on_the_place():
    images, keys = pixels(1).repeat(8, 1, 1, 1), sample_seeds(0, 16, 3)
    order = np.random.default_rng(1).permutation(16)
    found = flip(images[order], keys[order])
    assert torch.equal(found, flip(images, keys)[order])


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_about_half_of_a_stream_is_flipped(seed):
    flips = (sample_seeds(0, 10_000, seed) & np.uint64(1)).mean()
    assert abs(flips - 0.5) < 5 * 0.5 / math.sqrt(10_000)


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
    ],
)
def test_statistics_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(*arguments)
