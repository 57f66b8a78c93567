"""RandAugment, 3-Augment and colour jitter: what Pillow does to a training image of mode "RGB" or "L".

    randaugment(image, 2, 15.0, (124, 116, 104), generator)     # two of the fifteen operations, at magnitude 15

RandAugment (Cubuk et al., arXiv 1909.13719) has the operations and the scale of Google's big_vision (and of AugReg,
"How to train your ViT?"), all but Cutout, which is random erasing. With m for magnitude / 10:

    autocontrast, equalize, invert          always the same
    rotate                                  30 m degrees, either way
    shear-x, shear-y                        0.3 m, either way
    translate-x, translate-y                100 m / 224 of the side, either way: big_vision's 100 m pixels of 224
    color, contrast, brightness, sharpness  by 0.1 + 1.8 m, of which 1 changes nothing
    posterize                               int(4 m) bits are kept, from 1 (none would be black) to 8
    solarize                                inverted from int(256 m) on, so nothing from m = 1 on
    solarize-add                            int(110 m) is added to what lies below 128

So a larger magnitude is not stronger in each of them, as it is in timm's "inc1" policies. Two things differ from
big_vision: contrast scales about the image's mean, which an error there makes a constant, and what moves in has the
mean colour. Moved pixels are sampled by nearest neighbour, as in Google's code and torchvision.
"""

import math
from collections.abc import Callable

from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

# (m, image) -> image
RECOLOURINGS: dict[str, Callable[[float, Image.Image], Image.Image]] = {
    "autocontrast": lambda m, image: ImageOps.autocontrast(image),
    "equalize": lambda m, image: ImageOps.equalize(image),
    "invert": lambda m, image: ImageOps.invert(image),
    "posterize": lambda m, image: ImageOps.posterize(image, min(8, max(1, int(4 * m)))),
    "solarize": lambda m, image: ImageOps.solarize(image, int(256 * m)),
    "solarize-add": lambda m, image: _solarize_add(image, int(110 * m)),
    "color": lambda m, image: ImageEnhance.Color(image).enhance(0.1 + 1.8 * m),
    "contrast": lambda m, image: ImageEnhance.Contrast(image).enhance(0.1 + 1.8 * m),
    "brightness": lambda m, image: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * m),
    "sharpness": lambda m, image: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * m),
}
# (m with its sign, width, height) -> (a, b, c, d, e, f): what is seen at (x, y) was at (ax + by + c, dx + ey + f)
MOVES: dict[str, Callable[[float, int, int], tuple[float, ...]]] = {
    "rotate": lambda m, width, height: _rotation(math.radians(30 * m), width / 2, height / 2),
    "shear-x": lambda m, width, height: (1, 0.3 * m, 0, 0, 1, 0),
    "shear-y": lambda m, width, height: (1, 0, 0, 0.3 * m, 1, 0),
    "translate-x": lambda m, width, height: (1, 0, width * m * 100 / 224, 0, 1, 0),
    "translate-y": lambda m, width, height: (1, 0, 0, 0, 1, height * m * 100 / 224),
}
OPERATIONS = (*RECOLOURINGS, *MOVES)


def randaugment(
    image: Image.Image, count: int, magnitude: float, fill: tuple[int, ...], generator: Generator
) -> Image.Image:
    """`count` operations, each drawn from all, at one magnitude, with a random sign. fill: the colour of what was
    outside the image."""
    for choice, way in generator.random((count, 2)).tolist():
        m = magnitude / 10 if way < 0.5 else -magnitude / 10
        image = operate(OPERATIONS[int(choice * len(OPERATIONS))], image, m, fill)
    return image


def operate(name: str, image: Image.Image, m: float, fill: tuple[int, ...]) -> Image.Image:
    """One operation; m: magnitude / 10, whose sign is the direction of a move."""
    if name in RECOLOURINGS:
        return RECOLOURINGS[name](abs(m), image)
    colour = fill if image.mode == "RGB" else fill[0]
    return image.transform(image.size, Image.Transform.AFFINE, MOVES[name](m, *image.size), fillcolor=colour)


def three_augment(image: Image.Image, generator: Generator) -> Image.Image:
    """Grey, solarised from 128 on, or blurred with a radius of 0.1 to 2 pixels (DeiT III, arXiv 2204.07118)."""
    choice, radius = generator.random(2).tolist()
    if choice < 1 / 3:
        return image.convert("L").convert(image.mode)
    if choice < 2 / 3:
        return ImageOps.solarize(image, 128)
    return image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * radius))


def jitter(image: Image.Image, strength: float, generator: Generator) -> Image.Image:
    """Brightness, contrast and saturation, in a random order, each by a factor of 1 - strength to 1 + strength."""
    changes = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    draws = generator.random((3, 2)).tolist()
    for place, draw in sorted(enumerate(draws), key=lambda pair: pair[1][1]):
        image = changes[place](image).enhance(1 + strength * (2 * draw[0] - 1))
    return image


def _solarize_add(image: Image.Image, more: int) -> Image.Image:
    table = [min(255, value + more) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _rotation(angle: float, x: float, y: float) -> tuple[float, ...]:
    """About (x, y), by radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    return cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y
