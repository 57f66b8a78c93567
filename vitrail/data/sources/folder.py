"""Class folders as a Source: each class in a folder of its own, at any depth, below train, val and test or not.

    photos/cats/1.jpg, photos/dogs/2.png                  splits(Path("photos")) gives {"all": source}
    photos/train/cats/1.jpg, photos/valid/cats/2.jpg      ... gives {"train": source, "val": source}

A class is the folder that directly holds images: "cats", or "pets/cats" where classes lie in several folders (layout.py
says which folders are splits); classes are sorted by these names. A list such as classes.txt beside the class or split
folders may give them other names (names.py). Images outside any such folder have no label. What is no image is counted,
but for hidden files.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from vitrail.data.images.decode import SUFFIXES
from vitrail.data.sources import names
from vitrail.data.sources.layout import layout, speaks
from vitrail.data.sources.records import Labels, Paths, divide
from vitrail.data.sources.source import Found, Source
from vitrail.progress import few

# What systems leave in folders: copies of the images in small, or nothing of interest.
JUNK = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
Others = Mapping[str, Counter[str]]  # by folder, how many files there are of each kind that is not read


def splits(path: Path) -> Found:
    """The images in the folder `path`: "train", "val", "test" if it has folders for these, else "all"."""
    files, others = scan(path)
    if not any(files.values()):
        there = f"; it has {kinds(others)}" if any(others.values()) else ""
        raise ValueError(f"{path} has no images ({', '.join(SUFFIXES)}), nor has any folder in it{there}.")
    try:
        found = layout({folder: len(files[folder]) for folder in files if files[folder] or others[folder]})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    of = defaultdict[str, dict[str, list[str]]](lambda: defaultdict(list))
    for folder, (split, name) in found.places.items():
        # macOS writes "é" as two characters, other systems as one: it must be the same class.
        of[split][unicodedata.normalize("NFC", name)] += files[folder]
    named, used = _words(path, {name for classes in of.values() for name in classes if name}, found.places)
    sources = {split or "all": _source(path, of[split], named) for split in ("", "train", "val", "test") if split in of}
    if len(sources) > 1 and "all" in sources:
        outside = sources["all"].name(0)
        raise ValueError(f"{path}: {outside} is in none of train, val and test, though others are; move or delete it.")
    notes = [f"the classes are called as in {used}"] if used else []
    left_out = found.left_out + others_of(others, used.rpartition("/")[2])
    return Found(sources, notes + found.notes, left_out, lost(files, others))


def scan(root: Path) -> tuple[dict[str, list[str]], Others]:
    """(the image files in each folder, by their paths below root, sorted; what else there is).

    Every folder is read once, by its own name rather than by that of a link to it: links may lead in circles. A folder
    for train, val or test may be a link to another.
    """
    found, others = dict[str, list[str]](), dict[str, Counter[str]]()
    seen: set[tuple[int, int, str]] = set()
    waiting, links = [""], []
    while waiting or links:
        place = (waiting or links).pop()
        where = os.stat(root / place)
        this = where.st_dev, where.st_ino, next(filter(speaks, place.split("/")), "")
        around = _parents(place) if os.path.islink(root / place) else ()
        if this in seen or any(os.path.samefile(root / place, root / parent) for parent in around):
            others[os.path.dirname(place)]["links to folders that are read"] += 1
            continue
        seen.add(this)
        folders, images, others[place] = listing(root / place)
        below = f"{place}/" if place else ""
        for name in reversed(folders):
            (links if os.path.islink(root / place / name) else waiting).append(below + name)
        found[place] = [below + name for name in images]
    return {place: found[place] for place in sorted(found)}, others


def listing(folder: Path) -> tuple[list[str], list[str], Counter[str]]:
    """(folders, image files, how many other files of each kind) in a folder, sorted, without hidden ones."""
    folders, images, others = [], [], Counter[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in JUNK:
                continue
            # os.path.isdir, unlike entry.is_dir, tolerates a link that leads to itself.
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                folders.append(entry.name)
            elif entry.name.lower().endswith(SUFFIXES):
                images.append(entry.name)
            else:
                others[kind(entry.name)] += 1
    return sorted(folders), sorted(images), others


def kind(name: str) -> str:
    """What a file is counted as: its suffix, or its name where it has none or is a list of class names."""
    return name if name in names.FILES else PurePosixPath(name).suffix.lower() or name


def kinds(others: Others, but: str = "") -> str:
    """ "12 .txt, 3 .mp4": what there is that is not read, `but` for one file."""
    total = sum(others.values(), Counter[str]()) - Counter([but])
    return few((f"{count:,} {name}" for name, count in total.most_common()), 8)


def others_of(others: Others, but: str = "") -> list[str]:
    """What there is besides images, in words."""
    return [said] if (said := kinds(others, but)) != "none" else []


def lost(images: Mapping[str, Iterable[str] | int], others: Others) -> list[str]:
    """The folders without an image in or below them, in words, but for those that lie beside none which has some."""
    full = {parent for folder, some in images.items() if some for parent in (folder, *_parents(folder))}
    empty = [folder for folder in sorted(others) if folder not in full and os.path.dirname(folder) in full]
    found = []
    for folder in empty:
        below = {place: of for place, of in others.items() if f"{place}/".startswith(f"{folder}/")}
        found.append(f"{folder} ({kinds(below) if any(below.values()) else 'empty'})")
    return found


def _parents(folder: str) -> list[str]:
    return [str(parent).removeprefix(".") for parent in PurePosixPath(folder).parents] if folder else []


def _source(root: Path, found: Mapping[str, list[str]], words: Mapping[str, str]) -> Source:
    """The images of one split, by class; "" is no class."""
    order = sorted(found)
    paths, labels = Paths(root), Labels(classes=tuple(words.get(name, name) for name in order if name))
    for name in order:
        for file in sorted(found[name]):
            paths.texts.append(file)
        count = len(found[name])
        labels.extend([words.get(name, name)], np.zeros(count, np.int32), np.full(count, -1, np.int8))
    return divide(root, {"all": (paths, labels)})["all"]


def _words(path: Path, classes: set[str], folders: Iterable[str]) -> tuple[dict[str, str], str]:
    """(the names that a list gives to the classes, its path): beside the folders of the classes, or further out."""
    whole = path.resolve()
    common = os.path.commonpath([f"/{folder}" for folder in folders]).removeprefix("/")
    inner = [path / parent for parent in (common, *_parents(common))]
    for place in [*inner, whole.parent] if speaks(whole.name) else inner:
        for file in (place / name for name in names.FILES):
            if not os.path.isfile(file):  # False, too, if the parent folder may not be read
                continue
            with file.open("rb") as stream:
                text = stream.read(names.BYTES).decode("utf-8-sig", errors="replace")
            if found := names.renamed(classes, text):
                return found, str(file)
    return {}, ""
