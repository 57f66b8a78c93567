"""Sources in memory: what is made from another agrees with it, for targets of every kind."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from photos import encode
from PIL import Image

from vitrail.data.sources.source import (
    Arrays,
    Boxes,
    Example,
    Mask,
    Renumbered,
    Subset,
    classes_of,
    counts,
    pixels,
)

NAMES = ("ant", "bee", "cat")


class Tagged:
    """Images with targets of any kind, without pixels."""

    class_names = NAMES

    def __init__(self, *values, targets="classes"):
        self.values, self.targets = values, targets

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return Example(b"", self.values[index], self.name(index))

    def target(self, index):
        return self.values[index]

    def name(self, index):
        return f"tagged {index}"


def arrays(labels, names=NAMES, channels=3):
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 5, channels), np.uint8)
    return Arrays(images, np.array(labels, np.int64), names, "photos")


def boxes(*labels):
    n = len(labels)
    return Boxes(np.ones((n, 4), np.float32), np.array(labels, np.int64), np.zeros(n, bool))


def mask(*labels):
    return Mask(np.array([labels]))


def targets(source):
    return [source.target(index) for index in range(len(source))]


@given(st.lists(st.integers(0, 9), max_size=20), st.data())
def test_a_subset_of_a_subset_is_one(indices, data):
    source = arrays([0, 1, 2, 1, 0, 2, 2, 1, -1, 0])
    part = Subset(source, np.array(indices, np.int64))
    assert (len(part), part.class_names, part.targets) == (len(indices), NAMES, "class")
    for ask in (part.__getitem__, part.target, part.name):
        with pytest.raises(IndexError, match=f"{len(indices)} was asked for"):
            ask(len(indices))
    if indices:
        again = data.draw(st.lists(st.integers(0, len(indices) - 1)))
        for place, index in enumerate(again):
            found, expected = Subset(part, again)[place], source[indices[index]]
            assert np.array_equal(found[0], expected[0])
            assert found[1:] == expected[1:]


def test_renumbering_keeps_every_class_by_its_name():
    source, names = arrays([0, 1, 2, -1]), ("cat", "dog", "ant", "bee")
    found = Renumbered(source, names)
    assert targets(found) == [example.target for example in found] == [2, 3, 0, None]
    assert (found.class_names, found.targets, len(found), found.name(3)) == (names, "class", 4, "photos[3]")
    found = Renumbered(Tagged((0, 2), (), None, boxes(0, 2, 1), mask(0, 2, 255)), ("cat", "bee", "ant"))
    assert targets(found)[:3] == [(2, 0), (), None]
    assert found.target(3).labels.tolist() == [2, 0, 1]
    assert found.target(4).labels.tolist() == [[2, 0, 255]]


@pytest.mark.parametrize(
    ("target", "classes"),
    [(None, ()), (2, (2,)), ((2, 0), (2, 0)), ((), ()), (boxes(2, 0, 2), (0, 2)), (mask(1, 255, 0, 1), (0, 1))],
)
def test_the_classes_in_a_target(target, classes):
    assert classes_of(target) == classes
    assert counts(Tagged(target, (1,))).tolist() == [int(number in classes) + (number == 1) for number in range(3)]


def test_pixels_are_decoded_or_converted():
    rgb = arrays([0]).images[0]
    grey = np.array(Image.fromarray(rgb).convert("L"))[:, :, None]
    for content, channels, expected in [
        (encode(rgb), 3, rgb), (rgb, 1, grey), (encode(rgb), 1, grey), (grey, 3, np.repeat(grey, 3, 2))
    ]:  # fmt: skip
        assert np.array_equal(pixels(content, channels, "a"), expected)
    with pytest.raises(ValueError, match="spectral has 4 channels, but 3"):
        pixels(np.zeros((2, 2, 4), np.uint8), 3, "spectral")
