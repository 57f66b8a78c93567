"""A look at images before a run: one that cannot be read would end it at its first evaluation, or later.

look(splits, skip=False)    # ValueError: 2 of the 150 validation images cannot be read, the first: ...
"""

import os
from itertools import chain

from vitrail.data.images.decode import opened
from vitrail.data.sources.fingerprint import spread
from vitrail.data.sources.open import Splits
from vitrail.data.sources.source import Source
from vitrail.data.stream import prefetch
from vitrail.progress import say, track

MOST = 50_000  # training images that are looked at, evenly spaced; all of those to validate on are
CHUNK = 32  # images that a thread takes at a time


def look(splits: Splits, skip: bool) -> None:
    """Reads all validation images, and training images, as far as their headers. ValueError, with the first that cannot
    be read and how many there are; where such images are skipped, says it."""
    for what, source, most in (("validation", splits.val, len(splits.val)), ("training", splits.train, MOST)):
        if not len(source) or not isinstance(_content(source), bytes | ValueError):
            continue  # pixels in memory
        problems = _problems(source, spread(len(source), most), what)
        if problems:
            some = (
                f"{len(problems):,} of the {min(most, len(source)):,} {what} images that were looked at cannot be read"
            )
            first = f"{some}, the first: {problems[0].rstrip('.')}"
            if not skip:
                raise ValueError(
                    f"{first}; vitrail data check lists all, vitrail train --data.unreadable skip goes on."
                )
            say(f"{first}; they are left out.")


def _content(source: Source) -> object:
    try:
        return source[0].image
    except ValueError as error:
        return error


def _problems(source: Source, places: list[int], what: str) -> list[str]:
    """What is wrong with the images whose headers cannot be read."""
    chunks = (places[start : start + CHUNK] for start in range(0, len(places), CHUNK))
    workers = min(16, os.cpu_count() or 1)
    seen = prefetch(lambda chunk: [_problem(source, index) for index in chunk], chunks, 2 * workers, workers)
    return [said for said in track(chain.from_iterable(seen), len(places), f"{what} images:") if said]


def _problem(source: Source, index: int) -> str:
    try:
        opened(source[index].image, source.name(index))
    except ValueError as error:
        return str(error)
    return ""
