"""Only what a crop shows of a JPEG is decoded, shrunk by its codec: the same bits from both codecs, in its place."""

import io

import numpy as np
import pytest
from photos import decode, encode, photo, turned
from PIL import Image

from vitrail.data.images import jpeg
from vitrail.data.images.decode import opened
from vitrail.data.images.geometry import Crop

NOISE = np.random.default_rng(0).integers(0, 256, (123, 178, 3), np.uint8)
WAYS = [
    {"quality": 95, "subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"mode": "L"},
    {"optimize": True, "restart_marker_blocks": 3}, {"exif": Image.Exif(), "comment": b"hm", "quality": 30},
]  # fmt: skip


def waves(height, width):
    return photo(height, width, noise=0, wave=70)


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("how", WAYS)
def test_both_codecs_give_the_same_bits(monkeypatch, how, shrink):
    data = encode(NOISE, "JPEG", **how)
    crop = Crop(8, 24, 96, 112, (96 // (2 * shrink), 112 // (2 * shrink)))
    assert crop.shrink == shrink
    found = {n: opened(data, "x").decode(crop, n) for n in (1, 3)}
    assert [pixels.shape for pixels in found.values()] == [(96 // shrink, 112 // shrink, n) for n in (1, 3)]

    def broken(*arguments, **options):
        raise ValueError("no such codec")

    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", broken)
    assert all(np.array_equal(opened(data, "x").decode(crop, n), found[n]) for n in (1, 3))
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (178 // shrink, 123 // shrink))
        pillow = np.asarray(image.convert("RGB"))[8 // shrink :, 24 // shrink :]
    assert np.array_equal(found[3], pillow[: 96 // shrink, : 112 // shrink])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_crop_is_of_the_upright_image(kind, orientation):
    """A JPEG's is shrunk, so that each of its pixels is the mean of a square, as far as the codec's loss lets it."""
    how = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    data = encode(waves(240, 320), kind, exif=turned(orientation), **how)
    upright, image = decode(data), opened(data, "x")
    assert image.size == upright.shape[:2] == ((320, 240) if orientation > 4 else (240, 320))
    found, expected = image.decode(Crop(40, 80, 120, 80, (30, 20))), upright[40:160, 80:160]
    if kind == "JPEG":
        expected = expected.reshape(60, 2, 40, 2, 3).astype(float).mean((1, 3))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("how", WAYS)
def test_decoding_ends_below_the_crop_and_gives_the_same_bits(how, shrink):
    """However many rows are coded together, and however near to their border the crop ends."""
    data = encode(NOISE[:, :75], "JPEG", **how)
    head = jpeg.header(data)
    whole, lower = jpeg.decode(data, head, shrink), 0
    assert head[:3] == (123, 75, whole.shape[2])
    for bottom in range(1, 124):
        found = jpeg.decode(data, head, shrink, bottom)
        rows = -(-bottom // shrink)
        assert np.array_equal(found[:rows], whole[:rows])
        lower += len(found) < len(whole)
    assert bool(lower) == bool(head.rows) == (not {"progressive", "restart_marker_blocks"} & how.keys())


def several_scans(pixels):
    """A baseline JPEG whose channels are coded one after another, which Pillow does not write."""
    parts = [encode(pixels[..., c], "JPEG", "L", quality=90) for c in range(3)]
    starts, frame = [part.index(b"\xff\xda") for part in parts], parts[0].index(b"\xff\xc0")
    size = b"".join(side.to_bytes(2) for side in pixels.shape[:2])
    header = b"\xff\xc0\x00\x11\x08" + size + b"\x03" + b"".join(bytes([c + 1, 0x11, 0]) for c in range(3))
    scans = [b"\xff\xda\x00\x08\x01" + bytes([c + 1]) + parts[c][starts[c] + 6 : -2] for c in range(3)]
    return parts[0][:frame] + header + parts[0][frame + 13 : starts[0]] + b"".join(scans) + b"\xff\xd9"


def test_where_it_cannot_end_below_the_crop_the_whole_is_decoded(monkeypatch):
    """Where channels are coded one after another, or the codec's words for what is left are others."""
    data = several_scans(waves(64, 80))
    head = jpeg.header(data)
    assert head.rows == 0
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(opened(data, "x").decode(Crop(8, 8, 16, 16)), np.array(image)[8:24, 8:24])
    # Were it cut, the codec would say so, and the whole be decoded.
    assert np.array_equal(jpeg.decode(data, head._replace(rows=8), 1, 20), decode(data))
    data = encode(waves(120, 160), "JPEG")
    assert len(jpeg.decode(data, jpeg.header(data), 1, 20)) < 120
    monkeypatch.setattr(jpeg, "REST", "other words")
    assert np.array_equal(jpeg.decode(data, jpeg.header(data), 1, 20), decode(data))


@pytest.mark.parametrize("length", [0.3, 0.95])
@pytest.mark.parametrize("crop", [Crop(0, 0, 30, 40), Crop(0, 0, 123, 178, (50, 50)), None])
def test_a_file_that_ends_too_early_is_named_even_where_the_crop_lies_above(length, crop):
    data = encode(NOISE, "JPEG")
    with pytest.raises(ValueError, match=r"^cat is cut short or damaged"):
        opened(data[: int(length * len(data))], "cat").decode(crop)
