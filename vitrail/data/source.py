"""A Source: records by number, without state, ranks or epochs; and the door that finds the right one for a path.

train, test = open_source(Data(), "train"), open_source(Data(), "test")
image, target, name = train[17]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vitrail.data.idx import FASHION, Idx, fashion

PACKAGED = "fashion"


@runtime_checkable
class Source(Protocol):
    """`len(source)` records; `source[i]` is (image uint8 (H, W, C), target, a name for messages)."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int, str]: ...


@dataclass(frozen=True)
class Data:
    """What a run reads. path: "fashion" for the images in the package, or a folder with MNIST's four idx files."""

    path: str = PACKAGED


def open_source(data: Data, split: Literal["train", "test"]) -> Source:
    """The images of one split. ValueError names the file that is missing or damaged, and what to do."""
    if data.path == PACKAGED:
        return fashion(split)
    folder = Path(data.path)
    if not folder.is_dir():
        state = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"the data folder {folder} {state}; name a folder with MNIST's four idx files.")
    prefix = {"train": "train", "test": "t10k"}[split]
    images, labels = (_find(folder, f"{prefix}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    # Fashion-MNIST's files have MNIST's names; only what lies beside them, or the folder's name, tells them apart.
    names = FASHION if "fashion" in folder.resolve().name.lower() else None
    return Idx.open(images, labels, names)


def _find(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.exists():
            return path
    raise ValueError(f"{folder} has neither {stem}.gz nor {stem}; put MNIST's four idx files there.")
