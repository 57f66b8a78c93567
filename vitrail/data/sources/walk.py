"""The image files in a folder and below, and what else there is: counted, so that nothing is left out in silence.

files, others = scan(Path("photos"))    # {"cats": ["cats/1.jpg", ...]}, {"cats": Counter({".mp4": 3})}
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from vitrail.data.images.kinds import KNOWN, is_image
from vitrail.data.sources.source import speaks
from vitrail.progress import few

# What systems leave in folders: copies of the images in small, or nothing of interest.
JUNK = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini"}
Others = Mapping[str, Counter[str]]  # by folder, how many files there are of each kind that is not read


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
        around = parents(place) if os.path.islink(root / place) else ()
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
            elif is_image(entry.name):
                images.append(entry.name)
            else:
                others[kind(entry.name)] += 1
    return sorted(folders), sorted(images), others


def find(path: Path, say: Callable[[str], None] = print) -> list[Path]:
    """The path itself; of a folder, the images in it and below, sorted. `say` is told of what is left out. ValueError
    where a folder has none, or may not be read."""
    if not path.is_dir():
        return [path]
    try:
        found, others = scan(path)
    except OSError as error:
        raise ValueError(f"{error.filename or path} cannot be read ({error.strerror}).") from None
    images = sorted(path / name for names in found.values() for name in names)
    if not images:
        raise without_images(path, others)
    if there := kinds(others):
        total = sum(sum(of.values()) for of in others.values())
        say(f"{path} has {total} files of no kind of image: {there}; left out.")
    return images


def kind(name: str) -> str:
    """What a file is counted as: its suffix, or its name where it has none."""
    return PurePosixPath(name).suffix.lower() or name


def kinds(others: Others, read: str = "") -> str:
    """ "12 .txt, 3 .mp4": what there is that is no image, but for one that was read."""
    total = sum(others.values(), Counter[str]()) - Counter([kind(read)])
    return few((f"{count:,} {name}" for name, count in total.most_common()), 8) if total else ""


def without_images(path: Path, others: Others) -> ValueError:
    """That there is none of what is read, and what there is."""
    there = f"; it has {kinds(others)}" if any(others.values()) else ""
    return ValueError(f"{path} has no images ({KNOWN}), nor has any folder in it{there}.")


def lost(images: Mapping[str, Iterable[str] | int], others: Others) -> list[str]:
    """The folders without an image in or below them, in words, but for those that lie beside none which has some."""
    full = {parent for folder, some in images.items() if some for parent in (folder, *parents(folder))}
    found = dict[str, Others]()
    for folder in sorted(others):
        if folder not in full and os.path.dirname(folder) in full:
            found[folder] = {place: of for place, of in others.items() if f"{place}/".startswith(f"{folder}/")}
    return [f"{folder} ({kinds(below) or 'empty'})" for folder, below in found.items()]


def parents(folder: str) -> list[str]:
    """The folders around one, from the inside, the outermost as ""."""
    return [str(parent).removeprefix(".") for parent in PurePosixPath(folder).parents] if folder else []
