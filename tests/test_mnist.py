"""idx files: what is written is read, what is damaged is refused, and nothing is allocated in vain."""

import gzip
import hashlib
import random
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from made_sources import damaged, idx

from vitrail.data.sources.mnist import FASHION, FILES, fashion, open_idx, read_idx, splits

PACKAGED = Path(__file__).parents[1] / "vitrail" / "data" / "fashion"
PACKS = [bytes, lambda data: gzip.compress(data, mtime=0)]
plain, zipped = PACKS


def header(*shape):
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture
def put(tmp_path):
    def put(data, name="some-idx"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else idx(data))
        return path

    return put


def peak_of(call):
    """What call() gives, and the most bytes that Python and NumPy held meanwhile."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_format_by_hand(put):
    """Written out byte by byte, so that an error in idx() cannot hide one in read_idx."""
    data = bytes.fromhex("00000803 00000001 00000002 00000003 000102 03ffff")
    for content in (data, zipped(data), zipped(data[:20]) + zipped(data[20:])):  # a gzip file may have members
        found = read_idx(put(content), 3)
        assert (found.dtype, found.tolist()) == (np.uint8, [[[0, 1, 2], [3, 255, 255]]])
    assert read_idx(put(bytes.fromhex("00000801 00000002 0709")), 1).tolist() == [7, 9]


DATA = idx(noise(10, 4, 4))
GOOD = zipped(idx(noise(200, 28, 28)))
# What begins otherwise, is counted wrong or promises too much: (content, parts of the sentence).
REFUSED = [
    *((pack(content), parts) for pack in PACKS for content, parts in [
        (b"", ["empty"]),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), ["89 50 4e 47", "00 00 08 03"]),
        (b"\x00\x00\x0d\x03" + bytes(20), ["00 00 0d 03"]),
        (b"\n<!DOCTYPE html><html>", ["web page"]),
        (b"version https://git-lfs.github.com/spec/v1\noid", ["Git LFS"]),
        (idx(noise(4)), ["00 00 08 01"]),
        (idx(noise(0, 28, 28)), ["0 x 28 x 28"]),
        (header(2**32 - 1, 0, 2**32 - 1), ["4294967295 x 0"]),
        (b"\x00\x00\x08\x03" + bytes(5), []),
        (DATA[:-7], ["160 bytes (10 x 4 x 4)", "153 follow"]),
        (DATA + b"ab", ["160 bytes", "more follow"]),
        (header(2**20, 2**10, 2**10), ["1,099,511,627,776"]),
        (header(*(2**31,) * 3), [f"{2**93:,}"]),
    ]),
    *((content, []) for content in (
        GOOD[: len(GOOD) // 2], GOOD[:5], GOOD + b"rubbish", zipped(GOOD), GOOD[:-8] + bytes(4) + GOOD[-4:])),
    # 64 MiB of zeros behind a header that promises 100 bytes; and the reverse, which the file's size gives away or not.
    (zipped(header(1, 10, 10) + bytes(1 << 26)), ["promises 100 bytes", "more follow"]),
    (zipped(header(1, 1, 1 << 26) + bytes(1000)), ["67,108,864 bytes"]),
    (zipped(header(1, 1, 1 << 26) + noise(1 << 17).tobytes()), ["67,108,864 bytes", "131,072 follow"]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "parts"), REFUSED, ids=range(len(REFUSED)))
def test_other_content_is_refused_in_one_sentence_and_takes_little_memory(put, content, parts):
    path = put(content)

    def read():
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            read_idx(path, 3)
        return str(caught.value)

    message, peak = peak_of(read)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []
    assert peak < 2_000_000


@pytest.mark.parametrize("pack", PACKS, ids=["plain", "gzip"])
def test_damage_never_passes_unnoticed(put, pack):
    """300 files with flipped bytes, cuts and insertions: read right, or refused with a sentence."""
    rng, refusals, array = random.Random(8), [], noise(6, 5, 4)
    for _ in range(300):
        data = damaged(pack(idx(array)), rng)
        path = put(data)
        try:
            found, peak = peak_of(lambda path=path: read_idx(path, 3))
        except ValueError as error:
            refusals.append(str(error))
            continue
        assert peak < 1_000_000  # gzip's check sum vouches for the content; of plain files all bytes are accounted for
        assert np.array_equal(found, array) if pack is zipped else 16 + found.nbytes == len(data)
    assert 100 < len(refusals) < 300
    assert [message for message in refusals if "some-idx" not in message] == []


def test_files_that_do_not_fit_each_other(put, tmp_path):
    images, labels = put(noise(4, 2, 2), "images"), put(np.array([0, 3, 1, 1], np.uint8), "labels")
    assert open_idx(images, labels, None).class_names == ("0", "1", "2", "3")
    for file, names, words in [
        (put(noise(5), "few"), None, "images has 4 images, but .*few 5 labels"),
        (labels, ("a", "b", "c"), "labels has the label 3, but there are 3"),
        (tmp_path / "absent", None, "absent cannot be read"),
    ]:
        with pytest.raises(ValueError, match=words):
            open_idx(images, file, names)


@pytest.mark.parametrize("dash", ["-idx", ".idx"])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_the_four_files_of_a_folder(tmp_path, suffix, dash):
    folder = tmp_path / "My-Fashion"
    folder.mkdir()
    assert splits(folder) == {}
    for (split, stems), array in zip(FILES.items(), (noise(6, 5, 4), noise(3, 5, 4)), strict=True):
        paths = [folder / f"{stem.replace('-idx', dash)}{suffix}" for stem in stems]
        paths[1].write_bytes(idx(np.arange(len(array), dtype=np.uint8)))
        with pytest.raises(ValueError, match=stems[0]):
            splits(folder)
        paths[0].write_bytes(zipped(idx(array)))
        source = splits(folder)[split]
        assert np.array_equal(source.images[..., 0], array)
        assert (source.labels.tolist(), source.class_names) == ([*range(len(array))], FASHION)
    folder.rename(tmp_path / "digits")
    assert splits(tmp_path / "digits")["test"].class_names == ("0", "1", "2")


def test_fashion_is_the_described_part():
    for split, count, first in (("train", 11_000, [9, 0, 0, 3, 0]), ("test", 2_000, [9, 2, 1, 1, 6])):
        source = fashion(split)
        assert (source.images.shape, source.class_names) == ((count, 28, 28, 1), FASHION)
        assert source.labels[:5].tolist() == first  # as in every tutorial
        assert 60 < source.images.mean() < 80  # the official training images have 72.9
    sums = re.findall(r"([0-9a-f]{64})  (\S+)", (PACKAGED / "README.md").read_text())
    assert len(sums) == 4
    for digest, name in sums:
        assert hashlib.sha256(gzip.decompress((PACKAGED / f"{name}.gz").read_bytes())).hexdigest() == digest
    assert "2017 Zalando SE" in (PACKAGED / "LICENSE").read_text()
    train, test = ({image.tobytes() for image in fashion(split).images} for split in ("train", "test"))
    assert not train & test
