"""Sources: what each of the small ones promises, and what is made of others agrees with them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail.data.sources.source import Arrays, Renumbered, Source, Subset, counts, pixels

NAMES = ("ant", "bee", "cat")


class Tagged:
    """Images with several labels, without pixels."""

    class_names, multi_label = NAMES, True

    def __init__(self, *targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return b"", self.targets[index], self.name(index)

    def target(self, index):
        return self.targets[index]

    def name(self, index):
        return f"tagged {index}"


def arrays(labels, names=NAMES, channels=3):
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 5, channels), np.uint8)
    return Arrays(images, np.array(labels, np.int64), names, "photos")


def test_arrays_give_copies_of_what_cannot_be_changed():
    source = arrays([0, 2, -1])
    assert isinstance(source, Source)
    image, target, name = source[1]
    assert np.array_equal(image, source.images[1])
    assert (target, type(target), name, source.name(1)) == (2, int, "photos[1]", "photos[1]")
    image[:] = 0
    assert source[1][0].any()
    for fixed in (source.images, source.labels):
        with pytest.raises(ValueError, match="read-only"):
            fixed[0] = 0
    assert [source.target(index) for index in range(3)] == [target for _, target, _ in source] == [0, 2, -1]


@pytest.mark.parametrize("index", [-1, 3])
def test_there_is_nothing_outside(index):
    source = arrays([0, 1, 2])
    with pytest.raises(IndexError, match=f"photos has images 0 to 2, but {index} was asked for"):
        source[index]
    part = Subset(source, [2, 1, 0])
    for ask in (part.__getitem__, part.target, part.name):
        with pytest.raises(IndexError, match=f"images 0 to 2, but {index} was asked for"):
            ask(index)


@given(st.lists(st.integers(0, 9), max_size=20), st.data())
def test_a_subset_of_a_subset_is_one(indices, data):
    source = arrays([0, 1, 2, 1, 0, 2, 2, 1, -1, 0])
    part = Subset(source, np.array(indices, np.int64))
    assert isinstance(part, Source)
    assert len(part) == len(indices)
    assert (part.class_names, part.multi_label) == (NAMES, False)
    if indices:
        again = data.draw(st.lists(st.integers(0, len(indices) - 1)))
        for place, index in enumerate(again):
            found, expected = Subset(part, again)[place], source[indices[index]]
            assert np.array_equal(found[0], expected[0])
            assert found[1:] == expected[1:]


def test_renumbering_keeps_every_class_by_its_name():
    source, names = arrays([0, 1, 2, -1]), ("cat", "dog", "ant", "bee")
    found = Renumbered(source, names)
    assert isinstance(found, Source)
    assert [found.target(index) for index in range(4)] == [target for _, target, _ in found] == [2, 3, 0, -1]
    assert [names[t] for t in map(found.target, range(3))] == [NAMES[t] for t in map(source.target, range(3))]
    assert (found.class_names, found.multi_label, len(found), found.name(3)) == (names, False, 4, "photos[3]")


def test_renumbering_images_with_several_labels():
    found = Renumbered(Tagged((0, 2), (), (1,)), ("cat", "bee", "ant"))
    assert [found.target(index) for index in range(3)] == [(2, 0), (), (1,)]
    assert found.multi_label


def test_counts():
    assert counts(arrays([0, 2, 2, -1, 2])).tolist() == [1, 0, 3]
    assert counts(arrays([])).tolist() == [0, 0, 0]
    assert counts(Tagged((0, 2), (), (2, 1), (2,))).tolist() == [1, 1, 3]


def test_pixels_are_decoded_or_brought_to_the_channels_wanted(tmp_path):
    rgb = arrays([0]).images[0]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert np.array_equal(pixels(content, 3, "a"), rgb)
    assert pixels(rgb, 3, "a") is rgb
    grey = np.array(Image.fromarray(rgb).convert("L"))[:, :, None]
    assert np.array_equal(pixels(rgb, 1, "a"), grey)
    assert np.array_equal(pixels(content, 1, "a"), grey)
    assert np.array_equal(pixels(grey, 3, "a"), np.repeat(grey, 3, 2))
    assert pixels(grey, 1, "a") is grey


def test_pixels_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="spectral has 4 channels, but 3 are wanted"):
        pixels(np.zeros((2, 2, 4), np.uint8), 3, "spectral")
    with pytest.raises(ValueError, match=r"photos\[1\] is not an image"):
        pixels(b"no image", 3, "photos[1]")
