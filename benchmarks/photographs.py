"""Images for whoever measures with real files: class folders of photographs, given or drawn, and Fashion-MNIST's files.

data = photographs(folder, None, 500)        # data/train/class0/000000.jpg, ..., data/val/...
"""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

CLASSES, VALIDATION = 10, 20


def photographs(folder: Path, given: Path | None, count: int) -> Path:
    """Class folders with `count` training images, which are those given or 400 random ones, over and over."""
    if given:
        files = sorted(path for path in given.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not files:
            raise ValueError(f"{given} has no photographs (.jpg, .jpeg, .png)")
    else:
        files = draw_photographs(folder / "drawn", 400)
    for split, number in (("train", count), ("val", VALIDATION)):
        for i in range(number):
            place = folder / "photos" / split / f"class{i % CLASSES}" / f"{i:06d}{files[i % len(files)].suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(files[i % len(files)], place)
            except OSError:  # another disk
                shutil.copyfile(files[i % len(files)], place)
    return folder / "photos"


def draw_photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of 500 x 375 whose smooth noise has about the detail, and so the bytes, of photographs."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (94, 125, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:04d}.jpg", quality=90)
    return sorted(folder.iterdir())


def fashion_files(folder: Path, count: int) -> Path:
    """Fashion-MNIST's four files with `count` training images, which are those in the package, over and over."""
    import numpy as np

    from vitrail.data.sources import mnist

    out = folder / "FashionMNIST" / "raw"  # where torchvision, and so timm, looks
    out.mkdir(parents=True)
    for path in (Path(mnist.__file__).parents[1] / "fashion").glob("*-ubyte.gz"):
        array = mnist.read_idx(path, rank=3 if "images" in path.name else 1)
        array = np.resize(array, (count, *array.shape[1:])) if path.name.startswith("train") else array
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (out / path.stem).write_bytes(header + array.tobytes())
    return out


def unpacked(data: Path, folder: Path) -> Path:
    """The folder with train/ and test/: the one given, or what is in the archive."""
    if data.is_file():
        with tarfile.open(data) as archive:
            archive.extractall(folder, filter="data")
        data = folder
    for place in (data, *sorted(data.glob("*"))):
        if (place / "train").is_dir() and (place / "test").is_dir():
            return place.resolve()
    raise ValueError(f"{data} has no folders train and test")
