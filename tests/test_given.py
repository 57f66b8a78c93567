"""Whatever Python has as an image is what its pixels say, or a sentence that says why not."""

import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import encode, photo
from PIL import Image, ImageSequence
from test_pipeline import pipeline, same

from vitrail.data.images.given import content

PIXELS = photo(9, 12)
PLANES = torch.from_numpy(PIXELS.copy()).permute(2, 0, 1)
FILE = encode(PIXELS)


class Foreign:
    """A tensor of another library."""

    def __array__(self, dtype=None, copy=None):
        return PIXELS


def alike():
    """name -> the same image, in each of its forms."""
    return {
        "array": PIXELS, "strided": np.repeat(PIXELS, 2, 1)[:, ::2], "floats": PIXELS / 255, "foreign": Foreign(),
        "half": (PIXELS / 255).astype(np.float16), "alpha": np.dstack([PIXELS, np.full((9, 12), 255, np.uint8)]),
        "tensor": PLANES, "tensor of floats": (PLANES / 255).requires_grad_(), "tensor of halves": PLANES.half() / 255,
        "pillow": Image.fromarray(PIXELS), "lazy": Image.open(io.BytesIO(FILE)), "bytes": FILE,
        "bytearray": bytearray(FILE), "memoryview": memoryview(FILE), "open": io.BytesIO(FILE),
    }  # fmt: skip


def test_one_image_in_many_forms_has_one_answer(unchecked):
    predict = pipeline()
    expected = predict(PIXELS)
    for name, image in alike().items():
        assert (name, predict(image)) == (name, expected)
    assert list(map(predict, ([image] for image in alike().values()))) == [[expected]] * len(alike())


def test_files_are_paths_of_every_type(tmp_path, unchecked):
    (tmp_path / "a.png").write_bytes(FILE)
    predict, file = pipeline(), tmp_path / "a.png"
    expected = predict(PIXELS)
    with os.scandir(tmp_path) as entries:
        assert predict(file) == predict(str(file)) == predict(next(entries)) == expected
    several = [(str(file),), {file}, tmp_path.glob("*.png"), np.array([str(file)]), {"a": file}.values()]
    assert all(predict(images) == [expected] for images in (*several, (f for f in [file])))


def test_several_are_a_batch_a_list_or_an_iterator(unchecked):
    predict, batch = pipeline(), np.stack([PIXELS, 255 - PIXELS])
    expected = [predict(image) for image in batch]
    planes = torch.from_numpy(batch).permute(0, 3, 1, 2)
    for images in (batch, planes, planes / 255, list(batch), tuple(planes), iter(planes), map(Image.fromarray, batch)):
        for found, wanted in zip(predict(images), expected, strict=True):
            same(found, wanted)
    assert predict([]) == predict(batch[:0]) == predict(iter(())) == []
    assert next(predict.stream(PIXELS)) == predict(PIXELS)  # and not its rows


def test_an_iterator_may_give_one_object_again_and_again(unchecked):
    predict, film, frame = pipeline(), [photo(8, 8, wave=n + 2) for n in range(40)], np.empty((8, 8, 3), np.uint8)
    data = io.BytesIO(encode(film[0], "TIFF", save_all=True, append_images=list(map(Image.fromarray, film[1:]))))

    def frames():
        for pixels in film:
            frame[:] = pixels
            yield frame

    turned = Image.fromarray(PIXELS)
    turned.getexif()[0x0112] = 6
    for images in (frames(), map(torch.Tensor.permute, map(torch.from_numpy, frames()), [(2, 0, 1)] * 40)):
        assert predict(images) == predict(film)
    with Image.open(data) as shown:
        assert predict(ImageSequence.Iterator(shown)) == predict(film)
    assert predict(iter([turned])) == predict([turned])


GREY = PIXELS[..., 0]
MODES = ["1", "L", "P", "LA", "La", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_pillows_images_of_every_mode(mode):
    image = Image.fromarray(PIXELS)
    for step in {"I;16": [], "La": ["LA", "La"], "RGBa": ["RGBA", "RGBa"], "PA": ["P", "PA"]}.get(mode, [mode]):
        image = image.convert(step)
    plain = image.convert({"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}.get(mode, image.mode)).convert("RGB")
    if mode == "I;16":
        image, plain = Image.fromarray(GREY.astype(np.uint16) << 8), GREY
    assert image.mode == mode
    assert pipeline()(image) == pipeline()(np.array(plain))


def test_true_is_white_and_one_channel_is_grey():
    predict, mask = pipeline(), GREY > 99
    assert predict(mask) == predict(mask.astype(np.uint8) * 255) == predict(torch.from_numpy(mask))
    assert predict(GREY) == predict(GREY[..., None]) == predict(torch.from_numpy(GREY.copy())[None])
    assert pipeline(channels=1)(GREY) == pipeline(channels=1)(torch.from_numpy(GREY / 255))
    turned = Image.fromarray(PIXELS)
    turned.getexif()[0x0112] = 6
    assert predict(turned) == predict(np.ascontiguousarray(np.rot90(PIXELS, -1)))
    four = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    clear = np.dstack([PIXELS[:8, :8], np.zeros((8, 8, 1), np.uint8)])
    assert predict(clear) == predict(np.full((8, 8, 3), 255, np.uint8))
    many = pipeline(channels=4)
    assert many(four) == many(torch.from_numpy(four).permute(2, 0, 1)) == many(Image.fromarray(four))


WRONG = {
    "float64.* 86 to 255": PIXELS.astype(float), "float32.* to .*normalised": (PLANES / 255 - 0.5) / 0.25,
    "nan to nan": np.full((3, 3), np.nan), r"uint16 \(9, 12, 3\).*8": PIXELS.astype(np.uint16),
    "int64.*uint8": PLANES.long(), "complex": PIXELS.astype(complex), "cannot be read": PLANES.float().to_sparse(),
    r"\(3, 9, 12\).*transpose": PIXELS.transpose(2, 0, 1), r"\(9, 12, 3\).*permute": PLANES.permute(1, 2, 0),
    r"\(0, 8, 3\)": PIXELS[:0, :8], r"\(3,\)": np.zeros(3), r"\(\)": torch.tensor(3), r"\(1, 1, 9": PIXELS[None, None],
    r"images\[0\] has the shape \(1, 9, 12, 3\)": [PIXELS[None]], "7 channels": np.zeros((8, 8, 7), np.uint8),
    "None": None, "type int": 3, "type dict": {"image": PIXELS}, r"images\[0\] is of type list": [[1, 2]],
    r"images\[1\] is of type int": (PIXELS, 3), "masked": np.ma.masked_equal(PIXELS, PIXELS[0, 0, 0]),
    "as text": io.StringIO("a"), "is empty": b"", "folder": Path(), "32 or": Image.fromarray(GREY.astype(np.int32)),
    "fractions": Image.fromarray(GREY.astype(np.float32)), "^https://a.b/c.jpg is an address": "https://a.b/c.jpg",
    "^gs://b/k.png is": Path("gs://b/k.png"), "^data:image/png;base64,AA": "data:image/png;base64," + "A" * 9999,
    "^no:where/a.jpg does not exist": "no:where/a.jpg",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_what_is_not_understood_is_one_sentence(words, unchecked):
    with pytest.raises(ValueError, match=words) as said:
        pipeline()(WRONG[words])
    assert re.fullmatch(r"[^\n]{1,300}\.", str(said.value))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_rounded_to_the_nearest_byte(kind):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    assert np.array_equal(content((levels / 255).astype(kind), 1, "x"), levels)
