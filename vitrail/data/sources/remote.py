"""Tar shards in an object store or behind HTTP, read by random access: nothing is listed or scanned.

    found = splits("s3://bucket/shards")    # what `vitrail data pack DATA FOLDER --to tar` wrote, copied there
    images, rows = shards(found["train"], [3, 17, 1_000])
    images.expect(rows)                     # begins to fetch these, without waiting
    found["train"][17]                      # takes what comes, or fetches it itself

SPLIT.index.npz is fetched once, into the cache folder, and mapped into memory, so that it costs none at any length. An
image is a range of its shard, and its checksum is looked at when it arrives; neighbours are one range. With
VITRAIL_CACHE_GIB=200 images stay on the disk, too, about so many GiB, each at its place in a sparse copy of its shard,
which processes share; of these, those that were written to least recently go first.
"""

import hashlib
import json
import os
import struct
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.images.decode import BYTES
from vitrail.data.sources.cache import Arrays, cache_folder
from vitrail.data.sources.records import SHARD_COLUMNS, SHARD_INDEX, Records
from vitrail.data.sources.source import Found, Renumbered, Source, Subset
from vitrail.data.sources.store import Store

GAP, RANGE = 2**15, 2**22  # bytes between neighbours that are read, too, and of one range, which may be repeated
CHUNK = 2**23  # bytes or entries of an index
LOOK = 2**28  # bytes written to the disk between two looks at how many are there


def splits(url: str) -> Found:
    """The splits of a folder of shards in a store. ValueError, naming the URL, where it has no index or a damaged one,
    cannot be reached, or what reads it is not installed."""
    store, found = Store(url), dict[str, Source]()
    for split in ("train", "val", "test", "all"):
        if file := _index(store, split + SHARD_INDEX):
            columns, about = _mapped(file)
            images = Shards(store, file, [one["name"] for one in about["shards"]])
            known = [*(tuple(one) if isinstance(one, list) else one for one in about["known"]), None]  # -1 is None
            classes, rows = tuple(about["classes"]), range(len(images))
            found[split] = Records(images, rows, columns["label"], known, classes, about["targets"])
    if not found:
        there = f"{url} has no index of shards (such as train{SHARD_INDEX}), or it may not be read"
        raise ValueError(f"{there}; make one with `vitrail data pack DATA FOLDER --to tar`, and copy FOLDER there.")
    return Found(found)


def shards(source: Source, indices: Iterable[int] = ()) -> "tuple[Shards, list[int]] | None":
    """The images of a source by the numbers of their rows, where they are in a store."""
    while isinstance(source, Subset | Renumbered):
        indices = [int(source.indices[index]) for index in indices] if isinstance(source, Subset) else indices
        source = source.source
    if not isinstance(source, Records) or not isinstance(source.images, Shards):
        return None
    return source.images, [int(source.rows[index]) for index in indices]


def _index(store: Store, name: str) -> Path | None:
    """The index in the cache folder; None where the store has none."""
    if (there := store.look(name)) is None:
        return None
    place = hashlib.sha256(f"{store.url}/{name}".encode()).hexdigest()[:16]
    version = f"{there[0]} {there[1] or time.time_ns()}"  # without one, it is fetched each time
    target = cache_folder() / f"{place}-{hashlib.sha256(version.encode()).hexdigest()[:16]}.npz"
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                for start in range(0, there[0], 4 * CHUNK):
                    starts = range(start, min(start + 4 * CHUNK, there[0]), CHUNK)
                    pieces = [store.begin(name, at, min(at + CHUNK, there[0])) for at in starts]
                    file.writelines(piece.result() for piece in pieces)
            _mapped(part, f"{store.url}/{name}")
            for older in target.parent.glob(f"{place}-*.npz"):
                older.unlink(missing_ok=True)
            os.replace(part, target)
        return target
    except OSError as error:
        raise ValueError(f"{target} cannot be written ({error.strerror}); set VITRAIL_CACHE.") from None
    finally:
        with suppress(OSError):
            part.unlink()


def _mapped(file: Path, url: str = "") -> tuple[Arrays, dict[str, Any]]:
    """The columns of an index, mapped, and its `about`. url: where it came from just now: then all of it is looked at.
    ValueError where it is not what `vitrail data pack` writes."""
    try:
        found: Arrays = {}
        with zipfile.ZipFile(file) as archive, file.open("rb") as raw:
            good = [not url or archive.testzip() is None]
            for name, kind in {**SHARD_COLUMNS, "about": np.uint8}.items():
                info = archive.getinfo(f"{name}.npy")
                with archive.open(info) as member:
                    good += [np.lib.format.read_magic(member) == (1, 0), info.compress_type == zipfile.ZIP_STORED]
                    shape, _, stored = np.lib.format.read_array_header_1_0(member)
                    head = member.tell()
                raw.seek(info.header_offset + 26)  # the lengths of the name and of what follows it
                start = info.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4))) + head
                good += [stored == kind, len(shape) == 1, shape[0] * stored.itemsize + head == info.file_size]
                found[name] = np.asarray(np.memmap(file, kind, "r", start, shape))
        about = json.loads(found.pop("about").tobytes())
        if not all(good) or (url and not _possible(found, about)):
            raise ValueError
        return found, about
    except OSError:
        raise
    except Exception:  # a damaged file makes zipfile, NumPy and json raise anything
        what = f"{url or file} is damaged, or not what this version writes"
        raise ValueError(f"{what}; copy it again, or repeat `vitrail data pack DATA FOLDER --to tar`.") from None


def _possible(columns: Arrays, about: dict[str, Any]) -> bool:
    """Whether the places and labels of an index can be."""
    sizes = np.array([one["bytes"] for one in about["shards"]], np.int64)
    names, known = [one["name"] for one in about["shards"]], about["known"]
    numbers = [number for one in known for number in (one if isinstance(one, list) else [one])]
    good = [isinstance(number, int) and 0 <= number < len(about["classes"]) for number in numbers]
    good += [isinstance(name, str) and "/" not in name for name in names]
    good += [isinstance(name, str) for name in about["classes"]] + [about["targets"] in ("none", "class", "classes")]
    good += [{len(column) for column in columns.values()} == {len(columns["shard"])}]
    for start in range(0, len(columns["shard"]), CHUNK):
        shard, offset, size, _, label, _ = (column[start : start + CHUNK] for column in columns.values())
        good += [0 <= shard.min() <= shard.max() < len(sizes), -1 <= label.min() <= label.max() < len(known)]
        good += [offset.min() >= 0, 0 < size.min() <= size.max() <= BYTES, (offset <= sizes[shard] - size).all()]
    return all(good)


@dataclass(eq=False)
class _Range:
    """Neighbours in a shard, and their bytes, which come."""

    rows: list[int]
    shard: int
    start: int
    stop: int
    future: Future[bytes] = field(default_factory=Future)


class Shards:
    """The images of one split in a store, by the number of their row; Images.

    file: the index in the cache folder; names: of the shards. It may be pickled, and used in forked processes and in
    threads. It keeps what is expected until that is read.
    """

    _written = LOOK  # bytes, since there was a look at how many are on the disk

    def __init__(self, store: Store, file: Path, names: Sequence[str]) -> None:
        self.store, self.file, self.names = store, file, names
        limit = os.environ.get("VITRAIL_CACHE_GIB", "0")
        if not limit.replace(".", "", 1).isdigit():
            raise ValueError(f"VITRAIL_CACHE_GIB is {limit!r}; it is a number of GiB, such as 200.")
        self.limit = int(float(limit) * 2**30)

    def __len__(self) -> int:
        return len(self._columns["shard"])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name[0] != "_"}

    @cached_property
    def _columns(self) -> Arrays:
        return _mapped(self.file)[0]

    @cached_property
    def _processes(self) -> dict[int, dict[int, deque[_Range]]]:
        """For each process that loads, the rows that it expects, with their range as often as they are expected."""
        return {}

    def name(self, row: int) -> str:
        return f"{self.store.url}/{self.names[self._columns['shard'][row]]}/{self._columns['key'][row]:09}.jpg"

    def read(self, row: int) -> bytes:
        found = self.forget([row]) or self._begun([row])[0]
        try:
            content = found.future.result()
        except ValueError:
            if len(found.rows) == 1:
                raise
            found = self._begun([row])[0]
            content = found.future.result()
        start = int(self._columns["offset"][row]) - found.start
        return content[start : start + int(self._columns["size"][row])]

    def expect(self, rows: Sequence[int]) -> None:
        """Begins to fetch what will be read soon, each as often as it is given. This process is then one that loads."""
        coming = self._processes.setdefault(os.getpid(), {})
        begun = self._begun([row for row in dict.fromkeys(rows) if row not in coming])
        places = {row: found for found in begun for row in found.rows}
        for row in rows:
            with suppress(LookupError):  # another thread has just read it
                coming.setdefault(row, deque()).append(places.get(row) or coming[row][0])

    def forget(self, rows: Sequence[int]) -> _Range | None:
        """Ends that these rows are expected, each once; the last one's range."""
        coming, found = self._processes.get(os.getpid(), {}), None
        for row in rows:
            with suppress(LookupError):
                found = coming[row].popleft()
            if not coming.get(row, True):
                coming.pop(row, None)
        return found

    def _begun(self, rows: Sequence[int]) -> list[_Range]:
        """The ranges that hold these rows, asked for in the order in which the rows are wanted."""
        places = {row: tuple(int(self._columns[name][row]) for name in ("shard", "offset", "size")) for row in rows}
        found = list[_Range]()
        for row in sorted(rows, key=places.__getitem__):
            shard, start, size = places[row]
            last = found[-1] if found else None
            if last and last.shard == shard and start - last.stop <= GAP and start + size - last.start <= RANGE:
                last.rows.append(row)
                last.stop = max(last.stop, start + size)
            else:
                found.append(_Range([row], shard, start, start + size))
        order = {row: place for place, row in enumerate(rows)}
        for one in sorted(found, key=lambda one: min(map(order.__getitem__, one.rows))):
            if self.limit and (content := self._kept(one)):
                one.future.set_result(content)
                continue
            fast, wrong = os.getpid() in self._processes, partial(self._wrong, one)
            one.future = self.store.begin(self.names[one.shard], one.start, one.stop, wrong, fast)
            if self.limit:
                one.future.add_done_callback(partial(self._keep, one))
        return found

    def _wrong(self, found: _Range, content: bytes) -> str:
        """Which image of a range is not the one of the index."""
        view = memoryview(content)
        for row in found.rows:
            offset, size, crc = (int(self._columns[name][row]) for name in ("offset", "size", "crc32"))
            if zlib.crc32(view[offset - found.start :][:size]) != crc:
                return f"the image at byte {offset:,} has another checksum than the index says"
        return ""

    def _copy(self, found: _Range) -> Path:
        return cache_folder() / "shards" / f"{self.file.name[:16]}-{self.names[found.shard]}"

    def _kept(self, found: _Range) -> bytes | None:
        """A range from the disk, if it is there: what was not written has another checksum."""
        with suppress(OSError), self._copy(found).open("rb") as file:
            content = os.pread(file.fileno(), found.stop - found.start, found.start)
            return None if self._wrong(found, content) else content
        return None

    def _keep(self, found: _Range, arrived: Future[bytes]) -> None:
        """Writes a range to the disk; only time is lost if that cannot be."""
        with suppress(OSError):
            if arrived.cancelled() or arrived.exception():
                return
            copy = self._copy(found)
            if self._written >= LOOK:
                copy.parent.mkdir(parents=True, exist_ok=True)
                files = sorted(((file, file.stat()) for file in copy.parent.iterdir()), key=lambda one: one[1].st_mtime)
                self._written = 0
                over = sum(state.st_blocks for _, state in files) * 512 + LOOK - self.limit
                for file, state in files:
                    if over > 0:
                        file.unlink(missing_ok=True)
                    over -= state.st_blocks * 512
            file = os.open(copy, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                self._written += os.pwrite(file, arrived.result(), found.start)
            finally:
                os.close(file)
