"""MNIST's idx files as a Source: MNIST, Fashion-MNIST, KMNIST, EMNIST; gzipped or plain.

The format is described at the end of http://yann.lecun.com/exdb/mnist: two zero bytes, a code for the type, the number
of dimensions, each dimension as 4 bytes, big-endian, then the numbers. Nothing is unpickled, and a damaged or hostile
file raises ValueError without taking more memory than it has content.

    train = splits(Path("mnist"))["train"]
    image, target, name, _ = train[17]    # uint8 (28, 28, 1), int, "train-images-idx3-ubyte.gz[17]"
    source = fashion("test")              # the part of Fashion-MNIST in the package, see fashion/README.md
"""

import gzip
import math
import zlib
from io import BufferedReader
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources.source import Arrays, Source
from vitrail.data.stray import stray

# The four files, gzipped (.gz) or not; Kaggle's copies have a dot for the second dash.
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UINT8 = 0x08  # the code of the only type that images and labels have
CHUNK = 1 << 16
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def splits(path: Path) -> dict[str, Source]:
    """MNIST's files in the folder `path`: "train" and "test", one of them, or none. A labels file may be missing."""
    # Fashion-MNIST's files have MNIST's names; only the folder's name tells them apart.
    names = FASHION if "fashion" in path.resolve().name.lower() else None
    found: dict[str, Source] = {}
    for split, stems in FILES.items():
        images, labels = (_find(path, stem) for stem in stems)
        if images:
            found[split] = open_idx(images, labels, names)
        elif labels:
            raise ValueError(f"{path} has neither {stems[0]}.gz nor {stems[0]}; put MNIST's four idx files there.")
    return found


def _find(folder: Path, stem: str) -> Path | None:
    dotted = stem.replace("-idx", ".idx")
    files = (folder / name for name in (f"{stem}.gz", stem, f"{dotted}.gz", dotted))
    return next((file for file in files if file.is_file()), None)


def fashion(split: Literal["train", "test"]) -> Arrays:
    """The part of Fashion-MNIST that ships in the package (fashion/README.md says which): 28x28, ten classes."""
    images, labels = (Path(__file__).parents[1] / "fashion" / f"{stem}.gz" for stem in FILES[split])
    return open_idx(images, labels, FASHION)


def open_idx(images: Path, labels: Path | None, class_names: tuple[str, ...] | None) -> Arrays:
    """An images file (N, H, W) and, if given, its labels file (N,). Without `class_names`, the classes are "0" to the
    highest label found."""
    pixels = read_idx(images, rank=3)[..., None]
    if labels is None:
        return Arrays(pixels, None, (), images.name)
    targets = read_idx(labels, rank=1).astype(np.int64)
    if len(targets) != len(pixels):
        raise ValueError(f"{images} has {len(pixels):,} images, but {labels} {len(targets):,} labels; they must agree.")
    highest = int(targets.max())
    names = class_names or tuple(map(str, range(highest + 1)))
    if highest >= len(names):
        raise ValueError(f"{labels} has the label {highest}, but there are {len(names)} class names; add the others.")
    return Arrays(pixels, targets, names, images.name)


def read_idx(path: Path, rank: int) -> NDArray[np.uint8]:
    """The array in an idx file of images (rank 3) or labels (rank 1); gzip is recognised by content, not by name.

    ValueError, naming the file, for any other content. Memory and decompression stop at what the file holds or its
    header promises, whichever is less (plus a small buffer).
    """
    try:
        with path.open("rb") as file:
            return _parse(path, gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file, rank)
    except (OSError, EOFError, zlib.error) as error:  # the last two are gzip's
        raise ValueError(f"{path} cannot be read ({error}); check its permissions, or fetch it again.") from error


def _parse(path: Path, stream: BufferedReader | gzip.GzipFile, rank: int) -> NDArray[np.uint8]:
    """The array in `stream`, the content of the file `path`."""
    header, magic = stream.read(4 + 4 * rank), bytes([0, 0, UINT8, rank])
    if header[:4] != magic:
        other = f"is not an idx file: it begins with {header[:4].hex(' ')} instead of {magic.hex(' ')}; fetch it again."
        raise ValueError(f"{path} {stray(header + stream.read(500)) or other}")
    shape = tuple(int.from_bytes(header[place : place + 4]) for place in range(4, 4 + 4 * rank, 4))
    promised = math.prod(shape)
    data = bytearray()  # which grows with what is there, not with what the header promises
    # One byte too many is asked for: gzip checks its sum only at the end.
    while len(data) <= promised and (part := stream.read1(min(CHUNK, promised + 1 - len(data)))):
        data += part
    if len(data) != promised or not promised:
        found = f"{len(data):,} follow" if len(data) <= promised else "more follow"
        claim = f"its header promises {promised:,} bytes ({' x '.join(map(str, shape))})"
        raise ValueError(f"{path} is empty or damaged: {claim}, and {found}; fetch it again.")
    return np.frombuffer(data, np.uint8).reshape(shape)
