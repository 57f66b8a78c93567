"""A `.npz` file, read an array at a time when it is asked for, and never more than the file can hold.

    with closing(Npz(Path("ViT-B_16.npz"))) as arrays:
        arrays["embedding/kernel"].shape

numpy.load allocates what a header claims before it reads the data, and unpickles objects where that is allowed. Here
every header is first checked against the size of its entry.
"""

import math
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Form = tuple[tuple[int, ...], np.dtype]  # shape and type

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
GROWTH = 1100  # no deflate stream grows by more than 1032


class Npz(Mapping[str, NDArray[np.generic]]):
    """name -> array; forms: name -> (shape, dtype), from the headers alone.

    ValueError, naming the file, where it is damaged, not a zip of arrays, or holds objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
            entries = self.archive.infolist()
        except Exception as error:  # zipfile and numpy raise errors of many types
            raise ValueError(f"{path} is not a whole .npz file ({error}); fetch it again.") from error
        self.entries = {entry.filename.removesuffix(".npy"): entry for entry in entries if not entry.is_dir()}
        self.forms: dict[str, Form] = {name: self._form(name) for name in self.entries}
        self.kept: tuple[str, NDArray[np.generic]] | None = None

    def close(self) -> None:
        """Close the file."""
        self.archive.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        # The blocks of a stack are read one after the other, and the stack is decompressed once.
        if self.kept is None or self.kept[0] != name:
            entry = self.entries[name]
            try:
                with self.archive.open(entry) as file:
                    array = npy.read_array(file, allow_pickle=False)
            except Exception as error:
                raise ValueError(f"{self.path}: the array {name} is damaged ({error}); fetch it again.") from error
            self.kept = (name, array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("=")))
        return self.kept[1]

    def _form(self, name: str) -> Form:
        entry = self.entries[name]
        if entry.file_size > GROWTH * max(entry.compress_size, 1):
            raise ValueError(
                f"{self.path}: the array {name} claims to grow to {entry.file_size} bytes; the file is damaged."
            )
        try:
            with self.archive.open(entry) as file:
                shape, _, dtype = HEADERS[npy.read_magic(file)](file)
                start = file.tell()
        except Exception as error:
            raise ValueError(f"{self.path}: {name} is not a readable array ({error}).") from error
        if dtype.hasobject:
            raise ValueError(f"{self.path}: {name} holds Python objects, which could run code: it is not read.")
        expected = start + math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or expected != entry.file_size:
            raise ValueError(
                f"{self.path}: the array {name} is {shape} of {dtype}, {expected} bytes with its header, "
                f"but {entry.file_size} bytes are there; the file is damaged."
            )
        return shape, dtype


def is_npz(path: Path) -> bool:
    """Whether a file is an archive of arrays, or at least is named like one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return path.suffix == ".npz"
