"""Every kind of image to the pixels that it shows, to the bit where the format allows; every damage to one sentence."""

import io
import os
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from vitrail.data.images import decode as module
from vitrail.data.images.decode import BYTES, decode, find

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (21, 34, 3), np.uint8)
ALPHA = RANDOM.integers(0, 256, (21, 34, 1), np.uint8)
GREY = RGB[..., :1]
DEEP = RANDOM.integers(0, 65536, (21, 34), np.uint16)
BLOCKS = np.repeat(np.repeat(RANDOM.integers(0, 256, (3, 5, 3), np.uint8), 16, 0), 16, 1)  # what JPEG keeps


def encode(pixels, kind, mode=None, **how):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels.squeeze())
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, kind, **how)
    return out.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, colour, size=None):
    """What Pillow does not write: 16 bits of any colour type, and sizes that are not true."""
    height, width = size or pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2" if pixels.dtype == np.uint16 else "u1"))
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(pixels, bits, photometric, kind=1, data=None):
    """An uncompressed TIFF of any depth, which Pillow does not write. kind: 1 whole numbers, 2 signed, 3 fractions."""
    data = pixels.tobytes() if data is None else data
    depth = pixels.shape[2] if pixels.ndim == 3 else 1
    tags = {256: (4, pixels.shape[1]), 257: (4, pixels.shape[0]), 259: (3, 1), 262: (3, photometric), 273: (4, 8)}
    tags |= {277: (3, depth), 278: (4, pixels.shape[0]), 279: (4, len(data)), 339: (3, kind)}
    after = b""
    if depth == 1:
        tags[258] = (3, bits)
    else:  # too many for the four bytes in a tag
        after = struct.pack(f"<{2 * depth}H", *[bits] * depth, *[kind] * depth)
        end = 8 + len(data) + 2 + 12 * (len(tags) + 1) + 4
        tags |= {258: (3, end), 339: (3, end + 2 * depth)}
    entries = b"".join(
        struct.pack("<HHII", tag, form, depth if tag in (258, 339) else 1, value)
        for tag, (form, value) in sorted(tags.items())
    )
    return (
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4) + after
    )


def on_white(pixels, alpha):
    """To the nearest whole number."""
    return ((pixels.astype(int) * alpha + 255 * (255 - alpha.astype(int)) + 127) // 255).astype(np.uint8)


def kinds():
    """name -> (bytes, RGB or grey pixels), all without loss."""
    few = Image.fromarray(RGB).quantize(17)
    seen = np.array(few.convert("RGB"))
    levels = np.array([255, 0, 128, *[255] * 14], np.uint8)[np.array(few)][..., None]
    both, mirrored = np.concatenate([RGB, ALPHA], 2), Image.fromarray(RGB[:, ::-1].copy())
    veiled, bits = on_white(RGB, ALPHA), 255 * (GREY > 127).astype(np.uint8)
    key = np.where(np.equal(RGB, RGB[3, 4]).all(-1, keepdims=True), 255, RGB).astype(np.uint8)
    cmyk = np.concatenate([RGB, ALPHA], 2)
    printed = np.array(Image.fromarray(cmyk, "CMYK").convert("RGB"))
    twelve = DEEP & 0xFFF
    pairs = twelve.reshape(-1, 2).astype(int)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    deep = np.stack([DEEP, DEEP.T.reshape(21, 34), 65535 - DEEP], 2)
    animation = {"save_all": True, "append_images": [mirrored, mirrored]}
    high = (DEEP >> 8).astype(np.uint8)[..., None]
    return {
        "png": (encode(RGB, "PNG"), RGB),
        "png grey": (encode(GREY, "PNG"), GREY),
        "png palette": (encode(few, "PNG"), seen),
        "png palette, transparent": (encode(few, "PNG", transparency=levels_of(levels, few)), on_white(seen, levels)),
        "png alpha": (encode(both, "PNG"), veiled),
        "png grey, alpha": (encode(np.concatenate([GREY, ALPHA], 2), "PNG"), on_white(GREY, ALPHA)),
        "png colour key": (encode(RGB, "PNG", transparency=tuple(map(int, RGB[3, 4]))), key),
        "png 1 bit": (encode(Image.fromarray(bits.squeeze()).convert("1"), "PNG"), bits),
        "png 16 bits grey": (encode(DEEP, "PNG"), high),
        "png 16 bits": (png(deep, 2), (deep >> 8).astype(np.uint8)),
        "png 16 bits, alpha": (
            png(np.concatenate([deep, DEEP[..., None]], 2), 6),
            on_white((deep >> 8).astype(np.uint8), high),
        ),
        "png 8 bits as 16": (png(RGB[..., 0].astype(np.uint16) * 257, 0), GREY),
        "apng": (encode(RGB, "PNG", **animation), RGB),
        "webp": (encode(RGB, "WEBP", lossless=True), RGB),
        "webp alpha": (encode(both, "WEBP", lossless=True, exact=True), veiled),
        "webp animated": (encode(RGB, "WEBP", lossless=True, **animation), RGB),
        "bmp": (encode(RGB, "BMP"), RGB),
        "bmp grey": (encode(GREY, "BMP"), GREY),
        "bmp palette": (encode(few, "BMP"), seen),
        "gif": (encode(few, "GIF"), seen),
        "gif transparent": (encode(few, "GIF", transparency=3), np.where(np.array(few)[..., None] == 3, 255, seen)),
        "gif animated": (encode(few, "GIF", save_all=True, append_images=[few.rotate(180)]), seen),
        "tiff": (encode(RGB, "TIFF"), RGB),
        "tiff lzw": (encode(RGB, "TIFF", compression="tiff_lzw"), RGB),
        "tiff deflate": (encode(RGB, "TIFF", compression="tiff_adobe_deflate"), RGB),
        "tiff palette": (encode(few, "TIFF"), seen),
        "tiff alpha": (encode(both, "TIFF"), veiled),
        "tiff cmyk": (encode(Image.fromarray(cmyk, "CMYK"), "TIFF"), printed),
        "tiff fax": (encode(Image.fromarray(bits.squeeze()).convert("1"), "TIFF", compression="group4"), bits),
        "tiff pages": (encode(RGB, "TIFF", **animation), RGB),
        "tiff 16 bits grey": (encode(DEEP, "TIFF"), high),
        "tiff 16 bits grey, big end first": (encode(DEEP.astype(">u2"), "TIFF"), high),
        "tiff 16 bits": (tiff(deep, 16, 2), (deep >> 8).astype(np.uint8)),
        "tiff 12 bits": (
            tiff(twelve, 12, 1, data=packed.astype(np.uint8).tobytes()),
            (twelve >> 4).astype(np.uint8)[..., None],
        ),
        "tiff 16 bits, 0 is white": (tiff(DEEP, 16, 0), 255 - high),
        "tiff 0 is white": (tiff(GREY.squeeze(), 8, 0), 255 - GREY),
    }


def levels_of(levels, few):
    """The alpha of each colour of a palette, from that of the pixels."""
    return bytes(int(levels[np.array(few) == n][0, 0]) if (np.array(few) == n).any() else 255 for n in range(17))


KINDS = kinds()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_to_the_bit(kind, tmp_path):
    data, expected = KINDS[kind]
    found = decode(data)
    assert (found.dtype, found.shape) == (np.uint8, (21, 34, 3))
    assert np.array_equal(found, np.broadcast_to(expected, found.shape))
    assert found.flags.writeable
    (tmp_path / "image").write_bytes(data)  # the name's suffix means nothing
    assert np.array_equal(decode(tmp_path / "image"), found)


@pytest.mark.parametrize("kind", KINDS)
def test_grey_of_every_kind(kind):
    data, expected = KINDS[kind]
    found = decode(data, channels=1)
    assert found.shape == (21, 34, 1)
    grey = expected if expected.shape[2] == 1 else np.array(Image.fromarray(expected).convert("L"))[..., None]
    assert np.array_equal(found, grey)


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"optimize": True}], ids=str)
def test_jpeg_within_its_loss(how):
    found = decode(encode(BLOCKS, "JPEG", quality=100, subsampling=0, **how))
    assert np.abs(found.astype(int) - BLOCKS).max() <= 2
    grey = decode(encode(BLOCKS, "JPEG", "L", quality=100, **how))
    assert np.abs(grey.astype(int) - np.array(Image.fromarray(BLOCKS).convert("L"))[..., None]).max() <= 2
    assert np.ptp(grey, axis=2).max() == 0


def test_cmyk_jpegs_are_inverted_as_adobe_writes_them():
    ink = Image.fromarray(np.concatenate([BLOCKS, BLOCKS[..., :1] // 2], 2), "CMYK")
    data = encode(ink, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data
    c, m, y, k = (np.array(band).astype(float) for band in ink.split())
    expected = np.stack([(255 - colour) * (255 - k) / 255 for colour in (c, m, y)], 2)
    assert np.abs(decode(data) - expected).max() <= 4


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [*TURNS, 0, 9, 65535])
def test_exifs_orientation_is_applied(orientation, kind):
    how = {"lossless": True} if kind == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = TURNS.get(orientation, TURNS[1])(decode(encode(RGB, kind, **how)))
    assert np.array_equal(decode(encode(RGB, kind, exif=exif, **how)), upright)


@pytest.mark.parametrize(
    "kind", ["png 16 bits grey", "png palette, transparent", "png alpha", "png 1 bit", "webp alpha"]
)
def test_images_of_odd_kinds_are_turned_too(kind):
    data, exif = KINDS[kind][0], Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(data)) as image:
        turned = encode(image, image.format, exif=exif, **({"lossless": True, "exact": True} if kind[0] == "w" else {}))
    assert np.array_equal(decode(turned), np.rot90(decode(data), -1))


def test_damaged_exif_does_not_cost_the_image():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(BLOCKS, "JPEG", exif=exif)
    plain = encode(BLOCKS, "JPEG")
    at = data.index(b"Exif\0\0") + 6
    for damage in (b"XX", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02"):
        assert np.array_equal(decode(data[:at] + damage + data[at + len(damage) :]), decode(plain))


@pytest.mark.parametrize("left", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_an_image_that_is_cut_short_is_named(tmp_path, kind, left):
    data = encode(np.tile(RGB, (9, 9, 1)), kind)
    path = tmp_path / f"cat.{kind.lower()}"
    path.write_bytes(data[: int(left * len(data))])
    with pytest.raises(ValueError, match=r"cat\.\w+ is cut short or damaged \(.*\); copy or download it again\.$"):
        decode(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty; copy or download it again."),
        (b"\n<!DOCTYPE html><html>Not Found</html>", "is a web page, perhaps of a download that failed; download"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "is a Git LFS pointer, not the image itself; git lfs pull",
        ),
        (
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "is not an image of a kind that is read here; convert it to JPEG",
        ),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image of a kind that is read here"),
        (b"\x80\x04\x95cat", "is not an image of a kind that is read here"),
        (bytes(1000), "is not an image of a kind that is read here"),
        (b"\xff\xd8\xff\xe0", r"is cut short or damaged"),
        (b"RIFF\0\0\0\0WEBPVP8 ", r"is cut short or damaged"),
        (png(RGB, 2, (20_000, 20_000)), "has more than the 134,217,728 pixels that are decoded; scale it down."),
        (png(RGB, 2, (12_000, 12_000)), "has 12000 x 12000 pixels, more than the 134,217,728 decoded; scale it down."),
        (png(GREY, 0, (10_000, 10_000)), r"is cut short or damaged \((?!.*exceeds limit)"),
        (tiff(np.zeros((4, 4), np.float32), 32, 1, 3), "holds fractions, of which none is known to be white; save it"),
        (tiff(np.zeros((4, 4), np.int32), 32, 1, 2), "holds whole numbers of 32 or signed 16 bits, of which"),
    ],
)
@pytest.mark.parametrize("named", [True, False])
def test_what_is_no_image_or_too_large_is_one_sentence(tmp_path, data, words, named):
    (tmp_path / "cat.jpg").write_bytes(data)
    name = rf"{tmp_path}/cat\.jpg" if named else r"shard 3: cat\.jpg"
    with pytest.raises(ValueError, match=f"^{name} {words}") as stop:
        decode(tmp_path / "cat.jpg") if named else decode(data, name="shard 3: cat.jpg")
    assert len(str(stop.value).splitlines()) == 1


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", BYTES + 1)
    cases = {
        ".": "is a folder, not an image; name",
        "nowhere": "does not exist; check",
        "pipe": "is not a regular file",
    }
    cases |= {"huge": "has 1,073,741,825 bytes, more than the 1,073,741,824", "x" * 300: r"cannot be read \(File name"}
    for name, words in cases.items():
        with pytest.raises(ValueError, match=f"^{tmp_path / name} {words}"):
            decode(tmp_path / name)


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_only_grey_and_rgb_are_asked_for(channels):
    with pytest.raises(ValueError, match=f"1 channel \\(grey\\) or 3 \\(RGB\\), not {channels}"):
        decode(encode(RGB, "PNG"), channels)


def mutated(data, draw):
    """Bytes changed, cut off, taken out or swapped; half of the changes in the header."""
    data, length = bytearray(data), len(data)
    kind = draw.integers(5)
    a, b = sorted(draw.integers(0, length, 2).tolist())
    if kind == 0:
        return bytes(data[:b])
    if kind == 1:
        return bytes(data[:a] + data[b:])
    if kind == 2:
        n = int(draw.integers(1, 32))
        data[a : a + n], data[b : b + n] = data[b : b + n], data[a : a + n]
        return bytes(data)
    for place in draw.integers(0, length if kind == 3 else min(80, length), 4):
        data[place] = draw.integers(256)
    return bytes(data)


def test_2000_damaged_images_give_pixels_or_a_sentence(monkeypatch):
    """Where a size in a header was hit, the limit keeps the time short; that it holds has its own test."""
    monkeypatch.setattr(module, "PIXELS", 2**16)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    seeds = [data for data, _ in KINDS.values()] + [
        encode(RGB, "JPEG", exif=exif),
        encode(RGB, "JPEG", progressive=True),
        encode(RGB, "JPEG", "CMYK"),
        encode(RGB, "WEBP", exif=exif),
        encode(RGB, "TIFF", compression="jpeg"),
    ]
    draw, seen, said = np.random.default_rng(1), [], []
    for n in range(2000):
        try:
            seen.append(decode(mutated(seeds[n % len(seeds)], draw), name="cat"))
        except ValueError as error:
            said.append(str(error))
    assert all((pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3) for pixels in seen)
    assert all(re.fullmatch(r"cat [^\n]{1,250}\.", sentence) for sentence in said)
    assert min(len(seen), len(said)) > 200


def test_threads_decode_quietly_and_leave_the_filters_as_they_were(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # of 714, Pillow warns
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(decode, [KINDS["png"][0], KINDS["tiff"][0]] * 50))
    assert all(np.array_equal(pixels, RGB) for pixels in found)
    assert warnings.filters == before


def test_images_are_found_in_folders_below_sorted(tmp_path):
    wanted = ["a/1.JPG", "a/b/2.png", "a.jpeg", "c.tIf"]
    for name in [*wanted, "a/notes.txt", "a/.hidden.jpg", ".cache/d.png", "b.jpg.part", "folder.png/x.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find(tmp_path) == sorted(tmp_path / name for name in wanted)
    assert find(tmp_path / "a" / "notes.txt") == [tmp_path / "a" / "notes.txt"]
    with pytest.raises(ValueError, match=r"folder\.png is a folder without images \(\.jpg, "):
        find(tmp_path / "folder.png")
