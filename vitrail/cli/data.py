"""The command that makes images small once and for all (data pack)."""

import json as jsonlib
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from vitrail.cli.options import Flag

SHOWN = 5  # images that were left out


@dataclass
class Pack:
    """Make images small once, so that training need not decode and shrink them in every epoch.

    FOLDER then stands wherever DATA stood: the same images, splits, classes and order. Exit status: 0 done, 1 where
    images were left out (--unreadable skip).
    """

    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """The images, of any kind that vitrail train reads."""
    out: Positional[Annotated[str, arg(metavar="FOLDER")]]
    """What to write, such as photos-256."""
    size: int = 256
    """What the shorter side becomes, in pixels, unless it is smaller; a model for 224 pixels needs 256 or more."""
    kind: Literal["raw", "jpeg"] = "raw"
    """raw: pixels, the fastest to read. jpeg: JPEGs, a tenth of the size on the disk."""
    quality: int = 92
    """Of jpeg, 1 to 100."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Whether an image that cannot be read ends it, or is left out and counted."""
    json: Flag = False
    """Print one JSON document: {images, bytes, left_out}."""

    def run(self, rest: list[str]) -> None:
        from vitrail.data.pack import pack
        from vitrail.data.sources.open import Data, find_splits

        done = pack(find_splits(Data(self.data)), Path(self.out), self.size, self.kind, self.quality, self.unreadable)
        if self.json:
            print(jsonlib.dumps(asdict(done), indent=2))
        else:
            images = ", ".join(f"{count:,} {split}" for split, count in done.images.items())
            print(f"{self.out} has {images} images in {done.bytes / 2**20:,.1f} MiB; use it in place of {self.data}.")
            for problem in done.left_out[:SHOWN]:
                print(f"left out: {problem}")
            if len(done.left_out) > SHOWN:
                print(f"and {len(done.left_out) - SHOWN:,} more")
        if done.left_out:
            sys.exit(1)
