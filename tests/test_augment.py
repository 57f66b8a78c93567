"""Crops, mirrors and erasing as torchvision and timm have and draw them; and that the key alone decides."""

import io
import json
import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
import torchvision.transforms.v2.functional as F2
from hypothesis import given
from hypothesis import strategies as st
from numpy.random import Generator, Philox
from PIL import Image
from scipy.stats import ks_2samp
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop

from vitrail.config import parse
from vitrail.data.images.augment import (
    AUGMENT_SALT,
    Augment,
    _central,
    _mirrored,
    _rectangle,
    augment,
    part_seen,
    philox,
)
from vitrail.data.images.decode import decode, decode_part
from vitrail.data.images.preprocessing import Preprocessing, prepare
from vitrail.data.order import sample_seeds

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MEAN_COLOUR = [124, 116, 104]
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
EVERYTHING = Augment(crop="inception", colour=0.3, randaugment=2, three_augment=True, erase=0.5)
PLAIN = Augment(flip=0.0)


def keys(count, seed=0):
    return sample_seeds(0, count, seed).tolist()


def photo(height, width, channels=3):
    """Waves and noise: no two windows of it are alike."""
    rows, columns = np.mgrid[:height, :width]
    waves = [127 * (1 + np.sin(rows / 7 + c) * np.cos(columns / (11 - c))) for c in range(channels)]
    noise = np.random.default_rng((height, width)).integers(-40, 41, (height, width, channels))
    return np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)


def model(height=32, width=32, channels=3, **more):
    mean, std = (values[:channels] for values in IMAGENET)
    return Preprocessing((height, width), mean, std, **more)


def drawn(key, size, scale=SCALE, ratio=RATIO):
    """The crop of a key, after the two coins."""
    generator = philox(key, AUGMENT_SALT)
    generator.random(2)
    return _rectangle(size, scale, ratio, generator) or _central(size, ratio)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_stream_is_philox_with_that_key(key, salt):
    expected = Generator(Philox(key=np.array([key, salt], np.uint64)))
    assert np.array_equal(philox(key, salt).random(9), expected.random(9))


def test_a_key_draws_the_same_for_ever():
    assert philox(1, AUGMENT_SALT).random(2).tolist() == [0.5544459811679857, 0.3453379640249753]
    boxes = [drawn(key, (375, 500)) for key in (0, 1, 2**64 - 1)]
    assert boxes == [(38, 50, 328, 288), (7, 84, 366, 277), (21, 15, 352, 461)]


def test_a_key_alone_decides_in_any_thread():
    image, to = photo(75, 90), model()
    alone = [augment(image, EVERYTHING, to, key) for key in keys(60)]
    torch.manual_seed(1)
    np.random.seed(1)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda key: augment(image, EVERYTHING, to, key), keys(60)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert len({found.tobytes() for found in alone}) == 60


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (60, 20)])
def test_inceptions_crop_is_distributed_as_torchvisions(size):
    torch.manual_seed(0)
    blank = torch.empty(1, *size)
    ours = np.array([drawn(key, size) for key in keys(3000)]).T
    theirs = np.array([RandomResizedCrop.get_params(blank, list(SCALE), list(RATIO)) for _ in range(3000)]).T
    for measure in (
        lambda top, left, height, width: height * width,
        lambda top, left, height, width: width / height,
        lambda top, left, height, width: top / np.maximum(1, size[0] - height),
        lambda top, left, height, width: left / np.maximum(1, size[1] - width),
    ):
        assert ks_2samp(measure(*ours), measure(*theirs)).pvalue > 1e-3


@pytest.mark.parametrize("size", [(1, 3000), (3000, 4), (10, 30), (31, 10), (200, 100)])
def test_where_no_crop_fits_the_middle_is_torchvisions(size):
    blank = torch.empty(1, *size)
    for scale, ratio in [((0.99, 1.0), RATIO), ((0.99, 1.0), (0.9, 0.95)), ((0.99, 1.0), (3.2, 3.3))]:
        expected = RandomResizedCrop.get_params(blank, list(scale), list(ratio))
        assert drawn(5, size, scale, ratio) == tuple(expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(75, 131), (20, 17), (131, 75)])
def test_inceptions_pixels_are_torchvisions_resized_crop(size, interpolation):
    """Of its tensors to the bit; of Pillow's images within rounding, but where bicubic leaves the range of a byte."""
    image, to = photo(*size), model(32, 40, interpolation=interpolation)
    how = F.InterpolationMode(interpolation)
    for key in keys(20):
        box = drawn(key, size)
        planes = F2.resized_crop(torch.from_numpy(image).permute(2, 0, 1), *box, [32, 40], how, antialias=True)
        found = augment(image, replace(PLAIN, crop="inception"), to, key)
        assert np.array_equal(found, planes.permute(1, 2, 0).numpy())
        pillow = np.asarray(F.resized_crop(Image.fromarray(image), *box, [32, 40], how))
        assert np.abs(found.astype(int) - pillow).mean() < 0.5
        assert np.array_equal(augment(image, Augment(crop="inception", flip=1.0), to, key), found[:, ::-1])


@pytest.mark.parametrize("crop", ["inception", "simple"])
@pytest.mark.parametrize("size", [(640, 500), (350, 900)])
def test_a_part_of_a_photograph_looks_like_the_same_crop_of_all_of_it(crop, size):
    rows, columns = np.mgrid[: size[0], : size[1]]
    smooth = np.stack([127 * (1 + np.sin(rows / 20 + c) * np.cos(columns / (25 - c))) for c in range(3)], -1)
    out = io.BytesIO()
    Image.fromarray(smooth.astype(np.uint8)).save(out, "JPEG", quality=95)
    whole, how, to = decode(out.getvalue()), Augment(crop), model(64, 48)
    shrunk, levels = 0, []
    for key in keys(40):
        part, found = decode_part(out.getvalue(), lambda size, key=key: part_seen(size, how, to, key))
        assert found == size
        shrunk += part.shape != whole.shape
        seen = augment(part, how, to, key, found)
        assert seen.shape == (64, 48, 3)
        levels.append(np.abs(seen.astype(int) - augment(whole, how, to, key)).mean())
    assert shrunk == 40
    assert np.mean(levels) < 2  # of waves that rise by 50 levels over the pixels that an eighth takes together


def test_whether_a_part_may_be_shrunk_depends_on_the_size_alone():
    how, to = Augment("inception"), model(64, 48)
    small, large = [(64, 48), (255, 900), (900, 191)], [(256, 192), (4000, 3000)]
    for size in small + large:
        boxes = [part_seen(size, how, to, key) for key in keys(50)]
        assert [(part.top, part.left, part.height, part.width) for part in boxes] == [drawn(k, size) for k in keys(50)]
        assert {part.wanted for part in boxes} == {None if size in small else (64, 48)}
        assert (part_seen(size, Augment("simple"), to, 1) is None) == (size in small)
    for other in (PLAIN, Augment("shift", shift=3)):
        assert part_seen((4000, 3000), other, to, 1) is None


@pytest.mark.parametrize(
    ("size", "covering"),
    [((40, 64), (16, 25)), ((64, 40), (25, 16)), ((9, 8), (18, 16)), ((16, 16), (16, 16)), ((2, 4), (16, 32))],
)
def test_simples_pixels_are_deits_resize_reflection_and_crop(size, covering):
    """To 1 of 255, for resizing a part rounds in another place; every one of the windows is reached."""
    image = photo(*size)
    whole = F.resize(Image.fromarray(image), list(covering), F.InterpolationMode.BILINEAR)
    padded = np.asarray(F.pad(whole, [4], padding_mode="reflect")).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (16, 16), (0, 1)).transpose(0, 1, 3, 4, 2)
    assert windows.shape[:2] == (covering[0] - 7, covering[1] - 7)
    seen = set()
    for key in keys(150):
        found = augment(image, replace(PLAIN, crop="simple"), model(16, 16), key)
        away = np.abs(windows - found).max((2, 3, 4))
        assert away.min() <= 1
        seen.add(int(away.argmin()))
    assert {away // windows.shape[1] for away in seen} >= {0, windows.shape[0] - 1}
    assert {away % windows.shape[1] for away in seen} >= {0, windows.shape[1] - 1}


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_is_a_window_of_the_image_in_its_mean_colour(channels):
    image, to = photo(28, 32, channels), model(28, 32, channels)
    padded = np.empty((32, 36, channels), np.uint8)
    padded[:] = MEAN_COLOUR[:channels]
    padded[2:-2, 2:-2] = image
    windows = {padded[y : y + 28, x : x + 32].tobytes() for y in range(5) for x in range(5)}
    found = {augment(image, Augment("shift", shift=2, flip=0.0), to, key).tobytes() for key in keys(300)}
    assert found == windows


@pytest.mark.parametrize("resize", ["squash", "crop", "pad", "native"])
def test_without_a_crop_training_sees_what_evaluation_sees(resize):
    for size in [(32, 40), (50, 33), (9, 70)]:
        for fraction in (0.8, 1.0):
            to = model(32, 40, resize=resize, crop_fraction=fraction)
            expected = prepare(photo(*size), to).permute(1, 2, 0)
            assert np.array_equal(augment(photo(*size), PLAIN, to, 3), expected)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_the_share_that_is_mirrored(share):
    image, to, how = photo(8, 8), model(8, 8), Augment(flip=share)
    mirrored = sum(np.array_equal(augment(image, how, to, key), image[:, ::-1]) for key in keys(2000))
    assert abs(mirrored / 2000 - share) <= 4 * math.sqrt(share * (1 - share) / 2000)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 3, 4]), st.booleans())
def test_mirroring_is_that_of_every_row_whatever_the_memorys_order(height, width, channels, planes):
    image = photo(height, width, channels)
    image = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0) if planes else image
    assert np.array_equal(_mirrored(image), image[:, ::-1])


def erased_part(found, image):
    rows, columns = np.nonzero((found != image).any(-1))
    return found[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] if rows.size else None


def test_the_share_that_is_erased_and_of_what_size_as_timm_has_it():
    image, to = np.full((48, 40, 3), 99, np.uint8), model(48, 40)
    parts = [erased_part(augment(image, replace(PLAIN, erase=0.25), to, key), image) for key in keys(4000)]
    parts = [part for part in parts if part is not None]
    assert abs(len(parts) / 4000 - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / 4000)
    random.seed(0)
    eraser, theirs = RandomErasing(1.0, device="cpu"), []
    for _ in range(1000):
        rows, columns = np.nonzero(eraser(torch.ones(1, 48, 40))[0] == 0)[:, 0:2].T
        theirs.append((np.ptp(rows.numpy()) + 1, np.ptp(columns.numpy()) + 1))
    ours, theirs = np.array([part.shape[:2] for part in parts]), np.array(theirs)
    assert ks_2samp(ours.prod(1), theirs.prod(1)).pvalue > 1e-3
    assert ks_2samp(ours[:, 0] / ours[:, 1], theirs[:, 0] / theirs[:, 1]).pvalue > 1e-3
    noise = np.concatenate([part.reshape(-1, 3) for part in parts])
    assert noise.mean(0) == pytest.approx([127.5] * 3, abs=1)
    assert noise.std(0) == pytest.approx([73.9] * 3, abs=1)


shapes = st.one_of(
    st.tuples(st.integers(1, 60), st.integers(1, 60)), st.sampled_from([(1, 1), (1, 3000), (3000, 1), (2, 700)])
)


@given(shapes, st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from([1, 3]), st.integers(0, 2**64 - 1))
def test_every_size_becomes_the_models_and_stays_itself(shape, size, channels, key):
    image, to = photo(*shape, channels), model(*size, channels)
    before = image.copy()
    for crop in ("none", "inception", "simple"):
        found = augment(image, replace(EVERYTHING, crop=crop, erase=1.0), to, key)
        assert found.shape == (*size, channels)
        assert found.dtype == np.uint8
        assert found.flags.writeable
        assert not np.shares_memory(found, image)
    assert np.array_equal(image, before)


def test_an_image_that_cannot_be_written_is_not_shared():
    image = photo(16, 16)
    image.flags.writeable = False
    found = augment(image, PLAIN, model(16, 16), 0)
    assert found.flags.writeable
    assert not np.shares_memory(found, image)


def test_other_numbers_of_channels_are_cropped_one_by_one():
    image, four = photo(40, 30, 4), Preprocessing((16, 24), (0.5,) * 4, (0.5,) * 4)
    one = Preprocessing((16, 24), (0.5,), (0.5,))
    for crop in ("inception", "simple"):
        found = augment(image, replace(PLAIN, crop=crop), four, 7)
        parts = [augment(image[..., c : c + 1], replace(PLAIN, crop=crop), one, 7) for c in range(4)]
        assert np.array_equal(found, np.concatenate(parts, -1))
    with pytest.raises(ValueError, match="an image has 4 channels; only grey and RGB ones can be recoloured"):
        augment(image, Augment(colour=0.3), four, 7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": "center"}, "crop is 'center'; choose one of none, inception, simple, shift"),
        ({"flip": 1.1}, r"flip is 1\.1; it must be from 0 to 1\."),
        ({"flip": math.nan}, "flip is nan"),
        ({"colour": -0.1}, r"colour is -0\.1; it must be from 0 to 1"),
        ({"randaugment": -1}, "randaugment is -1; it must be from 0 to 16"),
        ({"magnitude": 31.0}, r"magnitude is 31\.0; it must be from 0 to 30"),
        ({"erase": 2.0}, r"erase is 2\.0; it must be from 0 to 1"),
        ({"mixup": -1.0}, r"mixup is -1\.0; it must be from 0 to 100"),
        ({"cutmix": math.inf}, "cutmix is inf; it must be from 0 to 100"),
        ({"mix": 1.5}, r"mix is 1\.5; it must be from 0 to 1"),
        ({"scale": (0.0, 1.0)}, r"scale is \(0\.0, 1\.0\); it must be two shares of the area, the smaller first"),
        ({"scale": (0.5, 0.4)}, r"scale is \(0\.5, 0\.4\)"),
        ({"scale": (0.5, 1.1)}, r"scale is \(0\.5, 1\.1\)"),
        ({"ratio": (2.0, 1.0)}, r"ratio is \(2\.0, 1\.0\); it must be two ratios of the sides, the smaller first"),
        ({"ratio": (1.0, math.inf)}, r"ratio is \(1\.0, inf\)"),
        ({"shift": -1, "crop": "shift"}, "shift is -1 and crop is 'shift'"),
        ({"shift": 4}, "shift is 4 and crop is 'none'; 1 or more belongs to 'shift' alone"),
        ({"crop": "shift"}, "shift is 0 and crop is 'shift'"),
    ],
)
def test_settings_that_cannot_be_are_refused(unchecked, settings, message):
    with pytest.raises(ValueError, match=message):
        Augment(**settings)


def test_images_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"an image is uint8 \(9, 9, 1\); it must be uint8 \(height, width, 3\)"):
        augment(photo(9, 9, 1), PLAIN, model(), 0)
    with pytest.raises(ValueError, match=r"an image is uint8 \(0, 9, 3\)"):
        augment(np.zeros((0, 9, 3), np.uint8), PLAIN, model(), 0)
    with pytest.raises(ValueError, match="shift is 8 pixels and an image is 8 x 32; choose less than its sides"):
        augment(photo(9, 9), Augment("shift", shift=8), model(8, 32), 0)


def test_survives_json():
    how = replace(EVERYTHING, mixup=0.2, scale=(0.05, 1.0))
    assert parse(Augment, json.loads(json.dumps(asdict(how)))) == how
