"""Bytes -> pixels, of JPEG, PNG, WebP, BMP, GIF and TIFF.

    image = opened(read(path), "cat.jpg")   # only the header is looked at: image.size is (height, width)
    image.decode()                          # uint8 (H, W, 3), RGB; channels=1 is grey
    image.decode(crop)                      # what a crop shows of it, shrunk on the way where it is large
    find(Path("photos"))                    # the image files in a folder and below, sorted

Grey and RGB JPEGs are decoded by simplejpeg (jpeg.py), which gives the same bits as Pillow in two thirds of the time,
and only down to the last row that is seen. All else, and what libjpeg warns of, is decoded by Pillow.

The choices, where a format leaves one: EXIF's orientation is applied; transparency is laid on white; the upper 8 of 16
bits are kept; CMYK is inverted as Adobe writes it; colour profiles are not applied; an animation is its first frame.
"""

import os
import stat
import threading
import warnings
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
from vitrail.data.stray import stray

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PIXELS = 2**27  # 11,585 x 11,585: the largest cameras' photographs, 400 MB as RGB; Pillow itself refuses above 2**27.4
BYTES = 2**30  # such an image without compression, with 16 bits and alpha
STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")

ORIENTATION, PHOTOMETRIC, BITS = 0x0112, 0x0106, 0x0102
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
SIDEWAYS = {UPRIGHT[number] for number in (5, 6, 7, 8)}


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
        if channels not in (1, 3):
            raise ValueError(f"{self.name} can be decoded to 1 channel (grey) or 3 (RGB), not to {channels}.")
        pixels, shrink = None, 1
        if self.head:
            shrink = crop.shrink if crop else 1
            bottom = crop.top + crop.height if crop and self.turn is None else None
            pixels = jpeg.decode(self.content, self.head, shrink, bottom, channels)
        if pixels is None or self.turn is not None:
            with _sentences(self.name, self.content):
                if pixels is not None:
                    image = _image(pixels)
                else:
                    image = self.opened or Image.open(BytesIO(self.content), formats=FORMATS)
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
        with _sentences(name, b""):
            return _opened(content, b"", name, None)
    head = jpeg.header(content)
    if head and head.plain and 0 < head.height * head.width <= PIXELS:
        return Opened((head.height, head.width), name, content, head)
    with _sentences(name, content):
        return _opened(Image.open(BytesIO(content), formats=FORMATS), content, name, head)


def _opened(image: Image.Image, content: bytes, name: str, head: jpeg.Header | None) -> Opened:
    """ValueError, by the header, for an image that would fill the memory, or has no pixels."""
    width, height = image.size
    if not 0 < width * height <= PIXELS:
        raise _Refused(f"{name} has {width} x {height} pixels, but 1 to {PIXELS:,} are decoded; scale it down.")
    if image.format != "JPEG" or image.mode not in ("L", "RGB"):
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
        what = "is not an image of a format that is read here; convert it to JPEG, PNG, WebP, BMP, GIF or TIFF."
        if content[:512].lstrip().startswith(STARTS):
            what = "is cut short or damaged (its header cannot be read); copy or download it again."
        raise ValueError(f"{name} {stray(content) or what}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has more than the {PIXELS:,} pixels that are decoded; scale it down.") from None
    except Exception as error:  # damaged bytes make Pillow's parsers raise anything
        reason = " ".join(str(error).split()).rstrip(".")[:120] or type(error).__name__
        raise ValueError(f"{name} is cut short or damaged ({reason}); copy or download it again.") from error


def _channels(pixels: NDArray[np.uint8], channels: int, name: str) -> NDArray[np.uint8]:
    """Pixels with so many channels: grey as RGB, or RGB as grey. ValueError for any other change."""
    found = pixels.shape[2]
    if found == 1 != channels:
        return np.repeat(pixels, channels, axis=2)
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
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
        raise ValueError(f"{path} does not exist; check its name.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from None
    if stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} has {found.st_size:,} bytes, more than the {BYTES:,} that an image may have.")
    raise ValueError(f"{path} is {'a folder' if stat.S_ISDIR(found.st_mode) else 'not a regular file'}; name an image.")


def find(path: Path) -> list[Path]:
    """The path itself; of a folder, the files in it and below with an image's suffix, sorted, without hidden ones.
    ValueError where a folder has none."""
    if not path.is_dir():
        return [path]
    images = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file())
    seen = [file for file in images if not any(part[0] == "." for part in file.relative_to(path).parts)]
    if not seen:
        raise ValueError(f"{path} is a folder without images ({', '.join(SUFFIXES)}).")
    return seen


class _Refused(ValueError):
    """One of our own sentences, which needs no other around it."""


def _pixels(image: Image.Image, channels: int, name: str) -> NDArray[np.uint8]:
    """An image of any mode as uint8 (H, W, channels)."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        image = Image.fromarray(_eight_bits(image))
    elif image.mode in ("I", "F"):
        what = {"I": "whole numbers of 32 or signed 16 bits", "F": "fractions"}[image.mode]
        raise _Refused(f"{name} holds {what}, of which none is known to be white; save it with 8 or 16 bits.")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        seen = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(seen, mask=seen)
    mode = "L" if channels == 1 else "RGB"
    # Pillow has no way from CMYK or a palette to grey but through RGB.
    image = image if image.mode in (mode, "L", "RGB") else image.convert("RGB")
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """The upper 8 of 16 bits, as Pillow reads 16-bit RGB, too; convert("L") would clip instead."""
    values, bits = np.asarray(image), 16
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2[BITS][0]  # 12, of some microscopes
        if image.tag_v2.get(PHOTOMETRIC) == 0:  # 0 is white
            values = 2**bits - 1 - values
    return (values >> (bits - 8)).astype(np.uint8)


class _Overlap:
    """How many threads decode at this moment, and the warnings' filters as the first of them found them."""

    lock = threading.Lock()
    threads = 0
    filters = warnings.catch_warnings()


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings, in threads, too: where `catch_warnings` overlap, each restores another's filters."""
    with _Overlap.lock:
        if _Overlap.threads == 0:
            _Overlap.filters = warnings.catch_warnings()
            _Overlap.filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _Overlap.threads += 1
    try:
        yield
    finally:
        with _Overlap.lock:
            _Overlap.threads -= 1
            if _Overlap.threads == 0:
                _Overlap.filters.__exit__(None, None, None)
