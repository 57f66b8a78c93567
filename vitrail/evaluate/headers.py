"""A look at images before a run: one that cannot be read would end it at its first evaluation, or later.

look(splits, skip=False)    # ValueError: 2 of the 150 validation images cannot be read, the first: ...
"""

from itertools import chain

from vitrail.data.images.decode import opened
from vitrail.data.sources.fingerprint import spread
from vitrail.data.sources.open import Splits
from vitrail.data.sources.remote import shards
from vitrail.data.sources.source import Source
from vitrail.data.stream import prefetch
from vitrail.progress import say, track

MOST = 50_000  # training images that are looked at, evenly spaced; all of those to validate on are
FEW = 512  # of either, where they are in a store, which sends whole images
CHUNK, THREADS = 32, 8


def look(splits: Splits, skip: bool) -> None:
    """Reads validation and training images as far as their headers. ValueError, with the first that cannot be read and
    how many there are; where such images are skipped, says it."""
    for what, source, most in (("validation", splits.val, len(splits.val)), ("training", splits.train, MOST)):
        most = min(most, FEW) if shards(source) else most
        places = spread(len(source), most)
        chunks = [(source, places[start : start + CHUNK]) for start in range(0, len(places), CHUNK)]
        seen = chain.from_iterable(prefetch(_problems, chunks, 2 * THREADS, THREADS))
        if problems := [problem for problem in track(seen, len(places), f"{what} images:") if problem]:
            some = f"{len(problems):,} of the {len(places):,} {what} images that were looked at cannot be read"
            first = f"{some}, the first: {problems[0].rstrip('.')}"
            if not skip:
                leave = "vitrail train leaves them out with --data.unreadable skip"
                raise ValueError(f"{first}; vitrail data check lists them all, and {leave}.")
            say(f"{first}; they are left out.")


def _problems(chunk: tuple[Source, list[int]]) -> list[str]:
    """What is wrong with each image's header, "" for nothing."""
    found = []
    for index in chunk[1]:
        try:
            opened(chunk[0][index].image, chunk[0].name(index))
            found.append("")
        except ValueError as error:
            found.append(str(error))
    return found
