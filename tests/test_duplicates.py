"""Copies are found whatever was done to them, other images are not, and a million take as little as a few."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photos import encode
from PIL import Image

from vitrail.data.audit.duplicates import CONTRAST, LIKENESS, Group, alike, copies, digest, thumbnail
from vitrail.data.sources.mnist import fashion

HEIGHT, WIDTH = 120, 160


def photo(seed):
    """Noise with the spectrum of photographs, uint8 (120, 160, 3): soft shapes, and details in all sizes."""
    random = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(HEIGHT)[:, None], np.fft.fftfreq(WIDTH)[None]
    spectrum = np.fft.fft2(random.standard_normal((3, HEIGHT, WIDTH))) / np.maximum(np.hypot(x, y), 0.005) ** 1.2
    shades = np.fft.ifft2(spectrum).real
    grey = shades[:1] / shades[:1].std()
    return (128 + 36 * (grey + 0.3 * shades / shades.std())).clip(20, 230).astype(np.uint8).transpose(1, 2, 0)


def jpeg(image, quality):
    return np.asarray(Image.open(BytesIO(encode(image, "JPEG", quality=quality))))


def scaled(image, height, width):
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


CHANGES = {
    "jpeg 30": lambda image: jpeg(image, 30),
    "third as jpeg": lambda image: jpeg(scaled(image, HEIGHT // 3, WIDTH // 3), 80),
    "larger": lambda image: scaled(image, 3 * HEIGHT // 2, 3 * WIDTH // 2),
    "darker": lambda image: (image * 0.85).astype(np.uint8),
    "brighter": lambda image: jpeg((image * 1.1).astype(np.uint8), 80),
}
PHOTOS = [photo(seed) for seed in range(40)]


def found(images):
    grey, colour = (np.stack(parts) for parts in zip(*map(thumbnail, images), strict=True))
    return alike(grey, colour, digests(images))


def digests(images):
    return np.array([digest(f"{one.shape}".encode(), np.ascontiguousarray(one).data) for one in images], np.uint64)


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_whatever_was_done_to_them(change):
    changed = [CHANGES[change](image) for image in PHOTOS[:10]]
    assert found(PHOTOS + changed) == [Group((n, len(PHOTOS) + n), "alike") for n in range(10)]
    mirrored = [image[:, ::-1] for image in changed]
    assert found(PHOTOS + mirrored) == [Group((n, len(PHOTOS) + n), "mirrored") for n in range(10)]


def test_different_images_are_not_alike():
    assert found([image[::-1] for image in PHOTOS] + PHOTOS) == []
    image = PHOTOS[0]
    for other in (image // 2 + 64, image // 3 + np.array([0, 160, 0], np.uint8), image[6:, 8:]):
        assert found([image, other]) == []


def test_blank_images_are_alike_to_none():
    flat = [np.full((40, 50, 3), shade, np.uint8) for shade in (0, 0, 99, 255)]
    faint = (128 + np.arange(50) / 50 * CONTRAST).astype(np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    assert found([*flat, faint, faint + 1]) == []


def test_chains_are_one_group_and_bring_all_their_copies():
    first, second = PHOTOS[0], jpeg(PHOTOS[0], 60)
    third = jpeg(scaled(second, 100, 140), 70)
    images = [first, PHOTOS[1], second, first, third, PHOTOS[1], PHOTOS[2]]
    assert found(images) == [Group((0, 2, 3, 4), "alike")]
    assert copies(digests(images), digests(images)) == [Group((0, 3), "same file"), Group((1, 5), "same file")]
    assert found([first, second[:, ::-1], third]) == [Group((0, 1, 2), "mirrored")]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1)), max_size=30))
def test_copies_are_those_of_a_plain_search(pairs):
    pixels, files = (np.array([pair[k] for pair in pairs], np.uint64) for k in (0, 1))
    places = {key: [n for n, (pixel, _) in enumerate(pairs) if pixel == key] for key, _ in pairs}
    several = [tuple(members) for members in places.values() if len(members) > 1]
    how = ["same file" if len({pairs[n][1] for n in members}) == 1 else "same pixels" for members in several]
    assert copies(files, pixels) == [*map(Group, several, how)]


def every_pair(grey):
    """The pairs that correlate, and those that do with one of them mirrored, by comparing all with all."""
    flat = grey.reshape(len(grey), -1).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    unit = flat / length
    mirrored = unit.reshape(grey.shape)[:, :, ::-1].reshape(unit.shape)
    near = np.maximum(unit @ unit.T, unit @ mirrored.T) > LIKENESS
    fair = np.maximum(length, length.T) <= 1.5 * np.minimum(length, length.T)
    return {(int(a), int(b)) for a, b in np.argwhere(near & fair) if a < b}


def test_neighbours_in_sorted_lists_are_all_that_comparing_all_with_all_would_find():
    # Garments repeat; lighter and mirrored ones are put among them.
    images = fashion("train").images[:2000]
    images = np.concatenate([images, images[:200] // 4 * 3, images[200:400, :, ::-1]]).reshape(-1, 28, 28, 1)
    thumbs = [thumbnail(image.repeat(3, 2)) for image in images]
    grey, colour = (np.stack(parts) for parts in zip(*thumbs, strict=True))
    groups = alike(grey, colour, np.arange(len(grey)).astype(np.uint64))
    linked = {(a, b) for group in groups for a in group.members for b in group.members if a < b}
    expected = every_pair(grey)
    assert len(expected) >= 400
    assert expected <= linked
