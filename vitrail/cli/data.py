"""The commands about data: what is wrong with it (data check), and made small once and for all (data pack)."""

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from vitrail.cli.options import Command, DataPlace, Given, Part, described
from vitrail.progress import say

SHOWN = 5  # images that were left out


@dataclass(kw_only=True)
class Check(Command):
    """Find faults in images and labels before a model is trained on them.

    Unreadable, blank and tiny images; copies across splits, under several labels and twice; classes with few images.
    Every image is read once. The columns of a table are named as for vitrail train: --data.image-column NAME,
    --data.label-column NAME. Exit status: 0 nothing wrong was found, 1 something was.
    """

    extends = True
    data: DataPlace
    val: Annotated[str, arg(metavar="PATH", help_behavior_hint="")] = ""
    """The validation images, where they are at another place."""
    page: Annotated[str, arg(metavar="FILE", help_behavior_hint="")] = ""
    """Write a page that shows the images found, such as check.html."""

    def run(self, given: Given) -> None:
        from vitrail.data.audit.findings import check, text
        from vitrail.data.sources.open import find_splits
        from vitrail.data.sources.source import Found
        from vitrail.report.data_page import write

        if self.page and not Path(self.page).parent.is_dir():
            raise ValueError(f"the folder of --page {self.page} does not exist; make it first.")
        splits = find_splits(described(self.data, given, self, "vitrail data check"))
        if self.val:
            found = find_splits(described(self.val, given, self, "vitrail data check"))
            splits = Found(
                {("train" if name == "all" else name): source for name, source in splits.items()},
                [*splits.notes, *found.said(self.val)],
                splits.left_out,
                (*splits.lost, *(f"{self.val}/{folder}" for folder in found.lost)),
            )
            splits["val"] = next(found[name] for name in ("val", "test", "all", "train") if name in found)
        report = check(splits, place=self.data)
        if self.page:
            write(report, Path(self.page), splits)
        self.answer(report.document(), text(report))
        if report.faults:
            sys.exit(1)


@dataclass(kw_only=True)
class Pack(Command):
    """Shrink images once, so that training need not decode and shrink them in every epoch.

    FOLDER then takes the place of DATA: the same images, splits, classes and order. The columns of a table are named as
    for vitrail train: --data.image-column NAME, --data.label-column NAME. With --to tar, what was stopped goes on where
    the same command is given again. Exit status: 0 done, 1 where images were left out (--unreadable skip).
    """

    extends = True
    data: DataPlace
    out: Positional[Annotated[str, arg(metavar="FOLDER")]]
    """The folder to write, such as photos-256."""
    size: Annotated[int, arg(metavar="N")] = 256
    """The shorter side in pixels, unless the image is smaller; a model for 224 pixels needs 256 or more."""
    to: Literal["packed", "tar"] = "packed"
    """packed: files that are mapped into memory. tar: JPEGs in shards, as webdataset has them, with an index."""
    shard: Annotated[int, arg(metavar="N")] = 10_000
    """Images in a tar."""
    workers: Annotated[int, arg(metavar="N")] = 1
    """Of --to tar: processes on this machine, whose threads share its cores."""
    part: Part = ""
    kind: Literal["raw", "jpeg"] = "raw"
    """Of packed. raw: pixels, the fastest to read. jpeg: JPEGs, a tenth of the size on disk."""
    quality: Annotated[int, arg(metavar="N")] = 92
    """Of jpeg, 1 to 100."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Stop at an image that cannot be read, or leave it out and count it."""

    def run(self, given: Given) -> None:
        from vitrail.data.pack import index, pack, shards
        from vitrail.data.parts import part
        from vitrail.data.sources.open import find_splits

        splits, out = find_splits(described(self.data, given, self, "vitrail data pack")), Path(self.out)
        if self.to == "tar":
            threads = max(1, (os.cpu_count() or 1) // max(self.workers, 1))
            work = shards(splits, out, self.size, self.quality, self.unreadable, self.shard, threads)
            work.run(numbers := part(self.part, len(work.names)), self.workers, f"packing {self.out}")
            done = index(work, splits, numbers)
        elif self.part or self.workers != 1:
            raise ValueError("--part and --workers are for --to tar; packed files are written by one process.")
        else:
            done = pack(splits, out, self.size, self.kind, self.quality, self.unreadable)
        say("\n".join(splits.said(self.data)))
        images = ", ".join(f"{count:,} {split}" for split, count in done.images.items())
        use = f"use it in place of {self.data}"
        use = f"{done.missing:,} shards of other parts are missing" if done.missing else use
        lines = [f"{self.out} has {images} images in {done.bytes / 2**20:,.1f} MiB; {use}."]
        lines += [f"left out: {problem}" for problem in done.left_out[:SHOWN]]
        lines += [f"and {len(done.left_out) - SHOWN:,} more"] if len(done.left_out) > SHOWN else []
        self.answer(asdict(done), "\n".join(lines))
        if done.left_out:
            sys.exit(1)
