"""Augmentation: how training images are cropped, mirrored, recoloured, erased and mixed.

    how = Augment(crop="inception", randaugment=2, magnitude=15.0, mixup=0.5)    # AugReg's "medium2"
    view, paint = draw((3024, 4032), how, preprocessing, key)       # from the header alone
    pixels = paint(view.apply(image.decode(view.crop)))             # uint8 (h, w, C)

Every random choice is a function of the sample's 64-bit key (order.py), drawn in one order: the mirror's and the
eraser's coins, the crop, then what Pillow does (randaugment.py), then the erased rectangle. What concerns two images,
Mixup and CutMix, is described here and done on the device (mixing.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.random import Generator, Philox
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from vitrail.data.images.geometry import Crop, Misfit, Size, View, centred, mean_colour, overlap
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.images.randaugment import jitter, randaugment, three_augment
from vitrail.data.order import AUGMENT_SALT

CropKind = Literal["none", "inception", "simple", "shift"]

REFLECTED = 4  # pixels that DeiT III's simple crop may reach beyond an image's border
# Random erasing as in timm, after Zhong et al. (arXiv 1708.04896): its fraction of the area, its width / height.
ERASED, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
RANGES = {
    "flip": (0, 1), "colour": (0, 1), "randaugment": (0, 16), "magnitude": (0, 30),
    "erase": (0, 1), "mixup": (0, 100), "cutmix": (0, 100), "mix": (0, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Augment:
    """What is done to training images. ValueError for a value out of its range."""

    crop: CropKind = "none"
    """none: as in evaluation (geometry.centred). inception: a random part of the image, resized to the model's size
    (Szegedy et al., arXiv 1409.4842). simple: the shorter side to the model's size, then a random part of that size,
    which may reach 4 pixels beyond the border, into its reflection (DeiT III, arXiv 2204.07118). shift: as in
    evaluation, then moved by up to `shift` pixels each way; the mean colour moves in, which is zero to the model (as He
    et al. pad CIFAR, arXiv 1512.03385)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Of inception: the fraction of the image's area, uniform; big_vision's recipes use (0.05, 1)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Of inception: width / height, log-uniform."""
    shift: int = 0
    """Of shift: pixels."""
    flip: float = 0.5
    """The probability of a horizontal flip."""
    colour: float = 0.0
    """How far brightness, contrast and saturation may go from 1, up and down; DeiT III's 0.3."""
    randaugment: int = 0
    """RandAugment's number of operations; 0 is none."""
    magnitude: float = 10.0
    """RandAugment's strength, 0 to 30, on big_vision's scale (10 is no maximum: AugReg uses 15 and 20); randaugment.py
    says what it means for each operation. timm's "rand-m9-inc1" is another scale, on which more is always stronger."""
    three_augment: bool = False
    """Whether each image becomes grey, solarised or blurred (DeiT III)."""
    erase: float = 0.0
    """The probability that a rectangle of 2 to 33 % of the area becomes noise (Zhong et al., arXiv 1708.04896)."""
    mixup: float = 0.0
    """Mixup's alpha: two images are blended by Beta(alpha, alpha) (Zhang et al., arXiv 1710.09412); 0 is none."""
    cutmix: float = 0.0
    """CutMix's alpha: one image holds a rectangle of another (Yun et al., arXiv 1905.04899); 0 is none. Where Mixup is
    on, too, each has half of the pairs."""
    mix: float = 1.0
    """The probability that a pair is mixed at all."""

    def __post_init__(self) -> None:
        if self.crop not in get_args(CropKind):
            raise ValueError(f"crop is {self.crop!r}; choose one of {', '.join(get_args(CropKind))}.")
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from {low} to {high}.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}; it must be two fractions above 0, the smaller first.")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(f"ratio is {self.ratio}; it must be two ratios above 0, the smaller first.")
        if self.shift < 0 or (self.shift > 0) != (self.crop == "shift"):
            raise ValueError(f"shift is {self.shift} and crop is {self.crop!r}; 1 or more belongs to 'shift' alone.")


def draw(
    stored: Size, how: Augment, to: Preprocessing, key: int, size: Size | None = None
) -> tuple[View, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]]:
    """What the key shows of an image of (height, width) `stored`, and what it then does to the pixels.

    key: of 64 bits. size: of the original, where it was larger. Where the image has less than four times the model's
    pixels on a side, the view's crop is, with every key, as it is in the whole image, and whoever keeps decoded images
    may keep the whole. Misfit where a shift would leave nothing of the image, or its channels cannot be recoloured.
    """
    generator = philox(key, AUGMENT_SALT)
    mirrored, erased = generator.random(2).tolist()
    view = _view(stored, size or stored, how, to, generator)

    def paint(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if how.randaugment or how.three_augment or how.colour:
            pixels = _painted(pixels, how, to, generator)
        if erased < how.erase:
            pixels = pixels.copy(order="K")  # they may be the data set's own
            _erase(pixels, generator)
        return pixels

    return (view._replace(mirror=True) if mirrored < how.flip else view), paint


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


def _view(stored: Size, size: Size, how: Augment, to: Preprocessing, generator: Generator) -> View:
    large = min(size[0] // to.image_size[0], size[1] // to.image_size[1]) >= 4
    if how.crop == "inception":
        box = _rectangle(size, how.scale, how.ratio, generator) or _central(size, how.ratio)
        crop = Crop(*box, to.image_size if large else None).within(stored, size)
        # The crop begins and ends between pixels that are stored, so that is what is seen.
        y, x = size[0] / stored[0], size[1] / stored[1]
        seen = crop.top * y, crop.left * x, crop.height * y, crop.width * x
        whole = (0, 0, *to.image_size)
        return View(size, to.image_size, to.image_size, seen, (0, 0), whole, (), to.interpolation, "torch", crop)
    if how.crop == "simple":
        return _simple(size, to, generator, shrinks=large and stored == size)
    view = centred(stored, to, size)
    return _shifted(view, how.shift, generator) if how.crop == "shift" else view


def _rectangle(
    size: tuple[int, ...], scale: tuple[float, float], ratio: tuple[float, float], generator: Generator
) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) in an image of `size`, in at most ten attempts, as torchvision and timm draw it."""
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


def _simple(size: Size, to: Preprocessing, generator: Generator, shrinks: bool) -> View:
    """DeiT III's simple random crop; only what it shows is resized."""
    (height, width), (rows, columns) = size, to.image_size
    # Where the image just covers the model's; torchvision rounds down, too.
    upright = rows * width >= columns * height
    tall, wide = scaled = (rows, rows * width // height) if upright else (columns * height // width, columns)
    reach = min(REFLECTED, rows - 1, columns - 1)
    down, across = generator.random(2).tolist()
    window = int(down * (tall - rows + 2 * reach + 1)) - reach, int(across * (wide - columns + 2 * reach + 1)) - reach
    inside, crop = overlap(window, scaled, to.image_size), Crop(0, 0, *size, scaled) if shrinks else None
    seen = (0, 0, *size)
    return View(size, to.image_size, scaled, seen, window, inside, "reflect", to.interpolation, "pillow part", crop)


def _shifted(view: View, most: int, generator: Generator) -> View:
    height, width = view.output
    if most >= min(height, width):
        raise Misfit(f"shift is {most} pixels and an image is {height} x {width}; choose less than its sides.")
    down, across = (int(draw * (2 * most + 1)) - most for draw in generator.random(2).tolist())
    moved = zip(view.inside, (down, across) * 2, (height, width) * 2, strict=True)
    top, left, bottom, right = (min(max(0, side + by), end) for side, by, end in moved)
    return view._replace(window=(view.window[0] - down, view.window[1] - across), inside=(top, left, bottom, right))


def _painted(image: NDArray[np.uint8], how: Augment, to: Preprocessing, generator: Generator) -> NDArray[np.uint8]:
    """What Pillow does to grey and RGB images."""
    if image.shape[2] not in (1, 3):
        raise Misfit(f"an image has {image.shape[2]} channels; only grey and RGB ones can be recoloured.")
    seen = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
    if how.randaugment:
        seen = randaugment(seen, how.randaugment, how.magnitude, mean_colour(to.mean), generator)
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
