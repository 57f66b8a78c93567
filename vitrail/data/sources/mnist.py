"""MNIST's idx files as a Source: MNIST, Fashion-MNIST, KMNIST, EMNIST; gzipped or plain.

The format is at the foot of http://yann.lecun.com/exdb/mnist: two zero bytes, a code for the type, the number of
dimensions, each dimension as 4 bytes, the numbers; all big-endian. There is no pickle, and a damaged or hostile
file raises ValueError without taking more memory than it has content.

    train = splits(Path("mnist"))["train"]
    image, target, name = train[17]       # uint8 (28, 28, 1), int, "train-images-idx3-ubyte.gz[17]"
    source = fashion("test")              # the part of Fashion-MNIST in the package, see fashion/README.md
    array = read_idx(Path("any-idx-file"))
"""

import gzip
import math
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources.source import Arrays, Source

# The four files, gzipped (.gz) or not; Kaggle's copies have a dot for the second dash.
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_RANK = 32  # what every NumPy from 1.26 on can hold
DEFLATE_LIMIT = 1032  # no deflate stream grows by more than this, https://zlib.net/zlib_tech.html
CHUNK = 1 << 16
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# What is found under the name of an idx file, by its first bytes.
LOOKS = {
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": "another gzip file",
    b"\x93NUMPY": "a NumPy .npy file",
    b"%PDF": "a PDF",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself (git lfs pull fetches it)",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
}


def splits(path: Path) -> dict[str, Source]:
    """MNIST's four files in the folder `path`: "train" and "test", or one of them.

    ValueError names the file that is missing or damaged, and what to do.
    """
    # Fashion-MNIST's files have MNIST's names; only what lies beside them, or the folder's name, tells them apart.
    names = FASHION if "fashion" in path.resolve().name.lower() else None
    found: dict[str, Source] = {}
    for split, stems in FILES.items():
        images, labels = (_find(path, stem) for stem in stems)
        if images and labels:
            found[split] = open_idx(images, labels, names)
        elif images or labels or (split == "test" and not found):
            missing = stems[1] if images else stems[0]
            raise ValueError(f"{path} has neither {missing}.gz nor {missing}; put MNIST's four idx files there.")
    return found


def is_mnist(path: Path) -> bool:
    """Whether any of MNIST's four files is in the folder."""
    return any(_find(path, stem) for stems in FILES.values() for stem in stems)


def _find(folder: Path, stem: str) -> Path | None:
    dotted = stem.replace("-idx", ".idx")
    files = (folder / name for name in (f"{stem}.gz", stem, f"{dotted}.gz", dotted))
    return next((file for file in files if file.is_file()), None)


def open_idx(images: Path, labels: Path | None, class_names: tuple[str, ...] | None) -> Arrays:
    """An images file (N, H, W) and, if given, its labels file (N,), both uint8.

    Without `class_names`, the classes are "0" to the highest label found.
    Raises ValueError if a file cannot be read (see read_idx), has another shape or type (labels passed as images
    and the reverse among them), if the two differ in length, or if a label has no class name.
    """
    pixels = _uint8(images, rank=3)
    if not pixels.size:
        raise ValueError(f"{images} holds no pixels: its shape is {pixels.shape}; pass a file with images.")
    if labels is None:
        return Arrays(pixels[..., None], None, class_names or (), images.name)
    targets = _uint8(labels, rank=1).astype(np.int64)
    _check_labels(images, len(pixels), labels, targets, class_names)
    if class_names is None:
        class_names = tuple(str(label) for label in range(int(targets.max()) + 1))
    return Arrays(pixels[..., None], targets, class_names, images.name)


def fashion(split: Literal["train", "test"]) -> Arrays:
    """The part of Fashion-MNIST that ships in the package (fashion/README.md says which): 28x28, ten classes.

    Raises ValueError for another split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}, but Fashion-MNIST has 'train' and 'test' only; pass one of them.")
    folder = Path(__file__).parents[1] / "fashion"
    images, labels = (folder / f"{stem}.gz" for stem in FILES[split])
    return open_idx(images, labels, FASHION)


def read_idx(path: Path) -> NDArray[np.generic]:
    """The array in an idx file, plain or gzipped (told by content, not by name), in the machine's byte order.

    dtype: uint8, int8, int16, int32, float32 or float64; shape: any, up to 32 dimensions; writable.
    Raises ValueError, which names the file and what to do, if it is missing, no regular file, unreadable, empty, of
    another format (named where recognisable), corrupt, cut short, or longer than its header says. Memory and
    decompression stop at what the file can hold or its header promises, whichever is less (plus a small buffer).
    """
    path = Path(path)
    try:
        if not path.exists():
            raise ValueError(f"{path} does not exist; check the path.")
        if not path.is_file():
            raise ValueError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; pass an idx file.")
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.peek(2)[:2] != b"\x1f\x8b":
                return _parse(path, file, size, zipped=False)
            with gzip.GzipFile(fileobj=file) as unzipped:
                return _parse(path, unzipped, size, zipped=True)
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is a corrupt or incomplete gzip file ({error}); fetch it again.") from error
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror or error}); check the disk and permissions."
        ) from error


def _parse(path: Path, stream: BufferedIOBase, size: int, zipped: bool) -> NDArray[np.generic]:
    """The array in `stream`, the content of the file `path` that takes `size` bytes on disk."""
    magic = stream.read(4)
    if magic[:2] != b"\0\0" or len(magic) < 4 or magic[2] not in DTYPES:
        found = _describe(magic + (stream.read(508) if len(magic) == 4 else b""))
        raise ValueError(f"{path} is not an idx file: {'inside its gzip ' * zipped}it {found}; pass an idx file.")
    dtype, rank = np.dtype(DTYPES[magic[2]]), magic[3]
    if rank > MAX_RANK:
        raise ValueError(f"{path} claims {rank} dimensions, but NumPy holds {MAX_RANK}; its header is corrupt.")
    header = stream.read(4 * rank)
    if len(header) < 4 * rank:
        raise ValueError(
            f"{path} is cut short: its header needs {4 + 4 * rank} bytes, but {4 + len(header)} are there;"
            " fetch it again."
        )
    shape = tuple(int(length) for length in np.frombuffer(header, ">u4"))
    promised = math.prod(shape) * dtype.itemsize
    _check_promise(path, shape, dtype, promised, size - 4 - 4 * rank, size * DEFLATE_LIMIT if zipped else None)
    data = _read(path, stream, promised)
    return np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False).reshape(shape)


def _check_promise(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, promised: int, plain: int, zipped: int | None
) -> None:
    """Refuses, before anything is allocated, a header that the file cannot keep.

    `promised`: bytes of content by the header; `plain`: bytes behind the header of a plain file; `zipped`: the most
    that a gzip file of this size can hold, None for a plain file.
    """
    claim = f"its header promises {promised:,} bytes ({' x '.join(map(str, shape))} of {dtype.name})"
    # NumPy refuses such shapes even when another dimension is 0.
    if math.prod(length for length in shape if length) * dtype.itemsize >= 2**63:
        raise ValueError(f"{path} is corrupt: {claim}, more than fits in an array; fetch it again.")
    if zipped is not None:
        if promised > zipped:
            raise ValueError(
                f"{path} is cut short or corrupt: {claim}, but a gzip file of its size holds at most {zipped:,};"
                " fetch it again."
            )
    elif promised > plain:
        raise ValueError(f"{path} is cut short: {claim}, but {plain:,} follow; fetch it again.")
    elif promised < plain:
        raise ValueError(f"{path} is too long: {claim}, but {plain:,} follow; fetch it again.")


def _read(path: Path, stream: BufferedIOBase, promised: int) -> bytearray:
    """Reads `promised` bytes and sees that no more follow; grows with what is there, whatever was promised."""
    data = bytearray()
    try:
        while len(data) <= promised:  # one byte too many is asked for: gzip checks its sum only at the end
            part = stream.read1(min(CHUNK, promised + 1 - len(data)))
            if not part:
                break
            data += part
    except EOFError as error:
        raise ValueError(
            f"{path} is cut short: its header promises {promised:,} bytes, but its gzip stream ends after"
            f" {len(data):,}; fetch it again."
        ) from error
    if len(data) != promised:
        found = f"only {len(data):,} follow" if len(data) < promised else "more follow"
        state = "cut short" if len(data) < promised else "too long"
        raise ValueError(f"{path} is {state}: its header promises {promised:,} bytes, but {found}; fetch it again.")
    return data


def _describe(head: bytes) -> str:
    """What the first bytes of something that is no idx file show it to be, as a verb and its object."""
    if not head:
        return "is empty"
    for start, what in LOOKS.items():
        if head.startswith(start):
            return f"looks like {what}"
    if head.startswith(b"PK\x03\x04"):
        member = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return "looks like a NumPy .npz file" if member.endswith(b".npy") else "looks like a zip archive"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "looks like an HTML page, perhaps the error page of a download"
    if head[257:262] == b"ustar":
        return "looks like a tar archive"
    if head[:2] == b"\0\0" and len(head) >= 4:
        return f"has the unknown type code 0x{head[2]:02x} ({', '.join(f'0x{code:02x}' for code in DTYPES)} are known)"
    return f"begins with the bytes {head[:4].hex(' ')} where an idx file has 00 00, a type code and a rank"


def _uint8(path: Path, rank: int) -> NDArray[np.uint8]:
    """The uint8 array in an idx file that must hold images (rank 3) or labels (rank 1)."""
    array = read_idx(path)
    if array.ndim != rank:
        kind, other = ("images", "labels") if rank == 3 else ("labels", "images")
        hint = f" like {other}" if array.ndim == 4 - rank else ""
        raise ValueError(
            f"{path} holds {array.ndim} dimensions{hint}, but {kind} need {rank}; pass the {kind} file"
            f" (its name usually contains idx{rank})."
        )
    if array.dtype != np.uint8:
        raise ValueError(f"{path} holds {array.dtype} numbers, but uint8 is needed; convert the file.")
    return array.astype(np.uint8, copy=False)


def _check_labels(
    images: Path, count: int, labels: Path, targets: NDArray[np.int64], class_names: tuple[str, ...] | None
) -> None:
    """Raises ValueError unless there is one label for each image and one class name for each label."""
    if len(targets) != count:
        raise ValueError(
            f"{images} holds {count:,} images, but {labels} holds {len(targets):,} labels; pass files of one split."
        )
    if class_names is not None and targets.max() >= len(class_names):
        first = int(np.argmax(targets >= len(class_names)))
        raise ValueError(
            f"{labels} gives item {first} the label {targets[first]}, but there are {len(class_names)} class names;"
            " add the missing names or pass the right file."
        )
