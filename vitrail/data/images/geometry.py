"""A View: what a model sees of an image, drawn once, and applied alike to pixels, boxes and masks.

view = centred((375, 500), preprocessing)       # evaluation's; augment.py draws training's
pixels = image.decode(view.crop)                # uint8 (H, W, C): only what is seen needs decoding
view.apply(pixels)                              # uint8 (h, w, C), as the model reads it
view.boxes(boxes)                               # (n, 4) of the original -> of what the model reads
view.original(boxes)                            # and back
view.mask(mask)                                 # (H, W) of the original -> (h, w)
"""

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, Shaped, UInt8
from numpy.typing import NDArray
from PIL import Image

from vitrail.data.images.preprocessing import Interpolation, Preprocessing

Size = tuple[int, int]  # (height, width)
Sides = tuple[int, int, int, int]  # (top, left, bottom, right)
Four = tuple[float, float, float, float]

LARGEST = 2**27  # pixels of a resized image: only lines, thousands of times longer than wide, become larger
IGNORED = 255  # the class of a mask's pixels that show nothing of the image


class Misfit(ValueError):
    """Image and run do not fit each other; the message does not name the image, which is not known here."""


class Crop(NamedTuple):
    """A rectangle of an image, in pixels. wanted: the (height, width) to which it will be resized; None where its
    pixels are wanted as they are in the whole image."""

    top: int
    left: int
    height: int
    width: int
    wanted: Size | None = None

    @property
    def shrink(self) -> int:
        """By how much a JPEG may be smaller on each side: 1, 2, 4 or 8. Twice the pixels that are wanted each way are
        left, so that the rectangle's place is right to a quarter of one of them, and the rest is antialiased."""
        if self.wanted is None:
            return 1
        room = min(self.height // (2 * self.wanted[0]), self.width // (2 * self.wanted[1]))
        return max(s for s in (1, 2, 4, 8) if s <= max(room, 1))

    def of(self, image: NDArray[np.uint8], shrunk: int = 1) -> NDArray[np.uint8]:
        """The rectangle of the whole image, which is 1 / `shrunk` as large as the rectangle's numbers mean."""
        sides = (self.top, self.left, self.top + self.height, self.left + self.width)
        top, left, bottom, right = (round(side / shrunk) for side in sides)
        return image[top : max(bottom, top + 1), left : max(right, left + 1)]

    def within(self, stored: Size, size: Size) -> "Crop":
        """The same rectangle, to the nearest pixel, of an image that is stored at `stored` instead of `size`."""
        if stored == size:
            return self
        tall, wide = stored[0] / size[0], stored[1] / size[1]
        top, left = min(round(self.top * tall), stored[0] - 1), min(round(self.left * wide), stored[1] - 1)
        bottom, right = round((self.top + self.height) * tall), round((self.left + self.width) * wide)
        return Crop(top, left, max(bottom - top, 1), max(right - left, 1))


class View(NamedTuple):
    """The rectangle `seen` of the original is resized to `scaled`, of which `output` shows a window.

    size: (height, width) of the original. seen: (top, left, height, width) in its pixels. window: (top, left) of the
    output in the resized rectangle; it may reach beyond. inside: the part of the output that shows the image. border:
    what the rest shows, a colour or the image's reflection. method: Pillow resizes all of it, as timm does, or only the
    part that is shown; torch all, faster. crop: what is to be decoded of the stored image; None is all. mirror: whether
    left and right are exchanged, last of all."""

    size: Size
    output: Size
    scaled: Size
    seen: Four
    window: tuple[int, int]
    inside: Sides
    border: tuple[int, ...] | Literal["reflect"]
    interpolation: Interpolation
    method: Literal["pillow", "pillow part", "torch"] = "pillow"
    crop: Crop | None = None
    mirror: bool = False

    def apply(self, pixels: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "h w C"]:
        """What the model sees of the decoded pixels, which show `crop`; each channel may be a plane, as torch leaves
        it. Where nothing has to be done, these are the pixels themselves."""
        top, left, bottom, right = self.inside
        y, x, rows, columns = self.window[0] + top, self.window[1] + left, bottom - top, right - left
        if self.method == "pillow part":  # it can begin and end within a pixel
            (tall, wide), (height, width) = self.scaled, pixels.shape[:2]
            box = x * width / wide, y * height / tall, (x + columns) * width / wide, (y + rows) * height / tall
            shown = resample(pixels, (rows, columns), self.interpolation, box)
        else:
            if self.method == "torch":
                pixels = resize(pixels, self.scaled, self.interpolation)
            elif pixels.shape[:2] != self.scaled:
                pixels = resample(pixels, self.scaled, self.interpolation)
            shown = pixels[y : y + rows, x : x + columns]
        if shown.shape[:2] != self.output:
            shown = self._framed(shown, self.border)
        return mirrored(shown) if self.mirror else shown

    def boxes(self, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """(left, top, right, bottom) in pixels of the original as they are in the output; they may reach beyond it."""
        scale, shift = self._affine()
        found = boxes * scale + shift
        return found[:, [2, 1, 0, 3]] if self.mirror else found

    def original(self, boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
        """The inverse of `boxes`."""
        scale, shift = self._affine()
        return ((boxes[:, [2, 1, 0, 3]] if self.mirror else boxes) - shift) / scale

    def mask(self, mask: Integer[np.ndarray, "H W"], ignored: int = IGNORED) -> Integer[np.ndarray, "h w"]:
        """The class of each pixel of the output: that of the nearest pixel of the original, `ignored` in a coloured
        border. ValueError where the mask is not as large as the original."""
        if mask.shape != self.size:
            raise ValueError(f"a mask is {mask.shape}, but its image is {self.size}; they must be equal.")

        def nearest(axis: int) -> NDArray[np.int64]:
            """Which row, or column, of the original is shown in each of those inside."""
            places = np.arange(self.inside[axis], self.inside[axis + 2]) + (self.window[axis] + 0.5)
            found = places * (self.seen[axis + 2] / self.scaled[axis]) + self.seen[axis]
            return found.astype(np.int64).clip(0, self.size[axis] - 1)

        shown = self._framed(mask[nearest(0)[:, None], nearest(1)], ignored)
        return np.ascontiguousarray(shown[:, ::-1]) if self.mirror else shown

    def _affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(scale, shift) of x, y, x, y."""
        (top, left, height, width), (tall, wide) = self.seen, self.scaled
        x, y = wide / width, tall / height
        shift = [-left * x - self.window[1], -top * y - self.window[0]]
        if self.mirror:
            x, shift[0] = -x, self.output[1] - shift[0]
        return np.array([x, y, x, y]), np.array(shift * 2)

    def _framed(self, shown: Shaped[np.ndarray, "r c ..."], fill: object) -> Shaped[np.ndarray, "h w ..."]:
        """What is inside, in its place in the output, with the reflection or `fill` around it."""
        (top, left, bottom, right), (height, width) = self.inside, self.output
        if self.border == "reflect":
            beyond = (top, height - bottom), (left, width - right), (0, 0)
            return np.pad(shown, beyond[: shown.ndim], "reflect")
        canvas = np.empty((height, width, *shown.shape[2:]), shown.dtype)
        canvas[:] = np.array(fill, shown.dtype)  # or NumPy would cast it for every pixel
        canvas[top:bottom, left:right] = shown
        return canvas


def centred(stored: Size, how: Preprocessing, size: Size | None = None) -> View:
    """What evaluation sees of an image of (height, width) `stored`, whose original was of `size`: timm's transforms.
    Misfit where it would become too large."""
    native = how.resize == "native"
    scaled, output = (stored, stored) if native else (_scaled(stored, how), how.image_size)
    if scaled[0] * scaled[1] > LARGEST:
        sides = f"{stored[0]} x {stored[1]} would become {scaled[0]} x {scaled[1]}"
        raise Misfit(f"an image of {sides}; cut it into less extreme shapes.")
    window = _middle(scaled[0], output[0]), _middle(scaled[1], output[1])
    inside = overlap(window, scaled, output)
    size = size or stored
    return View(size, output, scaled, (0, 0, *size), window, inside, mean_colour(how.mean), how.interpolation)


def overlap(window: tuple[int, int], scaled: Size, output: Size) -> Sides:
    """The part of an output at (top, left) `window` that lies on the resized image."""
    top, left = window
    return max(0, -top), max(0, -left), min(output[0], scaled[0] - top), min(output[1], scaled[1] - left)


def _middle(scaled: int, output: int) -> int:
    """Where the output begins. The odd pixel of a border goes below and right, half a pixel that is cut off where
    Python's rounding to even sends it."""
    over = scaled - output
    return round(over / 2) if over > 0 else -(-over // 2)


def _scaled(size: Size, how: Preprocessing) -> Size:
    """(height, width) before the crop, with the roundings of timm and torchvision."""
    height, width = size
    goal = math.floor(how.image_size[0] / how.crop_fraction), math.floor(how.image_size[1] / how.crop_fraction)
    if how.resize == "squash":
        return goal
    if how.resize == "crop" and goal[0] == goal[1]:
        long = int(goal[0] * max(size) / min(size))
        return (goal[0], long) if height <= width else (long, goal[0])
    ratios = height / goal[0], width / goal[1]
    ratio = min(ratios) if how.resize == "crop" else max(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


@lru_cache(maxsize=16)
def mean_colour(mean: tuple[float, ...]) -> tuple[int, ...]:
    """The mean as a pixel, which is zero to the model."""
    return tuple(min(255, max(0, round(255 * value))) for value in mean)


def resample(image: NDArray[np.uint8], size: Size, how: Interpolation, box: Four | None = None) -> NDArray[np.uint8]:
    """(H, W, C), or the (left, top, right, bottom) `box` of it, at another (height, width) by Pillow."""
    filter = Image.Resampling[how.upper()]
    planes = [image] if image.shape[2] == 3 else [image[..., c] for c in range(image.shape[2])]
    images = (Image.fromarray(np.ascontiguousarray(plane)) for plane in planes)
    done = [np.asarray(plane.resize((size[1], size[0]), filter, box)) for plane in images]
    return done[0] if image.shape[2] == 3 else np.stack(done, -1)


def resize(image: NDArray[np.uint8], size: Size, how: Interpolation) -> NDArray[np.uint8]:
    """(H, W, C) at another (height, width) by torch, whose vector code takes a quarter of Pillow's time for the same
    numbers (0.01 grey levels apart on average, and by more only where bicubic overshoots black or white). Its channels
    are planes."""
    pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)[None]
    return F.interpolate(pixels, size, mode=how, antialias=True)[0].permute(1, 2, 0).numpy()


LITTLE, BIG = ({size: np.dtype(f"{order}u{size}") for size in (1, 2, 4, 8)} for order in "<>")
WORDY = 2**12  # bytes of an image from which on it is mirrored by words


def mirrored(image: Shaped[np.ndarray, "H W C"]) -> Shaped[np.ndarray, "H W C"]:
    """With left and right exchanged, and channels that are planes."""
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
