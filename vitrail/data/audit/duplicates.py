"""Which images of a set are the same, or look it: copies, and copies scaled, re-compressed, brightened or mirrored.

    grey, colour = thumbnail(image)       # with a digest of its pixels all that is kept of an image: 296 bytes
    copies(files, pixels)                 # groups that are equal to the last bit, by digests
    alike(grey, colour, pixels)           # groups that look the same at 16 x 16 pixels

Two images look alike if their thumbnails, without brightness and contrast, correlate to 0.998 or more, and their
colours agree. To find such pairs without comparing all, every image gets a key of 64 bits: the signs of random
projections (Charikar, "Similarity estimation techniques from rounding algorithms", 2002) of its low frequencies, each
frequency scaled to the spread that it has in this set. Alike images differ in few bits of it, so in one of several
lists, each sorted by other keys, they stand near each other, and only neighbours are compared. The time grows with the
number of images as sorting does, for any images.
"""

import hashlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt64
from numpy.typing import NDArray
from PIL import Image

from vitrail.progress import track

How = Literal["same file", "same pixels", "alike", "mirrored"]

SIDE, COLOURS, LOW = 16, 4, 8  # of the grey thumbnail, of its colours, of the frequencies that make the keys
# Of photographs re-encoded (JPEG at 50), scaled to a third or 0.8 times as bright, 99 % are this like the original; of
# those 1.1 times as bright, so that white clips, 90 %. No two different ones of 1,900 photographs (Imagenette) or 364
# micrographs (BCCD) are; of 60,000 small ones (CIFAR-10) 17 pairs, each truly of one image; of 70,000 garments of 28 x
# 28 (Fashion-MNIST) 80 groups, up to 25 of which may be different trousers or prints.
LIKENESS = 0.998
GAIN = 1.5  # how much more contrast one of two alike images may have
SHADE = 10.0  # their mean difference in colour, of 255
CONTRAST = 2.0  # grey levels: what varies less shows mostly its rounding
LISTS, NEIGHBOURS = 16, 8
CHUNK = 1 << 15
SAMPLE = 100_000  # images that the spread of the frequencies is taken from


class Group(NamedTuple):
    """Two or more images by number, ascending. how: what the most different of them have in common."""

    members: tuple[int, ...]
    how: How


def digest(*data: bytes | memoryview) -> int:
    """A digest of 64 bits: two of a million different files have the same with a probability of 3e-8."""
    state = hashlib.blake2b(digest_size=8)
    for part in data:
        state.update(part)
    return int.from_bytes(state.digest(), "little")


def thumbnail(image: UInt8[np.ndarray, "H W 3"]) -> tuple[UInt8[np.ndarray, "16 16"], UInt8[np.ndarray, "2 4 4"]]:
    """An image's brightness (Y) at 16 x 16, and its colour (Cb, Cr; 128 is none) at 4 x 4, as JPEG spares colour."""
    # A triangle, not a box: Pillow's box takes whole pixels only, so that a scaled copy would seem shifted.
    small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    parts = np.asarray(small.convert("YCbCr"))
    blocks = parts[:, :, 1:].reshape(COLOURS, SIDE // COLOURS, COLOURS, SIDE // COLOURS, 2)
    return parts[:, :, 0], blocks.mean((1, 3)).round().astype(np.uint8).transpose(2, 0, 1)


def copies(files: UInt64[np.ndarray, "N"], pixels: UInt64[np.ndarray, "N"]) -> list[Group]:
    """The images whose pixels are equal, by digests of the files and of the decoded pixels."""
    found = _repeated(pixels)
    return [Group(tuple(part.tolist()), "same pixels" if np.ptp(files[part]) else "same file") for part in found]


def alike(
    grey: UInt8[np.ndarray, "N 16 16"],
    colour: UInt8[np.ndarray, "N 2 4 4"],
    pixels: UInt64[np.ndarray, "N"],
    progress: bool = False,
) -> list[Group]:
    """The images that look alike and are not equal, with all copies of each: by thumbnails and digests of the pixels. A
    chain of alike images is one group, so a film of a slow camera may be. Nearly blank images are in none."""
    _, first, number = np.unique(pixels, return_index=True, return_inverse=True)
    parts = (grey[first[start : start + CHUNK]].std((1, 2)) >= CONTRAST for start in range(0, len(first), CHUNK))
    chosen = np.flatnonzero(np.concatenate([np.empty(0, bool), *parts]))
    group, mirrored = _linked(grey[first[chosen]], colour[first[chosen]], progress)
    linked = np.arange(len(first))
    linked[chosen] = chosen[group]
    flips = set(chosen[mirrored].tolist())
    return [
        Group(tuple(part.tolist()), "mirrored" if linked[number[part[0]]] in flips else "alike")
        for part in _repeated(linked[number])
        if np.ptp(number[part])
    ]


def _repeated(keys: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """The places of each key that occurs more than once, in the order of their first places."""
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.concatenate([[True], np.diff(keys[order]) != 0, [True]]) if len(keys) else [])
    starts, sizes = edges[:-1], np.diff(edges)
    parts = [order[s : s + n] for s, n in zip(starts[sizes > 1], sizes[sizes > 1], strict=True)]
    return sorted(parts, key=lambda part: part[0])


def _linked(grey: NDArray[np.uint8], colour: NDArray[np.uint8], progress: bool) -> tuple[NDArray[np.int64], list[int]]:
    """For each image the first of its group, and the firsts of the groups that hang together by a mirrored image."""
    parent, flips = np.arange(len(grey)), list[int]()
    for one, other in _candidates(_low(grey), progress):
        apart = _roots(parent, one) != _roots(parent, other)
        one, other = one[apart], other[apart]
        straight, flipped = _compared(grey, colour, one, other)
        pairs = np.stack([one, other, ~straight], 1)[straight | flipped]
        for a, b, flip in pairs.tolist():
            low, high = sorted(_roots(parent, np.array([a, b])).tolist())
            if low != high:
                parent[high] = low
                flips += [low] * flip
    group = _roots(parent, np.arange(len(grey)))
    return group, group[flips].tolist()


def _roots(parent: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the way up from each place ends; it is shortened on the way, as in every union-find."""
    found = parent[places]
    while (parent[found] != found).any():
        found = parent[found]
    parent[places] = found
    return found


def _compared(
    grey: NDArray[np.uint8], colour: NDArray[np.uint8], one: NDArray[np.int64], other: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pairs of images look alike, and which do if one is mirrored, (n,) each."""
    (a, strong), (b, weak) = _unit(grey[one]), _unit(grey[other])
    fair = np.maximum(strong, weak) <= GAIN * np.minimum(strong, weak)
    tint, shade = colour[one].astype(np.int16), colour[other].astype(np.int16)
    straight, flipped = (
        fair & (np.einsum("nhw,nhw->n", a, b[turn]) >= LIKENESS) & (np.abs(tint - shade[turn]).mean((1, 2, 3)) <= SHADE)
        for turn in (np.s_[...], np.s_[..., ::-1])
    )
    return straight, flipped


def _unit(grey: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Thumbnails (n, 16, 16) less their mean and at length 1, and the length that they had."""
    centred = grey - grey.mean((1, 2), dtype=np.float32, keepdims=True)
    length = np.sqrt(np.einsum("nhw,nhw->n", centred, centred))
    return centred / length[:, None, None], length


def _low(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The 63 lowest frequencies of each thumbnail at length 1, then of each thumbnail mirrored: (2 N, 63)."""
    angles = np.pi * np.outer(np.arange(LOW), np.arange(SIDE) + 0.5) / SIDE
    waves = np.cos(angles) * np.where(np.arange(LOW) == 0, 1, 2)[:, None] ** 0.5 / SIDE**0.5  # the orthonormal DCT-II
    both = np.einsum("ky,lx->yxkl", waves, waves).reshape(SIDE * SIDE, -1)[:, 1:].astype(np.float32)
    low = np.empty((2 * len(grey), both.shape[1]), np.float32)
    for start in range(0, len(grey), CHUNK):
        part = grey[start : start + CHUNK]
        low[start : start + len(part)] = _unit(part)[0].reshape(len(part), -1) @ both
    # Mirrored, a wave that is odd from left to right is its own negative.
    low[len(grey) :] = low[: len(grey)] * np.tile((-1.0) ** np.arange(LOW), LOW)[1:].astype(np.float32)
    return low


def _candidates(low: NDArray[np.float32], progress: bool) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs (one, other) of images that may look alike: neighbours in a list that their low frequencies do not part."""
    if not len(low):
        return
    count, limit = len(low) // 2, 2 * (1 - LIKENESS) + 1e-5  # the squared distance of whole thumbnails so correlated
    sample = low[:: -(-len(low) // SAMPLE)]
    scale = 1 / np.maximum(sample.std(0), 1e-6)
    random = np.random.default_rng(0)
    lists = range(LISTS)
    for _ in track(lists, LISTS, "comparing") if progress else lists:
        directions = (random.standard_normal((len(scale), 64)) * scale[:, None]).astype(np.float32)
        middle = np.median(sample @ directions, 0)
        keys = np.empty(len(low), np.uint64)
        for start in range(0, len(low), CHUNK):
            bits = low[start : start + CHUNK] @ directions > middle
            keys[start : start + CHUNK] = np.packbits(bits, 1).view(">u8")[:, 0]
        order = np.argsort(keys, kind="stable")
        for start in range(0, len(low), CHUNK):
            places = order[start : start + CHUNK + NEIGHBOURS]
            block = low[places]
            for step in range(1, min(NEIGHBOURS, len(places) - 1) + 1):
                difference = block[step:][:CHUNK] - block[:-step][:CHUNK]
                near = np.flatnonzero(np.einsum("nd,nd->n", difference, difference) <= limit)
                one, other = places[near], places[near + step]
                # Two mirrored images are as far from each other as the two as they are.
                fresh = (one % count != other % count) & ((one < count) | (other < count))
                if fresh.any():
                    yield one[fresh] % count, other[fresh] % count
