"""Each operation against timm's, torchvision's and its own definition; what is drawn, and how often."""

import itertools
from collections import Counter

import numpy as np
import photos
import pytest
import torch
import torchvision.transforms.v2.functional as F
from numpy.random import Generator, Philox
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import chisquare
from timm.data import auto_augment as timm

import vitrail.data.images.randaugment as module
from vitrail.data.images.randaugment import OPERATIONS, jitter, operate, randaugment, three_augment

FILL = (124, 116, 104)
TIMMS = {
    "autocontrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "rotate": "Rotate",
    "posterize": "Posterize", "solarize": "Solarize", "solarize-add": "SolarizeAdd", "color": "Color",
    "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness", "shear-x": "ShearX",
    "shear-y": "ShearY", "translate-x": "TranslateXRel", "translate-y": "TranslateYRel",
}  # fmt: skip
modes = pytest.mark.parametrize("mode", ["RGB", "L"])


def photo(mode="RGB", height=60, width=70):
    return Image.fromarray(photos.photo(height, width)).convert(mode)


def generator(seed=0):
    return Generator(Philox(seed))


def pixels(image):
    return np.asarray(image).astype(int)


@modes
@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_timms_operation_to_the_last_bit(name, mode, monkeypatch):
    """At timm's "not increasing" level, which is Google's. Its rotation has the other sense."""
    image, turn = photo(mode), -1 if name == "rotate" else 1
    how = {"resample": Image.Resampling.NEAREST, "fillcolor": FILL if mode == "RGB" else FILL[0]}
    for magnitude, way in itertools.product([2.5, 9.0, 10.0], [1, -1]):
        monkeypatch.setattr(timm, "_randomly_negate", lambda value, way=way: way * turn * value)
        level = timm.LEVEL_TO_ARG[TIMMS[name]]
        arguments = level(magnitude, {"translate_pct": 100 / 224}) if level else ()
        expected = timm.NAME_TO_OP[TIMMS[name]](image, *arguments, **how)
        found = operate(name, image, way * magnitude / 10, FILL)
        assert found.mode == mode
        assert np.array_equal(pixels(found), pixels(expected)), (magnitude, way)


# What torchvision's tensor kernels may differ by, of 255: they round the grey value, or blend in floats.
TORCHVISIONS = {
    "autocontrast": (F.autocontrast, 1), "equalize": (F.equalize, 1), "invert": (F.invert, 0),
    "posterize": (lambda x: F.posterize(x, 2), 0), "solarize": (lambda x: F.solarize(x, 153), 0),
    "color": (lambda x: F.adjust_saturation(x, 1.18), 1), "contrast": (lambda x: F.adjust_contrast(x, 1.18), 1),
    "brightness": (lambda x: F.adjust_brightness(x, 1.18), 1), "sharpness": (lambda x: F.adjust_sharpness(x, 1.18), 1),
}  # fmt: skip


@modes
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_equals_torchvisions_operation(name, mode):
    image, (theirs, bound) = photo(mode), TORCHVISIONS[name]
    found = pixels(operate(name, image, 0.6, FILL)).reshape(60, 70, -1)
    tensor = torch.from_numpy(np.array(image)).reshape(60, 70, -1).permute(2, 0, 1)
    assert np.abs(found - theirs(tensor)[: found.shape[2]].permute(1, 2, 0).numpy()).max() <= bound


def test_the_scale_that_the_module_states():
    values = np.arange(256).reshape(16, 16)
    ramp = Image.fromarray(values.astype(np.uint8))
    for m, bits in [(0.0, 1), (0.5, 2), (1.0, 4), (3.0, 8)]:
        assert np.array_equal(pixels(operate("posterize", ramp, m, FILL)), values >> (8 - bits) << (8 - bits))
    for m, threshold in [(0.0, 0), (0.5, 128), (0.99, 253), (1.0, 256), (3.0, 256)]:
        expected = np.where(values < threshold, values, 255 - values)
        assert np.array_equal(pixels(operate("solarize", ramp, m, FILL)), expected)
    for m, more in [(0.0, 0), (1.0, 110), (3.0, 330)]:
        expected = np.where(values < 128, np.minimum(255, values + more), values)
        assert np.array_equal(pixels(operate("solarize-add", ramp, m, FILL)), expected)


@modes
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_every_operation_takes_every_size_and_strength(mode, size):
    image = photo(mode, *size)
    for name, m in itertools.product(OPERATIONS, [0.0, 1.0, 3.0]):
        found = operate(name, image, -m, FILL)
        assert (found.mode, found.size) == (mode, image.size)


def test_operations_are_drawn_evenly_and_with_both_signs(monkeypatch):
    calls, image, numbers = [], photo(), generator()
    monkeypatch.setattr(module, "operate", lambda name, image, m, fill: calls.append((name, m)) or image)
    for _ in range(3000):
        randaugment(image, 3, 15.0, FILL, numbers)
    assert chisquare(list(Counter(calls).values())).pvalue > 1e-3
    assert set(calls) == {(name, m) for name in OPERATIONS for m in (1.5, -1.5)}


def test_operations_are_done_one_after_another():
    image = photo()
    for seed in range(30):
        found, expected = randaugment(image, 3, 9.0, FILL, generator(seed)), image
        for choice, way in generator(seed).random((3, 2)):
            expected = operate(OPERATIONS[int(15 * choice)], expected, 0.9 if way < 0.5 else -0.9, FILL)
        assert np.array_equal(pixels(found), pixels(expected))


@modes
def test_three_augment_is_one_of_three_as_often_as_another(mode):
    image, counts, numbers, same = photo(mode, 20, 20), Counter(), generator(), generator()
    grey, solarised = F.to_grayscale(image, 3 if mode == "RGB" else 1), ImageOps.solarize(image)
    for _ in range(1500):
        found = pixels(three_augment(image, numbers))
        blurred = image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * same.random(2)[1].item()))
        counts[next(n for n, one in enumerate([grey, solarised, blurred]) if np.array_equal(found, pixels(one)))] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-3
    assert len(counts) == 3


@modes
def test_jitter_is_torchvisions_in_every_order(mode):
    image, orders = photo(mode, 20, 20), set()
    changes = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation]
    for seed in range(60):
        factors, places = generator(seed).random((3, 2)).T
        expected, order = image, tuple(np.argsort(places).tolist())
        for place in order:
            expected = changes[place](expected, 0.7 + 0.6 * factors[place])
        orders.add(order)
        found = jitter(image, 0.3, generator(seed))
        assert np.abs(pixels(found) - pixels(expected)).max() <= 1  # the factor's last bit
    assert len(orders) == 6
