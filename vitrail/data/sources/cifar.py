"""CIFAR-10 and CIFAR-100 as they are distributed, binary or for Python, in a folder or straight from the .tar.gz.

    found = splits(Path("cifar-10-batches-py"))             # or Path("cifar-100-binary.tar.gz"), and so on
    image, target, name = found["train"][17]                # uint8 (32, 32, 3), int, "cifar-10-batches-py/train[17]"

The formats are described at https://www.cs.toronto.edu/~kriz/cifar.html. CIFAR-100's classes are the hundred fine ones.
The files for Python are pickles, and a pickle can run any program: they are never unpickled here. pickletools.genops
only names the numbers and strings in a pickle, one after the other.
"""

import gzip
import os
import pickletools
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources.source import Arrays, Source

PIXELS = 3 * 32 * 32
BATCH = re.compile(r"(data_batch_[1-5]|train|test_batch|test)(\.bin)?")
META = re.compile(r"batches\.meta(\.txt)?|meta|fine_label_names\.txt")
BYTES = 2**28  # of all files together, and of each; the real ones have 186 million
OPCODES = 2**21  # of a pickle; the largest real one has 300,000
KEYS = ("data", "labels", "fine_labels", "coarse_labels", "filenames", "batch_label", "label_names",
        "fine_label_names", "coarse_label_names", "num_cases_per_batch", "num_vis")  # fmt: skip

Pair = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (N, 32, 32, 3), labels (N,)


def splits(path: Path) -> dict[str, Source]:
    """The images in a folder with CIFAR's batches, or in a tar of them: "train" and "test", or one of them.

    ValueError where a batch is missing or damaged, or is none of CIFAR's.
    """
    found: dict[str, dict[str, Pair]] = {"train": {}, "test": {}}
    class_names: tuple[str, ...] = ()
    for name, data in _files(path):
        file, stem = f"{path}/{name}", name.removesuffix(".bin")
        if META.fullmatch(name):
            class_names = _class_names(data, file)
        else:
            batch = _binary(data, file) if name.endswith(".bin") else _python(data, file)
            found["test" if stem.startswith("test") else "train"][stem] = batch
    if not any(found.values()):
        raise ValueError(f"{path} has none of CIFAR's batches, such as data_batch_1; check the path.")
    missing = sorted({f"data_batch_{number}" for number in range(1, 6)} - set(found["train"]))
    if 0 < len(missing) < 5:
        raise ValueError(f"{path} lacks {', '.join(missing)} of CIFAR's five batches; fetch it again.")
    return {
        split: _joined([found[split][stem] for stem in sorted(found[split])], class_names, f"{path.name}/{split}")
        for split in ("train", "test")
        if found[split]
    }


def is_cifar(path: Path) -> bool:
    """Whether a folder, or a tar by the names of its first members, holds CIFAR's batches."""
    if path.is_dir():
        return any(BATCH.fullmatch(name) and (path / name).is_file() for name in os.listdir(path))
    try:
        with _archive(path) as members:
            return any(BATCH.fullmatch(_name(member)) and member.isfile() for member in islice(members, 4))
    except ValueError:
        return False


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files that matter, one after the other."""
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if (BATCH.fullmatch(file.name) or META.fullmatch(file.name)) and file.is_file():
                if file.stat().st_size > BYTES:
                    raise ValueError(f"{file} has {file.stat().st_size:,} bytes, too many for a batch of CIFAR's.")
                yield file.name, file.read_bytes()
        return
    with _archive(path) as members:
        for member in members:
            name = _name(member)
            if (BATCH.fullmatch(name) or META.fullmatch(name)) and member.isreg():
                content = members.extractfile(member)
                assert content is not None
                yield name, content.read()


def _name(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name).name


class _Bounded:
    """A stream that ends with an error where more than BYTES come out of it: a small gzip file may hold terabytes."""

    def __init__(self, stream: BufferedIOBase) -> None:
        self.stream, self.left = stream, BYTES

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise ValueError(f"it holds more than CIFAR's, {BYTES:,} bytes")
        return data


@contextmanager
def _archive(path: Path) -> Iterator[tarfile.TarFile]:
    """The members of a .tar or .tar.gz, which is told by content, in the order in which they lie there."""
    try:
        with path.open("rb") as file:
            stream = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file
            with tarfile.open(fileobj=_Bounded(stream), mode="r|", bufsize=2**20) as members:  # type: ignore[arg-type]
                yield members
    except Exception as error:  # damaged bytes make tarfile and gzip raise anything
        raise ValueError(f"{path} cannot be read as a tar of CIFAR's ({error}); fetch it again.") from error


def _binary(data: bytes, file: str) -> Pair:
    """A .bin file: for each image one byte of label, or a coarse and a fine one for CIFAR-100, and its pixels."""
    labels = 1 if "_batch" in Path(file).name else 2
    if not data or len(data) % (labels + PIXELS):
        raise ValueError(f"{file} has {len(data):,} bytes, not {labels + PIXELS:,} for each image; fetch it again.")
    rows = np.frombuffer(data, np.uint8).reshape(-1, labels + PIXELS)
    return _hwc(rows[:, labels:]), rows[:, labels - 1].astype(np.int64)


def _python(data: bytes, file: str) -> Pair:
    """A pickled dictionary of "data", an array (N, 3072), and "labels", a list."""
    found = _values(data, file)
    labels = [value for value in found.get("fine_labels") or found.get("labels", []) if type(value) is int]
    content = found.get("data", [])
    text = max((value for value in content if isinstance(value, str)), key=len, default="")
    pixels = text.encode("latin-1", errors="ignore")
    if not labels or len(pixels) != len(labels) * PIXELS or not 0 <= min(labels) <= max(labels) < 256:
        raise ValueError(
            f"{file} has {len(labels):,} labels and {len(pixels):,} bytes of pixels, not {PIXELS:,} for each;"
            " fetch it again."
        )
    # The truth value just before an array's numbers says whether they are stored column by column.
    columns = next((value for value in content[content.index(text) :: -1] if isinstance(value, bool)), False)
    rows = np.frombuffer(pixels, np.uint8).reshape(-1, PIXELS, order="F" if columns else "C")
    return _hwc(rows), np.array(labels, np.int64)


def _values(data: bytes, file: str) -> dict[str, list[Any]]:
    """Of a pickled dictionary: each of KEYS, with the numbers, strings and truth values up to the next of them."""
    found: dict[str, list[Any]] = {}
    values: list[Any] = []
    try:
        for count, (opcode, value, _) in enumerate(pickletools.genops(data)):
            if count > OPCODES:
                raise ValueError(f"it has more than {OPCODES:,} opcodes")
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            if text in KEYS:
                values = found[text] = []
            elif opcode.name.endswith(("STRING", "UNICODE", "BYTES", "INT", "INT1", "INT2")):
                values.append(text)
            elif opcode.name in ("NEWTRUE", "NEWFALSE"):
                values.append(opcode.name == "NEWTRUE")
    except Exception as error:  # damaged bytes make genops raise anything
        raise ValueError(f"{file} cannot be read as one of CIFAR's batches ({error}); fetch it again.") from error
    return found


def _hwc(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 32, 32, 3) of rows (N, 3072), which hold all the red first, then the green, then the blue."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _class_names(data: bytes, file: str) -> tuple[str, ...]:
    if file.endswith(".txt"):
        return tuple(filter(None, map(str.strip, data.decode("utf-8", errors="replace").splitlines())))
    found = _values(data, file)
    return tuple(name for name in found.get("fine_label_names") or found.get("label_names", []) if type(name) is str)


def _joined(batches: list[Pair], class_names: tuple[str, ...], file: str) -> Arrays:
    """The batches of a split as one source; without class names, the classes are numbers."""
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    names = class_names or tuple(map(str, range(int(labels.max()) + 1)))
    if labels.max() >= len(names):
        raise ValueError(
            f"{file} has the label {labels.max()}, but there are {len(names)} class names; fetch it again."
        )
    return Arrays(images, labels, names, file)
