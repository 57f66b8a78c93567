"""The lists that give class folders other names, such as classes.txt beside the splits: "n01440764 tench".

renamed({"n01440764", "n02102040"}, text)       # {"n01440764": "tench", "n02102040": "English springer"}

Numbers, WordNet's ids and paths are what a list says about a class; its name they are not.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from vitrail.data.images.kinds import SUFFIXES
from vitrail.data.sources.source import printable

STEMS = ("classes", "labels", "class_names", "words", "synset_words", "LOC_synset_mapping")
FILES = [stem + suffix for stem in STEMS for suffix in (".txt", ".tsv", ".csv")]
BYTES = 2**24  # read of such a file; WordNet's has 2.6 million
ID = re.compile(r"-?\d+|[nN]\d{2,}")
LED, FOLLOWED = re.compile(r"\d+[\s,;]+(?=\S)"), re.compile(r"\s*[,;\t]\s*\d+$")


def renamed(classes: Iterable[str], text: str) -> dict[str, str]:
    """The names that the lines of a list give to classes, all different; {} where it speaks of other things."""
    known = set(classes)
    pairs = [pair for line in text.splitlines() if (pair := _pair(unicodedata.normalize("NFC", line), known))]
    for number in (LED, FOLLOWED):  # of the class, or of its images, between folder and name or behind them
        if all(number.search(word) for _, word in pairs):
            pairs = [(name, number.sub("", word, count=1).strip()) for name, word in pairs]
    words = {name: word for name, word in pairs if _is_name(word, name)}
    often = Counter([*words.values(), *known.difference(words)])
    return {name: word if often[word] == 1 else f"{word} ({name})" for name, word in words.items()}  # two cranes


def _pair(line: str, classes: set[str]) -> tuple[str, str] | None:
    """(folder, what the line says of it) of a line such as "n01440764 tench", with a tab, a comma or a space between;
    folders that are numbers may stand behind."""
    for separator in filter(line.__contains__, "\t, "):
        first, *rest = _parts(line.split(separator, 1))
        if first in classes and rest[0]:
            return first, rest[0]
        before, last = _parts(line.rsplit(separator, 1))
        if last in classes and ID.fullmatch(last) and not ID.fullmatch(before):
            return last, before
    return None


def _parts(parts: list[str]) -> list[str]:
    return [part.strip().strip('"') for part in parts]


def _is_name(word: str, folder: str) -> bool:
    """Whether a class may be called so; not by a number, an id or a path."""
    path = word.startswith(("/", "./", "../", "~")) or "\\" in word or word.lower().endswith(SUFFIXES)
    path = path or ("/" in word and PurePosixPath(word).name == PurePosixPath(folder).name)
    return bool(word) and printable(word) and not path and not ID.fullmatch(word)
