"""Every kind of image is read, refused for what it is, or counted: by predict, data check, pack and training alike."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from command_line import TINY, status
from photos import decode, encode, photo, turned
from PIL import Image
from test_predict import STATISTIC, save

from benchmarks import every_kind
from vitrail import Pipeline
from vitrail.data.images.decode import opened
from vitrail.data.images.kinds import is_image
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.walk import find, scan


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


def test_predict_check_and_training_answer_name_or_count_each_file(every, tmp_path, capsys):
    folder, wanted = every
    counts = Counter(words if words in ("read", "left out") else "refused" for words in wanted.values())
    model = save(tmp_path / "model", Preprocessing((32, 32), *STATISTIC))
    assert status("predict", model, folder, "--json") == 1
    out, err = capsys.readouterr()
    answered = {entry["file"].rpartition("/")[2]: "predictions" in entry for entry in json.loads(out)}
    assert answered == {name: words == "read" for name, words in wanted.items() if words != "left out"}
    assert counts.total() == len(list(folder.iterdir()))
    assert f"{folder} has {counts['left out']} files" in err.splitlines()[0]
    (folder.parent / "two").mkdir()
    for n in range(12):
        Image.fromarray(photo(24, 40 + n)).save(folder.parent / "two" / f"{n}.jfif", "JPEG")
    assert status("data", "check", folder.parent, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == counts["read"] + counts["refused"] + 12
    unreadable = next(finding for finding in report["findings"] if finding["kind"] == "unreadable")
    assert len(unreadable["items"]) == counts["refused"]
    small = ["--duration", "1 steps", "--out", tmp_path / "run", "--data.unreadable", "skip"]
    assert status("train", "--data", folder.parent, *small, *TINY) == 0
    train, val = map(int, re.search(r"(\d+) images to train on, (\d+) for val", capsys.readouterr().err).groups())
    assert train + val == report["images"]


JPEG = encode(photo(16, 16), "JPEG")
DEEP = JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")


@pytest.mark.parametrize(("data", "words"), [(DEEP, "JPEG .*12-bit"), (b"BM" + bytes(99), r"kind \(Un.* BMP")])
def test_heads_that_pillow_cannot_open_say_their_kind_and_reason(data, words):
    with pytest.raises(ValueError, match=rf"^x is cut short or damaged, or of a rare (kind of )?({words})[^\n]*\.$"):
        decode(data, name="x")


BOMBS = {
    "a.ppm": b"P6 20000 20000 255 ", "a.qoi": b"qoif\0\0\x4e\x20\0\0\x4e\x20\3\0",
    "a.tga": b"\0\0\2" + bytes(9) + b"\xff\xff\xff\xff\x18\0",
    "a.psd": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\x4e\x20\0\0\x4e\x20\0\x08\0\3",
    "a.bmp": b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0\x20\x4e\0\0\x20\x4e\0\0\1\0\x18\0" + bytes(24),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_fill_the_memory_is_refused_by_its_header(name):
    with pytest.raises(ValueError, match=f"^{name} .*134,217,728"):
        decode(BOMBS[name] + bytes(64), name=name)


def test_what_has_no_signature_is_known_by_its_suffix_alone():
    data = encode(photo(16, 16), "TGA")
    assert np.array_equal(decode(data, name="a.TGA"), photo(16, 16))
    with pytest.raises(ValueError, match=r"^a is not an image"):
        decode(data, name="a")


def test_avif_is_upright_and_near_the_original():
    pixels, how = photo(24, 40, noise=0), {"quality": 100, "subsampling": "4:4:4"}
    for orientation, expected in [(1, pixels), (6, np.rot90(pixels, -1))]:
        up = opened(encode(pixels, "AVIF", exif=turned(orientation), **how), "x")
        assert up.size == expected.shape[:2]
        assert np.abs(up.decode().astype(int) - expected).max() <= 3


@pytest.mark.parametrize("deep", [np.uint16([[0, 255], [256, 65535]]), np.uint16([[99, 99], [1792, 256]])])
def test_of_16_bits_the_upper_8_are_kept_and_the_transparent_level_is_white(deep):
    upper, keyed = (deep >> 8).astype(np.uint8)[..., None], np.where(deep == 256, 255, deep >> 8)
    for kind in ("PNG", "TIFF", "JPEG2000"):
        assert np.array_equal(decode(encode(deep, kind), 1), upper)
    assert np.array_equal(decode(encode(deep, "PNG", transparency=256), 1)[..., 0], keyed)


BANDS = np.random.default_rng(0).integers(0, 256, (9, 7, 13), np.uint8)


@pytest.mark.parametrize(
    ("n", "kind", "mode"), [(2, "PNG", "LA"), (4, "PNG", "RGBA"), (4, "TIFF", "CMYK"), (13, "", 0)]
)
def test_bands_are_read_as_they_are_stored_where_a_model_has_as_many(tmp_path, n, kind, mode):
    pixels, file = BANDS[..., :n].copy(), tmp_path / "x.npy"
    Image.frombytes(mode, (7, 9), pixels.tobytes()).save(file, kind) if kind else np.save(file, pixels)
    assert np.array_equal(decode(file, n), pixels)
    with pytest.raises(ValueError, match=f"{file} has {n} channels, but 5 are wanted"):
        decode(file, 5)
    predict = Pipeline.load(save(tmp_path / "model", Preprocessing((32, 32), (0.5,) * n, (0.25,) * n), n))
    assert predict(file) == predict(pixels)


def test_bands_that_are_not_read_are_refused_with_their_number(tmp_path):
    files = {"f.npy": np.zeros((2, 3), np.float32), "x.npy": BANDS, "one.npy": np.zeros(3, np.uint8)}
    for name, array in files.items():
        np.save(tmp_path / name, array)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    (tmp_path / "rgbx.tif").write_bytes(every_kind.tiff(BANDS[..., :4].copy(), photometric=2))
    (tmp_path / "a.jpg").write_bytes(JPEG)
    cases = [
        ("f.npy", 3, "float32"),
        ("one.npy", 3, r"\(3,\)"),
        ("x.npy", 13, "818 numbers"),
        ("a.jpg", 4, "3 .* 4 are"),
    ]
    for name, n, words in [*cases, ("rgbx.tif", 4, "4 bands.*Pillow reads 3"), ("rgbx.tif", 13, "3 channels, but 13")]:
        with pytest.raises(ValueError, match=rf"{tmp_path / name} .*{words}"):
            decode(tmp_path / name, n)


def test_links_are_followed_once_and_hidden_files_are_no_part(tmp_path):
    wanted = ["a/1.JPG", "a/b/2.png", "a.jpeg", "c.tIf", "d.avif"]
    for name in [*wanted, "a/notes.txt", "a/.hidden.jpg", ".cache/d.png", "b.jpg.part", "folder.png/x.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name, to in [("a/up", tmp_path), ("a/self", tmp_path / "a" / "self"), ("again", tmp_path / "a")]:
        (tmp_path / name).symlink_to(to)
    said = []
    assert find(tmp_path, said.append) == sorted(tmp_path / name for name in wanted)
    (text,) = said
    assert all(part in text for part in (str(tmp_path), "2 .txt", "1 .part", "left out"))
    assert sum(map(len, scan(tmp_path)[0].values())) == len(wanted)
    assert find(tmp_path / "a" / "notes.txt") == [tmp_path / "a" / "notes.txt"]
