"""Corruptions of images at five strengths: noise, blur, light and colour, coarse pixels and JPEG, bent space.

    corrupt(images, "zoom_blur", 3, keys=batch["indices"], seed=0)      # uint8 (B, C, H, W) -> the same

Kinds, formulas and constants are those of CIFAR-10-C and ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261; their
make_cifar_c.py and imagenet_c/corruptions.py): CIFAR's where an image's shorter side is at most 64 pixels, ImageNet's
above. As there, values are cut to whole numbers, not rounded. Motion blur is not ImageMagick's, which they use, but the
maintained fork's (imagecorruptions-imaug 1.1.5), by whole pixels.

What an image draws is a function of (seed, its key, kind, strength). Frost, snow, fog, glass blur and spatter are the
fork's own code, seeded likewise: pip install 'vitrail[corruptions]'.
"""

import math
import threading
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from io import BytesIO
from typing import Any, Literal

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, UInt8
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from vitrail.data.images.augment import philox
from vitrail.data.order import corruption_key

SMALL = 64  # pixels of the shorter side, up to which CIFAR's constants hold
LEAST = 4  # pixels of the shorter side
CACHED = 2**18  # values that are corrupted together, so that they stay in a processor's cache
NEGLIGIBLE = 1e-5  # a weight of which all of a kernel's together are less than a tenth of a grey level
BINS = 512  # of probability, in which the count of photons is looked up
EPSILON = 1e-3  # of a grey level: float32's rounding must not cost a whole one
FORK = ("frost", "snow", "fog", "glass_blur", "spatter")
LOCK = threading.Lock()  # the fork draws from NumPy's global generator


def corrupt(
    images: UInt8[Tensor, "B C H W"], kind: str, strength: int, keys: Integer[Tensor, "B"], seed: int
) -> UInt8[Tensor, "B C H W"]:
    """The images, corrupted on the CPU, on their own device. keys: one of 64 bits for each image, such as its number in
    the source: an image with the same key gets the same bytes in every batch.

    ValueError for an unknown kind, a strength that is not 1 to 5, images below 4 pixels, channels that a kind cannot
    have (saturate wants 3, jpeg 1 or 3, the fork's 1 or 3), and for the fork's kinds where it is not installed or the
    images are small, for which it has no constants.
    """
    check(kind, strength)
    _, channels, height, width = images.shape
    if min(height, width) < LEAST:
        raise ValueError(f"images of {height} x {width} pixels are too small to corrupt; {LEAST} is the least.")
    if kind not in suited(channels, (*OURS, *FORK)):
        raise ValueError(f"{kind} is not defined for {channels}-channel images; leave it out.")
    salt, small = corruption_key(zlib.crc32(f"{kind} {strength}".encode()), seed), min(height, width) <= SMALL
    numbers = [int(key) % 2**64 for key in keys.tolist()]
    pixels, parts = images.cpu(), []
    if kind in FORK:
        if small:
            raise ValueError(f"{kind} has constants for photographs alone; these images are {height} x {width} pixels.")
        return _by_fork(pixels, kind, strength, [philox(key, salt) for key in numbers]).to(images.device)
    function, *constants = OURS[kind]
    value = constants[0 if small else 1][strength - 1]
    step = max(1, CACHED // pixels[0].numel())
    for start in range(0, len(pixels), step):
        draws = [philox(key, salt) for key in numbers[start : start + step]]
        found = function(pixels[start : start + step], value, draws)
        parts.append(found if found.dtype == torch.uint8 else (found + EPSILON).clamp_(0, 255).to(torch.uint8))
    return torch.cat(parts).to(images.device)


def check(kind: str, strength: int) -> None:
    """ValueError for an unknown kind, and for a strength that is not 1, 2, 3, 4 or 5."""
    if kind not in OURS and kind not in FORK:
        raise ValueError(f"{kind!r} is not a corruption; there is {', '.join((*OURS, *FORK))}.")
    if strength not in range(1, 6):
        raise ValueError(f"the strength of {kind} is {strength}, but it must be 1, 2, 3, 4 or 5.")


def suited(channels: int, kinds: Iterable[str] = ()) -> tuple[str, ...]:
    """Those of the kinds that images with so many channels can have; without kinds, of all that need no extra."""
    wants = {"saturate": (3,), "jpeg": (1, 3), **dict.fromkeys(FORK, (1, 3))}
    return tuple(kind for kind in kinds or OURS if channels in wants.get(kind, (channels,)))


def _gaussian_noise(x: Tensor, c: float, draws: list[Generator]) -> Tensor:
    noise = np.stack([draw.standard_normal(x.shape[1:], np.float32) for draw in draws])
    return torch.from_numpy(noise).mul_(255 * c).add_(x)


def _shot_noise(x: Tensor, c: int, draws: list[Generator]) -> Tensor:
    """Photons that are counted, c of them for white: Poisson's distribution by inversion, from tables."""
    sums, guide = _poisson(c)
    levels = x.numpy().ravel().astype(np.int64)
    chance = np.concatenate([draw.random(x[0].numel(), np.float32) for draw in draws])
    cells = levels * (BINS + 1) + (chance * BINS).astype(np.int64)
    counts = guide[cells]
    unsure = np.flatnonzero(counts != guide[cells + 1])
    counts[unsure] = np.searchsorted(sums, levels[unsure] + chance[unsure], "right") - levels[unsure] * c
    return torch.from_numpy(counts).view(x.shape) * (255 / c)


@lru_cache(maxsize=10)
def _poisson(c: int) -> tuple[Float[np.ndarray, "n"], Integer[np.ndarray, "m"]]:
    """For each grey level l the probabilities p of at most 0, 1, ..., c - 1 photons, all in one ascending row as l + p;
    and how many of them are at most 0, 1 / BINS, ..., 1. More photons than c are white, too."""
    levels, counts = np.arange(256)[:, None], np.arange(c)
    logs = counts * np.log(np.maximum(levels * c / 255, 1e-300)) - levels * c / 255
    logs -= np.concatenate([[0], np.log(counts[1:]).cumsum()])
    sums = (levels + np.exp(logs).cumsum(1).clip(max=1 - 1e-12)).ravel()
    edges = levels + np.arange(BINS + 1) / BINS
    return sums, (np.searchsorted(sums, edges, "right") - levels * c).ravel().astype(np.int32)


def _impulse_noise(x: Tensor, c: float, draws: list[Generator]) -> Tensor:
    """Black or white, each with the probability c / 2, each channel by itself."""
    chance = torch.from_numpy(np.stack([draw.random(x.shape[1:], np.float32) for draw in draws]))
    return x.masked_fill(chance < c / 2, 0).masked_fill_(chance >= 1 - c / 2, 255)


def _defocus_blur(x: Tensor, c: tuple[float, float], _: list[Generator]) -> Tensor:
    """The mean over a disk whose edge is blurred, by FFT."""
    (radius, alias), (height, width) = c, x.shape[-2:]
    reach, edge = (8, 1) if radius <= 8 else (int(radius), 2)
    steps, smooth = torch.arange(-reach, reach + 1), _filter(2 * reach + 1, alias, edge, "reflect")
    disk = (steps**2 + steps[:, None] ** 2 <= radius**2).double()
    used = min(reach, int(radius) + edge)
    inside = slice(reach - used, reach + used + 1)
    kernel = (smooth @ (disk / disk.sum()) @ smooth.T)[inside, inside].float()
    padded = F.pad(x.float(), [used] * 4, mode="reflect")
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, s=padded.shape[-2:]).conj()
    return torch.fft.irfft2(spectrum, s=padded.shape[-2:])[..., :height, :width]


def _gaussian_blur(x: Tensor, c: float, _: list[Generator]) -> Tensor:
    down, across = (_filter(side, c, int(4 * c + 0.5), "edge") for side in x.shape[-2:])
    return down @ x.double() @ across.T


@lru_cache(maxsize=32)
def _filter(length: int, sigma: float, reach: int, border: Literal["edge", "reflect", "symmetric"]) -> Tensor:
    """The matrix, float64 (length, length), of a Gaussian filter; border as np.pad's mode."""
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    places, matrix = np.pad(np.arange(length), reach, mode=border), np.zeros((length, length))
    for start, weight in enumerate(weights / weights.sum()):
        matrix[np.arange(length), places[start : start + length]] += weight
    return torch.from_numpy(matrix)


def _motion_blur(x: Tensor, c: tuple[int, float], draws: list[Generator]) -> Tensor:
    """Half a Gaussian along a line, at an angle of -45 to 45 degrees."""
    (height, width), margin, sigma = x.shape[-2:], 2 * c[0], c[1]
    weights = np.exp(-0.5 * (np.arange(margin + 1) / sigma) ** 2)
    padded, out = F.pad(x.float(), [margin] * 4, mode="replicate"), torch.zeros(x.shape)
    for image, total, draw in zip(padded, out, draws, strict=True):
        angle = math.radians(draw.uniform(-45, 45))
        for i, weight in enumerate((weights / weights.sum()).tolist()):
            if weight > NEGLIGIBLE:
                top, left = margin + round(i * math.sin(angle)), margin + round(i * math.cos(angle))
                total.add_(image[:, top : top + height, left : left + width], alpha=weight)
    return out


def _zoom_blur(x: Tensor, c: tuple[float, float], _: list[Generator]) -> Tensor:
    """The mean over magnifications of 1, 1 + step, ... and once more the image itself."""
    (height, width), zooms, pixels = x.shape[-2:], np.arange(1, *c).tolist(), x.float()
    total = 2 * pixels
    for zoom in zooms[1:]:
        tall, wide = math.ceil(height / zoom), math.ceil(width / zoom)
        top, left = (height - tall) // 2, (width - wide) // 2
        size = round(tall * zoom), round(wide * zoom)
        seen = pixels[..., top : top + tall, left : left + wide]
        seen = F.interpolate(seen, size, mode="bilinear", align_corners=True)
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        total += seen[..., top : top + height, left : left + width]
    return total.div_(len(zooms) + 1)


def _brightness(x: Tensor, c: float, _: list[Generator]) -> Tensor:
    """The value of HSV, the largest channel, grows by c: the others keep their ratio to it, and black becomes grey."""
    value = x.amax(1, keepdim=True).float()
    more = (value + 255 * c).clamp_(max=255)
    return torch.where(value > 0, x * (more / value.clamp(min=1)), more)


def _contrast(x: Tensor, c: float, _: list[Generator]) -> Tensor:
    means = x.sum((2, 3), keepdim=True).double().div_(x.shape[2] * x.shape[3]).float()
    return (x - means).mul_(c).add_(means)


def _saturate(x: Tensor, c: tuple[float, float], _: list[Generator]) -> Tensor:
    """The saturation s of HSV becomes c[0] s + c[1]. Grey has no hue, and goes towards red, whose hue is 0."""
    value, least = x.amax(1, keepdim=True).float(), x.amin(1, keepdim=True).float()
    chroma = value - least
    saturation = (chroma / value.clamp(min=1)).mul_(c[0]).add_(c[1]).clamp_(0, 1)
    red = torch.tensor([0.0, 1, 1]).view(3, 1, 1)
    missing = torch.where(chroma > 0, (value - x) / chroma.clamp(min=1), red)
    return value - value * saturation * missing


def _pixelate(x: Tensor, c: float, _: list[Generator]) -> Tensor:
    height, width = x.shape[-2:]
    planes = [Image.fromarray(plane) for plane in x.reshape(-1, height, width).numpy()]
    planes = [plane.resize((int(width * c), int(height * c)), Image.Resampling.BOX) for plane in planes]
    found = [np.asarray(plane.resize((width, height), Image.Resampling.BOX)) for plane in planes]
    return torch.from_numpy(np.stack(found)).view(x.shape)


def _jpeg(x: Tensor, c: int, _: list[Generator]) -> Tensor:
    """Encoded by Pillow at the quality c, with half the rows and columns of colour, and decoded. (simplejpeg would
    encode in half the time, but other bits.)"""
    grey, parts = x.shape[1] == 1, []
    for image in x.permute(0, 2, 3, 1).contiguous().numpy():
        file = BytesIO()
        Image.fromarray(image[..., 0] if grey else image).save(file, "JPEG", quality=c)
        parts.append(simplejpeg.decode_jpeg(file.getvalue(), "GRAY" if grey else "RGB"))
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2)


def _elastic(x: Tensor, c: tuple[float, float, float], draws: list[Generator]) -> Tensor:
    """Three points move by up to c[2] of the shorter side, and the rest with them; then each pixel is seen c[0] of it
    away, times noise that is smooth over c[1] of it."""
    height, width = x.shape[-2:]
    alpha, sigma, shift = (part * min(height, width) for part in c)
    size, parts = torch.tensor([width, height]), []
    places = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1).double()
    points = size.numpy() // 2 + min(height, width) // 3 * np.array([[1, 1], [1, -1], [-1, -1]])
    for image, draw in zip(x.split(1), draws, strict=True):
        moved = np.column_stack((points + draw.uniform(-shift, shift, (3, 2)), np.ones(3)))
        back = torch.from_numpy(np.linalg.solve(moved, points))
        # Mirrored at the centres of the outermost pixels here, and at their edges below.
        grid = (places @ back[:2] + back[2]) * 2 / (size - 1) - 1
        seen = F.grid_sample(image.float(), grid.float()[None], "bilinear", "reflection", align_corners=True)
        if alpha:
            noise = torch.from_numpy(draw.uniform(-1, 1, (2, height, width)))
            down, across = (_filter(side, sigma, int(3 * sigma + 0.5), "symmetric") for side in (height, width))
            bend = alpha * down @ noise @ across.T
            grid = (2 * (places + bend.permute(1, 2, 0)) + 1) / size - 1
            seen = F.grid_sample(seen, grid.float()[None], "bilinear", "reflection", align_corners=False)
        parts.append(seen)
    return torch.cat(parts)


def _by_fork(x: Tensor, kind: str, strength: int, draws: list[Generator]) -> Tensor:
    try:
        from imagecorruptions import corrupt as theirs  # type: ignore[import-not-found]
    except ImportError:
        extra = "pip install 'vitrail[corruptions]'"
        raise ValueError(f"{kind} needs imagecorruptions-imaug, which is not installed: {extra}.") from None
    parts, mode = [], "L" if x.shape[1] == 1 else "RGB"
    for image, draw in zip(x.permute(0, 2, 3, 1).contiguous().numpy(), draws, strict=True):
        word = int(draw.integers(2**32))
        with LOCK:
            before = np.random.get_state()
            np.random.seed(word)
            try:  # numba, which shuffles the pixels of glass_blur, has a generator of its own
                more = {"seed": word} if kind == "glass_blur" else {}
                found = theirs(image, severity=strength, corruption_name=kind, **more)
            finally:
                np.random.set_state(before)
        parts.append(np.array(Image.fromarray(found).convert(mode)).reshape(image.shape))
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).contiguous()


# kind -> (function, its constants for small images, and for photographs, of the strengths 1 to 5)
OURS: dict[str, tuple[Callable[[Tensor, Any, list[Generator]], Tensor], tuple[Any, ...], tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
                     ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5))),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)),
    "motion_blur": (_motion_blur, ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
                    ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0))),
    "zoom_blur": (_zoom_blur, ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
                  ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": (_saturate, ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
                 ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    # Of the shorter side. For photographs they are fractions of 244 pixels, where images have 224.
    "elastic": (_elastic,
                ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
                tuple(tuple(part * 244 / 224 for part in parts) for parts in (
                    (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)))),
}  # fmt: skip
