"""Bytes -> pixels, whatever kind of image they are: JPEG, PNG, WebP, BMP, GIF and TIFF, by Pillow.

    decode(Path("cat.jpg"))                 # uint8 (H, W, 3), RGB
    decode(Path("scan.tif"), channels=1)    # uint8 (H, W, 1), grey
    decode_part(data, choose)               # what a crop shows of it, shrunk on the way where it is large
    find(Path("photos"))                    # the image files in a folder and below, sorted

Grey and RGB JPEGs are decoded by simplejpeg (jpeg.py), which gives the same bits as Pillow in two thirds of the time,
and down to the last row that is seen only; where nothing can turn them, Pillow is not asked at all.

The choices, where a kind leaves one: EXIF's orientation is applied; transparency is laid on white; of 16 bits the upper
8 are kept; CMYK is inverted as Adobe writes it, and colour profiles are not applied; of an animation the first frame.
"""

import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from vitrail.data.images import jpeg

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PIXELS = 2**27  # 11,585 x 11,585: the largest cameras' photographs, 400 MB as RGB; Pillow itself refuses above 2**27.4
BYTES = 2**30  # such an image without compression, with 16 bits and alpha
STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")

ORIENTATION, PHOTOMETRIC, BITS = 0x0112, 0x0106, 0x0102
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {UPRIGHT[number] for number in (5, 6, 7, 8)}


@dataclass(frozen=True)
class Part:
    """A rectangle of an image, in pixels, and the (height, width) to which it will be resized; None: all its pixels are
    wanted, as they are in the whole image."""

    top: int
    left: int
    height: int
    width: int
    wanted: tuple[int, int] | None

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

    def within(self, size: tuple[int, int], whole: tuple[int, int]) -> "Part":
        """The same part of an image that was made smaller, from (height, width) `whole` to `size`: to the pixel."""
        tall, wide = size[0] / whole[0], size[1] / whole[1]
        top, left = round(self.top * tall), round(self.left * wide)
        bottom, right = round((self.top + self.height) * tall), round((self.left + self.width) * wide)
        top, left = min(top, size[0] - 1), min(left, size[1] - 1)
        return Part(top, left, max(bottom - top, 1), max(right - left, 1), None)


# The size of the upright image -> the part to decode, or None for all of it.
Choose = Callable[[tuple[int, int]], Part | None]


def decode(source: bytes | Path, channels: int = 3, name: str = "the image") -> NDArray[np.uint8]:
    """The pixels of a file, or of its bytes: (H, W, channels), 3 being RGB and 1 grey.

    name: of bytes, for messages; a path is its own name. ValueError, one sentence that names the image, where it is
    missing, cut short, damaged, too large or no image; nothing else is raised, and nothing is warned of.
    """
    return decode_part(source, lambda size: None, channels, name)[0]


def decode_part(
    source: bytes | Path, choose: Choose, channels: int = 3, name: str = "the image"
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """(pixels of the part that `choose` names, (height, width) of the whole image); ValueError as `decode` raises.

    A JPEG whose part is much larger than wanted is decoded at a half, a quarter or an eighth of its size, which its
    codec does by leaving out what is not seen: a photograph of 12 megapixels then takes a fifth of the time.
    """
    if channels not in (1, 3):
        raise ValueError(f"images are decoded to 1 channel (grey) or 3 (RGB), not {channels}.")
    if isinstance(source, Path):
        source, name = read(source), str(source)
    if not source:
        raise ValueError(f"{name} is empty; copy or download it again.")
    head = jpeg.header(source)
    if head and head.plain and 0 < head.height * head.width <= PIXELS:
        found = _plain(source, head, choose, channels, name)
        if found is not None:
            return found
    try:
        # A file that opens may still fail anywhere in its pixels, so the guard is around all of the decoding.
        with quiet(), Image.open(BytesIO(source), formats=FORMATS) as image:
            _bounded(image, name)
            return _decoded(image, source, head, choose, channels, name)
    except _Refused:
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{name} {_looks(source)}") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has more than the {PIXELS:,} pixels that are decoded; scale it down.") from None
    except Exception as error:  # damaged bytes make Pillow's parsers raise anything
        reason = " ".join(str(error).split()).rstrip(".")[:120] or type(error).__name__
        raise ValueError(f"{name} is cut short or damaged ({reason}); copy or download it again.") from error


def _plain(
    source: bytes, head: jpeg.Header, choose: Choose, channels: int, name: str
) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
    """What `decode_part` gives, without Pillow, whose opening a file takes as long as seven crops' random numbers."""
    part = choose((head.height, head.width))
    shrink = part.shrink if part else 1
    pixels = jpeg.decode(source, head, shrink, part and part.top + part.height, channels)
    if pixels is None:
        return None
    seen = part.of(pixels, shrink) if part else pixels
    return _converted(seen, channels, name), (head.height, head.width)


def _decoded(
    image: Image.Image, source: bytes, head: jpeg.Header | None, choose: Choose, channels: int, name: str
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """What `decode_part` gives, of an image that is open but not read yet."""
    whole = image.format == "JPEG" and image.mode in ("L", "RGB")
    if not whole:
        image.load()  # only now does Pillow know which way up a TIFF is
    turn = _turn(image)
    height, width = image.size[:: 1 if turn in SIDEWAYS else -1]
    part = choose((height, width))
    if whole:
        shrink = part.shrink if part else 1
        pixels = _jpeg(image, source, head, shrink, part.top + part.height if part and turn is None else None)
        if turn is not None:
            pixels = _array(_image(pixels).transpose(turn))
    else:
        shrink = 1
        pixels = _pixels(image if turn is None else image.transpose(turn), channels, name)
    seen = part.of(pixels, shrink) if part else pixels
    return _converted(seen, channels, name), (height, width)


def _jpeg(
    image: Image.Image, source: bytes, head: jpeg.Header | None, shrink: int, bottom: int | None
) -> NDArray[np.uint8]:
    """A grey or RGB JPEG at 1 / shrink of its size, rounded up, down to `bottom` at least: uint8 (h, w, 1 or 3)."""
    pixels = jpeg.decode(source, head, shrink, bottom) if head else None
    if pixels is None:
        if shrink > 1:
            image.draft(None, (image.size[0] // shrink, image.size[1] // shrink))
        pixels = _array(image)
    return pixels


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])


def _array(image: Image.Image) -> NDArray[np.uint8]:
    """Grey or RGB as uint8 (H, W, 1 or 3)."""
    return np.array(image).reshape(image.height, image.width, -1)


def _converted(pixels: NDArray[np.uint8], channels: int, name: str) -> NDArray[np.uint8]:
    """Grey as RGB, or RGB as grey."""
    return pixels if pixels.shape[2] == channels else _pixels(_image(pixels), channels, name)


def read(path: Path) -> bytes:
    """The bytes of an image file. ValueError where it is missing, no regular file, too large or unreadable."""
    try:
        found = _status(path)
        if stat.S_ISDIR(found.st_mode):
            raise ValueError(f"{path} is a folder, not an image; name the files in it.")
        if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device might never end
            raise ValueError(f"{path} is not a regular file; copy its content to one.")
        if found.st_size > BYTES:
            raise ValueError(f"{path} has {found.st_size:,} bytes, more than the {BYTES:,} that an image may have.")
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}).") from None


def _status(path: Path) -> os.stat_result:
    """Asked for once: each of Path's own questions would ask the system again."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # which a zero in the name is
        raise ValueError(f"{path} does not exist; check its name.") from None


def find(path: Path) -> list[Path]:
    """The path itself; of a folder, the files in it and below with an image's suffix, sorted, without hidden ones.

    ValueError where a folder has none.
    """
    if not path.is_dir():
        return [path]
    images = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    seen = sorted(file for file in images if not any(part[0] == "." for part in file.relative_to(path).parts))
    if not seen:
        raise ValueError(f"{path} is a folder without images ({', '.join(SUFFIXES)}).")
    return seen


class _Refused(ValueError):
    """A sentence of ours: it needs no other around it."""


def _bounded(image: Image.Image, name: str) -> None:
    """Refuses, by its header, an image that would fill the memory, or has no pixels."""
    width, height = image.size
    if width * height > PIXELS:
        raise _Refused(f"{name} has {width} x {height} pixels, more than the {PIXELS:,} decoded; scale it down.")
    if not width * height:
        raise _Refused(f"{name} has {width} x {height} pixels, so there is nothing to see.")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How EXIF says that the image is turned; Pillow has already turned a TIFF, and taken the tag away."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # unreadable EXIF says nothing about pixels that are whole
        return None


def _pixels(image: Image.Image, channels: int, name: str) -> NDArray[np.uint8]:
    """Any mode of Pillow's as uint8 (H, W, channels)."""
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
    # PIL has no way from CMYK or a palette to grey but through RGB.
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


def _looks(data: bytes) -> str:
    """What data that Pillow does not open seems to be, and what to do."""
    start = data[:512].lstrip()
    if start.startswith(STARTS):
        return "is cut short or damaged (its header cannot be read); copy or download it again."
    if start.startswith(b"<") and b"<svg" not in start:
        return "is a web page, perhaps of a download that failed; download the image again."
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the image itself; git lfs pull fetches it."
    return "is not an image of a kind that is read here; convert it to JPEG, PNG, WebP, BMP, GIF or TIFF."


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
