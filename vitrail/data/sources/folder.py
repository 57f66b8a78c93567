"""Class folders as a Source: each class in a folder of its own, at any depth, below train, val and test or not.

    photos/cats/1.jpg, photos/dogs/2.png                  splits(Path("photos")) gives {"all": source}
    photos/train/cats/1.jpg, photos/valid/cats/2.jpg      ... gives {"train": source, "val": source}

A class is the folder that directly holds images: "cats", or "pets/cats" if it lies deeper; classes are sorted by these
names. A file such as classes.txt beside the split folders may give them other names ("n01440764 tench"). Images outside
any such folder have no label.
"""

import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from vitrail.data.images.kinds import KNOWN, is_image
from vitrail.data.sources.records import Labels, Paths, divide
from vitrail.data.sources.source import SPLITS, Source, printable

STEMS = ("classes", "labels", "class_names", "words", "synset_words", "LOC_synset_mapping")
WORDS = [stem + suffix for stem in STEMS for suffix in (".txt", ".tsv", ".csv")]
WORDS_BYTES = 2**24  # read of such a file; WordNet's has 2.6 million


def splits(path: Path) -> dict[str, Source]:
    """The images in the folder `path`: "train", "val", "test" if it has such folders, else "all"."""
    folders = split_folders(path) or {"all": path}
    found = {split: _scan(folder) for split, folder in folders.items()}
    words = _words(path, {name for files in found.values() for name in files if name})
    return {split: _source(folders[split], files, words) for split, files in found.items()}


def listing(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders and of the image files in a folder, sorted, without hidden ones."""
    folders, images = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # os.path.isdir, unlike entry.is_dir, tolerates a link that leads to itself.
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                folders.append(entry.name)
            elif is_image(entry.name):
                images.append(entry.name)
    return sorted(folders), sorted(images)


def split_folders(path: Path) -> dict[str, Path]:
    """The folders train, val and test in `path`, under any of their names; none if these are names of classes."""
    folders = {name: path / name for name in listing(path)[0]}
    named = [name for name in folders if name.lower() in SPLITS]
    # Beside folders such as "car" and "bus", one "train" that directly holds images is a class.
    if len(named) == 1 and len(folders) > 1 and not listing(folders[named[0]])[0]:
        return {}
    found: dict[str, Path] = {}
    for name in named:
        other = found.setdefault(SPLITS[name.lower()], folders[name])
        if other != folders[name]:
            raise ValueError(f"{path} has both {other.name} and {name}; put their images into one folder.")
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _scan(root: Path) -> dict[str, list[str]]:
    """class -> its files below root, sorted; "" is the class of files in root itself.

    Every folder is read once, by its own name rather than by that of a link to it: links may lead in circles.
    """
    found: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    waiting, links = [""], []
    while waiting or links:
        place = (waiting or links).pop()
        where = os.stat(root / place)
        if (where.st_dev, where.st_ino) in seen:
            continue
        seen.add((where.st_dev, where.st_ino))
        folders, images = listing(root / place)
        below = f"{place}/" if place else ""
        for name in reversed(folders):
            (links if os.path.islink(root / place / name) else waiting).append(below + name)
        if images:
            # macOS writes "é" as two characters, other systems as one: it must be the same class.
            found.setdefault(unicodedata.normalize("NFC", place), []).extend(below + name for name in images)
    return {name: sorted(found[name]) for name in sorted(found)}


def _source(root: Path, found: dict[str, list[str]], words: dict[str, str]) -> Source:
    """The images of one split, by class; "" is no class."""
    if not found:
        raise ValueError(f"{root} has no images ({KNOWN}), nor has any folder in it; check the path.")
    paths, labels = Paths(root), Labels(classes=tuple(words.get(name, name) for name in found if name))
    for name, files in found.items():
        for file in files:
            paths.texts.append(file)
        labels.extend([words.get(name, name)], np.zeros(len(files), np.int32), np.full(len(files), -1, np.int8))
    return divide(root, {"all": (paths, labels)})["all"]


def _words(path: Path, classes: set[str]) -> dict[str, str]:
    """The names that a file beside the split folders gives to the classes, all different."""
    whole = path.resolve()
    places = [whole, whole.parent] if whole.name.lower() in SPLITS else [whole]
    for file in (place / name for place in places for name in WORDS):
        if not os.path.isfile(file):  # False, too, if the parent folder may not be read
            continue
        with file.open("rb") as stream:
            lines = stream.read(WORDS_BYTES).decode("utf-8-sig", errors="replace").splitlines()
        words = dict(pair for line in lines if (pair := _pair(unicodedata.normalize("NFC", line), classes)))
        often = Counter([*words.values(), *classes.difference(words)])
        if words:  # ImageNet has two cranes
            return {name: word if often[word] == 1 else f"{word} ({name})" for name, word in words.items()}
    return {}


def _pair(line: str, classes: set[str]) -> tuple[str, str] | None:
    """(folder, name) of a line such as "n01440764 tench", with a tab, a comma or a space between them."""
    for separator in ("\t", ",", " "):
        name, word = (part.strip().strip('"') for part in line.split(separator, 1)) if separator in line else ("", "")
        if name in classes and word and printable(word):
            return name, word
    return None
