"""Run folders among processes: a free name is claimed by one of them, and a run is trained by one at a time.

folder = claim(numbered("fast"))    # runs/fast, or the first free one of runs/fast-2, -3, ...
with locked(folder):                # until this process ends, however it ends
    ...
"""

import errno
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path

from vitrail.progress import say

if sys.platform != "win32":
    import fcntl

FILE = ".lock"  # stays behind, unlocked: to delete it would let two processes hold two files of that name


def vacant(folder: Path) -> None:
    """ValueError where the folder exists: nothing is ever overwritten."""
    if folder.exists():
        raise ValueError(_taken(folder))


def claim(folders: Iterable[Path]) -> Path:
    """Makes the first of the folders that is free, which no other process gets then. ValueError where none is."""
    folder = Path()
    for folder in folders:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
        except OSError as error:
            raise ValueError(f"{folder} cannot be made ({error.strerror}); name another folder with --out.") from None
    raise ValueError(_taken(folder))


def numbered(name: str) -> Iterator[Path]:
    """runs/NAME, runs/NAME-2, runs/NAME-3, ..."""
    return (Path("runs", name if number == 1 else f"{name}-{number}") for number in count(1))


def discard(folder: Path) -> None:
    """Removes a run folder in which nothing has been trained, and those above it that are empty then."""
    shutil.rmtree(folder)
    with suppress(OSError):
        for above in folder.parents:
            above.rmdir()


@contextmanager
def filled(folder: Path) -> Iterator[Path]:
    """A folder to write into, which then takes the place of the one of this name: all or nothing."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; not on Windows. ValueError where another process holds it, by its number, host
    and time, and where the folder cannot be written. A network folder without locks is said, and goes unlocked."""
    if sys.platform == "win32":
        yield
        return
    try:
        file = os.fdopen(os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}); a run needs that to go on.") from None
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, processes that load images inherit none
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = file.read() or "another process"
                raise ValueError(f"{folder} is being trained by {holder}; wait for it to end, or stop it.") from None
            say(f"{folder} cannot be locked ({error.strerror}): see to it that no other process trains in it.")
        else:
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M}")
            file.flush()
        yield


def _taken(folder: Path) -> str:
    hint = f"continue it with `vitrail resume {folder}`, or " if (folder / "run.json").is_file() else ""
    return f"{folder} exists already; {hint}name another folder with --out."
