"""Every image is looked at once: what it is, how large, which colours, and why it cannot be read."""

import warnings

import numpy as np
import pytest
from photos import encode, turned
from PIL import Image
from test_source import Tagged

from vitrail.data.audit.scan import TRAITS, Record, Scan
from vitrail.data.sources.source import Arrays, Example

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (20, 30, 3), np.uint8)
PHOTO = Image.fromarray(PIXELS)


class Files(Tagged):
    """Bytes by name, as a Source."""

    class_names = ("a", "b")

    def __init__(self, files, values=None):
        super().__init__(*values or [0] * len(files), targets="class")
        self.files = list(files.items())

    def __getitem__(self, index):
        name, content = self.files[index]
        if isinstance(content, str):
            raise ValueError(content)
        return Example(content, self.values[index], name)

    def name(self, index):
        return self.files[index][0]


DEEP = Image.fromarray(RANDOM.integers(0, 65536, (20, 30), np.uint16))
KINDS = {
    "jpeg": ("1.JPEG", encode(PHOTO, "JPEG"), "JPEG RGB", []),
    "cmyk": ("1.jpg", encode(PHOTO.convert("CMYK"), "JPEG"), "JPEG CMYK", ["CMYK"]),
    "turned": ("1.jpg", encode(PHOTO, "JPEG", exif=turned(6)), "JPEG RGB", ["turned"]),
    "16-bit png": ("1.png", encode(DEEP, "PNG"), "PNG I;16", ["16-bit"]),
    "16-bit tiff": ("1.tif", encode(DEEP, "TIFF"), "TIFF I;16", ["16-bit"]),
    "alpha": ("1.png", encode(PHOTO.convert("RGBA"), "PNG"), "PNG RGBA", ["transparent"]),
    "animated": ("1.gif", encode(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(90)]), None, ["animated"]),
    "misnamed": ("1.png", encode(PHOTO, "JPEG"), "JPEG RGB", ["misnamed"]),
    "of a table": ("train.parquet[7]", encode(PHOTO, "PNG"), "PNG RGB", []),
    "damaged EXIF": ("1.jpg", encode(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), "JPEG RGB", []),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_and_traits_are_known(kind):
    name, data, expected, remarks = KINDS[kind]
    scan = Scan.of({"all": Files({name: data})})
    assert scan.problems == {}
    assert [trait for trait, found in zip(TRAITS, scan.rows[0]["traits"], strict=True) if found] == remarks
    assert expected is None or dict(scan.kinds) == {expected: 1}
    assert scan.rows[0]["size"] == len(data)
    assert (scan.rows[0]["height"], scan.rows[0]["width"]) == ((30, 20) if kind == "turned" else (20, 30))


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
    flat = np.full((40, 40, 3), 90, np.uint8)
    faint = flat + np.where(np.arange(40) == 3, 30, 0).astype(np.uint8)[:, None]
    noisy = flat + RANDOM.integers(0, 4, flat.shape, np.uint8)
    files = {str(n): encode(Image.fromarray(image), "PNG") for n, image in enumerate((flat, faint, noisy))}
    assert Scan.of({"all": Files(files)}).rows["blank"].tolist() == [True, False, True]


def test_colours_are_the_mean_and_std_over_all_pixels():
    images = RANDOM.integers(0, 256, (50, 9, 11, 3), np.uint8)
    scan = Scan.of({"train": Arrays(images, np.zeros(50, np.int64), ("a",), "x")})
    values = images.reshape(-1, 3) / 255
    assert scan.colours == pytest.approx(np.stack([values.mean(0), values.std(0)]))
    assert scan.kinds == {"pixels": 50}
    assert np.isnan(Scan.of({"all": Files({})}).colours).all()


def test_records_are_found_in_their_split():
    scan = Scan.of({"train": Files({"1": b"", "2": b""}, [0, (1, 0)]), "val": Files({"3": b""}, [None])})
    expected = [Record("train", 0, "1", "a"), Record("train", 1, "2", "a + b"), Record("val", 0, "3", "")]
    assert [scan.record(n) for n in range(3)] == expected
    with pytest.raises(IndexError, match="images 0 to 2, but 3"):
        scan.record(3)


@pytest.mark.parametrize("workers", [1, 5])
def test_threads_change_nothing_and_warn_of_nothing(workers, capsys):
    images = {f"{n}.jpg": encode(PHOTO.rotate(n), "JPEG") for n in range(100)} | {"x.jpg": KINDS["damaged EXIF"][1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, other = Scan.of({"all": Files(images)}, workers=1), Scan.of({"all": Files(images)}, True, workers)
    assert one.rows.tobytes() == other.rows.tobytes()
    assert one.kinds == other.kinds == {"JPEG RGB": 101}
    assert capsys.readouterr().out == ""
