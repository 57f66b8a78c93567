"""Tar files of images: webdataset's shards, and class folders that were packed.

    cats/0001.jpg, dogs/0002.jpg                    the label is the folder's name; train/cats/0001.jpg has a split, too
    000001.jpg, 000001.cls, 000002.jpg, ...         the label is in a file of the same stem: .cls, .json or .txt
    found = splits(Path("shards"))                  # train-000000.tar, train-000001.tar, ..., val-000000.tar
    content, target, name = found["train"][17]      # bytes, 6, "shards/train-000000.tar/cats/0001.jpg"

Nothing is extracted. The first time, the headers of a tar are read through, and where each image lies is kept in the
cache folder (cache.py); a .tar.gz cannot be read at random, and is unpacked there. An image then costs one read of its
own bytes. Records are in the order of the tars' names, and within each in its own order: those of one tar lie side by
side.
"""

import gzip
import json
import os
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from vitrail.data.images.decode import BYTES
from vitrail.data.images.decode import SUFFIXES as IMAGES
from vitrail.data.sources.cache import Arrays, is_kept, kept, kept_arrays, space, unpacking
from vitrail.data.sources.folder import SPLITS
from vitrail.data.sources.records import LABEL_COLUMNS, MARKS, Column, Group, Label, Texts, divide, label, split_in
from vitrail.data.sources.source import Source
from vitrail.progress import track

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABELS = ("cls", "cls.txt", "json", "txt")  # behind the stem; the first that a record has counts
LABEL_BYTES = 2**20
INDEX = "1.index"  # a kind that differs is made anew
OPEN = 256  # tars that stay open; beyond, one is opened for each image, as a process may have 1,024 files only
BLOCK, CHUNK = 512, 2**22


def splits(path: Path) -> dict[str, Source]:
    """The splits of a tar or of a folder of tars: by their names, their folders, or the folders in them.

    ValueError, naming the tar, where one is damaged or cut short, has a name that leads out of its folder, or where an
    image has no label although others have one.
    """
    indexes = _indexes(_tars(path))
    column, marks = _column([index for _, _, index in indexes]), []
    for tar, _, index in indexes:
        split = _split(tar, path)
        marks.append(index["splits"] if split is None else np.full(len(index["splits"]), MARKS[split], np.int8))
    return divide(str(path), {"all": Group(Members(indexes), column, np.concatenate(marks))})


def _indexes(tars: Sequence[Path]) -> list[tuple[Path, Path, Arrays]]:
    """(tar, the same without gzip, its index) for each."""
    plain = {tar: _plain(tar) for tar in tars}
    new = [tar for tar in tars if not is_kept(plain[tar], INDEX)]
    made = {tar: _index(plain[tar], tar) for tar in track(new, len(new), "indexing tars:")} if new else {}
    return [(tar, plain[tar], made[tar] if tar in made else _index(plain[tar], tar)) for tar in tars]


def _column(indexes: Sequence[Arrays]) -> Column:
    """The labels of all tars; those that are folders without what all of these lie in."""
    found = [(index["folders"][0], json.loads(index["keys"].tobytes()), index["codes"]) for index in indexes]
    parents = {os.path.dirname(key) for folders, keys, _ in found if folders for key in keys}
    common = len(os.path.commonpath(parents)) if parents else 0
    column = Column()
    for folders, keys, codes in found:
        names = [key[common:].lstrip("/") or None for key in keys] if folders else keys
        column.extend([tuple(name) if isinstance(name, list) else name for name in names], codes)
    return column


def _tars(path: Path) -> list[Path]:
    try:
        if path.is_file():
            return [path]
        files = [*path.glob("*"), *path.glob("*/*")]
        found = [file for file in files if file.name.lower().endswith(SUFFIXES) and not file.name.startswith(".")]
        found = sorted(file for file in found if file.is_file())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    if not found:
        raise ValueError(f"{path} is no tar, nor a folder with some ({', '.join(SUFFIXES)}); check the path.")
    return found


def _split(tar: Path, path: Path) -> str | None:
    """By the name of a tar in the folder `path`, or of the folder between; a tar that is named itself has none."""
    if tar == path:
        return None
    return split_in(tar.name) or (SPLITS.get(tar.parent.name.lower()) if tar.parent != path else None)


def _plain(tar: Path) -> Path:
    """The tar itself, or what it holds where it is zipped: in the cache folder."""
    try:
        with tar.open("rb") as stream:
            zipped = stream.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise ValueError(f"{tar} cannot be read ({error.strerror}); check its permissions.") from None
    return kept(tar, "tar", lambda target: _unpack(tar, target)) if zipped else tar


def _unpack(tar: Path, target: BinaryIO) -> None:
    def pieces() -> Iterator[int]:
        for chunk, done in _inflated(tar):
            space(tar, len(chunk))
            target.write(chunk)
            yield done

    size = tar.stat().st_size
    space(tar, size)
    unpacking(tar, pieces(), size)


def _inflated(tar: Path) -> Iterator[tuple[bytes, int]]:
    """(bytes, place in the zipped file up to which they were read), one piece after the other."""
    try:
        with tar.open("rb") as raw, gzip.GzipFile(fileobj=raw) as plain:
            while chunk := plain.read(CHUNK):
                yield chunk, raw.tell()
    except (zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{tar} is cut short or damaged ({error}); copy or download it again.") from error


def _index(file: Path, tar: Path) -> Arrays:
    try:
        return kept_arrays(file, INDEX, lambda: _scan(file, tar))
    except OSError as error:
        raise ValueError(f"{tar} cannot be read ({error.strerror}); check its permissions.") from None


def _scan(file: Path, tar: Path) -> Arrays:
    """Where the images of a plain tar lie, and their labels; `tar` is what it is called.

    names uint8, ends int64 (N,): Texts. offsets, sizes int64 (N,). codes int32 (N,): the labels' places in keys, uint8,
    a list in JSON. folders uint8 (1,): whether these are folders. splits int8 (N,): as the folders say.
    """
    images: list[tuple[str, int, int]] = []
    labels: dict[str, tuple[int, Label]] = {}
    with file.open("rb") as stream:
        for member in _members(stream, tar):
            name = str(PurePosixPath(member.name))
            stem, kind = _stem(name)
            if PurePosixPath(name).suffix.lower() in IMAGES:
                images.append((name, member.offset_data, member.size))
            elif kind in LABELS and member.size <= LABEL_BYTES:
                found = _label(os.pread(stream.fileno(), member.size, member.offset_data), kind)
                rank = LABELS.index(kind)
                if found is not None and rank < labels.get(stem, (len(LABELS), None))[0]:
                    labels[stem] = rank, found
    beside = any(_stem(name)[0] in labels for name, _, _ in images)
    if beside:  # then 1.mask.png belongs to 1.jpg
        images = [image for image in images if "." + _stem(image[0])[1] in IMAGES]
        _complete(images, labels, tar)
    # Of train/1.jpg and val/2.jpg without labels, the folders are splits; in cats/1.jpg and train/2.jpg, classes.
    divided = beside or all(PurePosixPath(name).parent.name.lower() in SPLITS for name, _, _ in images)
    texts, keys, codes, marks = Texts(), dict[Label, int](), [], []
    for name, _, _ in images:
        texts.append(name)
        mark, key = _placed(PurePosixPath(name).parts[:-1], divided)
        key = labels[_stem(name)[0]][1] if beside else key
        codes.append(keys.setdefault(key, len(keys)))
        marks.append(mark)
    return {
        "names": np.frombuffer(bytes(texts.content), np.uint8),
        "ends": np.array(texts.ends, np.int64),
        "offsets": np.array([offset for _, offset, _ in images], np.int64),
        "sizes": np.array([size for _, _, size in images], np.int64),
        "codes": np.array(codes, np.int32),
        "keys": np.frombuffer(json.dumps(list(keys)).encode(), np.uint8),
        "folders": np.array([not beside], np.uint8),
        "splits": np.array(marks, np.int8),
    }


def _members(stream: BinaryIO, tar: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar. ValueError where it is damaged or cut short, or a member is none to be read."""
    size, whole, archive = os.fstat(stream.fileno()).st_size, 0, None
    while True:
        try:
            archive = archive or tarfile.TarFile(fileobj=stream)
            member = archive.next()
        except Exception as error:  # damaged headers make tarfile raise anything
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"{tar} is damaged, or no tar ({reason}); copy or download it again.") from None
        end = archive.offset
        if member is None:
            break
        archive.members.clear()  # type: ignore[attr-defined]  # a kilobyte each
        if end > size:
            raise _cut(tar, end - size, whole)
        if end <= member.offset or member.size < 0:
            raise ValueError(f"{tar} is damaged at byte {member.offset:,}; copy or download it again.")
        if member.issparse():
            raise ValueError(f"{tar} holds the sparse file {member.name}, which is not read; pack it without --sparse.")
        if member.name.startswith("/") or ".." in member.name.split("/"):
            raise ValueError(f"{tar} holds {member.name}, a name that leads out of its folder; pack it again.")
        whole += 1
        if member.isreg() and not PurePosixPath(member.name).name.startswith("."):
            yield member
    # tarfile takes anything that is no header for the end.
    stream.seek(end)
    rest = stream.read(BLOCK)
    if len(rest) < BLOCK:
        raise _cut(tar, 2 * BLOCK - len(rest), whole)
    if any(rest):
        raise ValueError(f"{tar} is damaged at byte {end:,}, after {whole:,} files; copy or download it again.")


def _cut(tar: Path, missing: int, whole: int) -> ValueError:
    return ValueError(
        f"{tar} is cut short: {missing:,} bytes or more are missing, after {whole:,} whole files; copy or download it"
        " again."
    )


def _stem(name: str) -> tuple[str, str]:
    """(what the members of a record share, the rest in lower case): "a/1.seg.png" -> ("a/1", "seg.png")."""
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return folder + slash + stem, kind.lower()


def _label(content: bytes, kind: str) -> Label:
    """The label in a file beside an image; None where there is none."""
    try:
        value = json.loads(content) if kind == "json" else content.decode("utf-8-sig")
        if isinstance(value, dict):
            value = next((value[name] for name in LABEL_COLUMNS if name in value), None)
        found = label(value)
    except (ValueError, RecursionError):
        return None
    return None if found == "" else found


def _complete(images: Sequence[tuple[str, int, int]], labels: Mapping[str, Any], tar: Path) -> None:
    """ValueError where an image has no label beside it, or another has the same."""
    seen: set[str] = set()
    for name, _, _ in images:
        stem = _stem(name)[0]
        if stem not in labels:
            raise ValueError(f"{tar}: {name} has no label beside it (.cls, .json or .txt), though others have; add it.")
        if stem in seen:
            raise ValueError(f"{tar} holds several images of the stem {stem}; give each its own.")
        seen.add(stem)


def _placed(folders: Sequence[str], divided: bool) -> tuple[int, Label]:
    """(number of the split or -1, class) by the folders that an image lies in.

    divided: whether the last of them may be a split; else it is a class, whatever its name.
    """
    within = folders if divided else folders[:-1]
    place = next((place for place, folder in enumerate(within) if folder.lower() in SPLITS), None)
    if place is None:
        return -1, label("/".join(folders))
    return MARKS[SPLITS[within[place].lower()]], label("/".join(folders[place + 1 :]))


class Members:
    """The images in tars, by the number of their row; Images.

    tars: (what it is called, the plain tar, its index). It may be pickled, and used in forked processes and in threads:
    there is one descriptor for each tar, which is opened when it is needed and has no place of its own (pread).
    """

    def __init__(self, tars: Sequence[tuple[Path, Path, Arrays]]) -> None:
        self._open: dict[int, int] = {}
        self.tars, self.files = [tar for tar, _, _ in tars], [file for _, file, _ in tars]
        indexes = [index for _, _, index in tars]
        self.starts = np.cumsum([0] + [len(index["offsets"]) for index in indexes]).tolist()
        self.offsets = np.concatenate([index["offsets"] for index in indexes])
        self.sizes = np.concatenate([index["sizes"] for index in indexes])
        self.texts = Texts()
        for index in indexes:
            self.texts.extend(Texts(index["names"].tobytes(), index["ends"].tolist()))

    def __len__(self) -> int:
        return len(self.texts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def read(self, row: int) -> bytes:
        number, size = bisect_right(self.starts, row) - 1, int(self.sizes[row])
        if size > BYTES:
            raise ValueError(f"{self.name(row)} has {size:,} bytes, more than the {BYTES:,} that an image may have.")
        try:
            content = self._read(number, size, int(self.offsets[row]))
        except OSError as error:
            raise ValueError(f"{self.files[number]} cannot be read ({error.strerror}); check the disk.") from None
        if len(content) < size:
            raise ValueError(f"{self.files[number]} was cut short while it was used: {self.name(row)} is not whole.")
        return content

    def _read(self, number: int, size: int, offset: int) -> bytes:
        descriptor = self._open.get(number)
        single = descriptor is None
        if descriptor is None:
            descriptor = os.open(self.files[number], os.O_RDONLY)
            # Another thread may have opened it meanwhile.
            single = len(self._open) >= OPEN or self._open.setdefault(number, descriptor) != descriptor
        try:
            return os.pread(descriptor, size, offset)
        finally:
            if single:
                os.close(descriptor)

    def name(self, row: int) -> str:
        return f"{self.tars[bisect_right(self.starts, row) - 1]}/{self.texts[row]}"
