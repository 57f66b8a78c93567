"""Pixels to the model's input: normalised by the formula, and resized and cropped as timm does it."""

import math
import re

import numpy as np
import pytest
import torch
from photos import evaluated, model, photo
from PIL import Image
from timm.data import create_transform

from vitrail.data.images.geometry import Misfit, centred
from vitrail.data.images.preprocessing import Preprocessing, normalise

STATISTICS = {
    "paper": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "identity": ((0.0,), (1.0,)),
    "narrow": ((0.9, 0.01), (0.003, 2.0)),
}
ROUNDINGS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize("name", STATISTICS)
def test_normalise_is_the_formula(name, dtype):
    """On every byte. The error is a rounding of the result, or of the mean over std that the formula subtracts."""
    mean, std = STATISTICS[name]
    images = torch.arange(256).repeat(2, len(mean), 1).view(2, len(mean), 16, 16).to(torch.uint8)
    before, found = images.clone(), normalise(images, Preprocessing((16, 16), mean, std), dtype)
    m, s = (np.array(v, np.float64).reshape(-1, 1, 1) for v in (mean, std))
    expected = (images.numpy().astype(np.float64) / 255 - m) / s
    assert found.dtype == dtype
    lost = 2e-7 * (m / s).max() if dtype != torch.float64 else 0
    away = np.abs(found.double().numpy() - expected)
    assert (away <= ROUNDINGS[dtype] * np.maximum(np.abs(expected), 1e-3) + lost).all()
    assert torch.equal(images, before)


GOOD = {"image_size": (8, 8), "mean": (0.5,), "std": (0.5,)}
REFUSED = {"image_size": [(0, 8), (8, -1)], "std": [(0.5, 0.5), (0.0,), (-0.5,), (math.nan,), (math.inf,)]}
REFUSED |= {"mean": [(math.nan,), (math.inf,), ()], "resize": ["center"], "interpolation": ["area"]}
REFUSED |= {"crop_fraction": [0.0, 1.01, math.nan]}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field in REFUSED for value in REFUSED[field]])
def test_a_value_out_of_its_range_is_refused(unchecked, field, value):
    numbers = f"channels, std {len(value or '1')};" if value in [(0.5, 0.5), ()] else f"{field} is {value!r}"
    with pytest.raises(ValueError, match=re.escape(numbers)):
        Preprocessing(**GOOD | {field: value})


TIMMS = {"squash": "squash", "crop": "center", "pad": "border"}
# The model's image -> photographs that are halved, enlarged, leave odd pixels on a side, fit already, are lines.
SHAPES = {
    (224, 224): [(375, 500), (501, 333), (60, 41)],
    (32, 32): [(75, 131), (64, 64), (37, 35), (32, 32), (17, 300), (1, 1)],
    (48, 80): [(201, 133), (49, 81), (3, 2)],
    (97, 31): [(200, 65), (65, 200), (9, 9)],
    (80, 81): [(93, 93), (94, 91)],  # the same on both sides, once divided by some fractions
}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fraction", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("resize", TIMMS)
def test_evaluation_sees_what_timms_transform_shows_to_the_last_bit(resize, fraction, interpolation):
    for size, shapes in SHAPES.items():
        to = model(*size, 3, resize, fraction, interpolation)
        options = {"interpolation": interpolation, "crop_pct": fraction, "crop_mode": TIMMS[resize]}
        theirs = create_transform((3, *size), mean=to.mean, std=to.std, **options)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (to.mean, to.std))
        for shape in shapes:
            found, expected = evaluated(photo(*shape), to), theirs(Image.fromarray(photo(*shape)))
            planes = torch.from_numpy(found.copy()).permute(2, 0, 1)
            assert torch.equal(planes, torch.round((expected * std + mean) * 255).to(torch.uint8)), (size, shape)
            assert torch.allclose(normalise(planes[None], to, torch.float32)[0], expected, atol=2e-6)


def test_a_line_would_be_enlarged_beyond_all_memory_and_is_refused():
    with pytest.raises(Misfit, match="1 x 700000 would become 224 x 156800000"):
        centred((1, 700_000), model(224, 224, 1, "crop"))
