"""Images for tests: pixels of which no two windows are alike, their files, and what a model wants of them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.data.images.augment import draw
from vitrail.data.images.decode import opened, read
from vitrail.data.images.geometry import centred
from vitrail.data.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.data.order import sample_seeds


def photo(height, width, channels=3, noise=40, wave=7):
    """Waves, which a codec's shrinking shows as they are, and noise."""
    rows, columns = np.mgrid[:height, :width]
    waves = [127 * (1 + np.sin(rows / wave + c) * np.cos(columns / (wave + 4 - c))) for c in range(channels)]
    random = np.random.default_rng((height, width)).integers(-noise, noise + 1, (height, width, channels))
    return np.clip(np.stack(waves, -1) + random, 0, 255).astype(np.uint8)


def encode(pixels, kind="PNG", mode=None, **how):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels.squeeze())
    out = io.BytesIO()
    (image.convert(mode) if mode else image).save(out, kind, **how)
    return out.getvalue()


def decode(source, channels=3, name="the image"):
    """The pixels of a file, or of its bytes."""
    if isinstance(source, Path):
        source, name = read(source), str(source)
    return opened(source, name).decode(channels=channels)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def model(height=32, width=32, channels=3, resize="squash", fraction=1.0, interpolation="bilinear"):
    statistics = IMAGENET_MEAN[:channels], IMAGENET_STD[:channels]
    return Preprocessing((height, width), *statistics, resize, fraction, interpolation)


def keys(count, seed=0):
    return sample_seeds(0, count, seed).tolist()


def evaluated(image, to):
    """What evaluation sees of pixels."""
    return centred(image.shape[:2], to).apply(image)


def augmented(image, how, to, key):
    """What training sees of pixels."""
    view, paint = draw(image.shape[:2], how, to, key)
    return paint(view.apply(view.crop.of(image) if view.crop else image))
