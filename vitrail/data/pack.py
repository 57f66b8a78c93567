"""Writing a packed data set (packed.py): every image decoded and made small once, instead of in every epoch.

    pack(find_splits(Data("photos")), Path("photos-256"), size=256)

An image's shorter side becomes `size`, unless it is smaller already; its shape stays. What is written are the same
images in the same order, so that a run sees them in the order in which it would see the originals.
"""

import json
import os
import shutil
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from vitrail.data.images.decode import opened
from vitrail.data.images.geometry import Crop, resize
from vitrail.data.sources.packed import FILE, INT64, Kind
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


@dataclass(frozen=True)
class _Item:
    content: bytes
    shape: tuple[int, ...]
    whole: tuple[int, int]
    target: Target
    name: str


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
    `quality`, of about a tenth of that. ValueError where `out` exists, the disk is too small or full, a number is out
    of its range, or an image cannot be read, which "skip" leaves out and reports.
    """
    if size < 1 or not 1 <= quality <= 100:
        raise ValueError(f"size is {size} and quality {quality}; they must be 1 or more, and from 1 to 100.")
    if out.exists():
        raise ValueError(f"{out} exists already; name another folder, or delete it.")
    partial = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _refuse_what_does_not_fit(splits, partial, size, kind, quality)
        packing = _write(splits, partial, size, kind, quality, unreadable)
        partial.rename(out)
    except OSError as error:
        raise ValueError(
            f"{out} cannot be written ({error.strerror or error}); nothing is left of it: make room, or name a folder"
            " on another disk."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return packing


def _write(
    splits: Mapping[str, Source], folder: Path, size: int, kind: Kind, quality: int, unreadable: Unreadable
) -> Packing:
    counts, left_out, described = {}, [], {}
    for split, source in splits.items():
        rows, targets = array("q"), array("q")  # a hundred million tuples would fill the memory
        total = names = 0

        def make(index: int, source: Source = source) -> _Item | ValueError:
            try:
                return _item(source, index, size, kind, quality)
            except ValueError as error:
                return error

        with (folder / f"{split}.images").open("wb") as images, (folder / f"{split}.names").open("wb") as words:
            items = prefetch(make, range(len(source)), 64, os.cpu_count())
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
        index = np.frombuffer(rows, np.int64).reshape(-1, 8)
        (folder / f"{split}.index").write_bytes(index.astype(INT64).tobytes())
        (folder / f"{split}.targets").write_bytes(np.frombuffer(targets, np.int64).astype(INT64).tobytes())
        counts[split] = len(index) - 1
        classes = list(source.class_names)
        described[split] = {"images": counts[split], "classes": classes, "targets": source.targets}
    document = {"version": 2, "kind": kind, "size": size, "splits": described, "left_out": left_out}
    (folder / FILE).write_text(json.dumps(document, indent=1) + "\n")
    return Packing(counts, sum(file.stat().st_size for file in folder.iterdir()), tuple(left_out))


def _refuse_what_does_not_fit(splits: Mapping[str, Source], folder: Path, size: int, kind: Kind, quality: int) -> None:
    """ValueError where a few images of each split say that there is no room for all."""
    need = 0.0
    for source in splits.values():
        lengths = []
        for index in np.linspace(0, len(source) - 1, min(len(source), TRIED)).astype(int).tolist():
            try:
                lengths.append(len(_item(source, index, size, kind, quality).content))
            except ValueError:  # told when its turn comes
                continue
        need += len(source) * float(np.mean(lengths)) if lengths else 0.0
    free = shutil.disk_usage(folder).free - SPARE
    if need > free:
        smaller = "choose a smaller --size" + ("" if kind == "jpeg" else ", or --kind jpeg")
        raise ValueError(
            f"the packed images would need about {need / 2**30:,.1f} GiB, and {max(free, 0) / 2**30:,.1f} GiB are free;"
            f" {smaller}, or a folder on another disk."
        )


def _item(source: Source, index: int, size: int, kind: Kind, quality: int) -> _Item:
    content, target, name, original = source[index]
    channels = 3 if isinstance(content, bytes) else content.shape[2]
    image = opened(content, name)
    goal = _fitted(image.size, size)
    # The codec may shrink it, to more than is wanted.
    small = _resized(image.decode(Crop(0, 0, *image.size, goal), channels), goal)
    whole = original or image.size
    if kind == "raw":
        return _Item(small.tobytes(), small.shape, whole, target, name)
    if channels not in (1, 3):
        raise ValueError(f"{name} has {channels} channels, which JPEG has no form for; pack it as raw.")
    space = "RGB" if channels == 3 else "GRAY"
    encoded = simplejpeg.encode_jpeg(small, quality, space, "444" if channels == 3 else "Gray")
    return _Item(encoded, small.shape, whole, target, name)


def _numbers(target: Target) -> tuple[int, ...]:
    """A target as whole numbers; -1 is that none is known."""
    if isinstance(target, Boxes | Mask):
        raise ValueError("boxes and masks cannot be packed; train from the images themselves.")
    return target if isinstance(target, tuple) else (-1 if target is None else target,)


def _fitted(whole: tuple[int, int], size: int) -> tuple[int, int]:
    """(height, width) whose shorter side is `size`, or less where it was; with the rounding of `prepare`, timm and
    torchvision, so that whoever shrinks to this size and cuts out the middle gets the same pixels from the pack."""
    if min(whole) <= size:
        return whole
    long = int(size * max(whole) / min(whole))
    return (size, long) if whole[0] <= whole[1] else (long, size)


def _resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if pixels.shape[:2] == size:
        return np.ascontiguousarray(pixels)
    return np.ascontiguousarray(resize(pixels, size, "bicubic"))
