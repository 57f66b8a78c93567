"""What is made once of a file and kept, because it takes long: unpacked archives, indexes of them.

    plain = kept(Path("photos.tar.gz"), "tar", write)       # write(file) is called where it is not there yet
    index = kept_arrays(Path("photos.tar"), "index", make)  # the same of arrays by name

It lies in the folder $VITRAIL_CACHE, or ~/.cache/vitrail, which may be deleted at any time. A file that was changed
since is made anew: the name has a hash of the original's path, size and time of modification.
"""

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from vitrail.progress import say, track

Arrays = dict[str, NDArray[Any]]

STEP = 2**20  # bytes between two looks at the progress
SPARE = 2**28  # bytes that are left free on the disk


def cache_folder() -> Path:
    """The folder, which may not be there yet. OSError where the user has no home."""
    if place := os.environ.get("VITRAIL_CACHE"):
        return Path(place)
    try:
        return Path.home() / ".cache" / "vitrail"
    except RuntimeError as error:
        raise OSError(str(error)) from None


def is_kept(path: Path, kind: str) -> bool:
    """Whether it is there already."""
    try:
        return _place(path, kind).exists()
    except OSError:
        return False


def kept(path: Path, kind: str, write: Callable[[BinaryIO], object]) -> Path:
    """The file that `write` makes of `path`, whole or not at all; of several processes one makes it, the others wait.

    ValueError where the folder cannot be written, and whatever `write` raises.
    """
    try:
        return _kept(path, kind, write)
    except OSError as error:
        raise ValueError(
            f"{path} is to be unpacked into {_shown()}, which cannot be written ({error.strerror or error}); set"
            " VITRAIL_CACHE to a folder that can."
        ) from None


def _kept(path: Path, kind: str, write: Callable[[BinaryIO], object]) -> Path:
    target = _place(path, kind)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with part.open("ab") as file:
        with suppress(OSError, ImportError):  # some disks and systems have no locks; there, work may be done twice
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        if target.exists():  # another process made it while this one waited
            part.unlink(missing_ok=True)
            return target
        try:
            file.truncate(0)
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(part, target)
        except BaseException:
            file.truncate(0)  # not removed: others may wait for this very file
            raise
    return target


def kept_arrays(path: Path, kind: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays that `make` gives for a file. A folder that cannot be written costs time only."""
    made: Arrays = {}

    def write(file: BinaryIO) -> None:
        made.update(make())
        file.write(save({**made, "check": _check(made)}))

    for _ in range(2):
        try:
            place = _kept(path, kind, write)
        except OSError:
            break
        if made:
            return made
        try:
            return _load(place)
        except Exception:  # damaged: safetensors and numpy raise several kinds
            with suppress(OSError):
                place.unlink()
    return made or make()


def space(path: Path, needed: int) -> None:
    """ValueError where the folder's disk has no room for `needed` bytes made of `path`, and a little more."""
    folder = cache_folder()
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed + SPARE > free:
        raise ValueError(
            f"{path} takes {needed:,} bytes or more when it is unpacked, but {free:,} are free at {folder}; make room,"
            " or set VITRAIL_CACHE to a folder on another disk."
        )


def unpacking(path: Path, pieces: Iterable[int], total: int) -> None:
    """Runs through pieces, which give how many bytes of `total` lie behind, while the progress is shown."""
    say(f"{path} is unpacked once, into {_shown()}: single images cannot be read from it ({total:,} bytes).")
    for _ in track(_steps(pieces), -(-total // STEP), f"unpacking {path.name}, MiB:"):
        pass


def _steps(pieces: Iterable[int]) -> Iterator[None]:
    shown = 0
    for done in pieces:
        while shown < done // STEP:
            shown += 1
            yield


def _shown() -> str:
    return os.environ.get("VITRAIL_CACHE", "~/.cache/vitrail")


def _place(path: Path, kind: str) -> Path:
    whole, state = os.path.realpath(path), path.stat()
    key = f"{whole}\0{state.st_size}\0{state.st_mtime_ns}\0{kind}".encode("utf-8", "surrogateescape")
    return cache_folder() / f"{path.name[:40]}-{hashlib.sha256(key).hexdigest()[:16]}.{kind.split('.')[-1]}"


def _check(arrays: Arrays) -> NDArray[np.uint32]:
    """A check sum over all of them, (1,)."""
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(arrays[name].tobytes(), zlib.crc32(name.encode(), value))
    return np.array([value], np.uint32)


def _load(place: Path) -> Arrays:
    arrays = load(place.read_bytes())
    if not np.array_equal(arrays.pop("check"), _check(arrays)):
        raise ValueError(f"{place} is damaged.")
    return arrays
