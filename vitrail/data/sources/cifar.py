"""CIFAR-10 and CIFAR-100 as they are distributed, binary or for Python, in a folder or straight from the .tar.gz.

    found = splits(Path("cifar-10-batches-py"))             # or Path("cifar-100-binary.tar.gz"), and so on
    image, target, name, _ = found["train"][17]             # uint8 (32, 32, 3), int, "cifar-10-batches-py/train[17]"

The formats are described at https://www.cs.toronto.edu/~kriz/cifar.html. CIFAR-100's classes are the hundred fine ones.
The files for Python are pickles, and a pickle can run any program: they are never unpickled here. pickletools.genops
only lists the numbers and strings in a pickle, one after the other.
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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources.source import Arrays, Source
from vitrail.progress import few

PIXELS = 3 * 32 * 32
BATCH = re.compile(r"(data_batch_[1-5]|train|test_batch|test)(\.bin)?")
META = re.compile(r"batches\.meta(\.txt)?|meta|fine_label_names\.txt")
FILE = re.compile(f"{BATCH.pattern}|{META.pattern}")
BYTES = 2**28  # of all files together, and of each; the real ones have 186 million
OPCODES = 2**21  # of a pickle that are looked at; the largest real one has 300,000
KEYS = ("data", "labels", "fine_labels", "coarse_labels", "filenames", "batch_label", "label_names",
        "fine_label_names", "coarse_label_names", "num_cases_per_batch", "num_vis")  # fmt: skip

Batch = tuple[NDArray[np.uint8], list[int]]  # pixels (N, 3072): all the red first, then the green, then the blue


def splits(path: Path) -> dict[str, Source]:
    """The images in a folder with CIFAR's batches, or in a tar of them: "train" and "test", or one of them."""
    found: dict[str, dict[str, Batch]] = {"train": {}, "test": {}}
    names: list[str] = []
    for name, data in _files(path):
        if META.fullmatch(name):
            names = _class_names(data, f"{path}/{name}")
        else:
            read = _binary if name.endswith(".bin") else _python
            found["test" if name.startswith("test") else "train"][name] = read(data, f"{path}/{name}")
    numbers = {name.removesuffix(".bin")[-1] for name in found["train"] if name.startswith("data_batch_")}
    if missing := sorted(set("12345") - numbers) if numbers else []:
        raise ValueError(f"{path} lacks data_batch_{few(missing)}, of CIFAR's five; fetch it again.")
    return {split: _joined(parts, names, path, split) for split, parts in found.items() if parts}


def is_cifar(path: Path) -> bool:
    """Whether a folder, or a tar by the names of its first members, contains CIFAR's batches."""
    if path.is_dir():
        return any(BATCH.fullmatch(name) and (path / name).is_file() for name in os.listdir(path))
    try:
        with _archive(path) as members:
            return any(BATCH.fullmatch(os.path.basename(m.name)) and m.isfile() for m in islice(members, 4))
    except ValueError:
        return False


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the batches and the class names."""
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if FILE.fullmatch(file.name) and file.is_file():
                with file.open("rb") as stream:
                    yield file.name, stream.read(BYTES)
        return
    with _archive(path) as members:
        for member in members:
            name = os.path.basename(member.name)
            if FILE.fullmatch(name) and (content := members.extractfile(member)) is not None:
                yield name, content.read()


class _Bounded:
    """A stream that fails after BYTES: a small gzip file may hold terabytes."""

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
    """The members of a .tar or .tar.gz, which is recognised by content, in their order."""
    try:
        with path.open("rb") as file:
            stream = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file
            with tarfile.open(fileobj=_Bounded(stream), mode="r|", bufsize=2**20) as members:  # type: ignore[arg-type]
                yield members
    except Exception as error:  # damaged bytes make tarfile and gzip raise anything
        raise ValueError(f"{path} cannot be read as a tar of CIFAR's ({error}); fetch it again.") from error


def _binary(data: bytes, file: str) -> Batch:
    """A .bin file: for each image one byte of label, or a coarse and a fine one for CIFAR-100, and its pixels."""
    labels = 1 if "_batch" in Path(file).name else 2
    if not data or len(data) % (labels + PIXELS):
        raise ValueError(f"{file} has {len(data):,} bytes, not {labels + PIXELS:,} for each image; fetch it again.")
    rows = np.frombuffer(data, np.uint8).reshape(-1, labels + PIXELS)
    return rows[:, labels:], rows[:, labels - 1].tolist()


def _python(data: bytes, file: str) -> Batch:
    """A pickled dictionary of "data", an array (N, 3072), and "labels", a list."""
    found = _values(data, file)
    labels = [value for value in found.get("fine_labels") or found.get("labels", []) if type(value) is int]
    content = found.get("data", [])
    text = max((value for value in content if isinstance(value, str)), key=len, default="")
    pixels = text.encode("latin-1", errors="ignore")
    if not labels or len(pixels) != len(labels) * PIXELS or not 0 <= min(labels) <= max(labels) < 256:
        raise ValueError(f"{file} has {len(labels):,} labels and {len(pixels):,} bytes of pixels; fetch it again.")
    # The truth value just before an array's numbers says whether they are stored column by column.
    columns = next((value for value in content[content.index(text) :: -1] if isinstance(value, bool)), False)
    return np.frombuffer(pixels, np.uint8).reshape(-1, PIXELS, order="F" if columns else "C"), labels


def _values(data: bytes, file: str) -> dict[str, list[Any]]:
    """For each of KEYS in a pickled dictionary, the numbers, strings and truth values up to the next of them."""
    found: dict[str, list[Any]] = {}
    values: list[Any] = []
    try:
        for opcode, value, _ in islice(pickletools.genops(data), OPCODES):
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


def _class_names(data: bytes, file: str) -> list[str]:
    if file.endswith(".txt"):
        return [name for line in data.decode("utf-8", errors="replace").splitlines() if (name := line.strip())]
    found = _values(data, file)
    return [name for name in found.get("fine_label_names") or found.get("label_names", []) if type(name) is str]


def _joined(batches: dict[str, Batch], class_names: list[str], path: Path, split: str) -> Arrays:
    """The batches of a split as one source; without class names, the classes are numbers."""
    rows = np.concatenate([batches[stem][0] for stem in sorted(batches)])
    labels = np.array([label for stem in sorted(batches) for label in batches[stem][1]], np.int64)
    names = tuple(class_names) or tuple(map(str, range(int(labels.max()) + 1)))
    if labels.max() >= len(names):
        raise ValueError(f"{path} has the {split} label {labels.max()}, but {len(names)} class names; fetch it again.")
    images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Arrays(images, labels, names, f"{path.name}/{split}")
