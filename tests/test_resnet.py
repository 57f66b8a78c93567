"""The BiT ResNet against the equations in numpy, its paddings against TensorFlow's SAME, and its shapes."""

import math
import re

import numpy as np
import pytest
import torch
from reference import forward, perturb, weights

from vitrail.models.resnet import Config, ResNet, same_padding


def images(*size, channels=3, dtype=torch.float64):
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("config", "size"),
    [
        (Config(blocks=(1, 2), classes=4), (37, 23)),
        (Config(blocks=(1,), width_factor=2, channels=1, classes=4), (17, 34)),
        (Config(blocks=(), classes=4), (9, 30)),
    ],
)
def test_the_forward_pass_is_the_equations(config, size, dtype):
    model, x = perturb(ResNet(config), dtype=dtype), images(*size, channels=config.channels, dtype=dtype)
    expected = forward(weights(model), config, x.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(model(x), expected, rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 5)])
@pytest.mark.parametrize("blocks", [(), (1,), (1, 1, 1)])
def test_the_feature_map_has_the_promised_shape_and_reads_every_pixel(blocks, size):
    config = Config(blocks=blocks, classes=0)
    x = images(*size).requires_grad_()
    model = perturb(ResNet(config))
    features = model.features(x)
    assert features.shape == (2, config.features, *(math.ceil(side / config.stride) for side in size))
    torch.testing.assert_close(model(x), features.mean((2, 3)))  # without a head
    # Random weights of the sum: each channel's mean is fixed by its group norm.
    (features * torch.randn_like(features)).sum().backward()
    assert (x.grad.abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_same_padding_gives_a_cell_per_stride_and_puts_the_odd_pixel_at_the_end(kernel, stride, size):
    x = torch.arange(1.0, size + 1).expand(1, 1, size, size)
    padded = same_padding(x, kernel, stride, value=-math.inf)
    assert (padded.shape[-1] - kernel) // stride + 1 == math.ceil(size / stride) or kernel < stride
    row = padded[0, 0, padded.shape[-2] // 2]
    before, after = int((row[: row.argmax()] == -math.inf).sum()), int((row[row.argmax() :] == -math.inf).sum())
    assert before + size + after == padded.shape[-1]
    assert 0 <= after - before <= 1


@pytest.mark.parametrize(("name", "wrong"), [("width_factor", 0), ("channels", 0), ("classes", -1), ("blocks", (3, 0))])
def test_a_configuration_that_cannot_be_is_refused(name, wrong):
    with pytest.raises(ValueError, match=re.escape(str(wrong))) as error:
        Config(**{name: wrong})
    assert name in str(error.value)
