"""Random views against torchvision's operations; the laws of a batch that may be split; how often a thing is drawn."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy.stats import kstest
from torch._subclasses.fake_tensor import FakeTensorMode

from vitrail.data.order import sample_seeds
from vitrail.models.layers import uniform
from vitrail.tasks.crops import PRESETS, ViewConfig, boxes, crop, draw, recolour

KEYS = torch.from_numpy(sample_seeds(5, 2000, 0).view(np.int64))
# Y, I and Q of red, green and blue (FCC, 1953).
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def photos(count, size=(32, 32), channels=3, low=0, high=256):
    return torch.randint(
        low, high, (count, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def whole(size, preset="none"):
    """A view of the whole image."""
    return ViewConfig(size, (1.0, 1.0), (1.0, 1.0), preset)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def turned(images, hue):
    """The chroma plane of YIQ, rotated so that red goes to yellow."""
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    change = YIQ.inverse() @ torch.tensor([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) @ YIQ
    return torch.einsum("ij,bjhw->bihw", change, images)


def checkerboard(channels=1, side=64):
    squares = (torch.arange(side)[:, None] + torch.arange(side)) % 2 * 255
    return squares.to(torch.uint8).expand(len(KEYS[:40]), channels, side, side)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(32, 32), (24, 33), (5, 1)])
def test_the_whole_image_at_its_own_size_is_the_image(channels, size):
    images = photos(6, size, channels)
    assert torch.equal(draw(images, KEYS[:6], 3, whole(size)), images.float())


@pytest.mark.parametrize("to", [(32, 40), (16, 20), (12, 9), (7, 80), (64, 80), (50, 3)])
def test_the_whole_image_at_another_size_is_torchvisions(to):
    images = photos(4, (32, 40))
    expected = tv.resize(images.float(), list(to), antialias=True)
    assert torch.allclose(draw(images, KEYS[:4], 0, whole(to)), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("box", "to"), [((3, 7, 16, 24), (8, 12)), ((3, 7, 16, 24), (16, 24)), ((1, 2, 10, 12), (25, 36))]
)
def test_a_part_is_torchvisions_but_at_its_border(box, to):
    images = photos(3, (32, 40))
    found = crop(images, numbers(*box).expand(3, 4), to)
    expected = tv.resized_crop(images.float(), *box, size=list(to), antialias=True)
    edge = [math.ceil(max(1, result / side)) for result, side in zip(to, box[2:], strict=True)]
    inner = (..., slice(edge[0], -edge[0]), slice(edge[1], -edge[1]))
    assert torch.allclose(found[inner], expected[inner], atol=1e-3)
    mirrored = crop(images, numbers(*box).expand(3, 4), to, torch.tensor([True, False, True]), torch.ones(3).bool())
    assert torch.equal(mirrored[::2], found[::2].flip(2, 3))
    assert torch.equal(mirrored[1], found[1].flip(1))


@pytest.mark.parametrize("side", [8, 16, 21, 32])
def test_a_fine_checkerboard_does_not_alias(side):
    images = checkerboard()
    how = ViewConfig((side, side), (0.8, 1.0), preset="none")
    inner = (..., slice(2, -2), slice(2, -2))
    assert (draw(images, KEYS[:40], 0, how)[inner] - 127.5).abs().max() < 12
    plain = tv.resized_crop(images[:1].float(), 1, 1, 61, 61, [side, side], antialias=False)
    assert (plain[inner] - 127.5).abs().max() > 48


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0, 1.4])
def test_brightness_contrast_and_saturation_are_torchvisions(factor):
    images, by, same = photos(4).float(), numbers(factor).expand(4), torch.ones(4)
    for channels in (1, 3):
        some = images[:, :channels]
        for found, adjusted in ((recolour(some, by, same), "brightness"), (recolour(some, same, by), "contrast")):
            expected = getattr(tv, f"adjust_{adjusted}")(some / 255, factor) * 255
            assert torch.allclose(found.clamp(0, 255), expected, atol=0.1)
    saturated = recolour(images, same, same, by, 0 * by).clamp(0, 255)
    assert torch.allclose(saturated, tv.adjust_saturation(images / 255, factor) * 255, atol=0.1)


def test_no_saturation_is_torchvisions_grey():
    images, same = photos(4).float(), torch.ones(4)
    expected = tv.rgb_to_grayscale(images, num_output_channels=3)
    assert torch.allclose(recolour(images, same, same, 0 * same, 0.1 * same), expected, atol=0.1)


def test_contrast_of_other_channels_is_about_the_mean_of_each():
    images = photos(2, channels=5).float() + torch.arange(5).view(5, 1, 1) * 100
    found = recolour(images, torch.ones(2), 0 * torch.ones(2))
    assert torch.allclose(found, images.mean((2, 3), keepdim=True).expand(images.shape), atol=1e-3)


@pytest.mark.parametrize("hue", [-0.3, -0.1, 0.02, 0.1, 0.5])
def test_hue_turns_the_chroma_plane_of_yiq(hue):
    images, same = photos(4).float(), torch.ones(4)
    found = recolour(images, same, same, same, hue * same)
    assert torch.allclose(found, turned(images, hue), atol=0.5)
    assert torch.allclose(tv.rgb_to_grayscale(found), tv.rgb_to_grayscale(images), atol=0.1)
    if abs(hue) < 0.5:  # in the sense of HSV's hue
        theirs = [tv.adjust_hue(images / 255, way) * 255 for way in (hue, -hue)]
        assert (found - theirs[0]).abs().mean() < (found - theirs[1]).abs().mean()


def test_blur_is_torchvisions_with_a_sigma_for_each_image():
    images, sigmas = photos(4, (48, 40)), numbers(0, 0.4, 1.0, 2.0)
    found = crop(images, numbers(0, 0, 48, 40).expand(4, 4), (48, 40), sigma=sigmas)
    assert torch.equal(found[0], images[0].float())
    for row, sigma in list(enumerate(sigmas.tolist()))[1:]:
        expected = tv.gaussian_blur(images[row].float(), [25, 25], [sigma, sigma])
        assert torch.allclose(found[row, :, 8:-8, 8:-8], expected[:, 8:-8, 8:-8], atol=0.01)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("side", [56, 72])
def test_a_photos_view_is_torchvisions_operations_in_the_order_that_is_written(channels, side):
    """Of images in whose middle greys nothing is clipped. From 127.5 to 128 ours is solarised, and theirs is not."""
    keys, images = KEYS[:40], photos(40, (80, 80), channels, 100, 156)
    found = draw(images, keys, 1, ViewConfig((side, side)))
    plain = draw(images, keys, 1, ViewConfig((side, side), preset="none"))
    turn, blur, colour, solarise = (
        uniform(keys, f"view 1 {name}", count).tolist()
        for name, count in (("turn", 3), ("blur", 2), ("colour", 6), ("solarise", 1))
    )
    for row, seen in enumerate(plain / 255):
        if turn[row][0] < 0.5:
            seen = seen.flip(2)
        if side > 64 and blur[row][0] < 0.5:
            sigma = (0.1 + 1.9 * blur[row][1]) * side / 224
            seen = tv.gaussian_blur(seen, [15, 15], [sigma, sigma])
        coin, b, c, s, h, grey = colour[row]
        if coin < 0.8:
            seen = tv.adjust_brightness(seen, 0.6 + 0.8 * b)
            seen = tv.adjust_contrast(seen, 0.6 + 0.8 * c)
            if channels == 3:
                seen = turned(tv.adjust_saturation(seen, 0.8 + 0.4 * s)[None], 0.2 * h - 0.1)[0]
        if grey < 0.2 and channels == 3:
            seen = tv.rgb_to_grayscale(seen, 3)
        if solarise[row][0] < 0.2:
            seen = tv.solarize(seen, 128 / 255)
        inner = (slice(None), slice(4, -4), slice(4, -4))
        assert (found[row][inner] - seen[inner] * 255).abs().max() < 1.05, row


@pytest.mark.parametrize("preset", ["photo", "micro"])
@pytest.mark.parametrize("size", [(16, 16), (72, 80)])
def test_views_are_the_same_however_the_batch_is_split_and_ordered(preset, size):
    images, keys, how = photos(24), KEYS[:24], ViewConfig(size, preset=preset)
    found = draw(images, keys, 2, how)
    assert torch.equal(found, draw(images, keys, 2, how))
    for parts in (2, 4, 24):  # on a CPU bit for bit; another device may sum the products of other batches otherwise
        split = [draw(*part, 2, how) for part in zip(images.chunk(parts), keys.chunk(parts), strict=True)]
        assert torch.allclose(torch.cat(split), found, rtol=0, atol=1e-4)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(draw(images[order], keys[order], 2, how), found[order], rtol=0, atol=1e-4)


def test_views_and_keys_differ():
    images, how = photos(1).expand(20, 3, 32, 32), ViewConfig((16, 16))
    views = torch.stack([draw(images, KEYS[:20], view, how) for view in range(6)])
    assert len(views.flatten(0, 1).flatten(1).unique(dim=0)) == 6 * 20


def test_a_key_draws_the_same_for_ever():
    shown = boxes(torch.tensor([1, 2]), 3, ViewConfig(scale=(0.1, 0.5)), (32, 48))
    assert shown[0].tolist() == pytest.approx([3.7553269, 7.1398063, 27.8482226, 21.6675863], abs=1e-6)
    assert shown[1].tolist() == pytest.approx([5.0936222, 5.4037558, 20.8777457, 16.0705721], abs=1e-6)


@pytest.mark.parametrize(
    ("scale", "stored"), [((0.05, 0.3), (32, 32)), ((0.3, 1.0), (32, 32)), ((0.1, 1.0), (100, 40))]
)
def test_crops_lie_inside_and_are_distributed_as_is_written(scale, stored):
    how = ViewConfig((16, 16), scale)
    top, left, height, width = boxes(KEYS, 0, how, stored).unbind(1)
    area, ratio = height * width / (stored[0] * stored[1]), width / height
    assert kstest(area, "uniform", (scale[0], scale[1] - scale[0])).pvalue > 1e-3
    for start, length, side in ((top, height, stored[0]), (left, width, stored[1])):
        assert start.min() >= -1e-9
        assert (start + length).max() <= side + 1e-9
        room = side - length
        assert kstest((start / room)[room > 1e-6], "uniform").pvalue > 1e-3
    fits = area * max(stored[0] / stored[1], stored[1] / stored[0]) < 3 / 4  # with every ratio
    assert kstest(ratio[fits].log(), "uniform", (math.log(3 / 4), 2 * math.log(4 / 3))).pvalue > 1e-3
    assert (ratio[~fits] <= 4 / 3 + 1e-9).all()


@pytest.mark.parametrize(("preset", "size", "ways"), [
    ("none", (2, 2), 1), ("photo", (2, 2), 2), ("grey", (2, 2), 2), ("micro", (2, 2), 8), ("micro", (2, 3), 4),
])  # fmt: skip
def test_an_image_is_seen_as_often_in_each_of_its_ways(preset, size, ways):
    """Known by the order of its greys, which no change of colour below changes."""
    image = torch.arange(size[0] * size[1], dtype=torch.uint8).view(1, 1, *size) * 10 + 30
    found = draw(image.expand(2000, 1, *size), KEYS, 0, whole(size, preset)).flatten(1)
    counts = found.argsort(1).unique(dim=0, return_counts=True)[1]
    assert len(counts) == ways
    assert ((counts - 2000 / ways).abs() < 4 * (2000 / ways) ** 0.5).all()


def test_a_photo_is_jittered_grey_and_solarised_as_often_as_is_written():
    dark, bright = (
        draw(
            torch.tensor(pixel).byte().view(1, 3, 1, 1).expand(2000, 3, 1, 1), KEYS, 4, whole((1, 1), "photo")
        ).flatten(1)
        for pixel in ((30, 20, 10), (245, 235, 225))
    )
    grey = (dark[:, 0] - dark[:, 2]).abs() < 1e-3
    same = ((dark - torch.tensor([30, 20, 10])).abs() < 1e-3).all(1)
    solarised = bright.amax(1) < 127
    for often, probability in ((grey, 0.2), (same, 0.2 * 0.8), (solarised, 0.2), (solarised & grey, 0.2 * 0.2)):
        assert float(often.float().mean()) == pytest.approx(probability, abs=4 * (probability / 2000) ** 0.5)


def test_a_small_result_is_not_blurred():
    blurred = []
    for side in (64, 72):
        found = draw(checkerboard(side=side), KEYS[:40], 0, whole((side, side), "photo")).flatten(1)
        blurred.append(sum(len(row.unique()) > 2 for row in found))
    assert blurred[0] == 0
    assert 8 < blurred[1] < 32


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(16, 16), (24, 12), (66, 70)])
def test_views_are_numbers_from_0_to_255_of_any_channels_and_size(preset, channels, size):
    images, how = photos(30, (40, 28), channels), ViewConfig(size, preset=preset)
    found = draw(images, KEYS[:30], 0, how)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    assert found.shape == (30, channels, *size)
    assert 0 <= found.min() <= found.max() <= 255
    assert torch.equal(found, draw(images.float(), KEYS[:30], 0, how))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, draw(images, KEYS[:30], 0, how))
    assert draw(images[:0], KEYS[:0], 0, how).shape == (0, channels, *size)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_device_is_never_waited_for(preset):
    """On tensors without values, code that reads one fails."""
    with FakeTensorMode():
        images, keys = torch.zeros(6, 3, 80, 80, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64)
        assert draw(images, keys, 0, ViewConfig((72, 72), preset=preset)).shape == (6, 3, 72, 72)


@pytest.mark.parametrize(("field", "value", "named"), [
    ("size", (0, 16), "size is (0, 16)"), ("scale", (0.0, 0.5), "scale is (0.0, 0.5)"),
    ("scale", (0.5, 0.2), "scale is (0.5, 0.2)"), ("scale", (0.5, 1.2), "scale is (0.5, 1.2)"),
    ("scale", (math.nan, 1.0), "scale is (nan, 1.0)"), ("ratio", (2.0, 1.0), "ratio is (2.0, 1.0)"),
    ("ratio", (0.0, 1.0), "ratio is (0.0, 1.0)"), ("ratio", (1.0, math.inf), "ratio is (1.0, inf)"),
])  # fmt: skip
def test_what_is_out_of_range_is_named(field, value, named):
    with pytest.raises(ValueError, match="it must be") as found:
        ViewConfig(**{field: value})
    assert named in str(found.value)


def test_an_unknown_preset_is_named(unchecked):
    with pytest.raises(ValueError, match="preset is 'sepia'; choose one of photo, grey, micro, none"):
        ViewConfig(preset="sepia")
