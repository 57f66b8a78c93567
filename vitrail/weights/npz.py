"""A `.npz` file, read an array at a time when it is asked for, and never more than the file can hold.

    with Npz(Path("ViT-B_16.npz")) as arrays:
        arrays["embedding/kernel"].shape

numpy.load would unpickle objects if it were let to, and would allocate what a header claims before it looks for the
bytes. Here every header is held against the size of its entry first.
"""

import math
import zipfile
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Form = tuple[tuple[int, ...], np.dtype]  # shape and type

GROWTH = 1100  # no deflate stream grows by more than 1032


class Npz:
    """name -> array. ValueError, naming the file, where it is no zip of arrays, is damaged, or holds Python objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path)
            entries = self.archive.infolist()
        except Exception as error:  # zipfile and numpy raise whatever their parsers trip over
            raise ValueError(f"{path} is not a whole .npz file ({error}); fetch it again.") from error
        self.entries = {entry.filename.removesuffix(".npy"): entry for entry in entries if not entry.is_dir()}
        self.headers: dict[str, tuple[tuple[int, ...], bool, np.dtype]] = {}
        self.kept: tuple[str, NDArray[np.generic]] | None = None

    def __enter__(self) -> "Npz":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.archive.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def form(self, name: str) -> Form:
        """(shape, dtype) of an array, from its header alone."""
        if name not in self.headers:
            self.headers[name] = self._header(name)
        shape, _, dtype = self.headers[name]
        return shape, dtype

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        # The blocks of a stack are asked for one after the other, and the stack is decompressed once.
        if self.kept is None or self.kept[0] != name:
            self.kept = (name, self._read(name))
        return self.kept[1]

    def _read(self, name: str) -> NDArray[np.generic]:
        shape, dtype = self.form(name)
        fortran = self.headers[name][1]
        try:
            with self.archive.open(self.entries[name]) as file:
                npy_header(cast(BufferedIOBase, file))
                content = file.read(math.prod(shape) * dtype.itemsize)
            # Writable, as torch wants it, and in the machine's byte order.
            array = np.frombuffer(bytearray(content), dtype).reshape(shape, order="F" if fortran else "C")
        except Exception as error:
            raise ValueError(f"{self.path}: the array {name} is damaged ({error}); fetch the file again.") from error
        return array if array.dtype.isnative else array.astype(dtype.newbyteorder("="))

    def _header(self, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
        entry = self.entries[name]
        if entry.file_size > GROWTH * max(entry.compress_size, 1):
            raise ValueError(f"{self.path}: the array {name} claims to grow to {entry.file_size} bytes; the file lies.")
        try:
            with self.archive.open(entry) as file:
                shape, fortran, dtype, start = npy_header(cast(BufferedIOBase, file))
        except Exception as error:
            raise ValueError(f"{self.path}: {name} is not a readable array ({error}).") from error
        if dtype.hasobject:
            raise ValueError(
                f"{self.path}: the array {name} holds Python objects, which could run code: it is not read."
            )
        expected = start + math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or expected != entry.file_size:
            raise ValueError(
                f"{self.path}: the array {name} is {shape} of {dtype}, {expected} bytes with its header, "
                f"but {entry.file_size} bytes are there; the file is damaged."
            )
        return shape, fortran, dtype


def forms_of(arrays: Npz | Mapping[str, NDArray[np.generic]]) -> dict[str, Form]:
    """Shape and type of every array; of a file's, from the headers alone."""
    if isinstance(arrays, Npz):
        return {name: arrays.form(name) for name in arrays}
    return {name: (tuple(array.shape), array.dtype) for name, array in arrays.items()}


def npy_header(file: BufferedIOBase) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, Fortran order, dtype, length of the header) of a .npy stream, which is left at the first number."""
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the format is not known")
    return shape, fortran, dtype, file.tell()
