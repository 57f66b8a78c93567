"""Every image is looked at once: what it is, how large, which colours, and why it cannot be read."""

import warnings

import numpy as np
import pytest
from made_sources import encoded
from PIL import Image

from vitrail.data.audit.scan import TRAITS, Record, Scan
from vitrail.data.sources.source import Arrays, Example

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (20, 30, 3), np.uint8)
PHOTO = Image.fromarray(PIXELS)


class Files:
    """Bytes by name, as a Source."""

    class_names, targets = ("a", "b"), "class"

    def __init__(self, files, values=None):
        self.files = list(files.items())
        self.values = values or [0] * len(self.files)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        content = self.files[index][1]
        if isinstance(content, str):
            raise ValueError(content)
        return Example(content, self.values[index], self.files[index][0])

    def target(self, index):
        return self.values[index]

    def name(self, index):
        return self.files[index][0]


def exif(turn):
    tags = Image.Exif()
    tags[0x0112] = turn
    return tags


def traits(row):
    return [trait for place, trait in enumerate(TRAITS) if row["traits"] >> place & 1]


DEEP = Image.fromarray(RANDOM.integers(0, 65536, (20, 30), np.uint16))
KINDS = {
    "jpeg": ("1.jpg", encoded(PHOTO, "JPEG"), "JPEG RGB", []),
    "grey jpeg": ("1.JPEG", encoded(PHOTO.convert("L"), "JPEG"), "JPEG L", []),
    "cmyk": ("1.jpg", encoded(PHOTO.convert("CMYK"), "JPEG"), "JPEG CMYK", ["CMYK"]),
    "turned": ("1.jpg", encoded(PHOTO, "JPEG", exif=exif(6)), "JPEG RGB", ["turned"]),
    "upright": ("1.jpg", encoded(PHOTO, "JPEG", exif=exif(1)), "JPEG RGB", []),
    "16-bit png": ("1.png", encoded(DEEP, "PNG"), "PNG I;16", ["16-bit"]),
    "16-bit tiff": ("1.tif", encoded(DEEP, "TIFF"), "TIFF I;16", ["16-bit"]),
    "tiff": ("1.tiff", encoded(PHOTO, "TIFF"), "TIFF RGB", []),
    "alpha": ("1.png", encoded(PHOTO.convert("RGBA"), "PNG"), "PNG RGBA", ["transparent"]),
    "webp": ("1.webp", encoded(PHOTO, "WEBP"), "WEBP RGB", []),
    "animated": ("1.gif", encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)]), None, ["animated"]),
    "misnamed": ("1.png", encoded(PHOTO, "JPEG"), "JPEG RGB", ["misnamed"]),
    "of a table": ("train.parquet[7]", encoded(PHOTO, "PNG"), "PNG RGB", []),
    "damaged EXIF": ("1.jpg", encoded(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), "JPEG RGB", []),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_and_traits_are_known(kind):
    name, data, expected, remarks = KINDS[kind]
    scan = Scan.of({"all": Files({name: data})})
    assert scan.problems == {}
    assert traits(scan.rows[0]) == remarks
    assert expected is None or dict(scan.kinds) == {expected: 1}
    assert scan.rows[0]["size"] == len(data)


def test_sizes_are_those_of_the_upright_image():
    scan = Scan.of({"all": Files({"1.jpg": KINDS["turned"][1], "2.jpg": KINDS["jpeg"][1]})})
    assert [(int(row["height"]), int(row["width"])) for row in scan.rows] == [(30, 20), (20, 30)]


def test_pixels_tell_equal_images_whatever_their_file():
    bmp, png = encoded(PHOTO, "BMP"), encoded(PHOTO, "PNG")
    other = encoded(Image.fromarray(PIXELS.reshape(30, 20, 3)), "PNG")
    rows = Scan.of({"all": Files({"1.bmp": bmp, "2.png": png, "3.png": png, "4.png": other})}).rows
    assert len(set(rows["pixels"].tolist())) == 2
    assert len(set(rows["file"].tolist())) == 3
    assert rows["pixels"][0] == rows["pixels"][2] != rows["pixels"][3]


def test_what_cannot_be_read_is_a_problem_that_stops_nothing():
    cut = KINDS["jpeg"][1][:-200]
    files = {"1.jpg": cut, "2.jpg": b"", "3.jpg": KINDS["jpeg"][1], "4.jpg": "4.jpg cannot be read (gone)."}
    scan = Scan.of({"all": Files(files)})
    assert scan.rows["readable"].tolist() == [False, False, True, False]
    assert sorted(scan.problems) == [0, 1, 3]
    assert scan.problems[0].startswith("1.jpg is cut short or damaged")
    assert scan.problems[3] == "4.jpg cannot be read (gone)."
    assert not scan.rows[0].tobytes().strip(b"\0")


def test_blank_images_are_told_from_faint_ones():
    flat, faint = np.full((40, 40, 3), 90, np.uint8), np.full((40, 40, 3), 90, np.uint8)
    faint[3, 4] = 120
    noisy = flat + RANDOM.integers(0, 4, flat.shape, np.uint8)
    files = {str(n): encoded(Image.fromarray(image), "PNG") for n, image in enumerate((flat, faint, noisy))}
    assert Scan.of({"all": Files(files)}).rows["blank"].tolist() == [True, False, True]


def test_colours_are_the_mean_and_std_over_all_pixels():
    images = RANDOM.integers(0, 256, (50, 9, 11, 3), np.uint8)
    scan = Scan.of({"train": Arrays(images, np.zeros(50, np.int64), ("a",), "x")})
    values = images.reshape(-1, 3) / 255
    assert scan.colours == pytest.approx(np.stack([values.mean(0), values.std(0)]))
    assert scan.kinds == {"pixels": 50}
    assert np.isnan(Scan.of({"all": Files({})}).colours).all()


def test_records_are_found_in_their_split():
    sources = {"train": Files({"1": b"", "2": b""}, [0, 1]), "val": Files({"3": b""}, [None])}
    scan = Scan.of(sources)
    assert [scan.record(n) for n in range(3)] == [
        Record("train", 0, "1", "a"), Record("train", 1, "2", "b"), Record("val", 0, "3", ""),
    ]  # fmt: skip
    assert Scan.of({"all": Files({"1": b"", "2": b""}, [(1, 0), ()])}).labels == ["a + b", ""]
    with pytest.raises(IndexError, match="images 0 to 2, but 3"):
        scan.record(3)


@pytest.mark.parametrize("workers", [1, 5])
def test_threads_change_nothing_and_warn_of_nothing(workers, capsys):
    images = {f"{n}.jpg": encoded(PHOTO.rotate(n), "JPEG") for n in range(100)} | {"x.jpg": KINDS["damaged EXIF"][1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = Scan.of({"all": Files(images)}, workers=1), Scan.of({"all": Files(images)}, True, workers)
    assert one.rows.tobytes() == other.rows.tobytes()
    assert one.kinds == other.kinds == {"JPEG RGB": 101}
    assert capsys.readouterr().out == ""
