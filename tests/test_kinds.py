"""Every kind of image is read, refused for what it is, or counted: by predict, data check, pack and training alike."""

import json
import re
from collections import Counter
from pathlib import Path

import every_kind
import numpy as np
import pytest
from command_line import TINY, status
from photos import decode, encode, photo, turned
from PIL import Image
from test_predict import STATISTIC, save

from vitrail import Pipeline
from vitrail.data.images.decode import opened
from vitrail.data.images.files import find, walk
from vitrail.data.images.kinds import is_image, left_out
from vitrail.data.images.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """(a class folder with every kind of image, what becomes of each)."""
    folder = tmp_path_factory.mktemp("kinds") / "photos" / "one"
    return folder, every_kind.write(folder)


def test_what_is_read_shows_the_photograph_and_the_rest_says_what_it_is(every):
    folder, wanted = every
    for name, words in wanted.items():
        if words == "left out":
            assert not is_image(name)
        elif words == "read":
            seen = decode(folder / name)
            assert (name, seen.dtype, seen.shape[2]) == (name, np.uint8, 3)
            if seen.shape[:2] == (24, 40) and len(np.unique(seen)) > 2:  # no icon, not black and white
                grey = np.array(Image.fromarray(seen).convert("L")).astype(int)
                assert np.abs(grey - every_kind.GREY).mean() < 6, name
        else:
            with pytest.raises(ValueError, match=rf"^{folder / name} [^\n]*{words}[^\n]*\.$"):
                decode(folder / name)


def test_predict_answers_names_or_counts_each_file(every, tmp_path, capsys):
    folder, wanted = every
    model = save(tmp_path / "model", Preprocessing((32, 32), *STATISTIC))
    assert status("predict", model, folder, "--json") == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert {entry["file"].rpartition("/")[2] for entry in document if "predictions" in entry} == {
        name for name, words in wanted.items() if words == "read"
    }
    left = [name for name, words in wanted.items() if words == "left out"]
    assert len(document) + len(left) == len(wanted) == sum(1 for _ in folder.iterdir())
    assert f"{len(left)} files" in err.splitlines()[0]


def test_check_and_training_agree_with_predict(every, tmp_path, capsys):
    folder, wanted = every
    (folder.parent / "two").mkdir()
    for n in range(12):
        Image.fromarray(photo(24, 40 + n)).save(folder.parent / "two" / f"{n}.jfif", "JPEG")
    counts = Counter({"read": "read", "left out": "left out"}.get(words, "refused") for words in wanted.values())
    assert status("data", "check", folder.parent, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == counts["read"] + counts["refused"] + 12
    unreadable = next(finding for finding in report["findings"] if finding["kind"] == "unreadable")
    assert len(unreadable["items"]) == counts["refused"]
    small = ["--duration", "1 steps", "--out", tmp_path / "run", "--data.unreadable", "skip"]
    assert status("train", "--data", folder.parent, *small, *TINY) == 0
    train, val = map(int, re.search(r"(\d+) images to train on, (\d+) for val", capsys.readouterr().err).groups())
    assert train + val == report["images"]


def test_heads_that_pillow_cannot_open_are_told_from_what_is_no_image():
    jpeg = encode(photo(16, 16), "JPEG")
    deep = jpeg.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
    for data, words in [(deep, "JPEG .*12-bit"), (jpeg[:3], "cut short or damaged"), (b"BM" + bytes(99), "BMP")]:
        with pytest.raises(ValueError, match=rf"^x [^\n]*{words}[^\n]*\.$"):
            decode(data, name="x")
    assert left_out([]) == ""
    assert (
        left_out(["a/1.TXT", "b", "c.txt"]) == "3 files of no kind of image: 2 .txt (a/1.TXT), 1 without a suffix (b)"
    )


def test_what_has_no_signature_is_known_by_its_suffix_alone():
    data = encode(photo(16, 16), "TGA")
    assert np.array_equal(decode(data, name="a.TGA"), photo(16, 16))
    with pytest.raises(ValueError, match=r"^a is not an image"):
        decode(data, name="a")


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "PPM", "QOI"])
def test_new_kinds_are_upright_and_exact(kind):
    how = {"AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(kind, {})
    pixels = photo(24, 40, noise=0)
    assert np.abs(decode(encode(pixels, kind, **how)).astype(int) - pixels).max() <= (3 if how else 0)
    if kind == "AVIF":
        up = opened(encode(pixels, kind, exif=turned(6), **how), "x")
        assert up.size == up.decode().shape[:2] == (40, 24)
        assert np.abs(up.decode().astype(int) - np.rot90(pixels, -1)).mean() < 2


@pytest.mark.parametrize("deep", [np.uint16([[0, 255], [256, 65535]]), np.uint16([[99, 99], [1792, 256]])])
def test_of_16_bits_the_upper_8_are_kept_and_the_transparent_level_is_white(deep):
    upper, keyed = (deep >> 8).astype(np.uint8)[..., None], np.where(deep == 256, 255, deep >> 8)
    for kind in ("PNG", "TIFF", "JPEG2000"):
        assert np.array_equal(decode(encode(deep, kind), 1), upper)
    assert np.array_equal(decode(encode(deep, "PNG", transparency=256), 1)[..., 0], keyed)


def test_bands_are_read_as_they_are_stored_where_a_model_has_as_many(tmp_path):
    rng = np.random.default_rng(0)
    for n, kind, mode in [(2, "PNG", "LA"), (4, "PNG", "RGBA"), (4, "TIFF", "CMYK"), (13, "npy", "")]:
        pixels = rng.integers(0, 256, (9, 7, n), np.uint8)
        if kind == "npy":
            np.save(tmp_path / "x.npy", pixels)
        else:
            Image.fromarray(pixels, mode).save(tmp_path / "x.npy", kind)
        assert np.array_equal(decode(tmp_path / "x.npy", n), pixels)
        with pytest.raises(ValueError, match=f"x.npy has {n} channels, but 5 are wanted"):
            decode(tmp_path / "x.npy", 5)
    for array, words in [(np.zeros((2, 3), np.float32), "float32"), (np.zeros(3, np.uint8), r"\(3,\)")]:
        np.save(tmp_path / "y.npy", array)
        with pytest.raises(ValueError, match=f"y.npy holds .*{words}"):
            decode(tmp_path / "y.npy", 3)
    (tmp_path / "y.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    with pytest.raises(ValueError, match="818 numbers"):
        decode(tmp_path / "y.npy", 13)
    (tmp_path / "rgbx.tif").write_bytes(every_kind.tiff(pixels[..., :4].copy(), photometric=2))
    for n, words in [(4, "4 bands, of which Pillow reads 3; numpy.save"), (13, "has 3 channels, but 13")]:
        with pytest.raises(ValueError, match=f"rgbx.tif {'has ' * (n == 4)}{words}"):
            decode(tmp_path / "rgbx.tif", n)
    with pytest.raises(ValueError, match="x has 3 channels, but 4 are wanted"):
        decode(encode(photo(9, 9), "JPEG"), 4, "x")


def test_a_multi_band_model_predicts_from_arrays_and_from_files_alike(tmp_path):
    predict = Pipeline.load(save(tmp_path / "model", Preprocessing((32, 32), (0.5,) * 13, (0.25,) * 13), 13))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 13), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    assert predict(tmp_path / "x.npy") == predict(pixels)


def test_links_are_followed_once_and_hidden_files_are_no_part(tmp_path):
    wanted = ["a/1.JPG", "a/b/2.png", "a.jpeg", "c.tIf", "d.avif"]
    for name in [*wanted, "a/notes.txt", "a/.hidden.jpg", ".cache/d.png", "b.jpg.part", "folder.png/x.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, to in [("a/up", tmp_path), ("a/self", tmp_path / "a" / "self"), ("again", tmp_path / "a")]:
        (tmp_path / name).symlink_to(to)
    said = []
    assert find(tmp_path, said.append) == sorted(tmp_path / name for name in wanted)
    assert len(said) == 1
    assert all(
        part in said[0] for part in ("4 files", "2 .txt (a/notes.txt)", "1 .part", "1 without a suffix (a/self)")
    )
    assert sum(len(images) for _, images, _ in walk(tmp_path)) == len(wanted)
    assert find(tmp_path / "a" / "notes.txt") == [tmp_path / "a" / "notes.txt"]


def test_addresses_are_told_from_files_that_are_missing():
    for name in ("https://example.org/a.jpg", "s3://bucket/a.png", "data:image/png;base64," + "A" * 5000):
        with pytest.raises(ValueError, match=r"^\S{9,80} is an address.*download"):
            decode(Path("photos") / name)
    with pytest.raises(ValueError, match=r"^no:where/a.jpg does not exist"):
        decode(Path("no:where/a.jpg"))
