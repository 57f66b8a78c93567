"""What is made once from a file and kept, because it takes long: unpacked archives, indexes of them.

    plain = unpacked(Path("photos.tar.gz"), "tar", size, write)     # write(file) is called if it is not there yet
    index = kept_arrays(Path("photos.tar"), "index", make)          # the same for arrays by name

It lies in the folder $VITRAIL_CACHE, or ~/.cache/vitrail, which may be deleted at any time. The names there contain a
hash of the original's path, size and time of modification, so that what changed is made anew.
"""

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray
from safetensors.numpy import load, save

from vitrail.progress import say, track

Arrays = dict[str, NDArray[Any]]

STEP = 2**20  # bytes between two looks at the progress and the disk
SPARE = 2**28  # bytes that are left free on the disk
SUM = 4  # bytes of the check sum behind kept arrays


def cache_folder() -> Path:
    """The folder, which may not exist yet. OSError if the user has no home."""
    folder = os.environ.get("VITRAIL_CACHE") or os.path.expanduser("~/.cache/vitrail")
    if folder[0] == "~":
        raise OSError("there is no home folder; set VITRAIL_CACHE to a folder")
    return Path(folder)


def unpacked(path: Path, kind: str, size: int, write: Callable[[BinaryIO], Iterable[int]]) -> Path:
    """The file that `write` makes of `path`, with a progress bar; it yields how many of `size` bytes are done.
    ValueError if the disk is full or the folder cannot be written."""

    def steps(file: BinaryIO) -> Iterator[None]:
        _require(path, size)
        say(f"{path} is unpacked once, into {cache_folder()}: single images cannot be read from it ({size:,} bytes).")
        shown = 0
        for done in write(file):
            _require(path, STEP)
            yield from [None] * (done // STEP - shown)
            shown = max(shown, done // STEP)

    bar = f"unpacking {path.name}, MiB:"
    try:
        return _kept(path, kind, lambda file: list(track(steps(file), -(-size // STEP), bar)))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); copy it again, or set VITRAIL_CACHE.") from error


def _require(path: Path, needed: int) -> None:
    """Raises ValueError if the disk has no room for `needed` more bytes made from `path`, and some spare ones."""
    free = shutil.disk_usage(cache_folder()).free
    if needed + SPARE > free:
        room = f"{path} takes {needed:,} bytes or more when it is unpacked, but {free:,} are free at {cache_folder()}"
        raise ValueError(f"{room}; make room, or set VITRAIL_CACHE to a folder on another disk.")


def kept_arrays(path: Path, kind: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays that `make` returns for a file. Only time is lost if the folder cannot be written."""
    made: Arrays = {}

    def write(file: BinaryIO) -> None:
        made.update(make())
        data = save(made)
        file.write(data + zlib.crc32(data).to_bytes(SUM))

    for _ in range(2):
        with suppress(OSError):
            place = _kept(path, kind, write)
            if made:
                return made
            data = place.read_bytes()
            if zlib.crc32(data[:-SUM]).to_bytes(SUM) == data[-SUM:]:
                return load(data[:-SUM])
            place.unlink()  # damaged
    return made or make()


def _kept(path: Path, kind: str, write: Callable[[BinaryIO], object]) -> Path:
    """The file that `write` makes, whole or not at all; of several processes one makes it, the others wait."""
    whole, state = os.path.realpath(path), path.stat()
    key = f"{whole}\0{state.st_size}\0{state.st_mtime_ns}\0{kind}".encode("utf-8", "surrogateescape")
    name = f"{path.name[:40]}-{hashlib.sha256(key).hexdigest()[:16]}.{kind.split('.')[-1]}"
    target = cache_folder() / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    with part.open("ab") as file:
        with suppress(OSError, ImportError):  # some disks and systems have no locks: work may then be done twice
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
