"""Corruptions: the maintained fork's bytes where nothing is drawn, the definition's statistics where something is.

tests/corruptions.npz has pixels of a small image as the fork (imagecorruptions-imaug 1.1.5) corrupts it, at the angles
that our motion blur draws. Where it is installed this makes them again:

    python tests/test_corrupt.py --write
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from vitrail.data.images import corrupt as corrupting
from vitrail.data.images.augment import philox
from vitrail.data.images.corrupt import FORK, OURS, corrupt, suited
from vitrail.data.order import corruption_key

GOLDEN = Path(__file__).parent / "corruptions.npz"
ALIKE = "brightness", "contrast", "saturate", "pixelate", "gaussian_blur", "defocus_blur", "zoom_blur", "motion_blur"
DRAWN = "gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "elastic"
EVERY = [(kind, strength) for kind in OURS for strength in range(1, 6)]
SIZES = (31, 47), (70, 95)  # with CIFAR's constants, and with ImageNet's
P = 1e-4  # below which chance falls in one check of ten thousand; seeds are fixed


def synthetic(height=72, width=96, channels=3, shift=0):
    """uint8 (1, C, H, W): waves, an edge, and grey and black, which have no hue."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(channels), indexing="ij")
    image = 110 + 70 * np.sin((x + shift) / (5 + c)) + 60 * np.cos(y / (4 + 2 * c)) + 40 * (x + y > 80)
    image[: height // 4, : width // 4] = image[: height // 4, : width // 4, :1]
    image[: height // 8, : width // 8] = 0
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)[None].contiguous()


def several(size, channels=3):
    return torch.cat([synthetic(*size, channels, shift=7 * i) for i in range(5)])


def one(images, kind, strength, key=0, seed=0):
    return corrupt(images, kind, strength, torch.full((len(images),), key), seed)


def generator(kind, strength, key=0, seed=0):
    return philox(key, corruption_key(crc32(f"{kind} {strength}".encode()), seed))


def pixels(image):
    """A few of all parts of (H, W, 3)."""
    return np.asarray(image)[5::13, 3::17]


@pytest.mark.parametrize("kind", ALIKE)
@pytest.mark.parametrize("strength", range(1, 6))
def test_what_draws_nothing_is_as_the_fork_does_it(kind, strength):
    wanted = np.load(GOLDEN)["pixels"][ALIKE.index(kind), strength - 1].astype(int)
    found = pixels(one(synthetic(), kind, strength)[0].permute(1, 2, 0)).astype(int)
    assert np.abs(found - wanted).max() <= 1
    assert np.abs(found - wanted).mean() < 0.15
    assert np.abs(pixels(synthetic()[0].permute(1, 2, 0)) - wanted).max() > 5


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
@pytest.mark.parametrize(("size", "qualities"), [(SIZES[0], (80, 65, 58, 50, 40)), (SIZES[1], (25, 18, 15, 10, 7))])
def test_jpeg_has_pillows_bytes(channels, mode, size, qualities):
    images = several(size, channels)
    for strength, quality in enumerate(qualities, 1):
        for image, found in zip(images, one(images, "jpeg", strength), strict=True):
            file, whole = BytesIO(), Image.fromarray(image.permute(1, 2, 0).numpy().squeeze())
            whole.save(file, "JPEG", quality=quality)
            again = np.array(Image.open(file)).reshape(*size, channels)
            assert Image.open(file).mode == mode
            assert np.array_equal(found.permute(1, 2, 0), again)


def expected(kind, c, level):
    """The probabilities of the 256 values of a pixel, by the definition; values are cut."""
    if kind == "gaussian_noise":
        edges = stats.norm.cdf(np.r_[-np.inf, np.arange(1, 256), np.inf], level, 255 * c)
        edges[-2] = stats.norm.cdf(255, level, 255 * c)
        return np.diff(edges)
    found = np.zeros(256)
    if kind == "shot_noise":
        counts = np.arange(0, 4 * c + 100)
        values = np.minimum(counts * 255 / c + 1e-9, 255).astype(int)
        np.add.at(found, values, stats.poisson.pmf(counts, level * c / 255))
    else:
        found[[0, 255]] = c / 2
        found[level] += 1 - c
    return found


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "impulse_noise"])
@pytest.mark.parametrize("size", [(64, 160), (96, 107)])
def test_noise_is_distributed_as_defined(kind, size):
    constants = {
        "gaussian_noise": [(0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)],
        "shot_noise": [(500, 250, 100, 75, 50), (60, 25, 12, 5, 3)],
        "impulse_noise": [(0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)],
    }[kind][size[0] > 64]
    for strength, c in enumerate(constants, 1):
        for level in (0, 2, 40, 131, 255):
            found = one(torch.full((1, 3, *size), level, dtype=torch.uint8), kind, strength, key=level)
            counts, chances = np.bincount(found.ravel(), minlength=256), expected(kind, c, level)
            assert chances.sum() == pytest.approx(1)
            assert counts[chances * counts.sum() < 1e-6].sum() == 0
            often = chances * counts.sum() >= 5
            if often.sum() > 1:
                cells = [np.r_[values[often], values[~often].sum()] for values in (counts, chances * counts.sum())]
                some = cells[1] > 1  # the last, of all that are rare, may be too rare
                wanted = cells[1][some] * (cells[0][some].sum() / cells[1][some].sum())
                assert stats.chisquare(cells[0][some], wanted).pvalue > P


@pytest.mark.parametrize("strength", range(1, 6))
@pytest.mark.parametrize("size", SIZES)
def test_elastic_is_as_scipy_bends_it(strength, size):
    fractions = [[(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)]]
    fractions += [[(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)]]
    (height, width), large = size, size[0] > 64
    alpha, sigma, shift = (f * height * (244 / 224 if large else 1) for f in fractions[large][strength - 1])
    draw, image = generator("elastic", strength, key=3), synthetic(*size)
    centre, third = np.array([height // 2, width // 2]), height // 3
    points = centre + third * np.array([[1, 1], [-1, 1], [-1, -1]])  # (y, x)
    moved = points + draw.uniform(-shift, shift, (3, 2))[:, ::-1]
    affine = np.linalg.solve(np.c_[moved, np.ones(3)], points)
    places, grid = np.indices(size), []
    if alpha:
        across, down = draw.uniform(-1, 1, (2, *size))
        smooth = [ndimage.gaussian_filter(noise, sigma, mode="reflect", truncate=3) for noise in (down, across)]
        grid = places + alpha * np.array(smooth)
    found = one(image, "elastic", strength, key=3)[0].numpy().astype(int)
    for plane, channel in zip(image[0].numpy().astype(float), found, strict=True):
        seen = ndimage.affine_transform(plane, affine[:2].T, affine[2], order=1, mode="mirror")
        bent = ndimage.map_coordinates(seen, grid, order=1, mode="reflect") if alpha else seen
        assert np.abs(bent.astype(int) - channel).max() <= 1
    assert np.abs(found - image[0].numpy()).mean() > 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "strength"), EVERY[2::5] + EVERY[4::5])
def test_an_image_is_the_same_in_every_batch_order_and_thread(monkeypatch, kind, strength, size):
    images, keys = several(size), torch.tensor([4, -1, 2**62, 7, 0])
    whole = corrupt(images, kind, strength, keys, 5)
    monkeypatch.setattr(corrupting, "CACHED", 2 * images[0].numel())
    assert torch.equal(corrupt(images, kind, strength, keys, 5), whole)
    assert whole.dtype == torch.uint8
    assert not torch.equal(whole, images)
    alone = [corrupt(images[i : i + 1], kind, strength, keys[i : i + 1], 5) for i in range(5)]
    assert torch.equal(torch.cat(alone), whole)
    turned = corrupt(images.flip(0).contiguous(), kind, strength, keys.flip(0), 5)
    assert torch.equal(turned.flip(0), whole)
    halves = lambda n: (torch.set_num_threads(n), corrupt(images, kind, strength, keys, 5))[1]  # noqa: E731
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(3) as pool:
        assert all(torch.equal(found, whole) for found in pool.map(halves, (1, 2, 3)))
    torch.set_num_threads(threads)


def test_what_is_drawn_depends_on_seed_key_kind_and_strength():
    image = synthetic()
    for kind in OURS:
        others = one(image, kind, 3, seed=1), one(image, kind, 3, key=1)
        assert [torch.equal(one(image, kind, 3), other) for other in others] == [kind not in DRAWN] * 2
    first = {generator(kind, strength).random() for kind, strength in EVERY}
    assert len(first) == len(EVERY)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", sorted({*OURS} - {"saturate", "elastic"}))  # whose constants go up and down
def test_a_greater_strength_changes_more(kind, size):
    images = several(size)
    keys = torch.arange(len(images))
    far = [(corrupt(images, kind, s, keys, 0).float() - images).abs().mean() for s in range(1, 6)]
    # Rounding and the edge, where no strength of pixelate is the next one's: a tenth.
    assert all(0 < less < 1.1 * more for less, more in pairwise(far)), far
    assert far[4] > 1.5 * far[0]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_has_the_kinds_that_suit_it(channels):
    images = several((31, 47), channels)
    kinds = suited(channels)
    assert set(OURS) - set(kinds) == {1: {"saturate"}, 3: set()}.get(channels, {"saturate", "jpeg"})
    for kind in OURS:
        if kind in kinds:
            found = one(images, kind, 2)
            assert (found.shape, found.dtype) == (images.shape, torch.uint8)
            assert not torch.equal(found, images)
        else:
            with pytest.raises(ValueError, match=f"{kind} is not defined for {channels}-channel images"):
                one(images, kind, 2)


def test_brightness_saturation_and_contrast_by_hand():
    colour = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 80, 80)
    assert one(colour, "brightness", 1)[0, :, 0, 0].tolist() == [225, 112, 56]  # 200 + 25.5, and half and a quarter
    assert one(colour, "saturate", 1)[0, :, 0, 0].tolist() == [200, 170, 155]  # s is 0.75, and becomes 0.225
    assert one(colour, "contrast", 3).equal(colour.contiguous())
    assert one(torch.zeros_like(colour), "brightness", 3)[0, :, 0, 0].tolist() == [76, 76, 76]


@pytest.mark.parametrize(
    ("images", "kind", "strength", "message"),
    [
        (synthetic(), "rain", 1, r"'rain' is not a corruption; there is gaussian_noise.*spatter"),
        (synthetic(), "jpeg", 0, r"strength of jpeg is 0.*1, 2, 3, 4 or 5"),
        (synthetic(), "fog", 6, r"strength of fog is 6"),
        (synthetic(3, 80), "jpeg", 1, r"3 x 80 pixels are too small.*4"),
        (synthetic(32, 80), "fog", 1, r"fog has constants for photographs alone.*32 x 80"),
        (synthetic(channels=2), "snow", 1, r"snow is not defined for 2-channel images"),
        (synthetic(), "snow", 1, r"snow needs imagecorruptions-imaug.*pip install 'vitrail\[corruptions\]'"),
    ],
)
def test_what_cannot_be_is_said(monkeypatch, images, kind, strength, message):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)  # as if it were not installed
    with pytest.raises(ValueError, match=message):
        one(images, kind, strength)


@pytest.mark.parametrize("kind", FORK)
@pytest.mark.parametrize("channels", [1, 3])
def test_the_forks_kinds_are_seeded_by_the_key(monkeypatch, kind, channels):
    """A stand-in that draws as the fork does: from NumPy's global generator, for glass_blur from a seed."""
    calls = []

    def theirs(image, severity, corruption_name, seed=None):
        calls.append((severity, corruption_name, image.shape, seed is None))
        if seed is not None:
            return np.full((*image.shape[:2], 3), seed % 251, np.uint8)
        half = np.random.randint(0, 256, (35, 95, 1))
        time.sleep(0.002)  # for others to draw in between
        return np.repeat(np.concatenate((half, np.random.randint(0, 256, half.shape))), 3, 2).astype(np.uint8)

    monkeypatch.setitem(sys.modules, "imagecorruptions", SimpleNamespace(corrupt=theirs))
    images, keys, before = several((70, 95), channels), torch.arange(5), np.random.get_state()[1].copy()
    whole = corrupt(images, kind, 4, keys, 0)
    assert calls == [(4, kind, (70, 95, channels), kind != "glass_blur")] * 5
    assert (whole.shape, len({found.numpy().tobytes() for found in whole})) == (images.shape, 5)
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(lambda i: corrupt(images[i : i + 1], kind, 4, keys[i : i + 1], 0), range(5))
        assert torch.equal(torch.cat([*parts]), whole)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORK)
def test_the_fork_itself_gives_these_bytes(monkeypatch, kind):
    fork, words, seed = pytest.importorskip("imagecorruptions"), [], np.random.seed
    monkeypatch.setattr(np.random, "seed", lambda word: (words.append(word), seed(word)))
    images, keys = several((96, 112), 3), torch.tensor([5, 2**40, 7, 1, 0])
    whole = corrupt(images, kind, 3, keys, 1)
    assert torch.equal(corrupt(images[1:2], kind, 3, keys[1:2], 1), whole[1:2])
    assert len({*words}) == 5
    for image, found, word in zip(images, whole, words, strict=False):
        seed(word)
        more = {"seed": word} if kind == "glass_blur" else {}
        expected = fork.corrupt(image.permute(1, 2, 0).numpy(), severity=3, corruption_name=kind, **more)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected.astype(np.uint8))
        assert not torch.equal(found, image)


def write():
    """Makes tests/corruptions.npz with the fork."""
    from unittest import mock

    from imagecorruptions import corrupt as theirs

    image, found = synthetic()[0].permute(1, 2, 0).numpy(), []
    for kind in ALIKE:
        for strength in range(1, 6):
            angle = generator(kind, strength).uniform(-45, 45)
            with mock.patch("numpy.random.uniform", lambda *_, angle=angle: angle):
                found.append(pixels(theirs(image, strength, kind)))
    np.savez_compressed(GOLDEN, pixels=np.stack(found).reshape(len(ALIKE), 5, *found[0].shape))


if __name__ == "__main__":
    write() if sys.argv[1:] == ["--write"] else sys.exit("python tests/test_corrupt.py --write")
