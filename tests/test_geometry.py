"""A view shows boxes and masks where it shows the image's pixels, of every crop, resize and border."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photos import keys, model

from vitrail.data.images.augment import Augment, draw
from vitrail.data.images.geometry import IGNORED, Crop, centred

scenes = st.tuples(
    st.tuples(*[st.integers(24, 150)] * 2),
    st.tuples(*[st.integers(16, 60)] * 2),
    st.just((1.0, 1.0)) | st.tuples(*[st.floats(0.4, 1)] * 2),
    st.sampled_from([("squash", 1.0), ("crop", 1.0), ("crop", 0.7), ("pad", 1.0), ("pad", 0.7), ("native", 1.0)]),
    st.sampled_from(["none", "inception", "simple", "shift"]),
    st.integers(0, 2**64 - 1),
)


def opened(scene):
    """(view, (height, width) of the stored image)."""
    size, output, smaller, resize, crop, key = scene
    stored, to = tuple(math.ceil(a * b) for a, b in zip(size, smaller, strict=True)), model(*output, 3, *resize)
    most = min(stored if resize[0] == "native" else output) - 1  # so that little of an image may be left, or nothing
    return draw(stored, Augment(crop, shift=most if crop == "shift" else 0), to, key, size)[0], stored


def within(size, top, left, bottom, right):
    """Whether the middle of each pixel is."""
    rows, columns = (np.arange(side) + 0.5 for side in size)
    return ((top < rows) & (rows < bottom))[:, None] & (left < columns) & (columns < right)


def far(size, edges, margins):
    """Whether the middle of each pixel is, from the edges (top, left, bottom, right)."""
    rows, columns = (np.abs(np.arange(size[a])[:, None] + 0.5 - edges[a::2]).min(1) > margins[a] for a in (0, 1))
    return rows[:, None] & columns


@settings(max_examples=300, deadline=None)
@given(scenes, st.floats(0, 0.7), st.floats(0, 0.7))
def test_boxes_and_masks_are_where_their_pixels_are(scene, down, across):
    """To 0.8 pixels of the output, or half a pixel of the original."""
    view, stored = opened(scene)
    top, left = int(down * stored[0]), int(across * stored[1])
    place = np.array([top, left, top + stored[0] // 4 + 1, left + stored[1] // 4 + 1])
    image = np.zeros((*stored, 3), np.uint8)  # its rows in one channel, its columns in another: corners become round
    image[place[0] : place[2], :, 0] = image[:, place[1] : place[3], 1] = 255
    seen = view.apply(view.crop.of(image) if view.crop else image)
    original = place * np.tile(np.divide(view.size, stored), 2)
    mask = view.mask(within(view.size, *original).astype(int))
    edges = view.boxes(original[None, [1, 0, 3, 2]])[0, [1, 0, 3, 2]]
    expected, shows = within(view.output, *edges), within(view.output, *view.inside)
    shows = shows[:, ::-1] if view.mirror else shows
    half = 0.51 * np.divide(view.scaled, view.seen[2:])
    assert not ((seen[..., :2] > 127).all(-1) ^ expected)[shows & far(view.output, edges, (0.8, 0.8))].any()
    assert not ((mask == 1) ^ expected)[shows & far(view.output, edges, half)].any()
    assert mask.flags.c_contiguous
    if view.border == "reflect":
        rows, columns = np.flatnonzero(shows.any(1)), np.flatnonzero(shows.any(0))
        beyond = (rows[0], view.output[0] - 1 - rows[-1]), (columns[0], view.output[1] - 1 - columns[-1])
        kept = np.ix_(rows, columns)
        assert np.array_equal(mask, np.pad(mask[kept], beyond, "reflect"))
        assert np.array_equal(seen, np.pad(seen[kept], [*beyond, (0, 0)], "reflect"))
    else:
        assert (mask[~shows] == IGNORED).all()
        assert (seen[~shows] == (124, 116, 104)).all()


def test_where_evaluation_and_a_mirror_put_a_box_and_that_a_mask_must_be_as_large():
    to, whole = model(224, 224, resize="crop", fraction=0.875), np.array([[0.0, 0.0, 500.0, 375.0]])
    view, small = centred((375, 500), to), centred((150, 200), to, (375, 500))
    assert view.original(view.boxes(whole)) == pytest.approx(whole)
    assert view.boxes(whole).tolist() == small.boxes(whole).tolist() == [[-58, -16, 283, 240]]
    assert view._replace(mirror=True).boxes(whole).tolist() == [[-59, -16, 282, 240]]
    with pytest.raises(ValueError, match=r"\(500, 375\).*\(375, 500\)"):
        view.mask(np.zeros((500, 375), int))


def test_a_crop_of_an_image_that_is_stored_smaller_is_seen_from_pixel_to_pixel():
    """Its sides are rounded to what is stored, here by up to 6 pixels of the original, and its boxes with them."""
    for key in keys(40):
        view = draw((50, 40), Augment("inception"), model(64, 64), key, (600, 480))[0]
        top, left, height, width = view.crop[:4]
        box = 12 * np.array([[left, top, left + width, top + height]], np.float64)
        assert view.boxes(box) == pytest.approx(np.array([[0, 0, 64, 64]]), abs=1e-9)


@given(st.tuples(*[st.integers(1, 900)] * 4), st.tuples(*[st.floats(0, 1)] * 4))
def test_a_crop_of_an_image_that_is_stored_smaller_is_the_same_crop(sizes, places):
    tall, wide, rows, columns = sizes
    height, width = 1 + int(places[0] * (tall - 1)), 1 + int(places[1] * (wide - 1))
    crop = Crop(int(places[2] * (tall - height)), int(places[3] * (wide - width)), height, width, (5, 5))
    found = crop.within((rows, columns), (tall, wide))
    assert 0 <= found.top < found.top + found.height <= rows
    assert 0 <= found.left < found.left + found.width <= columns
    for place, now, before in [(0, rows, tall), (1, columns, wide), (2, rows, tall), (3, columns, wide)]:
        assert abs(found[place] / now - crop[place] / before) <= (1 + 1e-9) / now
    assert found.shrink == 1 or found == crop
