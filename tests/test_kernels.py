"""Patch kernels for other channels and patch sizes are timm's, and keep what the model sees."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed
from timm.models import adapt_input_conv

from vitrail.models.kernels import for_channels, for_patch_size


def kernel(channels=3, size=(6, 6), dtype=torch.float64):
    return torch.randn(5, channels, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_are_timms(channels, dtype):
    given = kernel(dtype=dtype)
    found = for_channels(given, channels)
    assert (found.shape, found.dtype) == ((5, channels, 6, 6), dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, adapt_input_conv(channels, given.clone()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("found", "channels"), [(3, 1), (3, 6), (3, 9), (1, 3), (1, 13), (4, 1), (13, 1), (4, 8)])
def test_an_image_that_is_the_same_in_all_channels_looks_the_same(found, channels):
    grey = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    before = F.conv2d(grey.expand(-1, found, -1, -1), kernel(found))
    after = F.conv2d(grey.expand(-1, channels, -1, -1), for_channels(kernel(found), channels))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(
    ("old", "new"), [((16, 16), (32, 32)), ((16, 16), (8, 8)), ((8, 6), (9, 14)), ((4, 9), (9, 4))]
)
def test_patch_sizes_are_timms(old, new):
    given = kernel(size=old, dtype=torch.float32)
    found = for_patch_size(given, new)
    assert (found.shape, found.dtype) == ((5, 3, *new), torch.float32)
    torch.testing.assert_close(found, resample_patch_embed(given, list(new)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("new", [(12, 12), (7, 9), (6, 6), (30, 6)])
def test_larger_patches_give_what_the_small_ones_gave(new):
    patches = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    larger = F.interpolate(patches, new, mode="bicubic", antialias=True)
    before = F.conv2d(patches, kernel())
    torch.testing.assert_close(F.conv2d(larger, for_patch_size(kernel(), new)), before)
