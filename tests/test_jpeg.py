"""Only what a crop shows of a JPEG is decoded, shrunk by its codec: the same bits from both, in the right place."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_decode import RANDOM, encode
from test_loader import Numbered, equal

from vitrail.data.images import jpeg
from vitrail.data.images.augment import Augment
from vitrail.data.images.decode import Part, decode, decode_part
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.loader import Training


def photo(height, width):
    """Waves, which a codec's shrinking shows as they are."""
    rows, columns = np.mgrid[:height, :width]
    waves = [127 * (1 + np.sin(rows / (70 + c)) * np.cos(columns / (90 - c))) for c in range(3)]
    return np.stack(waves, -1).round().astype(np.uint8)


WAYS = [
    {},
    {"quality": 95, "subsampling": 0},
    {"subsampling": 1},
    {"progressive": True},
    {"optimize": True, "restart_marker_blocks": 3},
    {"mode": "L"},
    {"mode": "L", "progressive": True},
]


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("how", WAYS)
def test_both_codecs_give_the_same_bits(monkeypatch, how, shrink):
    height, width = 123, 178
    data = encode(RANDOM.integers(0, 256, (height, width, 3), np.uint8), "JPEG", **how)
    part = Part(8, 24, 96, 112, (96 // (2 * shrink), 112 // (2 * shrink)))
    assert part.shrink == shrink
    found, whole = decode_part(data, lambda size: part)
    assert whole == (height, width)
    assert found.shape == (96 // shrink, 112 // shrink, 3)

    def broken(*arguments, **options):
        raise ValueError("no such codec")

    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", broken)
    assert np.array_equal(decode_part(data, lambda size: part)[0], found)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (width // shrink, height // shrink))
        pillow = np.asarray(image.convert("RGB"))
    assert np.array_equal(found, pillow[8 // shrink :, 24 // shrink :][: found.shape[0], : found.shape[1]])


def test_a_part_has_twice_the_pixels_that_are_wanted_and_less_than_four_times_as_many():
    for side in range(1, 3000, 7):
        shrink = Part(0, 0, side, 2 * side, (60, 50)).shrink
        assert side // shrink >= 120 or shrink == 1
        assert side // (2 * shrink) < 120 or shrink == 8
    sides = (9, 20, 39, 40, 79, 80, 159, 160, 8000)
    assert [Part(0, 0, side, 9999, (10, 10)).shrink for side in sides] == [1, 1, 1, 2, 2, 4, 4, 8, 8]


@given(st.tuples(*[st.integers(1, 900)] * 4), st.tuples(*[st.floats(0, 1)] * 4))
def test_a_part_of_an_image_that_was_made_smaller_is_the_same_part(sizes, places):
    tall, wide, rows, columns = sizes
    height, width = 1 + int(places[0] * (tall - 1)), 1 + int(places[1] * (wide - 1))
    part = Part(int(places[2] * (tall - height)), int(places[3] * (wide - width)), height, width, (5, 5))
    found = part.within((rows, columns), (tall, wide))
    assert 0 <= found.top < found.top + found.height <= rows
    assert 0 <= found.left < found.left + found.width <= columns
    assert abs(found.top / rows - part.top / tall) <= 1 / rows
    assert abs(found.height / rows - height / tall) <= 1 / rows
    assert abs(found.left / columns - part.left / wide) <= 1 / columns
    assert abs(found.width / columns - width / wide) <= 1 / columns
    assert found.shrink == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_part_is_of_the_upright_image(kind, orientation):
    """A JPEG's is shrunk, so that each of its pixels is the mean of a square, as far as the codec's loss lets it."""
    pixels = photo(240, 320)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(pixels, kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))
    upright = decode(data)
    seen = []

    def choose(size):
        seen.append(size)
        return Part(40, 80, 120, 80, (30, 20))

    found, whole = decode_part(data, choose)
    assert seen == [whole]
    assert whole == upright.shape[:2]
    expected = upright[40:160, 80:160]
    if kind == "JPEG":
        expected = expected.reshape(60, 2, 40, 2, 3).astype(float).mean((1, 3))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("how", [*WAYS, {"subsampling": 2, "quality": 30}, {"exif": Image.Exif()}, {"comment": b"hm"}])
def test_decoding_ends_below_the_part_and_gives_the_same_bits(how, shrink):
    """Whatever the rows that are coded together, and however near to their border the part ends."""
    height, width = 123, 75
    data = encode(RANDOM.integers(0, 256, (height, width, 3), np.uint8), "JPEG", **how)
    head = jpeg.header(data)
    whole = jpeg.decode(data, head, shrink)
    assert head[:3] == (height, width, whole.shape[2])
    lower = 0
    for bottom in range(1, height + 1):
        found = jpeg.decode(data, head, shrink, bottom)
        rows = -(-bottom // shrink)
        assert np.array_equal(found[:rows], whole[:rows])
        lower += len(found) < len(whole)
    assert bool(lower) == bool(head.rows) == (not {"progressive", "restart_marker_blocks"} & how.keys())


def test_where_decoding_ends_is_not_known_the_whole_is_decoded(monkeypatch):
    data = encode(photo(120, 160), "JPEG")
    whole = decode(data)
    monkeypatch.setattr(jpeg, "REST", "other words")
    assert np.array_equal(jpeg.decode(data, jpeg.header(data), 1, 20), whole)


def several_scans(pixels):
    """A baseline JPEG whose channels are coded one after another, which Pillow does not write."""
    parts = [encode(pixels[..., c], "JPEG", "L", quality=90) for c in range(3)]
    starts = [part.index(b"\xff\xda") for part in parts]
    frame = parts[0].index(b"\xff\xc0")
    height, width = pixels.shape[:2]
    size = height.to_bytes(2) + width.to_bytes(2)
    header = b"\xff\xc0\x00\x11\x08" + size + b"\x03" + b"".join(bytes([c + 1, 0x11, 0]) for c in range(3))
    scans = [
        b"\xff\xda\x00\x08\x01" + bytes([c + 1]) + part[start + 6 : -2]
        for c, (part, start) in enumerate(zip(parts, starts, strict=True))
    ]
    return parts[0][:frame] + header + parts[0][frame + 13 : starts[0]] + b"".join(scans) + b"\xff\xd9"


def test_channels_that_are_coded_one_after_another_are_decoded_whole():
    data = several_scans(photo(64, 80))
    head = jpeg.header(data)
    assert head is not None
    assert head.rows == 0
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(decode_part(data, lambda size: Part(8, 8, 16, 16, None))[0], np.array(image)[8:24, 8:24])
    # Were it cut, the codec would say so, and the whole be decoded.
    assert np.array_equal(jpeg.decode(data, head._replace(rows=8), 1, 20), decode(data))


@pytest.mark.parametrize("where", [0.3, 0.9, 1.0])
def test_a_file_that_ends_too_early_is_named_though_the_part_lies_above(where):
    data = encode(RANDOM.integers(0, 256, (240, 320, 3), np.uint8), "JPEG")
    with pytest.raises(ValueError, match="the image is cut short or damaged"):
        decode_part(data[: int(where * len(data)) - 2000], lambda size: Part(0, 0, 30, 40, None))


def test_only_what_may_turn_an_image_or_hide_another_is_left_to_pillow():
    pixels, exif = photo(40, 50), Image.Exif()
    exif[0x0112] = 6
    plain = [{}, {"progressive": True}, {"mode": "L"}, {"comment": b"a remark"}, {"icc_profile": bytes(200)}]
    assert all(jpeg.header(encode(pixels, "JPEG", **how)).plain for how in plain)
    assert not jpeg.header(encode(pixels, "JPEG", exif=exif)).plain
    assert not jpeg.header(encode(pixels, "JPEG", xmp=b"<x:xmpmeta>")).plain
    assert jpeg.header(encode(pixels, "PNG")) is None
    assert jpeg.header(encode(Image.new("CMYK", (50, 40)), "JPEG")) is None
    data = encode(pixels, "JPEG", icc_profile=bytes(200))
    heads = [jpeg.header(data[:length]) for length in range(len(data))]  # no length is an error
    assert heads.count(None) > data.index(b"\xff\xda")


def test_grey_is_rgb_of_equal_channels():
    data = encode(photo(40, 50), "JPEG", "L")
    assert np.array_equal(decode(data), np.repeat(decode(data, channels=1), 3, 2))


def test_a_photograph_that_is_cut_short_is_named_whatever_its_part():
    data = encode(photo(400, 500), "JPEG")
    with pytest.raises(ValueError, match="the image is cut short or damaged"):
        decode_part(data[: len(data) // 2], lambda size: Part(0, 0, 400, 500, (50, 50)))


@dataclass
class Photographs(Numbered):
    """JPEGs of 60 x 80 pixels."""

    def __getitem__(self, index):
        out = io.BytesIO()
        image = np.random.default_rng(index).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(image).resize((80, 60)).save(out, "JPEG")
        self.read.append(index)
        return out.getvalue(), self.target(index), self.name(index)


@pytest.mark.parametrize(("side", "reads"), [(15, 12), (20, 3)])
def test_what_is_remembered_changes_no_batch_and_no_part_is(side, reads):
    """Of images of four times the model's size, only the part that is seen is decoded: another one each time."""
    how = Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3)
    options = {"how": how, "augment": Augment("inception"), "batch": 3, "seed": 0}
    source = Photographs(3)
    kept, fresh = Training(source, **options, remember=2**20), Training(Photographs(3), **options)
    some = Training(Photographs(3), **options, remember=60 * 80 * 3 + 1)
    for step in range(4):
        assert equal(kept[step].batch, fresh[step].batch)
        assert equal(some[step].batch, fresh[step].batch)
    assert len(source.read) == reads
    assert len(some.images.known) == (reads == 3)
