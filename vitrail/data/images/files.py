"""The files of a folder and below: which are images, and what is left out.

    for place, images, others in walk("photos"): ...    # ("cats", ["1.jpg", "2.HEIC"], ["notes.txt"])
    find(Path("photos"), say)                           # the images, sorted; what is left out is said

Every folder is seen once, by its own name rather than by that of a link to it: links may lead in circles. Hidden files
and folders, whose names begin with a dot, are no part of it.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vitrail.data.images.kinds import KNOWN, is_image, left_out


def walk(root: Path | str) -> Iterator[tuple[str, list[str], list[str]]]:
    """For each folder, root first as "": its path below root, and the names of its images and of its other files,
    sorted. An OSError where a folder may not be read."""
    seen: set[tuple[int, int]] = set()
    waiting, links = [""], []
    while waiting or links:
        place = (waiting or links).pop()
        where = os.stat(os.path.join(root, place))
        if (where.st_dev, where.st_ino) in seen:
            continue
        seen.add((where.st_dev, where.st_ino))
        folders, files = [], []
        with os.scandir(os.path.join(root, place)) as entries:
            for entry in entries:
                # os.path.isdir, unlike entry.is_dir, tolerates a link that leads to itself.
                inside = entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))
                if not entry.name.startswith("."):
                    (folders if inside else files).append(entry.name)
        for name in sorted(folders, reverse=True):
            below = os.path.join(place, name)
            (links if os.path.islink(os.path.join(root, below)) else waiting).append(below)
        images = {name for name in files if is_image(name)}
        yield place, sorted(images), sorted(set(files) - images)


def find(path: Path, say: Callable[[str], None] = print) -> list[Path]:
    """The path itself; of a folder, the images in it and below, sorted. `say` is told of what is left out. ValueError
    where a folder has none, or may not be read."""
    if not path.is_dir():
        return [path]
    try:
        found = list(walk(path))
    except OSError as error:
        raise ValueError(f"{error.filename or path} cannot be read ({error.strerror}).") from None
    others = left_out(os.path.join(place, name) for place, _, names in found for name in names)
    images = sorted(path / place / name for place, names, _ in found for name in names)
    if not images:
        raise ValueError(f"{path} is a folder without images ({KNOWN}){f', but has {others}' if others else ''}.")
    if others:
        say(f"{path} has {others}; left out.")
    return images
