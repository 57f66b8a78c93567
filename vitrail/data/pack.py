"""Writing a packed data set (packed.py): every image is decoded and made small once, instead of in every epoch.

    pack(find_splits(Data("photos")), Path("photos-256"), size=256)

An image's shorter side becomes `size`, unless it is smaller already; its aspect ratio stays. The images and their order
are the same, so that a run sees them in the order in which it would see the originals.
"""

import json
import os
import shutil
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from vitrail.data.images.decode import opened
from vitrail.data.images.geometry import Crop, resize
from vitrail.data.sources.fingerprint import spread
from vitrail.data.sources.packed import FILE, INT64, VERSION, Kind
from vitrail.data.sources.source import Boxes, Mask, Source, Target
from vitrail.data.stream import Unreadable, prefetch
from vitrail.progress import track

TRIED = 64  # images of a split that are made small to estimate its size
SPARE = 2**28  # bytes that are left free on the disk


@dataclass(frozen=True)
class Packing:
    """What was packed. left_out: what is wrong with the images that are not in it."""

    images: dict[str, int]
    bytes: int
    left_out: tuple[str, ...]


class _Item(NamedTuple):
    content: bytes
    shape: tuple[int, ...]
    whole: tuple[int, int]
    target: Target
    name: str


Make = Callable[[Source, int], _Item | ValueError]


def _small(source: Source, index: int, size: int, kind: Kind, quality: int) -> _Item | ValueError:
    """An image made small; the error if it cannot be read."""
    try:
        content, target, name, original = source[index]
        channels = 3 if isinstance(content, bytes) else content.shape[2]
        image = opened(content, name)
        goal = _fitted(image.size, size)
        # The codec may shrink it, but not as much as is wanted.
        small = image.decode(Crop(0, 0, *image.size, goal), channels)
        small = np.ascontiguousarray(small if small.shape[:2] == goal else resize(small, goal, "bicubic"))
        if kind == "jpeg" and channels not in (1, 3):
            raise ValueError(f"{name} has {channels} channels, which JPEG cannot store; pack it as raw.")
        colours = ("RGB", "444") if channels == 3 else ("GRAY", "Gray")
        data = small.tobytes() if kind == "raw" else simplejpeg.encode_jpeg(small, quality, *colours)
        return _Item(data, small.shape, original or image.size, target, name)
    except ValueError as error:
        return error


def pack(
    splits: Mapping[str, Source],
    out: Path,
    size: int = 256,
    kind: Kind = "raw",
    quality: int = 92,
    unreadable: Unreadable = "refuse",
) -> Packing:
    """Writes the folder `out`, whole or not at all.

    kind: "raw" is pixels, which need no decoding (3 x 341 x 256 bytes for a photograph of 4 : 3); "jpeg" is JPEGs of
    `quality`, about a tenth of that. ValueError if `out` exists, the disk is too small or full, a number is out of its
    range, or an image cannot be read; with "skip" such images are left out and reported.
    """
    if size < 1 or not 1 <= quality <= 100:
        raise ValueError(f"size is {size} and quality {quality}; they must be 1 or more, and from 1 to 100.")
    if out.exists():
        raise ValueError(f"{out} exists already; name another folder, or delete it.")
    make, folder = partial(_small, size=size, kind=kind, quality=quality), out.with_name(f".{out.name}.partial")
    left_out: list[str] = []
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _require_space(splits, folder, make)
        described = {
            split: _write(source, split, folder, make, unreadable, left_out) for split, source in splits.items()
        }
        document = {"version": VERSION, "kind": kind, "size": size, "splits": described, "left_out": left_out}
        (folder / FILE).write_text(json.dumps(document, indent=1) + "\n")
        folder.rename(out)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror or error}), and nothing is left of it.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    counts = {split: one["images"] for split, one in described.items()}
    return Packing(counts, sum(file.stat().st_size for file in out.iterdir()), tuple(left_out))


def _write(
    source: Source, split: str, folder: Path, make: Make, unreadable: Unreadable, left_out: list[str]
) -> dict[str, Any]:
    """Writes the files of a split; what pack.json says of it."""
    rows, targets = array("q"), array("q")  # a hundred million tuples would fill the memory
    total = names = 0
    with (folder / f"{split}.images").open("wb") as images, (folder / f"{split}.names").open("wb") as words:
        items = prefetch(partial(make, source), range(len(source)), 64, os.cpu_count())
        for item in track(items, len(source), f"packing {split}"):
            if isinstance(item, ValueError):
                if unreadable == "refuse":
                    raise ValueError(f"{item} --unreadable skip leaves such images out.")
                left_out.append(str(item))
                continue
            name = item.name.encode("utf-8", "surrogateescape")
            rows.extend((total, names, len(targets), *item.shape, *item.whole))
            targets.extend(_numbers(item.target))
            images.write(item.content)
            words.write(name)
            total, names = total + len(item.content), names + len(name)
    rows.extend((total, names, len(targets), 0, 0, 0, 0, 0))
    for what, numbers in (("index", rows), ("targets", targets)):
        (folder / f"{split}.{what}").write_bytes(np.frombuffer(numbers, np.int64).astype(INT64).tobytes())
    return {"images": len(rows) // 8 - 1, "classes": list(source.class_names), "targets": source.targets}


def _require_space(splits: Mapping[str, Source], folder: Path, make: Make) -> None:
    """Raises ValueError if a few images of each split suggest that there is no room for all."""
    need = 0.0
    for source in splits.values():
        items = [make(source, index) for index in spread(len(source), TRIED)]
        lengths = [len(item.content) for item in items if isinstance(item, _Item)]
        need += len(source) * float(np.mean(lengths)) if lengths else 0.0
    free = shutil.disk_usage(folder).free - SPARE
    if need > free:
        room = f"about {need / 2**30:,.1f} GiB, and {max(free, 0) / 2**30:,.1f} GiB are free"
        raise ValueError(f"the packed images need {room}; choose a smaller --size, --kind jpeg, or another disk.")


def _numbers(target: Target) -> tuple[int, ...]:
    """A target as whole numbers; -1 if it is unknown."""
    if isinstance(target, Boxes | Mask | float):
        raise ValueError("numbers, boxes and masks cannot be packed; train from the images themselves.")
    return target if isinstance(target, tuple) else (-1 if target is None else target,)


def _fitted(whole: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) with the shorter side `size`, or less if it was; rounded as `prepare`, timm and torchvision do,
    so that whoever shrinks to this size and cuts out the middle gets the same pixels from the pack."""
    if min(whole) <= size:
        return whole
    long = int(size * max(whole) / min(whole))
    return (size, long) if whole[0] <= whole[1] else (long, size)
