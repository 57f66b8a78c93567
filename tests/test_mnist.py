"""idx files: what is written is read, what is damaged is refused, and nothing is allocated in vain."""

import gzip
import hashlib
import os
import random
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from made_sources import damaged, idx

from vitrail.data.sources.mnist import FASHION, FILES, fashion, is_mnist, open_idx, read_idx, splits

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


def refused(path, *parts, rank=3):
    """read_idx refuses `path` in one sentence that has the path and each part in it, and takes little memory."""

    def read():
        with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
            read_idx(path, rank)
        return str(caught.value)

    message, peak = peak_of(read)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []
    assert peak < 2_000_000


def test_the_format_by_hand(put):
    """Written out byte by byte, so that an error in idx() cannot hide one in read_idx."""
    data = bytes.fromhex("00000803 00000001 00000002 00000003 000102 03ffff")
    for pack in PACKS:
        found = read_idx(put(pack(data)), 3)
        assert (found.dtype, found.tolist()) == (np.uint8, [[[0, 1, 2], [3, 255, 255]]])
    assert read_idx(put(bytes.fromhex("00000801 00000002 0709")), 1).tolist() == [7, 9]


def test_gzip_is_recognised_by_content_and_may_have_members(put):
    array = noise(300, 28, 28)
    data = idx(array)
    for name, content in (("plain", zipped(data)), ("x.gz", data), ("members", zipped(data[:20]) + zipped(data[20:]))):
        assert np.array_equal(read_idx(put(content, name), 3), array)


def test_other_files_are_refused(tmp_path, put):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent.gz", tmp_path, tmp_path / "pipe", tmp_path / ("x" * 300)):
        refused(path)
    for pack in PACKS:
        refused(put(pack(b"")), "empty")
        refused(put(pack(b"\x89PNG\r\n\x1a\n" + bytes(20))), "89 50 4e 47", "00 00 08 03")
        refused(put(pack(b"\x00\x00\x0d\x03" + bytes(20))), "00 00 0d 03")
        refused(put(pack(idx(noise(4)))), "images", "00 00 08 01")
        refused(put(pack(idx(noise(4, 2, 2)))), "labels", "00 00 08 03", rank=1)
        refused(put(pack(idx(noise(0, 28, 28)))), "0 x 28 x 28")
        refused(put(pack(header(4, 2))), "00 00 08 02")
        refused(put(pack(header(2**32 - 1, 0, 2**32 - 1))), "4294967295 x 0")
        refused(put(pack(b"\x00\x00\x08\x03" + bytes(5))))


def test_damage_is_counted(put):
    data = idx(noise(10, 4, 4))
    refused(put(data[:-7]), "160 bytes (10 x 4 x 4)", "only 153 follow")
    refused(put(data + b"ab"), "160 bytes", "more follow")
    refused(put(zipped(data[:-7])), "160 bytes", "only 153 follow")
    refused(put(zipped(data + b"ab")), "160 bytes", "more follow")
    good = zipped(idx(noise(200, 28, 28)))
    for content in (good[: len(good) // 2], good[:-3], good[:5], good + b"rubbish", b"\x1f\x8b", zipped(good),
                    good[:-8] + bytes(4) + good[-4:], good[:10] + b"\xff" * 50 + good[60:]):  # fmt: skip
        refused(put(content))


def test_a_header_that_lies_allocates_nothing(put):
    for pack in PACKS:
        for shape, claim in (((2**20, 2**10, 2**10), "1,099,511,627,776"), ((2**31,) * 3, f"{2**93:,}")):
            refused(put(pack(header(*shape))), claim)
    # 64 MiB of zeros behind a header that promises 100 bytes; and the reverse, which the file's size gives away or not.
    refused(put(zipped(header(1, 10, 10) + bytes(1 << 26))), "promises 100 bytes", "more follow")
    refused(put(zipped(header(1, 1, 1 << 26) + bytes(1000))), "67,108,864 bytes")
    refused(put(zipped(header(1, 1, 1 << 26) + noise(1 << 17).tobytes())), "67,108,864 bytes", "only 131,072 follow")


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
        assert peak < 1_000_000
        if pack is zipped:  # its check sum vouches for the content
            assert np.array_equal(found, array)
        else:  # all its bytes are accounted for
            assert 16 + found.nbytes == len(data)
    assert 100 < len(refusals) < 300
    assert [message for message in refusals if "some-idx" not in message] == []


def test_files_that_do_not_fit_each_other(put):
    images, labels = put(noise(4, 2, 2), "images"), put(np.array([0, 3, 1, 1], np.uint8), "labels")
    assert open_idx(images, labels, None).class_names == ("0", "1", "2", "3")
    with pytest.raises(ValueError, match=r"images has 4 images, but .*few has 5 labels"):
        open_idx(images, put(noise(5), "few"), None)
    with pytest.raises(ValueError, match=r"labels has the label 3, but there are 3"):
        open_idx(images, labels, ("a", "b", "c"))


@pytest.mark.parametrize("dash", ["-idx", ".idx"])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_the_four_files_of_a_folder(tmp_path, suffix, dash):
    folder = tmp_path / "My-Fashion"
    folder.mkdir()
    assert not is_mnist(folder)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte"):
        splits(folder)
    for (split, stems), array in zip(FILES.items(), (noise(6, 5, 4), noise(3, 5, 4)), strict=True):
        paths = [folder / f"{stem.replace('-idx', dash)}{suffix}" for stem in stems]
        paths[1].write_bytes(idx(np.arange(len(array), dtype=np.uint8)))
        with pytest.raises(ValueError, match=stems[0]):
            splits(folder)
        paths[0].write_bytes(zipped(idx(array)))
        assert is_mnist(folder)
        assert np.array_equal(splits(folder)[split].images[..., 0], array)
    found = splits(folder)
    assert {split: source.labels.tolist() for split, source in found.items()} == {
        "train": [0, 1, 2, 3, 4, 5], "test": [0, 1, 2],
    }  # fmt: skip
    assert found["train"].class_names == FASHION
    folder.rename(tmp_path / "digits")
    assert splits(tmp_path / "digits")["test"].class_names == ("0", "1", "2")
    if suffix:  # the zipped file wins
        (tmp_path / "digits" / FILES["train"][0].replace("-idx", dash)).write_bytes(b"not read")
        assert len(splits(tmp_path / "digits")["train"]) == 6


# The part of Fashion-MNIST in the package


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
    assert sum(path.stat().st_size for path in PACKAGED.iterdir()) <= 6_000_000
    assert "2017 Zalando SE" in (PACKAGED / "LICENSE").read_text()
    train, test = ({image.tobytes() for image in fashion(split).images} for split in ("train", "test"))
    assert not train & test
