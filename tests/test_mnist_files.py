"""idx files: what is written is read, what is damaged is refused with a sentence, and nothing is allocated in vain."""

import gzip
import io
import os
import pickle
import random
import re
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitrail.data.sources.mnist import open_idx, read_idx

CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


def header(shape, code=0x08):
    return bytes([0, 0, code, len(shape)]) + b"".join(int(n).to_bytes(4, "big") for n in shape)


def encode(array):
    return header(array.shape, CODES[array.dtype.name]) + array.astype(array.dtype.newbyteorder(">")).tobytes()


def zipped(data):
    return gzip.compress(data, mtime=0)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture
def put(tmp_path):
    def put(data, name="images-idx3"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else encode(data))
        return path

    return put


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """One file that hypothesis writes again and again."""
    return tmp_path_factory.mktemp("idx") / "scratch"


def refused(path, *parts):
    """read_idx refuses `path` in one sentence that holds the path and each part; gives the sentence."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read_idx(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


# What is written is read


@pytest.mark.parametrize("pack", [bytes, zipped], ids=["plain", "gzip"])
@given(data=st.data())
def test_round_trip_of_every_type_and_rank(scratch, pack, data):
    dtype = np.dtype(data.draw(st.sampled_from(sorted(CODES))))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=4))
    array = data.draw(hnp.arrays(dtype, shape))
    scratch.write_bytes(pack(encode(array)))
    found = read_idx(scratch)
    assert found.dtype == dtype
    assert found.dtype.isnative
    assert found.shape == shape
    assert found.tobytes() == array.tobytes()  # bytes, so that every nan counts as itself
    assert found.flags.writeable


def test_the_format_by_hand(put):
    """Written out byte by byte, so that an error in encode() above cannot hide one in read_idx."""
    path = put(bytes.fromhex("00000b02 00000002 00000003 0001 0100 ffff 7fff 8000 0002"))
    assert read_idx(path).tolist() == [[1, 256, -1], [32767, -32768, 2]]
    path = put(bytes.fromhex("00000d01 00000002 3f800000 c0000000"))
    assert read_idx(path).tolist() == [1.0, -2.0]


def test_gzip_is_told_by_content_and_may_have_members(put):
    array = noise(5, 4, 3)
    data = encode(array)
    assert np.array_equal(read_idx(put(zipped(data), "named-plain")), array)
    assert np.array_equal(read_idx(put(data, "named.gz")), array)
    assert np.array_equal(read_idx(put(zipped(data[:20]) + zipped(data[20:]))), array)
    large = noise(300, 28, 28)
    assert np.array_equal(read_idx(put(zipped(encode(large)))), large)


def test_a_source_gives_image_target_and_name(put):
    images, labels = noise(20, 5, 7), np.arange(20, dtype=np.uint8) % 3
    source = open_idx(put(zipped(encode(images)), "train-images-idx3-ubyte.gz"), put(labels, "l"), ("a", "b", "c"))
    assert len(source) == 20
    image, target, name = source[17]
    assert image.shape == (5, 7, 1)
    assert image.dtype == np.uint8
    assert np.array_equal(image[:, :, 0], images[17])
    assert (target, type(target)) == (2, int)
    assert name == "train-images-idx3-ubyte.gz[17]"
    assert np.array_equal(source.images[..., 0], images)
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == labels.tolist()
    assert source.class_names == ("a", "b", "c")
    assert [target for _, target, _ in source] == labels.tolist()  # stops by IndexError


def test_a_source_has_no_state(put):
    source = open_idx(put(noise(3, 4, 4)), None, None)
    before = source[1][0].copy()
    source[1][0][:] = 0
    assert before.any()
    assert np.array_equal(source[1][0], before)
    with pytest.raises(ValueError, match="read-only"):
        source.images[0] = 0
    with pytest.raises(AttributeError):
        source.file = "another"
    for index in (-1, 3):
        with pytest.raises(IndexError, match=f"images 0 to 2, but {index}"):
            source[index]


def test_labels_and_class_names_are_optional(put):
    images, labels = put(noise(4, 2, 2)), put(np.array([0, 3, 1, 1], np.uint8), "labels")
    assert open_idx(images, labels, None).class_names == ("0", "1", "2", "3")
    unlabelled = open_idx(images, None, None)
    assert unlabelled.labels.tolist() == [-1] * 4
    assert unlabelled.class_names == ()
    assert open_idx(images, None, ("a", "b")).class_names == ("a", "b")


# Bad files


def test_missing_folder_and_empty(tmp_path, put):
    refused(tmp_path / "absent.gz", "does not exist", "check the path")
    refused(tmp_path / ("x" * 300), "cannot be read")
    refused(tmp_path, "is a folder")
    refused(put(b""), "it is empty")
    refused(put(zipped(b"")), "inside its gzip it is empty")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no regular file")


def made_by(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


FOREIGN = [
    (b"\x89PNG\r\n\x1a\n" + bytes(20), "a PNG image"),
    (b"\xff\xd8\xff\xe0\x00\x10JFIF", "a JPEG image"),
    (b"<!DOCTYPE html><html>", "an HTML page"),
    (b"\n  <HTML lang='en'>", "an HTML page"),
    (made_by(lambda file: zipfile.ZipFile(file, "w").writestr("readme.txt", "hello")), "a zip archive"),
    (made_by(lambda file: np.savez(file, x=np.zeros(3))), "a NumPy .npz file"),
    (made_by(lambda file: np.save(file, np.zeros(3))), "a NumPy .npy file"),
    (tarfile.TarInfo("empty").tobuf(), "a tar archive"),
    (pickle.dumps([1, 2], 2), "a Python pickle"),
    (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    (b"\x00\x00\x07\x01\x00\x00\x00\x01x", "the unknown type code 0x07"),
    (b"\x00\x00\x08", "begins with the bytes 00 00 08"),
    (b"label,pixel1,pixel2\n", "begins with the bytes 6c 61 62 65"),
]


@pytest.mark.parametrize(("data", "what"), FOREIGN, ids=[what for _, what in FOREIGN])
def test_other_formats_are_named(put, data, what):
    refused(put(data), "not an idx file: it ", what)
    refused(put(zipped(data)), "not an idx file: inside its gzip it ", what)


def test_truncated_and_too_long(put):
    data = encode(noise(10, 4, 4))
    refused(put(data[:-7]), "cut short", "160 bytes (10 x 4 x 4 of uint8)", "but 153 follow", "fetch it again")
    refused(put(data + b"ab"), "too long", "160 bytes", "but 162 follow")
    refused(put(zipped(data[:-7])), "cut short", "160 bytes", "only 153 follow")
    refused(put(zipped(data + b"ab")), "too long", "160 bytes", "more follow")
    for pack in (bytes, zipped):
        refused(put(pack(data[:9])), "header needs 16 bytes, but 9 are there")
    refused(put(header((2, 2), 0x0E) + bytes(31)), "32 bytes (2 x 2 of float64)", "but 31 follow")


def test_corrupt_gzip(put):
    data = encode(noise(200, 28, 28))
    good = zipped(data)
    message = refused(put(good[: len(good) // 2]), "cut short", "156,800 bytes", "gzip stream ends after")
    found = int(re.search(r"ends after ([\d,]+)", message)[1].replace(",", ""))
    assert 0.45 * 156_800 < found < 0.55 * 156_800
    refused(put(good[:-3]), "gzip stream ends after 156,800")  # the check sum is incomplete
    refused(put(good[:5]), "corrupt or incomplete gzip")
    refused(put(good[:-8] + bytes(4) + good[-4:]), "corrupt or incomplete gzip", "CRC")
    refused(put(good + b"rubbish"), "corrupt or incomplete gzip")
    refused(put(good[:10] + b"\xff" * 50 + good[60:]), "corrupt or incomplete gzip")
    refused(put(b"\x1f\x8b"), "corrupt or incomplete gzip")
    refused(put(zipped(good)), "inside its gzip it looks like another gzip file")


def peak_of(call):
    """What call() gives, and the most bytes that Python and NumPy held meanwhile."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [bytes, zipped], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("shape", "claim"),
    [((2**20, 2**10, 2**10), "1,099,511,627,776"), ((2**31, 2**31, 2**31), "more than fits in an array")],
)
def test_a_header_that_lies_allocates_nothing(put, pack, shape, claim):
    path = put(pack(header(shape)))
    assert peak_of(lambda: refused(path, claim))[1] < 1_000_000


def test_ranks_and_shapes_that_numpy_cannot_hold(put):
    refused(put(header((1,) * 200) + b"x"), "200 dimensions, but NumPy holds 32")
    refused(put(header((0, 2**32 - 1, 2**32 - 1))), "more than fits in an array")
    assert read_idx(put(header((1,) * 32) + b"x")).shape == (1,) * 32


def test_a_gzip_bomb_stays_packed(put):
    """64 MiB of zeros behind a header that promises 100 bytes; and the reverse, which the file's size gives away."""
    path = put(zipped(header((100,)) + bytes(1 << 26)))
    assert peak_of(lambda: refused(path, "promises 100 bytes", "more follow"))[1] < 1_000_000
    path = put(zipped(header((1 << 26,)) + bytes(1000)))
    assert peak_of(lambda: refused(path, "67,108,864 bytes", "holds at most"))[1] < 1_000_000
    path = put(zipped(header((1 << 26,)) + noise(1 << 17).tobytes()))  # could be true: found out by reading
    assert peak_of(lambda: refused(path, "67,108,864 bytes", "only 131,072 follow"))[1] < 2_000_000


def damage(data, rng):
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(min(len(data), rng.choice([4, 20, 10_000])))
        kind = rng.choice(["flip", "flip", "cut", "insert"])
        if kind == "flip":
            data[at] ^= rng.randrange(1, 256)
        elif kind == "cut":
            del data[max(at, 1) : at + rng.randint(1, len(data))]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
    return data


@pytest.mark.parametrize("pack", [bytes, zipped], ids=["plain", "gzip"])
def test_damage_never_passes_unnoticed(tmp_path, pack):
    """300 files with flipped bytes, cuts and insertions: read right, or refused with a sentence."""
    rng, refusals = random.Random(8), 0
    array = noise(6, 5, 4)
    good, path = pack(encode(array)), tmp_path / "damaged"

    def read_damaged():
        data = damage(bytearray(good), rng)
        path.write_bytes(data)
        try:
            found = read_idx(path)
        except ValueError as error:
            return str(error)
        if pack is zipped:  # its check sum vouches for the content
            assert np.array_equal(found, array)
        else:  # all its bytes are accounted for
            assert 4 + 4 * found.ndim + found.nbytes == len(data)
        return ""

    for _ in range(300):
        message, peak = peak_of(read_damaged)
        assert peak < 1_000_000
        assert message == "" or str(path) in message
        refusals += message != ""
    assert 100 < refusals < 300


# Files that do not go together


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (noise(4), noise(4, 2, 2), "images-idx3 holds 1 dimensions like labels, but images need 3"),
        (noise(4, 2, 2), noise(4, 2, 2), "labels-idx1 holds 3 dimensions like images, but labels need 1"),
        (noise(4, 2, 2, 3), noise(4), "images-idx3 holds 4 dimensions, but images need 3"),
        (noise(4, 2, 2).astype(np.float32), noise(4), "images-idx3 holds float32 numbers, but uint8"),
        (noise(4, 2, 2), noise(4).astype(np.int32), "labels-idx1 holds int32 numbers, but uint8"),
        (noise(0, 28, 28), noise(0), r"images-idx3 holds no pixels: its shape is \(0, 28, 28\)"),
        (noise(4, 0, 28), noise(4), r"images-idx3 holds no pixels: its shape is \(4, 0, 28\)"),
        (noise(4, 2, 2), noise(5), "images-idx3 holds 4 images, but .*labels-idx1 holds 5 labels"),
        (noise(4, 2, 2), np.array([0, 1, 3, 9], np.uint8), "labels-idx1 gives item 2 the label 3, but there are 3"),
    ],
)
def test_files_that_are_no_images_with_their_labels(put, images, labels, message):
    with pytest.raises(ValueError, match=message):
        open_idx(put(images), put(labels, "labels-idx1"), ("a", "b", "c"))
