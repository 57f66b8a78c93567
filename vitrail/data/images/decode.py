"""Bytes -> pixels, of every kind of image that kinds.py knows, and of arrays that numpy.save wrote.

    image = opened(read(path), "cat.jpg")   # only the header is looked at: image.size is (height, width)
    image.decode()                          # uint8 (H, W, 3), RGB; channels=1 is grey
    image.decode(crop)                      # what a crop shows of it, shrunk on the way where it is large

Grey and RGB JPEGs are decoded by simplejpeg (jpeg.py), which gives the same bits as Pillow in two thirds of the time,
and only down to the last row that is seen. All else, and what libjpeg warns of, is decoded by Pillow.

The choices, where a format leaves one: EXIF's orientation is applied; transparency is laid on white; the upper 8 of 16
bits are kept; CMYK is inverted as Adobe writes it; colour profiles are not applied; an animation is its first frame, an
icon its largest image; of an RGB TIFF with more bands the first three are seen. Fractions, signed numbers and those of
32 bits are refused, because nothing says which of them is white.

Models with other than 1 or 3 channels read the bands as they are stored: 2 are grey and alpha, 4 are red, green, blue
and alpha, or the inks of CMYK; any number is a .npy file with uint8 (height, width, bands).
"""

import errno
import math
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose
from PIL.TiffImagePlugin import TiffImageFile

from vitrail.data.images import jpeg
from vitrail.data.images.geometry import Crop
from vitrail.data.images.kinds import ARRAY, by_pillow, unidentified
from vitrail.data.images.kinds import SUFFIXES as SUFFIXES
from vitrail.data.quiet import quiet
from vitrail.data.stray import stray

PIXELS = 2**27  # 11,585 x 11,585: the largest cameras' photographs, 400 MB as RGB; Pillow itself refuses above 2**27.4
BYTES = 2**30  # such an image without compression, with 16 bits and alpha
URL = re.compile(r"(?:^|/)(data:[a-z]+/|[a-z][a-z0-9+.-]+:/)")

ORIENTATION, PHOTOMETRIC, BITS, SAMPLES = 0x0112, 0x0106, 0x0102, 0x0115
REDUCED, SORT, DNG = 0x00FE, 0x0153, 0xC612
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = {UPRIGHT[number] for number in (5, 6, 7, 8)}

LOADING = threading.Lock()  # an image of Pillow's may be several threads' at once


class Opened(NamedTuple):
    """An image of which only the header was read, or pixels; size: (height, width), upright.

    content: a file's bytes, b"" of an image of Pillow's. head: of a JPEG that simplejpeg may decode. opened: by Pillow,
    unless nothing can turn the image and `head` is all that is needed. turn: how EXIF says that it is turned.
    """

    size: tuple[int, int]
    name: str
    content: bytes | NDArray[np.uint8]
    head: jpeg.Header | None = None
    opened: Image.Image | None = None
    turn: Transpose | None = None

    def decode(self, crop: Crop | None = None, channels: int = 3) -> NDArray[np.uint8]:
        """The pixels of a crop of it, or of all: uint8 (h, w, channels).

        A JPEG whose crop is much larger than wanted is decoded at a half, a quarter or an eighth of its size, which its
        codec does by leaving out what is not seen: a photograph of 12 megapixels then takes a fifth of the time.
        ValueError, one sentence that names the image, where it is damaged, or cannot have these channels; nothing else
        is raised, and nothing is warned of.
        """
        if isinstance(self.content, np.ndarray):
            return _channels(crop.of(self.content) if crop else self.content, channels, self.name)
        pixels, shrink = None, 1
        if self.head and channels not in (1, 3):
            raise ValueError(f"{self.name} has {self.head.channels} channels, but {channels} are wanted.")
        if self.head:
            shrink = crop.shrink if crop else 1
            bottom = crop.top + crop.height if crop and self.turn is None else None
            pixels = jpeg.decode(self.content, self.head, shrink, bottom, channels)
        if pixels is None or self.turn is not None:
            with _sentences(self.name, self.content):
                if pixels is not None:
                    image = _image(pixels)
                else:
                    image = self.opened or by_pillow(self.content, self.name)
                    if shrink > 1:
                        image.draft(None, (image.size[0] // shrink, image.size[1] // shrink))
                pixels = _pixels(image if self.turn is None else image.transpose(self.turn), channels, self.name)
        return _channels(crop.of(pixels, shrink) if crop else pixels, channels, self.name)


def opened(content: bytes | NDArray[np.uint8] | Image.Image, name: str) -> Opened:
    """An image file's bytes, pixels (H, W, C) or an image of Pillow's, ready to be decoded. ValueError, naming it,
    where it is cut short, too large or not an image."""
    if isinstance(content, np.ndarray):
        if content.ndim != 3 or not content.size or content.dtype != np.uint8:
            raise ValueError(f"{name} is {content.dtype} {content.shape}; it must be uint8 (height, width, channels).")
        return Opened((content.shape[0], content.shape[1]), name, content)
    if isinstance(content, Image.Image):
        with _sentences(name, b""), LOADING:
            return _opened(content, b"", name, None)
    if content[:6] == b"\x93NUMPY":
        with _sentences(name, content):
            return opened(_saved(content, name), name)
    head = jpeg.header(content)
    if head and head.plain and 0 < head.height * head.width <= PIXELS:
        return Opened((head.height, head.width), name, content, head)
    with _sentences(name, content):
        return _opened(by_pillow(content, name), content, name, head)


def _opened(image: Image.Image, content: bytes, name: str, head: jpeg.Header | None) -> Opened:
    """ValueError, by the header, for an image that would fill the memory, or has no pixels."""
    width, height = image.size
    if not 0 < width * height <= PIXELS:
        raise _Refused(f"{name} has {width} x {height} pixels, but 1 to {PIXELS:,} are decoded; scale it down.")
    if isinstance(image, TiffImageFile):
        if image.tag_v2.get(REDUCED, 0) & 1 or DNG in image.tag_v2:
            raise _Refused(f"{name} begins with a preview, as cameras' raw files do; convert it to JPEG or PNG.")
        if image.mode in ("1", "L", "I;16") and (bands := image.tag_v2.get(SAMPLES, 1)) > 1:
            raise _Refused(f"{name} has {bands} bands, of which nothing says what they show; {ARRAY}.")
        if 2 in image.tag_v2.get(SORT, ()) and image.mode == "L":
            raise _Refused(f"{name} holds signed numbers, of which none is known to be white; save it without a sign.")
    if head is None or image.format != "JPEG" or image.mode not in ("L", "RGB"):
        head = None
        image.load()  # only now does Pillow know which way up a TIFF is
    try:  # Pillow has already turned a TIFF, and taken the tag away
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # unreadable EXIF says nothing about pixels that are whole
        turn = None
    width, height = image.size[:: -1 if turn in SIDEWAYS else 1]
    return Opened((height, width), name, content, head, image, turn)


@contextmanager
def _sentences(name: str, content: bytes) -> Iterator[None]:
    """Any error of Pillow's becomes one sentence that names the image. A file that opens may still fail anywhere in its
    pixels."""
    try:
        with quiet():
            yield
    except _Refused:
        raise
    except UnidentifiedImageError:
        with quiet():
            raise ValueError(f"{name} {stray(content) or unidentified(content)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has more than the {PIXELS:,} pixels that are decoded; scale it down.") from None
    except Exception as error:  # damaged bytes make Pillow's parsers raise anything
        reason = " ".join(str(error).split()).rstrip(".")[:120] or type(error).__name__
        if re.search("support|available|implement", reason):
            what = f"is cut short or damaged, or of a rare kind ({reason})"
            raise ValueError(f"{name} {what}; copy or download it again, or convert it to PNG.") from error
        raise ValueError(f"{name} is cut short or damaged ({reason}); copy or download it again.") from error


def _channels(pixels: NDArray[np.uint8], channels: int, name: str) -> NDArray[np.uint8]:
    """Pixels with so many channels: grey as RGB, or RGB as grey. ValueError for any other change."""
    found = pixels.shape[2]
    if (found, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=2)
    if found == 3 and channels == 1:
        return np.array(_image(pixels).convert("L"))[:, :, None]
    if found != channels:
        raise ValueError(f"{name} has {found} channels, but {channels} are wanted.")
    return pixels


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])


def read(path: Path) -> bytes:
    """The bytes of an image file. ValueError where it is missing, not a regular file, too large or unreadable."""
    try:
        found = os.stat(path)  # once: each of Path's own questions would ask the system again
        if stat.S_ISREG(found.st_mode) and found.st_size <= BYTES:  # reading a pipe or a device might never end
            with open(path, "rb", buffering=0) as file:
                return file.readall()
    except (OSError, ValueError) as error:
        if URL.search(str(path)):
            address = re.sub(":/+", "://", str(path)[:80], count=1)  # Path makes one stroke of two
            raise ValueError(f"{address} is an address, not a file; download it, and name the file.") from None
        if not isinstance(error, OSError) or error.errno in (errno.ENOENT, errno.ENOTDIR):  # or a zero byte in the name
            raise ValueError(f"{path} does not exist; check its name.") from None
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from None
    if stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} has {found.st_size:,} bytes, more than the {BYTES:,} that an image may have.")
    raise ValueError(f"{path} is {'a folder' if stat.S_ISDIR(found.st_mode) else 'not a regular file'}; name an image.")


class _Refused(ValueError):
    """One of our own sentences, which needs no other around it."""


def _pixels(image: Image.Image, channels: int, name: str) -> NDArray[np.uint8]:
    """An image of any mode as uint8 (H, W, channels)."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values, key = _eight_bits(image), image.info.get("transparency")
        if isinstance(key, int):
            values[np.asarray(image) == key] = 255
        image = Image.fromarray(values)
    elif image.mode in ("I", "F"):
        what = {"I": "whole numbers of 32 or signed 16 bits", "F": "fractions"}[image.mode]
        raise _Refused(f"{name} holds {what}, of which none is known to be white; save it with 8 or 16 bits.")
    if image.mode in ("La", "RGBa", "PA"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if channels not in (1, 3):
        return _bands(image, channels, name)
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(seen, mask=seen)
    mode = "L" if channels == 1 else "RGB"
    # Pillow has no way from CMYK or a palette to grey but through RGB.
    image = image if image.mode in (mode, "L", "RGB") else image.convert("RGB")
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def _bands(image: Image.Image, channels: int, name: str) -> NDArray[np.uint8]:
    """The bands as they are stored, where a model wants that many."""
    found = len(image.getbands())
    if found == channels:
        return np.array(image)
    if isinstance(image, TiffImageFile) and image.tag_v2.get(SAMPLES, found) == channels:
        raise _Refused(f"{name} has {channels} bands, of which Pillow reads {found}; {ARRAY}.")
    raise _Refused(f"{name} has {found} channels, but {channels} are wanted.")


def _saved(content: bytes, name: str) -> NDArray[np.uint8]:
    """The array in a .npy file, without a copy. ValueError where it is not uint8 (height, width, bands)."""
    stream = BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype != np.uint8 or len(shape) not in (2, 3):
        raise _Refused(f"{name} holds {dtype} {shape}; it must be uint8 (height, width, channels).")
    values = np.frombuffer(content, np.uint8, offset=stream.tell())
    if values.size != math.prod(shape):
        raise _Refused(f"{name} is cut short or damaged: it has {values.size:,} numbers, not {shape}; copy it again.")
    array = values.reshape(shape, order="F" if fortran else "C")
    return array if array.ndim == 3 else array[..., None]


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """The upper 8 of 16 bits, as Pillow reads 16-bit RGB, too; convert("L") would clip instead."""
    values, bits = np.asarray(image), 16
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2[BITS][0]  # 12, of some microscopes
        if image.tag_v2.get(PHOTOMETRIC) == 0:  # 0 is white
            values = 2**bits - 1 - values
    return (values >> (bits - 8)).astype(np.uint8)
