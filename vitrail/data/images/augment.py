"""What is done to training images: where they are cropped, mirrored, recoloured, erased, and how they are mixed.

    how = Augment(crop="inception", randaugment=2, magnitude=15.0, mixup=0.5)    # AugReg's "medium2"
    augment(image, how, preprocessing, key)      # uint8 (H, W, C) of any size -> uint8 (h, w, C), the model's size
    part_seen((3024, 4032), how, preprocessing, key)    # which part of a large image that needs, before it is decoded

Every random choice is a function of the sample's 64-bit key (order.py), drawn in one order: the mirror's and the
eraser's coins, the crop, then what Pillow does (randaugment.py), then the erased rectangle. What concerns two images,
Mixup and CutMix, is described here and done on the device (tasks/mixup.py).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from numpy.random import Generator, Philox
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from vitrail.data.images.decode import Part
from vitrail.data.images.preprocessing import Preprocessing, prepare
from vitrail.data.images.randaugment import jitter, randaugment, three_augment

Crop = Literal["none", "inception", "simple", "shift"]

# Beside order.py's salts, the next digits of pi: one key, another stream of random numbers.
AUGMENT_SALT = 0x082EFA98EC4E6C89
REFLECTED = 4  # pixels that DeiT III's simple crop may reach beyond an image's border
# Random erasing as in timm, after Zhong et al. (arXiv 1708.04896): its share of the area, its width / height.
ERASED, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
LITTLE, BIG = ({size: np.dtype(f"{order}u{size}") for size in (1, 2, 4, 8)} for order in "<>")
WORDY = 2**12  # bytes of an image from which on it is mirrored by words
RANGES = {
    "flip": (0, 1),
    "colour": (0, 1),
    "randaugment": (0, 16),
    "magnitude": (0, 30),
    "erase": (0, 1),
    "mixup": (0, 100),
    "cutmix": (0, 100),
    "mix": (0, 1),
}


@dataclass(frozen=True)
class Augment:
    """What is done to training images. ValueError for a value out of its range."""

    crop: Crop = "none"
    """none: as evaluation does (transforms.prepare). inception: a random part of the image, resized to the model's size
    (Szegedy et al., arXiv 1409.4842). simple: the shorter side to the model's size, then a random part of that size,
    which may reach 4 pixels beyond the border, into its reflection (DeiT III, arXiv 2204.07118). shift: as evaluation
    does, then moved by up to `shift` pixels each way; the mean colour moves in, which is zero to the model (as He et
    al. pad CIFAR, arXiv 1512.03385)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Of inception: the share of the image's area, drawn evenly; big_vision's recipes use (0.05, 1)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Of inception: width / height, its logarithm drawn evenly."""
    shift: int = 0
    """Of shift: pixels."""
    flip: float = 0.5
    """The probability that left and right are mirrored."""
    colour: float = 0.0
    """How far brightness, contrast and saturation may go from 1, up and down; DeiT III's 0.3."""
    randaugment: int = 0
    """RandAugment's number of operations; 0 is none."""
    magnitude: float = 10.0
    """RandAugment's strength, 0 to 30, on big_vision's scale (10 is no maximum: AugReg uses 15 and 20); randaugment.py
    says what it means to each operation. timm's "rand-m9-inc1" is another scale, on which more is always stronger."""
    three_augment: bool = False
    """Whether each image becomes grey, solarised or blurred (DeiT III)."""
    erase: float = 0.0
    """The probability that a rectangle of 2 to 33 % of the area becomes even noise (Zhong et al., arXiv 1708.04896)."""
    mixup: float = 0.0
    """Mixup's alpha: images share a pixel by Beta(alpha, alpha) (Zhang et al., arXiv 1710.09412); 0 is none."""
    cutmix: float = 0.0
    """CutMix's alpha: one image holds a rectangle of another (Yun et al., arXiv 1905.04899); 0 is none. Where Mixup is
    on, too, each has half of the pairs."""
    mix: float = 1.0
    """The probability that a pair is mixed at all."""

    def __post_init__(self) -> None:
        if self.crop not in get_args(Crop):
            raise ValueError(f"crop is {self.crop!r}; choose one of {', '.join(get_args(Crop))}.")
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from {low} to {high}.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; it must be two shares of the area, the smaller first, above 0.")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio is {self.ratio}; it must be two ratios of the sides, the smaller first, above 0.")
        if self.shift < 0 or (self.shift > 0) != (self.crop == "shift"):
            raise ValueError(f"shift is {self.shift} and crop is {self.crop!r}; 1 or more belongs to 'shift' alone.")


def augment(
    image: UInt8[np.ndarray, "H W C"],
    how: Augment,
    to: Preprocessing,
    key: int,
    whole: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "h w C"]:
    """One training image at to.image_size (a native one that is not cropped keeps its size), in memory of its own.

    There each channel may be a plane, as torch leaves it and a batch wants it: turning it takes as long as resizing.
    key: of 64 bits. whole: the size of the image of which `image` is what `part_seen` says; None: it is whole itself.
    ValueError where the image's channels are not those of the preprocessing, are neither 1 nor 3 and shall be
    recoloured, or where a shift would leave nothing of it.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != len(to.mean) or not image.size:
        raise ValueError(f"an image is {image.dtype} {image.shape}; it must be uint8 (height, width, {len(to.mean)}).")
    generator = philox(key, AUGMENT_SALT)
    mirrored, erased = generator.random(2).tolist()
    pixels = _cropped(image, how, to, generator, whole or (image.shape[0], image.shape[1]))
    if mirrored < how.flip:
        pixels = _mirrored(pixels)
    if how.randaugment or how.three_augment or how.colour:
        pixels = _painted(pixels, how, to, generator)
    if pixels is image or not pixels.flags.writeable:
        pixels = pixels.copy()
    if erased < how.erase:
        _erase(pixels, generator)
    return pixels


def part_seen(size: tuple[int, int], how: Augment, to: Preprocessing, key: int) -> Part | None:
    """The part of an image of (height, width) that `augment` will look at, for a decoder that can save work; None for
    all of it. Where the image has less than four times the model's pixels on a side, whatever the key, it is a part as
    it is in the whole image, and whoever keeps decoded images may keep the whole."""
    (height, width), (rows, columns) = size, to.image_size
    large = min(height // rows, width // columns) >= 4
    if how.crop == "simple" and large:
        return Part(0, 0, height, width, _covering(size, to))
    if how.crop != "inception":
        return None
    generator = philox(key, AUGMENT_SALT)
    generator.random(2)  # the coins of `augment`, which come first
    return Part(*_inception(size, how, generator), to.image_size if large else None)


class _Key(ISeedSequence):
    """Philox's key, as it is. `Philox(key=...)` gives the same numbers, but asks the operating system for entropy
    first, which takes as long as all that is done to a small image."""

    def __init__(self, words: NDArray[np.uint64]) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: DTypeLike = np.uint64) -> NDArray[np.uint64]:
        return self._words


def philox(key: int, salt: int) -> Generator:
    """The random numbers of a 64-bit key; another salt gives others."""
    return Generator(Philox(_Key(np.array([key, salt], np.uint64))))  # type: ignore[arg-type]  # NumPy's stub is too narrow


def _cropped(
    image: NDArray[np.uint8], how: Augment, to: Preprocessing, generator: Generator, whole: tuple[int, int]
) -> NDArray[np.uint8]:
    if how.crop == "inception":
        box = _inception(whole, how, generator)
        return _resize(Part(*box, to.image_size).of(image) if image.shape[:2] == whole else image, to)
    if how.crop == "simple":
        return _simple(image, to, generator, whole)
    fits = to.resize == "native" or (image.shape[:2] == to.image_size and to.crop_fraction == 1)
    pixels = image if fits else prepare(image, to).permute(1, 2, 0).numpy()
    return _shifted(pixels, how.shift, to, generator) if how.crop == "shift" else pixels


def _inception(size: tuple[int, int], how: Augment, generator: Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the random crop."""
    return _rectangle(size, how.scale, how.ratio, generator) or _central(size, how.ratio)


def _rectangle(
    size: tuple[int, ...], scale: tuple[float, float], ratio: tuple[float, float], generator: Generator
) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) in an image of `size`, in at most ten attempts, as torchvision and timm draw them."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area, shape, down, across = generator.random(4).tolist()
        area = size[0] * size[1] * (scale[0] + (scale[1] - scale[0]) * area)
        shape = math.exp(low + (high - low) * shape)
        height, width = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < height <= size[0] and 0 < width <= size[1]:
            return int(down * (size[0] - height + 1)), int(across * (size[1] - width + 1)), height, width
    return None


def _central(size: tuple[int, ...], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest part in the middle whose ratio is allowed: what torchvision takes after ten attempts."""
    height = min(size[0], max(1, round(size[1] / ratio[0])))
    width = min(size[1], max(1, round(size[0] * ratio[1])))
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width


def _covering(size: tuple[int, int], to: Preprocessing) -> tuple[int, int]:
    """(height, width) of a whole image where it just covers the model's; torchvision rounds down, too."""
    (height, width), (rows, columns) = size, to.image_size
    upright = rows * width >= columns * height
    return (rows, rows * width // height) if upright else (columns * height // width, columns)


def _simple(
    image: NDArray[np.uint8], to: Preprocessing, generator: Generator, whole: tuple[int, int]
) -> NDArray[np.uint8]:
    """DeiT III's simple random crop; only what it shows is resized, by Pillow, which knows parts of pixels."""
    (height, width), (rows, columns) = image.shape[:2], to.image_size
    tall, wide = _covering(whole, to)
    reach = min(REFLECTED, rows - 1, columns - 1)
    down, across = generator.random(2).tolist()
    top = int(down * (tall - rows + 2 * reach + 1)) - reach
    left = int(across * (wide - columns + 2 * reach + 1)) - reach
    upper, lower = max(top, 0), min(top + rows, tall)
    first, last = max(left, 0), min(left + columns, wide)
    box = first * width / wide, upper * height / tall, last * width / wide, lower * height / tall
    parts = [image] if image.shape[2] == 3 else [image[..., c] for c in range(image.shape[2])]
    filter, size = Image.Resampling[to.interpolation.upper()], (last - first, lower - upper)
    done = [np.asarray(Image.fromarray(part).resize(size, filter, box)) for part in parts]
    seen = done[0] if image.shape[2] == 3 else np.stack(done, -1)
    beyond = (upper - top, top + rows - lower), (first - left, left + columns - last), (0, 0)
    return np.pad(seen, beyond, "reflect")


def _resize(image: NDArray[np.uint8], to: Preprocessing) -> NDArray[np.uint8]:
    """An image at the model's size by torch, whose vector code takes a quarter of Pillow's time for the same numbers
    (0.01 grey levels apart on average, and by more only where bicubic overshoots black or white). Its channels are
    planes."""
    pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)[None]
    return F.interpolate(pixels, to.image_size, mode=to.interpolation, antialias=True)[0].permute(1, 2, 0).numpy()


def _shifted(image: NDArray[np.uint8], most: int, to: Preprocessing, generator: Generator) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    if most >= min(height, width):
        raise ValueError(f"shift is {most} pixels and an image is {height} x {width}; choose less than its sides.")
    down, across = (int(draw * (2 * most + 1)) - most for draw in generator.random(2).tolist())
    out = np.empty_like(image)
    out[:] = _mean_pixel(to.mean)
    kept = image[max(0, -down) : height - max(0, down), max(0, -across) : width - max(0, across)]
    out[max(0, down) : height + min(0, down), max(0, across) : width + min(0, across)] = kept
    return out


def _mean_colour(mean: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(min(255, max(0, round(255 * value))) for value in mean)


@lru_cache(maxsize=16)
def _mean_pixel(mean: tuple[float, ...]) -> NDArray[np.uint8]:
    """Kept: making it takes as long as filling an image of CIFAR with it."""
    return np.array(_mean_colour(mean), np.uint8)


def _mirrored(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """With channels that are planes."""
    height, width, channels = image.shape
    out = np.empty((channels, height, width), np.uint8)
    if image.strides[1] == 1 and image.size >= WORDY:
        # Words of 8 bytes in the opposite order, each with its bytes reversed: half the time of single bytes.
        word = math.gcd(width, 8)
        out.view(BIG[word])[:] = image.transpose(2, 0, 1).view(LITTLE[word])[..., ::-1]
    else:
        for channel, plane in enumerate(out):  # all channels at once would be an inner loop of three bytes
            plane[:] = image[:, ::-1, channel]
    return out.transpose(1, 2, 0)


def _painted(image: NDArray[np.uint8], how: Augment, to: Preprocessing, generator: Generator) -> NDArray[np.uint8]:
    """What Pillow does to grey and RGB images."""
    if image.shape[2] not in (1, 3):
        raise ValueError(f"an image has {image.shape[2]} channels; only grey and RGB ones can be recoloured.")
    seen = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    if how.randaugment:
        seen = randaugment(seen, how.randaugment, how.magnitude, _mean_colour(to.mean), generator)
    if how.three_augment:
        seen = three_augment(seen, generator)
    if how.colour:
        seen = jitter(seen, how.colour, generator)
    return np.asarray(seen).reshape(image.shape)


def _erase(image: NDArray[np.uint8], generator: Generator) -> None:
    """Writes noise into a rectangle of the image."""
    found = _rectangle(image.shape[:2], ERASED, ERASED_RATIO, generator)
    if found is not None:
        top, left, height, width = found
        noise = generator.integers(0, 256, (height, width, image.shape[2]), np.uint8)
        image[top : top + height, left : left + width] = noise
