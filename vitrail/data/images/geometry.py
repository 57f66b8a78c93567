"""A View: what of an image a model sees, drawn once, and applied alike to pixels, boxes and masks.

view = centred((375, 500), preprocessing)       # evaluation's; augment.py draws training's
pixels = decode(data, view.crop)                # uint8 (H, W, C): only what is seen needs decoding
view.apply(pixels)                              # uint8 (h, w, C), as the model reads it
view.boxes(boxes)                               # (n, 4) of the original -> of what the model reads
view.original(boxes)                            # and back
view.mask(mask)                                 # (H, W) of the original -> (h, w)
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, Shaped, UInt8
from numpy.typing import NDArray
from PIL import Image

from vitrail.data.images.preprocessing import Interpolation, Preprocessing

Size = tuple[int, int]  # (height, width)
Method = Literal["pillow", "pillow part", "torch"]

LARGEST = 2**27  # pixels of a resized image: beyond it only lines, thousands of times longer than wide, come
IGNORED = 255  # the class of a mask's pixels that show nothing of the image


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image, in pixels, and the (height, width) to which it will be resized.

    wanted: None where its pixels are wanted as they are in the whole image.
    """

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
        """The same rectangle of an image that is stored smaller, at `stored` instead of `size`: to the pixel."""
        if stored == size:
            return self
        tall, wide = stored[0] / size[0], stored[1] / size[1]
        top, left = round(self.top * tall), round(self.left * wide)
        bottom, right = round((self.top + self.height) * tall), round((self.left + self.width) * wide)
        top, left = min(top, stored[0] - 1), min(left, stored[1] - 1)
        return Crop(top, left, max(bottom - top, 1), max(right - left, 1))


@dataclass(frozen=True)
class View:
    """The rectangle `seen` of the original is resized to `scaled`, of which `output` shows a window.

    size: of the original. crop: what is to be decoded of the stored image; None is all. seen: (top, left, height,
    width) in pixels of the original. window: (top, left) of the output in the resized rectangle; it may reach beyond.
    inside: (top, left, bottom, right), the part of the output that shows the image; None is all of it. border: what the
    rest shows, a colour or the reflection. mirror: left and right change places, last of all."""

    size: Size
    output: Size
    scaled: Size
    seen: tuple[int, int, int, int]
    interpolation: Interpolation
    crop: Crop | None = None
    window: tuple[int, int] = (0, 0)
    inside: tuple[int, int, int, int] | None = None
    border: tuple[int, ...] | Literal["reflect"] = ()
    method: Method = "pillow"
    mirror: bool = False

    def apply(self, pixels: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "h w C"]:
        """What the model sees of the decoded pixels, which show `crop`; each channel may be a plane, as torch leaves
        it.

        It is the pixels themselves where nothing has to be done. ValueError where it would be too large.
        """
        top, left, bottom, right = self.inside or (0, 0, *self.output)
        y, x = self.window[0] + top, self.window[1] + left
        if self.method == "pillow part":  # which knows parts of pixels
            (tall, wide), (height, width) = self.scaled, pixels.shape[:2]
            end = (x + right - left) * width / wide, (y + bottom - top) * height / tall
            box = (x * width / wide, y * height / tall, *end)
            shown = resample(pixels, (bottom - top, right - left), self.interpolation, box)
        else:
            resized = self._resized(pixels)
            shown = resized[y : y + bottom - top, x : x + right - left]
        if shown.shape[:2] != self.output:
            shown = self._bordered(shown, top, left)
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
        """The class of each pixel of the output: that of the nearest pixel of the original, `ignored` in a border."""
        top, left, bottom, right = self.inside or (0, 0, *self.output)
        rows, columns = (
            np.clip(((np.arange(low, high) + 0.5 + window) * seen / scaled + start).astype(int), 0, size - 1)
            for low, high, window, seen, scaled, start, size in zip(
                (top, left),
                (bottom, right),
                self.window,
                self.seen[2:],
                self.scaled,
                self.seen,
                self.size,
                strict=False,
            )
        )
        shown = mask[rows[:, None], columns]
        beyond = (top, self.output[0] - bottom), (left, self.output[1] - right)
        if self.border == "reflect":
            shown = np.pad(shown, beyond, "reflect")
        else:
            shown = np.pad(shown, beyond, constant_values=ignored)
        return shown[:, ::-1] if self.mirror else shown

    def _affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(scale, shift) of x, y, x, y."""
        (top, left, height, width), (tall, wide) = self.seen, self.scaled
        x, y = wide / width, tall / height
        shift = [-left * x - self.window[1], -top * y - self.window[0]]
        if self.mirror:
            x, shift[0] = -x, self.output[1] - shift[0]
        return np.array([x, y, x, y]), np.array(shift * 2)

    def _resized(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if pixels.shape[:2] == self.scaled and self.method == "pillow":
            return pixels
        if self.method == "torch":
            return resize(pixels, self.scaled, self.interpolation)
        return resample(pixels, self.scaled, self.interpolation)

    def _bordered(self, shown: NDArray[np.uint8], top: int, left: int) -> NDArray[np.uint8]:
        (height, width), (rows, columns) = self.output, shown.shape[:2]
        if self.border == "reflect":
            return np.pad(shown, ((top, height - top - rows), (left, width - left - columns), (0, 0)), "reflect")
        canvas = np.empty((height, width, shown.shape[2]), np.uint8)
        canvas[:] = self.border
        canvas[top : top + rows, left : left + columns] = shown
        return canvas


def centred(stored: Size, how: Preprocessing, size: Size | None = None) -> View:
    """What evaluation sees of an image of (height, width) `stored`, whose original was of `size`: timm's transforms."""
    size = size or stored
    if how.resize == "native":
        return View(size, stored, stored, (0, 0, *size), how.interpolation)
    (height, width), scaled = how.image_size, _scaled(stored, how)
    if scaled[0] * scaled[1] > LARGEST:
        shape = f"{stored[0]} x {stored[1]}"
        raise ValueError(
            f"an image of {shape} would become {scaled[0]} x {scaled[1]}; cut it into less extreme shapes."
        )
    if how.resize == "pad":
        # The odd pixel goes below and right, and half of one where Python's rounding to even sends it.
        missing = max(0, height - scaled[0]), max(0, width - scaled[1])
        full = scaled[0] + missing[0], scaled[1] + missing[1]
        top, left = (round((f - o) / 2) - m // 2 for f, o, m in zip(full, how.image_size, missing, strict=True))
    else:
        top, left = round((scaled[0] - height) / 2), round((scaled[1] - width) / 2)
    inside = max(0, -top), max(0, -left), min(height, scaled[0] - top), min(width, scaled[1] - left)
    whole = inside == (0, 0, height, width)
    view = View(size, how.image_size, scaled, (0, 0, *size), how.interpolation, window=(top, left))
    return view if whole else replace(view, inside=inside, border=mean_colour(how.mean))


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


def mean_colour(mean: tuple[float, ...]) -> tuple[int, ...]:
    """The mean as a pixel, which is zero to the model."""
    return tuple(min(255, max(0, round(255 * value))) for value in mean)


def resample(
    image: NDArray[np.uint8],
    size: Size,
    interpolation: Interpolation,
    box: tuple[float, float, float, float] | None = None,
) -> NDArray[np.uint8]:
    """(H, W, C), or the (left, top, right, bottom) `box` of it, at another (height, width) by Pillow."""
    how = Image.Resampling[interpolation.upper()]
    planes = [image] if image.shape[2] == 3 else [image[..., c] for c in range(image.shape[2])]
    pictures = (Image.fromarray(np.ascontiguousarray(plane)) for plane in planes)
    done = [np.asarray(picture.resize((size[1], size[0]), how, box)) for picture in pictures]
    return done[0] if image.shape[2] == 3 else np.stack(done, -1)


def resize(image: NDArray[np.uint8], size: Size, interpolation: Interpolation) -> NDArray[np.uint8]:
    """(H, W, C) at another (height, width) by torch, whose vector code takes a quarter of Pillow's time for the same
    numbers (0.01 grey levels apart on average, and by more only where bicubic overshoots black or white). Its channels
    are planes."""
    pixels = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)[None]
    return F.interpolate(pixels, size, mode=interpolation, antialias=True)[0].permute(1, 2, 0).numpy()


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
