"""JPEG files: what their headers say, and their pixels by simplejpeg, only down to the last row that is wanted.

    head = header(data)                       # None: a kind that Pillow has to read
    decode(data, head)                        # uint8 (H, W, 1 or 3), the same bits as Pillow's
    decode(data, head, shrink=2, bottom=80)   # at half the size, down to row 80 of the whole or a little below

A codec reads from the top and cannot leave out what lies above or beside a crop, because each block's code begins where
the last one's ends; but it can stop below it. So the header's height is lowered to what is needed: random crops of a
photograph then take a seventh less.
"""

from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

SOF = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive; others are arithmetically coded, lossless or hierarchical
DHT, EOI, SOS, DQT, DRI, APP0, APP1, APP2, COM = 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xFE
PLAIN = {DHT, DQT, APP0, 0xED, 0xEE, COM}  # 0xED is Photoshop's, 0xEE Adobe's
# libjpeg's warning where a file goes on after the last row. simplejpeg raises the first one: before it all was well.
# Should these words change, the whole file is decoded.
REST = f"extraneous bytes before marker 0x{EOI:02x}"


class Header(NamedTuple):
    """Of a grey or YCbCr JPEG. plain: nothing in it may turn the image (EXIF, XMP) or hold others (MPF), so that Pillow
    need not look. place: where the height's two bytes are in the file. rows: how many are coded together, a multiple of
    8; 0 where the file cannot be cut below some of them."""

    height: int
    width: int
    channels: int
    plain: bool
    place: int
    rows: int


def header(data: bytes) -> Header | None:
    """None where it is not a JPEG of one or three channels and 8 bits, or its header is unusual or damaged."""
    if data[:2] != b"\xff\xd8":
        return None
    place, frame, plain, cut = 2, 0, True, True
    while len(start := data[place : place + 12]) == 12 and start[0] == 0xFF:
        kind, length = start[1], start[2] << 8 | start[3]
        if kind == SOS:
            break
        if kind in SOF:
            frame, cut = place, cut and kind != 0xC2
        elif kind == DRI:
            cut = False  # between restarts, the words of REST would be others
        elif kind not in PLAIN and not (kind == APP2 and start[4:] == b"ICC_PROF"):
            plain = False
        place += 2 + length
    else:
        return None
    bits, channels = data[frame + 4], data[frame + 9]
    if not frame or bits != 8 or channels not in (1, 3):
        return None
    height, width = int.from_bytes(data[frame + 5 : frame + 7]), int.from_bytes(data[frame + 7 : frame + 9])
    tallest = max(data[frame + 11 : frame + 10 + 3 * channels : 3], key=lambda factors: factors & 15) & 15
    # One channel is coded by single blocks, whatever its factors; several scans repeat the rows.
    rows = 8 * (tallest if channels == 3 else 1) if cut and start[4] == channels else 0
    return Header(height, width, channels, plain, frame + 5, rows)


def decode(
    data: bytes, head: Header, shrink: int = 1, bottom: int | None = None, channels: int = 1
) -> NDArray[np.uint8] | None:
    """The pixels at 1 / shrink (1, 2, 4 or 8) of the size, rounded up: uint8 (h, w, 1 or 3), at least the rows above
    row `bottom` of the whole; None where libjpeg warns of something, which Pillow shall judge.

    channels: 3 is grey as RGB, too; 1 leaves RGB as it is, because libjpeg's grey is not Pillow's.
    """
    channels = max(channels, head.channels)
    height, content = head.height, data
    if bottom is not None and head.rows:
        # One pixel more, because chroma is interpolated between rows.
        height = min(height, ((bottom + shrink - 1) // head.rows + 1) * head.rows)
    if height < head.height:
        content = bytearray(data)
        content[head.place : head.place + 2] = height.to_bytes(2)
    tall, wide = -(-height // shrink), -(-head.width // shrink)
    pixels = np.empty((tall, wide, channels), np.uint8)
    space = "GRAY" if channels == 1 else "RGB"
    try:
        size = {"min_height": tall, "min_width": wide, "min_factor": 1}
        simplejpeg.decode_jpeg(content, space, **size, strict=True, buffer=pixels)
    except Exception as error:
        if height == head.height:
            return None
        return pixels if REST in str(error) else decode(data, head, shrink, None, channels)
    return pixels
