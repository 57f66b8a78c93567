"""Tar files of images: webdataset's shards, and class folders in a tar.

    cats/0001.jpg, dogs/0002.jpg                    the label is the folder's name, a split as layout.py finds it
    000001.jpg, 000001.cls, 000002.jpg, ...         the label is in a file of the same stem: .cls, .json or .txt
    found = splits(Path("shards"))                  # train-000000.tar, train-000001.tar, ..., val-000000.tar
    content, target, name, _ = found["train"][17]   # bytes, 6, "shards/train-000000.tar/cats/0001.jpg"

Nothing is extracted. The first time, the headers of a tar are read through, and the place of each image is kept in the
cache folder (cache.py); a .tar.gz cannot be read at random, and is unpacked there. An image then costs one read of its
own bytes. Records are in the order of the tars' names, and within each in its own order.

The library webdataset has no i-th sample, and unpickles.
"""

import gzip
import json
import os
import tarfile
import zipfile
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from io import BytesIO, FileIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from vitrail.data.images.decode import BYTES
from vitrail.data.images.kinds import SUFFIXES as IMAGES
from vitrail.data.sources import records
from vitrail.data.sources.cache import Arrays, kept_arrays, unpacked
from vitrail.data.sources.layout import layout
from vitrail.data.sources.names import FILES, renamed
from vitrail.data.sources.records import COLUMNS, LEFT_OUT, MARKS, Label, Labels, Records, Texts, divide, label
from vitrail.data.sources.source import Found, Source, split_in
from vitrail.data.sources.walk import JUNK, kind, kinds, listing, lost, without_images
from vitrail.progress import track

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABELS = ("cls", "cls.txt", "json", "txt")  # behind the stem; the first that a record has counts
LABEL_BYTES = 2**20
INDEX = f"5.{len(IMAGES)}.index"  # another version, and another list of kinds, has another name
OPEN = 256  # tars that stay open: a process may often have only 1,024 files
BLOCK, CHUNK = 512, 2**22


def splits(path: Path) -> Found:
    """The splits of a tar or of a folder of tars: by their names, their folders, or the folders in them."""
    tars = _tars(path)
    plain = [_plain(tar) for tar in tars]
    pairs = track(zip(plain, tars, strict=True), len(tars), "indexing tars:")
    indexes = [kept_arrays(file, INDEX, lambda file=file, tar=tar: _scan(file, tar)) for file, tar in pairs]
    about = [json.loads(index["about"].tobytes()) for index in indexes]
    images, others = Counter[str](), defaultdict[str, Counter[str]](Counter)
    if path.is_dir():
        _, loose, others[""] = listing(path)
        others[""].update(map(kind, loose))
        del others[""][".tar"], others[""][".gz"], others[""][".tgz"]
        others[""][".npz"] -= len([*path.glob("*" + records.SHARD_INDEX)])
    for tar, index, one in zip(tars, indexes, about, strict=True):
        # By the name of a tar, or of the folder that it is in; a tar that is named itself may be any split.
        split = (split_in(tar.name) or split_in(str(tar.parent.relative_to(path)))) if tar != path else None
        one["folders"] = ["/".join(filter(None, (split, folder))) for folder in one["folders"]]
        images.update(dict(zip(one["folders"], np.bincount(index["folders"]).tolist(), strict=True)))
        for folder, count in one["others"].items():
            others["/".join(filter(None, (split, folder)))].update(count)
    if not images:
        raise without_images(path, others)
    sizes = {**dict.fromkeys(others, 0), **images}
    found = layout(path, sizes, all(one["labels"] for one in about), kinds(others))
    classes = {name for _, name in found.places.values() if name}
    lists = [text for one in about for text in one["lists"]]
    words = next(filter(None, (renamed(classes, text) for text in lists)), {})
    labels, none = Labels(), ("left out", "")
    for index, one in zip(indexes, about, strict=True):
        places = [found.places.get(folder, none) for folder in one["folders"]]
        marks = np.array([MARKS.get(of, LEFT_OUT) for of, _ in places], np.int8)
        names, codes = [label(words.get(name, name)) for _, name in places], index["folders"]
        if one["labels"]:
            names, codes = [tuple(key) if isinstance(key, list) else key for key in one["labels"]], index["labels"]
        labels.extend(names, codes, marks[index["folders"]])
    divided = divide(path, {"all": (Members(tars, plain, indexes), labels)})
    divided = {split: _told(source, path / f"{split}{records.SHARD_INDEX}") for split, source in divided.items()}
    return Found(divided, found.notes, [*found.left_out, *filter(None, [kinds(others)])], lost(images, others))


def _told(source: Source, file: Path) -> Source:
    """The images with the targets and class names that the index beside the shards tells, if there is one."""
    if not file.exists() or not isinstance(source, Records):
        if (file.parent / ".parts").is_dir():
            raise ValueError(f"{file.parent} is not complete; run all parts of the `vitrail data pack` that began it.")
        return source
    try:
        with zipfile.ZipFile(file) as archive:
            about, codes = (archive.read(f"{name}.npy") for name in ("about", "label"))
        about, codes = (np.lib.format.read_array(BytesIO(one), allow_pickle=False) for one in (about, codes))
        said = json.loads(about.tobytes())
        known = [*(tuple(one) if isinstance(one, list) else one for one in said["known"]), None]  # -1 is None
        found = replace(source, codes=codes, known=known, class_names=tuple(said["classes"]), targets=said["targets"])
    except Exception:  # a damaged file makes zipfile and NumPy raise anything
        raise ValueError(f"{file} is damaged; copy it again, or repeat the command that packed the images.") from None
    if len(codes) != len(source):
        raise ValueError(f"{file} is of {len(codes):,} images, but the shards have {len(source):,}; copy them again.")
    return found


def _tars(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(file for file in (*path.glob("*"), *path.glob("*/*")) if file.name.lower().endswith(SUFFIXES))
    if not (found := [file for file in files if file.name[0] != "." and file.is_file()]):
        raise ValueError(f"{path} is neither a tar file nor a folder of tar files ({', '.join(SUFFIXES)}).")
    return found


def _plain(tar: Path) -> Path:
    """The tar itself, or in the cache folder what it holds if it is zipped."""

    def write(target: BinaryIO) -> Iterator[int]:
        with tar.open("rb") as raw, gzip.GzipFile(fileobj=raw) as plain:
            while chunk := plain.read(CHUNK):
                target.write(chunk)
                yield raw.tell()

    with tar.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return unpacked(tar, "tar", tar.stat().st_size, write) if zipped else tar


def _scan(file: Path, tar: Path) -> Arrays:
    """The places of the images in a plain tar, and their labels; `tar` is its name in messages.

    names uint8, ends int64 (N,): Texts. places int64 (N, 2): offsets and sizes. folders, labels int32 (N,): which of
    those in `about` each image has. about: in JSON, the different folders; the labels, [] where these are the folders;
    how many other files there are of each kind, by folder; the texts of lists of class names.
    """
    images: list[tuple[str, int, int]] = []
    labels, lists = dict[str, tuple[int, Label]](), dict[str, str]()
    others = defaultdict[str, Counter[str]](Counter)
    with file.open("rb") as stream:
        for member in _members(stream, tar):
            name = str(PurePosixPath(member.name))
            (stem, suffix), (folder, _, base) = _stem(name), name.rpartition("/")
            if PurePosixPath(name).suffix.lower() in IMAGES:
                images.append((name, member.offset_data, member.size))
                continue
            others[folder][kind(base)] += 1
            if member.size <= LABEL_BYTES and (suffix in LABELS or base in FILES):
                content = os.pread(stream.fileno(), member.size, member.offset_data)
                lists |= {base: content.decode("utf-8-sig", errors="replace")} if base in FILES else {}
                found = _label(content, suffix) if suffix in LABELS else ""
                if found != "" and LABELS.index(suffix) < labels.get(stem, (len(LABELS), ""))[0]:
                    labels[stem] = LABELS.index(suffix), found
    beside = any(_stem(name)[0] in labels for name, _, _ in images)
    if beside:  # then 1.mask.png belongs to 1.jpg
        others[""].update("." + said for name, _, _ in images if "." + (said := _stem(name)[1]) not in IMAGES)
        images = [image for image in images if "." + _stem(image[0])[1] in IMAGES]
        others = {
            folder: Counter({k: n for k, n in of.items() if k[1:] not in LABELS}) for folder, of in others.items()
        }
    texts, folders, keys, rows = Texts(), dict[str, int](), dict[Label, int](), []
    for name, _, _ in images:
        texts.append(name)
        folder = folders.setdefault(name.rpartition("/")[0], len(folders))
        key = labels.get(_stem(name)[0], (0, ""))[1] if beside else ""
        rows.append((folder, keys.setdefault(key, len(keys))))
    about = {
        "folders": list(folders),
        "labels": list(keys) if beside else [],
        "others": {folder: +of for folder, of in others.items()},
    }
    about["lists"] = [lists[name] for name in FILES if name in lists]
    codes = np.array(rows, np.int32).reshape(-1, 2)
    return {
        "names": np.frombuffer(bytes(texts.content), np.uint8),
        "ends": np.array(texts.ends, np.int64),
        "places": np.array([place for _, *place in images], np.int64).reshape(-1, 2),
        "folders": codes[:, 0].copy(),
        "labels": codes[:, 1].copy(),
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    }


def _members(stream: BinaryIO, tar: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar. ValueError if it is damaged or cut short, or a member must not be read."""
    size, end, whole, archive = os.fstat(stream.fileno()).st_size, 0, 0, None
    while True:
        try:
            archive = archive or tarfile.TarFile(fileobj=stream)
            member = archive.next()
        except Exception as error:  # damaged headers make tarfile raise anything
            raise _damaged(tar, end, whole, " ".join(str(error).split())[:120]) from None
        if member is None:
            break
        archive.members.clear()  # type: ignore[attr-defined]  # a kilobyte each
        end = archive.offset
        if end > size or end <= member.offset or member.size < 0:
            raise _damaged(tar, member.offset, whole)
        if member.issparse() or member.name.startswith("/") or ".." in member.name.split("/"):
            raise ValueError(f"{tar} has {member.name}, which is sparse or leads out of its folder; pack it again.")
        whole += 1
        parts = PurePosixPath(member.name).parts
        if member.isreg() and not any(part[0] == "." or part.lower() in JUNK for part in parts):
            yield member
    # tarfile takes anything that is not a header for the end.
    stream.seek(archive.offset)
    if stream.read(BLOCK) != bytes(BLOCK):
        raise _damaged(tar, archive.offset, whole)


def _damaged(tar: Path, place: int, whole: int, reason: str = "no whole file") -> ValueError:
    where = f"{tar} is cut short or damaged at byte {place:,} ({reason}), after {whole:,} whole files"
    return ValueError(f"{where}; copy or download it again.")


def _stem(name: str) -> tuple[str, str]:
    """(what the members of a record share, the rest in lower case): "a/1.seg.png" -> ("a/1", "seg.png")."""
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return folder + slash + stem, kind.lower()


def _label(content: bytes, kind: str) -> Label:
    """The label in a file beside an image; "" if there is none."""
    try:
        value = json.loads(content) if kind == "json" else content.decode("utf-8-sig")
        if isinstance(value, dict):
            value = next((value[name] for name in COLUMNS["label"] if name in value), None)
        return label(value)
    except (ValueError, RecursionError):
        return ""


class _Open(FileIO):
    """An open file, closed when nobody has it any more."""

    def __del__(self) -> None:
        self.close()


class Members:
    """The images in tars, by the number of their row; Images.

    tars: their names; files: these or the same without gzip. It may be pickled, and used in forked processes and in
    threads: each tar has one descriptor, which is opened when it is needed and has no position of its own (pread).
    """

    def __init__(self, tars: Sequence[Path], files: Sequence[Path], indexes: Sequence[Arrays]) -> None:
        self.tars, self.files = tars, files
        self.places = [index["places"] for index in indexes]
        self.texts = [Texts(index["names"].tobytes(), index["ends"].tolist()) for index in indexes]
        self.starts = np.cumsum([0, *map(len, self.places)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name[0] != "_"}

    @cached_property
    def _opened(self) -> Callable[[Path], FileIO]:
        """A tar, which stays open while it is among those read last, or is being read."""
        return lru_cache(OPEN)(_Open)

    def name(self, row: int) -> str:
        number = bisect_right(self.starts, row) - 1
        return f"{self.tars[number]}/{self.texts[number][row - self.starts[number]]}"

    def read(self, row: int) -> bytes:
        number = bisect_right(self.starts, row) - 1
        offset, size = self.places[number][row - self.starts[number]].tolist()
        if size > BYTES:
            raise ValueError(f"{self.name(row)} has {size:,} bytes, more than the {BYTES:,} that an image may have.")
        try:
            file = self._opened(self.files[number])  # until it is read, although others may push it out of the cache
            content = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise ValueError(f"{self.files[number]} cannot be read ({error.strerror}); check the disk.") from None
        if len(content) < size:
            raise ValueError(f"{self.files[number]} was cut short while it was used: {self.name(row)} is not whole.")
        return content
