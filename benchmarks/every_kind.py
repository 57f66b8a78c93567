"""A folder with an image of every kind and of every odd mode, to try commands on; and what is to become of each file.

    python -m benchmarks.every_kind FOLDER
    vitrail predict RUN FOLDER

tests/test_kinds.py holds that predict, data check and training read, name or count each of them.
"""

import struct
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from vitrail.data.images.kinds import FORMATS, KINDS

ROWS, COLUMNS = np.mgrid[:24, :40]
WAVES = [127 * (1 + np.sin(ROWS / 7 + c) * np.cos(COLUMNS / (11 - c))) for c in range(3)]
PHOTO = Image.fromarray(np.stack(WAVES, 2).astype(np.uint8))
GREY = np.array(PHOTO.convert("L"))
HEIF = find_spec("pillow_heif") is not None


def tiff(samples: NDArray[Any], compression: int = 1, photometric: int = 1, bits: int = 0, **tags: int) -> bytes:
    """A TIFF that Pillow does not write: samples (H, W, n) of any dtype in one strip; tags such as t254=1."""
    (height, width, bands), data = samples.shape, samples.tobytes()
    kind, bits = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind], bits or 8 * samples.itemsize
    width = width * 8 * samples.itemsize // bits
    entries = {256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * bands), 259: (3, [compression])}
    entries |= {262: (3, [photometric]), 273: (4, [8]), 277: (3, [bands]), 278: (4, [height]), 279: (4, [len(data)])}
    entries |= {339: (3, [kind] * bands)} | {int(tag[1:]): (4, [value]) for tag, value in tags.items()}
    if photometric == 2 and bands > 3:
        entries[338] = (3, [0] * (bands - 3))
    end, out, extra = 8 + len(data), b"", b""
    beyond = end + 2 + 12 * len(entries) + 4
    for tag, (form, values) in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}{'H' if form == 3 else 'L'}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack("<L", beyond + len(extra)), extra + packed
        out += struct.pack("<HHL", tag, form, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<L", end) + data + struct.pack("<H", len(entries)) + out + bytes(4) + extra


def write(folder: Path) -> dict[str, str]:
    """name -> "read", "left out", or words of the sentence that refuses it, of every file in the folder."""
    folder.mkdir(parents=True)
    found: dict[str, str] = {}
    for suffix, kind in KINDS.items():
        if kind in FORMATS and kind in Image.SAVE:
            mode = {"MSP": "1", "XBM": "1", "PALM": "P"}.get(kind, "1" if suffix == ".pbm" else "RGB")
            try:
                PHOTO.convert(mode).save(folder / f"a{suffix.upper()}", kind)
            except (OSError, ValueError):  # FTEX and the like, which Pillow only reads
                (folder / f"a{suffix.upper()}").unlink(missing_ok=True)
                continue
            found[f"a{suffix.upper()}"] = "read"
    cyan = PHOTO.convert("CMYK")
    lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    modes = {
        "1.png": PHOTO.convert("1"), "la.png": PHOTO.convert("LA"), "rgba.webp": PHOTO.convert("RGBA"),
        "p.png": PHOTO.quantize(200), "pa.tif": PHOTO.quantize(200).convert("PA"), "cmyk.jpg": cyan, "cmyk.tif": cyan,
        "ycbcr.tif": PHOTO.convert("YCbCr"), "16.png": Image.fromarray(GREY.astype(np.uint16) * 257),
        "16.tif": Image.fromarray(GREY.astype(np.uint16) * 257), "16.pgm": Image.fromarray(GREY.astype(np.int32) * 257),
        "lab.tif": ImageCms.profileToProfile(PHOTO, *lab, outputMode="LAB"),
    }  # fmt: skip
    for name, image in modes.items():
        image.save(folder / name)
        found[name] = "read"
    bands = np.repeat(GREY[..., None], 13, 2)
    data = {
        "float.tif": (tiff(bands[..., :1].astype(np.float32)), "fractions"),
        "signed8.tif": (tiff(bands[..., :1].astype(np.int8)), "signed"),
        "signed16.tif": (tiff(bands[..., :1].astype(np.int16)), "signed"),
        "13.tif": (tiff(bands.astype(np.uint16)), "13 bands of 16 bits.*numpy.save"),
        "2.tif": (tiff(bands[..., :2].copy()), "2 bands"),
        "3f.tif": (tiff(bands[..., :3].astype(np.float32), photometric=2), "3 bands of 32 floating-point bits"),
        "rgbx.tif": (tiff(np.concatenate([np.array(PHOTO), bands[..., :1]], 2), photometric=2), "read"),
        "raw.tif": (tiff(np.array(PHOTO), photometric=2, t254=1), "preview.*raw files"),
        "deflated.tif": (tiff(np.array(PHOTO), 60000, 2), "is cut short or damaged, or of a rare kind of TIFF"),
        "page.png": (b"<!DOCTYPE html>", "web page"), "paper.jpg": (b"%PDF-1.7", "a PDF.*convert"),
        "xl.jpg": (b"\xff\x0a\0\0", "JPEG XL"), "film.png": (b"\0\0\0\x18ftypmp42", "a video"),
        "no.gif": (b"", "empty"),
        "notes.txt": (b"a", "left out"), "raw.CR2": (b"II*\0", "left out"), "drawing.svg": (b"<svg/>", "left out"),
        "page.pdf": (b"%PDF-1.7", "left out"), "bands.npy": (b"\x93NUMPY", "left out"), "README": (b"a", "left out"),
    }  # fmt: skip
    if not HEIF:
        data["phone.HEIC"] = (b"\0\0\0\x18ftypheic\0\0\0\0", r"pip install 'vitrail\[heif\]'")
    for name, (content, words) in data.items():
        (folder / name).write_bytes(content)
        found[name] = words
    return found


if __name__ == "__main__":
    for name, words in write(Path(sys.argv[1])).items():
        print(name, words)
