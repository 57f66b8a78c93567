"""Data and a model that meet: classes, which go by their names, and images that the model was trained on."""

import hashlib
from itertools import chain

import numpy as np

from vitrail.data.sources.fingerprint import spread
from vitrail.data.sources.source import Renumbered, Source, Subset, classes_of
from vitrail.data.stream import prefetch
from vitrail.progress import few, say, track

COMPARED = 50_000  # images of each side, evenly spaced
CHUNK = 32  # images that a thread takes at a time


def seen(source: Source, trained: Source) -> float:
    """The fraction of a source's images that are among those trained on, by what is in their files; estimated, and
    said to be, where these are more than COMPARED."""
    known = set(digests(trained, "images that were trained on:", COMPARED))
    found = [digest in known for digest in digests(source, "images to evaluate:", COMPARED) if digest]
    if max(len(source), len(trained)) > COMPARED:
        say(f"of the images that were trained on, and of those to evaluate, at most {COMPARED:,} each are compared.")
    return min(1.0, sum(found) / max(1, len(found)) * max(1.0, len(trained) / COMPARED))


def digests(source: Source, what: str, most: int) -> list[bytes]:
    """SHA-256 of what is in at most so many of the images, evenly spaced; b"" for one that cannot be read."""

    def digest(index: int) -> bytes:
        try:
            content = source[index].image
        except ValueError:
            return b""
        return hashlib.sha256(content if isinstance(content, bytes) else np.ascontiguousarray(content).data).digest()

    places = spread(len(source), most)
    chunks = (places[start : start + CHUNK] for start in range(0, len(places), CHUNK))
    read = prefetch(lambda chunk: [*map(digest, chunk)], chunks, 8, 4)
    return list(track(chain.from_iterable(read), len(places), what))


def matched(source: Source, names: tuple[str, ...], where: str) -> Source:
    """The source under the class numbers that a model has for `names`.

    Classes without names are matched by position. ValueError where the data has no labels, and where the model lacks a
    class of the data, has two of that name, or has none at all.
    """
    theirs, numbers = source.class_names, tuple(map(str, range(len(names))))
    if not names:
        raise ValueError("the model has no head, so there is nothing to evaluate; fine-tune it first.")
    if source.targets == "none":
        raise ValueError(f"{where} has images without labels, so there is nothing to evaluate on them.")
    if theirs == names:
        return source
    if missing := [name for name in theirs if name not in names]:
        if len(theirs) == len(names) and numbers in (theirs, names):
            say(f"{'the model' if names == numbers else where} has classes without names: they are taken in order.")
            return source
        raise ValueError(f"{where}: the model does not have the classes {few(missing)}; it has {few(names)}.")
    if twice := [name for name in theirs if names.count(name) > 1]:
        raise ValueError(f"{where}: the model has several classes called {few(twice)}; give the data other names.")
    if len(theirs) < len(names):
        say(f"{where} has {len(theirs)} of the model's {len(names)} classes.")
    return Renumbered(source, names)


def common(source: Source, names: tuple[str, ...], where: str) -> Source:
    """The source under the class numbers of `names`, by name; images of other classes are left out, and those classes
    are listed. ValueError where no class is in both."""
    if source.targets == "none" or source.class_names == names:
        return source
    others = tuple(name for name in source.class_names if name not in names)
    whole = Renumbered(source, (*names, *others))
    if not others:
        return whole
    if len(others) == len(source.class_names):
        raise ValueError(f"{where}: no class is in both splits; there are {few(names)}, and {few(others)}.")
    kept = [index for index in range(len(whole)) if all(k < len(names) for k in classes_of(whole.target(index)))]
    left = len(source) - len(kept)
    say(f"{where}: {left:,} images of classes that the training images lack are left out: {few(others)}.")
    return Subset(whole, np.array(kept))
