"""What a request may hold, decided before anything of it is decoded.

check(content, "cat.jpg", 50_000_000)         # Refused: 415 of another kind, 413 too large, 400 damaged
"""

import struct
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from vitrail.data.quiet import quiet

KINDS = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "BMP": b"BM"}  # and WebP
MEGA = 1_000_000


@dataclass(frozen=True)
class Limits:
    """bytes: of a request. pixels: of an image, by its header; native: of one whose every pixel is computed. images: of
    a request. waiting: images on their way. held: bytes of all requests together. seconds: for an answer. reading:
    seconds for a request to arrive."""

    bytes: int = 20 * MEGA
    pixels: int = 50 * MEGA
    native: int = 2 * MEGA
    images: int = 64
    waiting: int = 256
    held: int = 512 * MEGA
    seconds: float = 30.0
    reading: float = 15.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0.")


class Refused(Exception):
    """A request that is not answered, with a status of HTTP and a sentence."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def check(content: bytes, name: str, pixels: int) -> None:
    """Refused where it is empty, not an image of a kind that is served, or of more pixels."""
    if not content:
        raise Refused(400, f"{name} is empty.")
    webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    kind = next((kind for kind, magic in KINDS.items() if content.startswith(magic)), None)
    if kind is None and not webp:
        raise Refused(415, f"{name} is not a JPEG, PNG, WebP or BMP image.")
    try:
        width, height = _webp(content) if kind is None else _pillow(content, kind)
    except Image.DecompressionBombError:
        raise Refused(413, f"{name} has far more than {pixels:,} pixels, which is the most.") from None
    except Exception:  # Pillow and struct have many ways to say so
        raise Refused(400, f"{name} is damaged.") from None
    if width * height > pixels:
        raise Refused(413, f"{name} has {width} x {height} pixels; at most {pixels:,} are decoded.")


def _pillow(content: bytes, kind: str) -> tuple[int, int]:
    """(width, height) by the header. The limits of Pillow's own are wider than ours, and a warning."""
    with quiet(), Image.open(BytesIO(content), formats=[kind]) as image:
        return image.size


def _webp(content: bytes) -> tuple[int, int]:
    """(width, height) by the container's header (RFC 9649): Pillow's decoder takes memory for the whole canvas as soon
    as it is opened."""
    kind, start = content[12:16], content[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(start[4:7], "little"), 1 + int.from_bytes(start[7:10], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack("<I", start[1:5])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", start[6:10])
    return width & 0x3FFF, height & 0x3FFF


def whole(text: str) -> int:
    """A number of classes that is asked for."""
    if not text.isdigit() or not 0 < int(text[:9]) <= 1000:
        raise Refused(400, f"top is {text[:20]!r}; it must be a whole number from 1 to 1000.")
    return int(text)
