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
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from vitrail.data.sources import names
from vitrail.data.sources.layout import layout
from vitrail.data.sources.records import Labels, Paths, divide
from vitrail.data.sources.source import Found, Source, speaks
from vitrail.data.sources.walk import kinds, lost, parents, scan, without_images


def splits(path: Path) -> Found:
    """The images in the folder `path`: "train", "val", "test" if it has folders for these, else "all"."""
    files, others = scan(path)
    if not any(files.values()):
        raise without_images(path, others)
    sizes = {folder: len(files[folder]) for folder in files if files[folder] or others[folder]}
    found = layout(path, sizes, beside=kinds(others))
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
    left_out = [*found.left_out, *filter(None, [kinds(others, used)])]
    return Found(sources, notes + found.notes, left_out, lost(files, others))


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
    inner = [path / parent for parent in (common, *parents(common))]
    for place in [*inner, whole.parent] if speaks(whole.name) else inner:
        for file in (place / name for name in names.FILES):
            if not os.path.isfile(file):  # False, too, if the parent folder may not be read
                continue
            with file.open("rb") as stream:
                text = stream.read(names.BYTES).decode("utf-8-sig", errors="replace")
            if found := names.renamed(classes, text):
                return found, str(file)
    return {}, ""
