"""Crops, mirrors and erasing as torchvision and timm have and draw them; and that the key alone decides."""

import itertools
import math
import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
import torchvision.transforms.v2.functional as F2
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator, Philox
from photos import augmented, decode, encode, evaluated, keys, model, photo
from PIL import Image
from scipy.stats import ks_2samp
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop

from vitrail.data.images.augment import Augment, draw, philox
from vitrail.data.images.decode import opened

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
EVERYTHING = Augment(crop="inception", colour=0.3, randaugment=2, three_augment=True, erase=0.5)
PLAIN = Augment(flip=0.0)


def drawn(key, size, scale=SCALE, ratio=RATIO):
    """The (top, left, height, width) of a key's crop."""
    return draw(size, Augment("inception", scale, ratio), model(), key)[0].crop[:4]


def test_a_key_draws_the_same_for_ever():
    boxes = [drawn(key, (375, 500)) for key in (0, 1, 2**64 - 1)]
    assert boxes == [(38, 50, 328, 288), (7, 84, 366, 277), (21, 15, 352, 461)]
    for key, salt in itertools.product([0, 5, 2**64 - 1], repeat=2):
        expected = Generator(Philox(key=np.array([key, salt], np.uint64)))
        assert np.array_equal(philox(key, salt).random(9), expected.random(9))


def test_a_key_alone_decides_in_any_thread():
    image, to = photo(75, 90), model()
    alone = [augmented(image, EVERYTHING, to, key) for key in keys(60)]
    torch.manual_seed(1)
    np.random.seed(1)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda key: augmented(image, EVERYTHING, to, key), keys(60)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert len({found.tobytes() for found in alone}) == 60


@pytest.mark.parametrize("size", [(375, 500), (60, 20)])
def test_inceptions_crop_is_distributed_as_torchvisions(size):
    torch.manual_seed(0)
    blank = torch.empty(1, *size)
    ours = np.array([drawn(key, size) for key in keys(1500)]).T
    theirs = np.array([RandomResizedCrop.get_params(blank, list(SCALE), list(RATIO)) for _ in range(1500)]).T
    places = [
        (high * wide, wide / high, top / np.maximum(1, size[0] - high), left / np.maximum(1, size[1] - wide))
        for top, left, high, wide in (ours, theirs)
    ]
    assert min(ks_2samp(*measures).pvalue for measures in zip(*places, strict=True)) > 1e-3


@pytest.mark.parametrize("size", [(1, 3000), (31, 10), (200, 100)])
def test_where_no_crop_fits_the_middle_is_torchvisions(size):
    blank = torch.empty(1, *size)
    for scale, ratio in [((0.99, 1.0), RATIO), ((0.99, 1.0), (0.9, 0.95)), ((0.99, 1.0), (3.2, 3.3))]:
        expected = RandomResizedCrop.get_params(blank, list(scale), list(ratio))
        assert drawn(5, size, scale, ratio) == tuple(expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(75, 131), (20, 17)])
def test_inceptions_pixels_are_torchvisions_resized_crop(size, interpolation):
    """Of its tensors to the bit; of Pillow's images within rounding, but where bicubic leaves the range of a byte."""
    image, to = photo(*size), model(32, 40, interpolation=interpolation)
    how = F.InterpolationMode(interpolation)
    for key in keys(20):
        box = drawn(key, size)
        planes = F2.resized_crop(torch.from_numpy(image).permute(2, 0, 1), *box, [32, 40], how, antialias=True)
        found = augmented(image, replace(PLAIN, crop="inception"), to, key)
        assert np.array_equal(found, planes.permute(1, 2, 0).numpy())
        pillow = np.asarray(F.resized_crop(Image.fromarray(image), *box, [32, 40], how))
        assert np.abs(found.astype(int) - pillow).mean() < 0.5
        assert np.array_equal(augmented(image, Augment("inception", flip=1.0), to, key), found[:, ::-1])


@pytest.mark.parametrize("crop", ["inception", "simple"])
@pytest.mark.parametrize("size", [(640, 500), (350, 900)])
def test_a_crop_that_is_shrunk_on_the_way_looks_like_that_of_the_whole_photograph(crop, size):
    image, how, to = opened(encode(photo(*size, noise=0, wave=20), "JPEG"), "x"), Augment(crop), model(64, 48)
    whole, shrunk, levels = decode(image.content), [], []
    for key in keys(40):
        view = draw(size, how, to, key)[0]
        part, shrink = image.decode(view.crop), view.crop.shrink
        shrunk.append(shrink > 1)
        assert np.abs(np.array(part.shape[:2]) * shrink - view.crop[2:4]).max() <= shrink
        exact = view.apply(view.crop.of(whole))
        assert exact.shape == (64, 48, 3)
        levels.append(np.abs(view.apply(part).astype(int) - exact).mean())
    assert np.mean(shrunk) >= 0.5
    assert np.mean(levels) < 2  # of waves that rise by 50 levels over the pixels that an eighth takes together


@pytest.mark.parametrize(
    ("size", "covering"),
    [((40, 64), (16, 25)), ((9, 8), (18, 16)), ((16, 16), (16, 16)), ((2, 4), (16, 32))],
)
def test_simples_pixels_are_deits_resize_reflection_and_crop(size, covering):
    """To 1 of 255, because resizing a part rounds in another place; every one of the windows is reached."""
    image = photo(*size)
    whole = F.resize(Image.fromarray(image), list(covering), F.InterpolationMode.BILINEAR)
    padded = np.asarray(F.pad(whole, [4], padding_mode="reflect")).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (16, 16), (0, 1)).transpose(0, 1, 3, 4, 2)
    assert windows.shape[:2] == (covering[0] - 7, covering[1] - 7)
    seen = set()
    for key in keys(150):
        found = augmented(image, replace(PLAIN, crop="simple"), model(16, 16), key)
        away = np.abs(windows - found).max((2, 3, 4))
        assert away.min() <= 1
        seen.add(int(away.argmin()))
    assert {away // windows.shape[1] for away in seen} >= {0, windows.shape[0] - 1}
    assert {away % windows.shape[1] for away in seen} >= {0, windows.shape[1] - 1}


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_is_a_window_of_the_image_in_its_mean_colour(channels):
    image, to = photo(28, 32, channels), model(28, 32, channels)
    padded = np.empty((32, 36, channels), np.uint8)
    padded[:] = [124, 116, 104][:channels]
    padded[2:-2, 2:-2] = image
    windows = {padded[y : y + 28, x : x + 32].tobytes() for y in range(5) for x in range(5)}
    assert {augmented(image, Augment("shift", shift=2, flip=0.0), to, key).tobytes() for key in keys(300)} == windows


@pytest.mark.parametrize("resize", ["squash", "crop", "pad", "native"])
def test_without_a_crop_training_sees_what_evaluation_sees(resize):
    for size, fraction in itertools.product([(32, 40), (50, 33), (9, 70)], [0.8, 1.0]):
        to = model(32, 40, 3, resize, fraction)
        assert np.array_equal(augmented(photo(*size), PLAIN, to, 3), evaluated(photo(*size), to))
        assert np.array_equal(augmented(photo(*size), Augment(flip=1.0), to, 3), evaluated(photo(*size), to)[:, ::-1])


def box(erased):
    rows, columns = np.nonzero(erased)
    return np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def test_the_fraction_that_is_erased_and_of_what_size_as_timm_has_it():
    image, how = np.full((48, 40, 3), 99, np.uint8), replace(PLAIN, erase=0.25)
    found = [augmented(image, how, model(48, 40), key) for key in keys(2000)]
    parts = [one[box((one != 99).any(-1))] for one in found if (one != 99).any()]
    assert abs(len(parts) / 2000 - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / 2000)
    random.seed(0)
    eraser = RandomErasing(1.0, device="cpu")
    theirs = [one[box(one == 0)] for one in (eraser(torch.ones(1, 48, 40))[0].numpy() for _ in range(1000))]
    (ours_high, ours_wide), (high, wide) = (np.array([part.shape[:2] for part in some]).T for some in (parts, theirs))
    assert ks_2samp(ours_high * ours_wide, high * wide).pvalue > 1e-3
    assert ks_2samp(ours_high / ours_wide, high / wide).pvalue > 1e-3
    noise = np.concatenate([part.reshape(-1, 3) for part in parts])
    assert noise.mean(0) == pytest.approx([127.5] * 3, abs=1)
    assert noise.std(0) == pytest.approx([73.9] * 3, abs=1)


shapes = st.tuples(st.integers(1, 60), st.integers(1, 60)) | st.sampled_from([(1, 1), (1, 3000), (3000, 1), (2, 700)])


@given(shapes, st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from([1, 3]), st.integers(0, 2**64 - 1))
def test_every_size_becomes_the_models_and_stays_itself(shape, size, channels, key):
    image, to = photo(*shape, channels), model(*size, channels)
    before = image.copy()
    image.flags.writeable = False
    for crop in ("none", "inception", "simple"):
        found = augmented(image, replace(EVERYTHING, crop=crop, erase=1.0), to, key)
        assert (found.shape, found.dtype) == ((*size, channels), np.uint8)
    assert np.array_equal(image, before)


REFUSED = {"crop": ["center"], "flip": [1.1, math.nan], "colour": [-0.1], "randaugment": [-1], "magnitude": [31.0]}
REFUSED |= {"erase": [2.0], "mixup": [-1.0], "cutmix": [math.inf], "mix": [1.5], "ratio": [(2.0, 1.0), (1.0, math.inf)]}
REFUSED |= {"scale": [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1)], "shift": [-1, 4]}  # 4 without crop="shift"


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in REFUSED for value in REFUSED[field]])
def test_a_value_out_of_its_range_is_refused(unchecked, field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field} is {value!r}")):
        Augment(**{field: value})
