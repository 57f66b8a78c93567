"""Work over very many images: files that are whole or not there, made in parts by any number of processes and machines.

    work = Work(Path("shards"), names, counts, make, {"size": 256})
    work.run(part("2/7", len(names)), workers=4)        # the third of seven parts
    if not work.missing():                              # all parts are there
        for record in work.records(): ...

A file is written under another name, read back and renamed; then .parts/NAME.json records its length, its SHA-256, how
many images it has, and what was skipped and why. Processes say nothing to each other: a file that is what its record
says is left, any other is made again, and two processes that make the same file write the same bytes. So a part may be
killed at any moment, and what is made does not depend on how many parts there are, or in which order they run.
"""

import errno
import hashlib
import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import escape
from itertools import chain, repeat
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from vitrail.data.quiet import quiet
from vitrail.data.stream import begin, postponed
from vitrail.progress import few, track

RECORDS, JOB = ".parts", "job.json"
Write = Callable[[bytes], int]
Steps = Generator[None, None, dict[str, Any]]
_WORKS = list["Work"]()  # the one that a process of a pool belongs to


def part(words: str, count: int, environment: Mapping[str, str] = os.environ) -> range:
    """Which of `count` files a part makes: neighbours. words: "I/N"; "env" for the task of a Slurm array; "env/N" for
    that or the index of a Kubernetes job of N; "" for all. ValueError for anything else."""
    first, _, number = (words or "0/1").partition("/")
    try:
        if first == "env" and "SLURM_ARRAY_TASK_ID" in environment:
            offset = int(environment["SLURM_ARRAY_TASK_ID"]) - int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
            rank = offset // int(environment.get("SLURM_ARRAY_TASK_STEP", 1))
            of = int(number or environment["SLURM_ARRAY_TASK_COUNT"])
        else:
            rank, of = int(environment["JOB_COMPLETION_INDEX"] if first == "env" else first), int(number)
    except (KeyError, ValueError):
        known = "give I/N, such as 0/8 to 7/8, env in a Slurm array, or env/N in an indexed job of Kubernetes"
        raise ValueError(f"--part is {words!r}; {known}.") from None
    if not 0 <= rank < of:
        raise ValueError(f"--part {words} is part {rank} of {of}; parts count from 0 to {max(of, 1) - 1}.")
    return range(count * rank // of, count * (rank + 1) // of)


@dataclass(frozen=True)
class Work:
    """Files to be made in a folder. names: theirs, in order. counts: the images that each is made from. make: writes
    the file of a number by what it is given, yields once an image, and returns what the record shall say. about: all
    that decides the files, for JSON."""

    folder: Path
    names: Sequence[str]
    counts: Sequence[int]
    make: Callable[[int, Write], Steps]
    about: dict[str, Any]

    def run(self, numbers: range, workers: int = 1, what: str = "working") -> None:
        """Makes those of the files that are not whole, in this process or in several, which may be copies of this one:
        torch's threads survive that no more than CUDA does. ValueError for a folder of something else, where a disk
        refuses, and what `make` raises; what is whole stays."""
        if workers < 1:
            raise ValueError(f"--workers is {workers}; it is a number of processes, 1 or more.")
        try:
            self._begin()
            here = chain([None], chain.from_iterable(map(self._file, numbers)))
            steps = self._spread(numbers, workers) if workers > 1 and len(numbers) > 1 else here
            next(steps)  # processes begin before the thread of a progress bar
            for _ in track(steps, sum(self.counts[numbers.start : numbers.stop]), what):
                pass
        except OSError as error:
            where = f"{error.filename or self.folder} cannot be written or read ({error.strerror or error})"
            raise ValueError(f"{where}; what is complete stays: run the same command again then.") from None

    def missing(self) -> list[str]:
        """The files that have no record."""
        there = set(os.listdir(self.folder / RECORDS))
        return [name for name in self.names if f"{name}.json" not in there]

    def records(self, numbers: Iterable[int] | None = None, reading: bool = False) -> Iterator[dict[str, Any]]:
        """What is recorded of each file. reading: whether the files are read to compare, not only their lengths.
        ValueError for one that is not what its record says."""
        for number in range(len(self.names)) if numbers is None else numbers:
            if (record := self._whole(number, reading)) is None:
                where = f"{self.folder / self.names[number]} is not what its record says"
                raise ValueError(f"{where}; run the same command again, which makes it anew.")
            yield record

    @contextmanager
    def written(self, path: Path, sweep: bool = True) -> Iterator[BinaryIO]:
        """A file that is at `path` once it is whole. Other processes may write the same bytes at the same time. sweep:
        whether that ends them, and what killed ones have left is removed."""
        temporary = self.folder / RECORDS / "tmp" / f"{path.name}.{uuid4().hex}"
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            try:
                os.replace(temporary, path)
            except FileNotFoundError:
                if not path.exists():  # else another process was faster, and swept up
                    raise
            if sweep:
                self._sweep(path.name)
        finally:
            temporary.unlink(missing_ok=True)

    def _sweep(self, name: str) -> None:
        for left in (self.folder / RECORDS / "tmp").glob(f"{escape(name)}.*"):
            left.unlink(missing_ok=True)

    def _begin(self) -> None:
        """Makes the folder, or sees that it was begun for the same."""
        records = self.folder / RECORDS
        if self.folder.exists() and not records.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} exists already; name another folder, or delete it.")
        (records / "tmp").mkdir(parents=True, exist_ok=True)
        about = json.loads(json.dumps(self.about))
        found = _document(records / JOB) if len(os.listdir(records)) > 2 else None  # else nothing is done yet
        if found is None:
            with self.written(records / JOB) as file:
                file.write(json.dumps(about, indent=1).encode())
        elif other := [name for name in {**found, **about} if found.get(name) != about.get(name)]:
            was = f"{self.folder} was begun with another {few(other)}"
            raise ValueError(f"{was}; repeat what was said then, name another place, or delete it.")
        self._sweep(JOB)

    def _spread(self, numbers: range, workers: int) -> Iterator[None]:
        others, context = active_children(), get_context("fork" if sys.platform == "linux" else "spawn")
        pool = ProcessPoolExecutor(min(workers, len(numbers)), context, _join, (self,))
        try:
            with postponed(), quiet():
                done = pool.map(_one, numbers)
            yield
            for number, _ in zip(numbers, done, strict=True):
                yield from repeat(None, self.counts[number])
        except BaseException as error:
            for process in set(active_children()).difference(others):
                process.kill()  # nothing is lost by it
            if isinstance(error, BrokenProcessPool):
                died = "a process was killed, as the system does where memory runs out"
                raise ValueError(f"{died}; what is complete stays: run the same command again.") from None
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _file(self, number: int) -> Iterator[None]:
        """Makes one of the files, unless it is whole."""
        path, total = self.folder / self.names[number], hashlib.sha256()
        if self._whole(number) is not None:
            yield from repeat(None, self.counts[number])
            self._sweep(path.name)
            return
        try:
            with self.written(path, sweep=False) as file:  # not before there is a record
                said = yield from self.make(number, lambda content: total.update(content) or file.write(content))
                file.flush()
                if digest(Path(file.name)) != total.hexdigest():
                    raise OSError(errno.EIO, "what is read back is not what was written", str(path))
                record = {"job": self._job(), "bytes": file.tell(), "sha256": total.hexdigest(), **said}
            with self.written(self.folder / RECORDS / f"{path.name}.json") as file:
                file.write(json.dumps(record).encode())
            self._sweep(path.name)
        except FileNotFoundError:
            if self._whole(number) is None:  # else another process was faster, and swept up
                raise

    def _job(self) -> str:
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]

    def _whole(self, number: int, reading: bool = True) -> dict[str, Any] | None:
        """The record of a file, if the file is what it says."""
        path = self.folder / self.names[number]
        record = _document(self.folder / RECORDS / f"{path.name}.json") or {}
        with suppress(FileNotFoundError):
            if record.get("job") == self._job() and path.stat().st_size == record["bytes"]:
                return record if not reading or digest(path) == record["sha256"] else None
        return None


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _document(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is none, or it is damaged."""
    with suppress(FileNotFoundError, ValueError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else None
    return None


def _join(work: Work) -> None:
    """Begins a process of a pool."""
    begin(0)
    _WORKS.append(work)


def _one(number: int) -> None:
    for _ in _WORKS[0]._file(number):
        pass
