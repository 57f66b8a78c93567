"""Each operation against timm's, torchvision's and its own definition; what is drawn, and how often."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from numpy.random import Generator, Philox
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import chisquare
from timm.data import auto_augment as timm

import vitrail.data.images.randaugment as module
from vitrail.data.images.randaugment import MOVES, OPERATIONS, RECOLOURINGS, jitter, operate, randaugment, three_augment

FILL = (124, 116, 104)
MODES = ["RGB", "L"]
TIMMS = {
    "autocontrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "rotate": "Rotate",
    "posterize": "Posterize", "solarize": "Solarize", "solarize-add": "SolarizeAdd", "color": "Color",
    "contrast": "Contrast", "brightness": "Brightness", "sharpness": "Sharpness", "shear-x": "ShearX",
    "shear-y": "ShearY", "translate-x": "TranslateXRel", "translate-y": "TranslateYRel",
}  # fmt: skip


def photo(mode="RGB", height=60, width=70):
    rows, columns = np.mgrid[:height, :width]
    waves = [60 + 60 * (1 + np.sin(rows / 7 + c) * np.cos(columns / (11 - c))) for c in range(3)]
    noise = np.random.default_rng(0).integers(-40, 41, (height, width, 3))
    return Image.fromarray(np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)).convert(mode)


def generator(seed=0):
    return Generator(Philox(seed))


def pixels(image):
    return np.asarray(image).astype(int)


def fill(image):
    return FILL if image.mode == "RGB" else FILL[0]


def timms(name, image, magnitude, way, monkeypatch):
    """timm's operation at timm's "not increasing" level, which is Google's."""
    monkeypatch.setattr(timm, "_randomly_negate", lambda value: way * value)
    level = timm.LEVEL_TO_ARG[TIMMS[name]]
    arguments = level(magnitude, {"translate_pct": 100 / 224}) if level else ()
    settings = {"resample": Image.Resampling.NEAREST, "fillcolor": fill(image)}
    return timm.NAME_TO_OP[TIMMS[name]](image, *arguments, **settings)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_timms_operation_to_the_last_bit(name, mode, monkeypatch):
    image = photo(mode)
    # timm's rotation has the other sense.
    turn = -1 if name == "rotate" else 1
    for magnitude, way in itertools.product([2.5, 5.0, 9.0, 10.0], [1, -1]):
        expected = timms(name, image, magnitude, way * turn, monkeypatch)
        found = operate(name, image, way * magnitude / 10, FILL)
        assert found.mode == mode
        assert np.array_equal(pixels(found), pixels(expected)), (magnitude, way)


# What torchvision's tensor kernels may differ by, of 255: they round the grey value, or blend in floats.
TORCHVISIONS = {
    "autocontrast": (F.autocontrast, 1), "equalize": (F.equalize, 1), "invert": (F.invert, 0),
    "posterize": (lambda x: F.posterize(x, 2), 0), "solarize": (lambda x: F.solarize(x, 153), 0),
    "color": (lambda x: F.adjust_saturation(x, 0.1 + 1.8 * 0.6), 1),
    "contrast": (lambda x: F.adjust_contrast(x, 0.1 + 1.8 * 0.6), 1),
    "brightness": (lambda x: F.adjust_brightness(x, 0.1 + 1.8 * 0.6), 1),
    "sharpness": (lambda x: F.adjust_sharpness(x, 0.1 + 1.8 * 0.6), 1),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_equals_torchvisions_operation(name, mode):
    image = photo(mode)
    theirs, bound = TORCHVISIONS[name]
    found = pixels(operate(name, image, 0.6, FILL))
    assert np.array_equal(found, pixels(theirs(image)))
    tensor = torch.from_numpy(np.array(image)).reshape(60, 70, -1).permute(2, 0, 1)
    if not (name == "color" and mode == "L"):  # torchvision leaves a grey tensor alone, too, but in another shape
        assert np.abs(found.reshape(60, 70, -1) - theirs(tensor).permute(1, 2, 0).numpy()).max() <= bound


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("m", [0.9, -0.4])
def test_moves_are_torchvisions_but_for_pixels_at_the_seams(mode, m):
    """Fewer than one pixel in fifty: torchvision's shear goes through an angle, and rounds otherwise."""
    image = photo(mode)
    colour = list(FILL[: len(image.getbands())])
    angles = {"shear-x": [math.degrees(math.atan(0.3 * m)), 0.0], "shear-y": [0.0, math.degrees(math.atan(0.3 * m))]}
    for name, shear in angles.items():
        expected = F.affine(image, angle=0, translate=[0, 0], scale=1, shear=shear, center=[0, 0], fill=colour)
        moved = [operate(name, image, sign * m, FILL) for sign in (1, -1)]
        assert min((pixels(found) != pixels(expected)).mean() for found in moved) < 0.02
    expected = F.rotate(image, -30 * m, fill=colour)
    assert (pixels(operate("rotate", image, m, FILL)) != pixels(expected)).mean() < 0.02


def test_the_scale_that_the_module_states():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    values = np.arange(256).reshape(16, 16)
    for m, bits in [(0.0, 1), (0.5, 2), (1.0, 4), (1.5, 6), (2.0, 8), (3.0, 8)]:
        kept = values >> (8 - bits) << (8 - bits)
        assert np.array_equal(pixels(operate("posterize", ramp, m, FILL)), kept)
    for m, threshold in [(0.0, 0), (0.5, 128), (0.99, 253), (1.0, 256), (3.0, 256)]:
        expected = np.where(values < threshold, values, 255 - values)
        assert np.array_equal(pixels(operate("solarize", ramp, m, FILL)), expected)
    for m, more in [(0.0, 0), (1.0, 110), (3.0, 330)]:
        expected = np.where(values < 128, np.minimum(255, values + more), values)
        assert np.array_equal(pixels(operate("solarize-add", ramp, m, FILL)), expected)
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert np.array_equal(pixels(operate(name, photo(), 0.5, FILL)), pixels(photo()))
    for name in MOVES:
        assert np.array_equal(pixels(operate(name, photo(), 0.0, FILL)), pixels(photo()))
    moved = pixels(operate("translate-x", Image.new("RGB", (224, 9), "white"), 1.0, FILL))
    assert (moved == FILL).all(-1).sum() == 100 * 9
    assert moved[0, 123:125].tolist() == [[255] * 3, list(FILL)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
@pytest.mark.parametrize("m", [0.0, 1.0, 3.0])
def test_every_operation_takes_every_size_and_strength(mode, size, m):
    image = photo(mode, *size)
    for name in OPERATIONS:
        found = operate(name, image, -m, FILL)
        assert (found.mode, found.size) == (mode, image.size)


def recorded(monkeypatch, draws, count=3, magnitude=15.0):
    """(operation, m) of many drawn ones."""
    calls, image = [], photo()
    monkeypatch.setattr(module, "operate", lambda name, image, m, fill: calls.append((name, m)) or image)
    numbers = generator()
    for _ in range(draws):
        randaugment(image, count, magnitude, FILL, numbers)
    return calls


def test_operations_are_drawn_evenly_and_both_ways(monkeypatch):
    calls = recorded(monkeypatch, 3000)
    assert len(calls) == 9000
    assert chisquare(list(Counter(calls).values())).pvalue > 1e-3
    assert set(calls) == {(name, m) for name in OPERATIONS for m in (1.5, -1.5)}


def test_operations_are_done_one_after_another(monkeypatch):
    image = photo()
    for seed in range(30):
        found, expected = randaugment(image, 3, 9.0, FILL, generator(seed)), image
        for choice, way in generator(seed).random((3, 2)):
            expected = operate(OPERATIONS[int(15 * choice)], expected, 0.9 if way < 0.5 else -0.9, FILL)
        assert np.array_equal(pixels(found), pixels(expected))


def test_recolouring_knows_no_way():
    for name in RECOLOURINGS:
        assert np.array_equal(pixels(operate(name, photo(), 0.7, FILL)), pixels(operate(name, photo(), -0.7, FILL)))


@pytest.mark.parametrize("mode", MODES)
def test_three_augment_is_one_of_three_as_often_as_another(mode):
    image = photo(mode, 20, 20)
    grey, solarised = F.to_grayscale(image, 3 if mode == "RGB" else 1), ImageOps.solarize(image)
    counts, numbers, expected = Counter(), generator(), generator()
    for _ in range(1500):
        found = pixels(three_augment(image, numbers))
        radius = 0.1 + 1.9 * expected.random(2)[1].item()
        blurred = image.filter(ImageFilter.GaussianBlur(radius))
        kinds = {"grey": grey, "solarised": solarised, "blurred": blurred}
        counts[next(kind for kind, one in kinds.items() if np.array_equal(found, pixels(one)))] += 1
    assert chisquare(list(counts.values())).pvalue > 1e-3
    assert len(counts) == 3


@pytest.mark.parametrize("mode", MODES)
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
