"""Looks at every image of a data set once, and keeps a third of a kilobyte of each.

scan = Scan.of(find_splits(Data("photos")))
scan.rows["width"]           # one row for each image, all splits in turn; ROW says what is in it
scan.problems                # {row: the sentence that says why the image cannot be read}
scan.record(17)              # Record(split="train", index=17, name="photos/train/cat/18.jpg", label="cat")
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from vitrail.data.audit.duplicates import COLOURS, SIDE, digest, thumbnail
from vitrail.data.images.decode import BITS, ORIENTATION, UPRIGHT
from vitrail.data.images.kinds import KINDS, by_pillow
from vitrail.data.quiet import quiet
from vitrail.data.sources.source import Source, classes_of, pixels
from vitrail.data.stream import prefetch
from vitrail.progress import track

TRAITS = ("CMYK", "16-bit", "transparent", "animated", "turned", "misnamed")
# size: bytes of the file, 0 for pixels in memory. file, pixels: digests. traits: as TRAITS. Unreadable: all 0.
ROW = np.dtype([
    ("readable", "?"), ("height", "i4"), ("width", "i4"), ("size", "i8"), ("file", "u8"), ("pixels", "u8"),
    ("traits", "?", len(TRAITS)), ("blank", "?"), ("grey", "u1", (SIDE, SIDE)), ("colour", "u1", (2, COLOURS, COLOURS)),
])  # fmt: skip
NONE = (False,) * len(TRAITS)
FLAT = 8  # levels, of 255, between the darkest and the lightest pixel of an image that shows nothing
SAMPLE = 2_000  # images that the colours are measured on
CHUNK = 32  # images that a thread takes at a time


@dataclass(frozen=True)
class Record:
    """The place of an image and its name. label: its class's name; "" if unknown, "a + b" for several."""

    split: str
    index: int
    name: str
    label: str


@dataclass(frozen=True, eq=False)
class Scan:
    """What was seen. kinds: how many images are of each. colours: (2, 3) mean and std of R, G and B in [0, 1], NaN if
    no image can be read."""

    sources: Mapping[str, Source]
    rows: np.ndarray
    labels: list[str]
    problems: dict[int, str]
    kinds: Counter[str]
    colours: NDArray[np.float64]

    @classmethod
    def of(cls, sources: Mapping[str, Source], progress: bool = False, workers: int | None = None) -> "Scan":
        """Reads every image in `workers` threads; None is one per core, up to 16. Unreadable ones become problems."""
        total = sum(map(len, sources.values()))
        rows, labels = np.zeros(total, ROW), [label for source in sources.values() for label in _labels(source)]
        problems: dict[int, str] = {}
        kinds, sums = Counter[str](), []
        every, workers = -(-total // SAMPLE), workers or min(16, os.cpu_count() or 1)
        chunks = (
            [(source, index, index % every == 0) for index in range(start, min(start + CHUNK, len(source)))]
            for source in sources.values()
            for start in range(0, len(source), CHUNK)
        )
        looked = prefetch(lambda chunk: [_look(*place) for place in chunk], chunks, 2 * workers, workers)
        seen = (found for chunk in looked for found in chunk)
        for number, found in enumerate(track(seen, total, "looking") if progress else seen):
            if isinstance(found, str):
                problems[number] = found
                continue
            rows[number], kind, colours = found
            kinds[kind] += 1
            sums += [] if colours is None else [colours]
        mean, square = np.mean(sums, 0) if sums else np.full((2, 3), np.nan)
        return cls(sources, rows, labels, problems, kinds, np.stack([mean, np.sqrt(np.maximum(square - mean**2, 0))]))

    def record(self, number: int) -> Record:
        """The image of a row."""
        index = number
        for split, source in self.sources.items():
            if index < len(source):
                return Record(split, index, source.name(index), self.labels[number])
            index -= len(source)
        raise IndexError(f"there are images 0 to {len(self.rows) - 1}, but {number} was asked for.")


def _labels(source: Source) -> Iterator[str]:
    names: dict[tuple[int, ...], str] = {}  # one string for each label, not for each image
    for index in range(len(source)):
        classes = classes_of(source.target(index))
        if classes not in names:
            names[classes] = " + ".join(source.class_names[number] for number in sorted(classes))
        yield names[classes]


def _look(
    source: Source, index: int, sampled: bool
) -> tuple[tuple[object, ...], str, NDArray[np.float64] | None] | str:
    """One image as (ROW, kind such as "JPEG RGB", colours if they are sampled), or why it cannot be read."""
    try:
        example = source[index]
        content, name = example.image, example.name
        image = pixels(content, 3, name)
    except ValueError as error:
        return str(error)
    height, width, _ = image.shape
    grey, colour = thumbnail(image)
    shown = digest(f"{height} x {width}".encode(), np.ascontiguousarray(image).data)
    kind, traits, size, file = "pixels", NONE, 0, shown
    if isinstance(content, bytes):
        kind, traits = _header(content, name)
        size, file = len(content), digest(content)
    blank = bool(np.ptp(grey) <= FLAT and np.ptp(image, (0, 1)).max() <= FLAT)
    row = True, height, width, size, file, shown, traits, blank, grey, colour
    return row, kind, _colours(image) if sampled else None


def _colours(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(2, 3): mean and mean square of each channel, by its histogram, which takes a tenth of the time."""
    fractions = np.array(Image.fromarray(image).histogram()).reshape(3, 256) / (image.shape[0] * image.shape[1])
    levels = np.arange(256) / 255
    return np.stack([fractions @ levels, fractions @ levels**2])


def _header(data: bytes, name: str) -> tuple[str, tuple[bool, ...]]:
    """The kind of an image that has been decoded, and its TRAITS."""
    with quiet(), by_pillow(data, name) as image:
        form = "JPEG" if image.format == "MPO" else str(image.format)  # a JPEG with a preview behind it
        kind = f"{form} {image.mode}"
        try:
            bits = data[24] if form == "PNG" else 8
            if isinstance(image, TiffImageFile):
                bits = max(image.tag_v2.get(BITS, (8,)))
            return kind, (
                image.mode == "CMYK",
                bits > 8,
                image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info,
                image.format != "MPO" and bool(getattr(image, "is_animated", False)),
                image.getexif().get(ORIENTATION, 1) in UPRIGHT,
                KINDS.get(PurePath(name).suffix.lower(), form) != form,
            )
        except Exception:  # damaged EXIF or later frames say nothing about the first frame, which is whole
            return kind, NONE
