"""Writing a packed data set (packed.py): every image is decoded and made small once, instead of in every epoch.

    pack(find_splits(Data("photos")), Path("photos-256"), size=256)

An image's shorter side becomes `size`, unless it is smaller already; its aspect ratio stays. The images and their order
are the same, so that a run sees them in the order in which it would see the originals.

    work = shards(find_splits(Data("photos")), Path("photos-256"), size=256)    # as tars, in parts (parts.py)
    work.run(numbers := part("2/7", len(work.names)))
    index(work, splits, numbers)            # writes the indexes when all parts are there

Tars are webdataset's: 000000017.jpg, then 000000017.cls, the number of its class, or 000000017.json, {"label": [0, 4]}.
SPLIT.index.npz has for each image its shard, offset, size, crc32, key (17) and label, an entry of "known", -1 without
one; in `about`, as JSON, are the class names, known targets and shards. By it alone, shards in a store are read.
"""

import json
import os
import shutil
import tarfile
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from vitrail.data.images.decode import opened
from vitrail.data.images.geometry import Crop, resize
from vitrail.data.parts import Steps, Work, Write
from vitrail.data.sources.fingerprint import fingerprint, spread
from vitrail.data.sources.packed import FILE, INT64, VERSION, Kind
from vitrail.data.sources.records import SHARD_COLUMNS, SHARD_INDEX
from vitrail.data.sources.source import Boxes, Mask, Source, Target
from vitrail.data.sources.tar import BLOCK
from vitrail.data.stream import Unreadable, prefetch
from vitrail.progress import track

TRIED = 64  # images of a split that are made small to estimate its size
SPARE = 2**28  # bytes that are left free on the disk


@dataclass(frozen=True)
class Packing:
    """What was packed. left_out: what is wrong with the images that are not in it. missing: shards of other parts."""

    images: dict[str, int]
    bytes: int
    left_out: tuple[str, ...]
    missing: int = 0


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


def shards(
    splits: Mapping[str, Source],
    out: Path,
    size: int = 256,
    quality: int = 92,
    unreadable: Unreadable = "refuse",
    each: int = 10_000,
    threads: int = os.cpu_count() or 1,
) -> Work:
    """The work of writing tars of `each` images of a split, made small as by `pack`, as JPEGs. ValueError for numbers
    out of their range."""
    if size < 1 or each < 1 or not 1 <= quality <= 100:
        raise ValueError(f"size is {size}, shard {each} and quality {quality}; 1 or more, and quality at most 100.")
    starts = [(split, start) for split, source in splits.items() for start in range(0, len(source), each)]
    places = [(split, range(start, min(start + each, len(splits[split])))) for split, start in starts]
    about: dict[str, Any] = {"size": size, "quality": quality, "shard": each, "version": 2}
    about |= {f"{split} images": fingerprint(source) for split, source in splits.items()}
    names = [f"{split}-{start // each:06}.tar" for split, start in starts]
    small = partial(_small, size=size, kind="jpeg", quality=quality)
    make = partial(_shard, dict(splits), places, small, unreadable, threads)
    return Work(out, names, [len(keys) for _, keys in places], make, about)


def _shard(
    splits: Mapping[str, Source],
    places: Sequence[tuple[str, range]],
    small: Make,
    unreadable: Unreadable,
    threads: int,
    number: int,
    write: Write,
) -> Steps:
    """Writes a tar; what is recorded of it."""
    (split, keys), at = places[number], 0
    rows: dict[str, list[Any]] = {name: [] for name in ("key", "offset", "size", "crc32", "label", "skipped")}
    for key, item in zip(keys, prefetch(partial(small, splits[split]), keys, 64, threads), strict=True):
        yield
        if isinstance(item, ValueError):
            if unreadable == "refuse":
                raise ValueError(f"{item} --unreadable skip leaves such images out.")
            rows["skipped"].append(str(item))
            continue
        label = None if _numbers(item.target) == (-1,) else item.target
        row = {"key": key, "offset": at + BLOCK, "size": len(item.content), "label": label}
        row["crc32"] = zlib.crc32(item.content)
        for name, value in row.items():
            rows[name].append(value)
        kind, text = ("json", {"label": label}) if isinstance(label, tuple) else ("cls", label)
        members = [("jpg", item.content)] + [(kind, json.dumps(text).encode())] * (label is not None)
        for kind, content in members:
            head = tarfile.TarInfo(f"{key:09}.{kind}")  # of no time and no owner
            head.size = len(content)
            at += write(head.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK))
    write(bytes(2 * BLOCK))
    return {"images": len(rows["label"])} | rows


def index(work: Work, splits: Mapping[str, Source], numbers: range) -> Packing:
    """What was packed in the shards `numbers`; where all are there, in all, and then writes the indexes beside them.
    ValueError where one is not what its record says."""
    missing, left_out, images, total = len(work.missing()), list[str](), dict[str, int](), 0
    for split, source in splits.items():
        every = range(len(work.names)) if not missing else numbers
        own = [number for number in every if work.names[number].startswith(f"{split}-")]
        arrays: dict[str, Any] = {name: [np.empty(0, kind)] for name, kind in SHARD_COLUMNS.items()}
        shards: list[dict[str, Any]] = []
        known: dict[Any, int] = {k: k for k in range(len(source.class_names)) if source.targets == "class"}
        for number, record in zip(own, work.records(own), strict=True):
            targets = (tuple(target) if isinstance(target, list) else target for target in record["label"])
            record["label"] = [-1 if target is None else known.setdefault(target, len(known)) for target in targets]
            record["shard"] = [len(shards)] * record["images"]
            for name, kind in () if missing else SHARD_COLUMNS.items():
                arrays[name].append(np.array(record[name], kind))
            kept = {key: record[key] for key in ("images", "bytes", "sha256")}
            shards.append({"name": work.names[number], **kept})
            left_out += record["skipped"]
        images[split], total = sum(one["images"] for one in shards), total + sum(one["bytes"] for one in shards)
        if not missing:
            about = {"classes": source.class_names, "targets": source.targets, "known": [*known], "shards": shards}
            arrays = {name: np.concatenate(parts) for name, parts in arrays.items()}
            with work.written(work.folder / f"{split}{SHARD_INDEX}") as file:
                np.savez(file, **arrays, about=np.frombuffer(json.dumps(about).encode(), np.uint8))
    return Packing(images, total, tuple(left_out), missing)
