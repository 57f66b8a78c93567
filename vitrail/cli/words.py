"""Between the words of a command line and our values: tyro's complaints as sentences, options as values.

sentence("demo", complaint)                              # "--out needs a value; see vitrail demo --help."
options(["--optim.lr", "3e-4", "--compile"], "train takes one recipe")      # {"optim.lr": ["3e-4"], "compile": []}
overrides(["--patch-size", "8", "16", "--pool", "avg"])  # {"patch_size": (8, 16), "pool": "avg"}
"""

import difflib
import math
import re
from typing import Any

CONSTANTS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}


def sentence(name: str, box: str) -> str:
    """tyro's framed complaint as one sentence; a complaint that is not known here keeps its words."""
    # The frame is of box characters, or of hyphens where the terminal has none.
    text = " ".join(re.sub(r"[│╭╮╰╯─]|-{2,}(?=\s)", " ", box).split())
    text = text.partition(" Argument helptext:")[0].partition(" For full helptext")[0]
    if found := re.search(r"Missing value for argument '(--\S+)'", text):
        return f"{found[1]} needs a value; see vitrail {name} --help."
    if found := re.search(r"Missing from [^:]*: (--\S+ [A-Z]+)", text):
        return f"vitrail {name} needs {found[1]}; see vitrail {name} --help."
    if found := re.search(r"Missing (?:from .*?: ([A-Z]+)|value for argument '(\w+)')", text):
        what = (found[1] or found[2]).lower()
        return f"vitrail {name} needs {'' if what == 'data' else 'a '}{what}; name it before the options."
    if found := re.search(r"invalid choice ('.*?') for argument '(\S+)'\. Expected one of \((.*?)\)", text):
        return f"{found[2]} cannot be {found[1]}; choose one of {found[3].replace(chr(39), '')}."
    if found := re.search(r"Error parsing (\S+): .*?('[^\]]*')", text):
        return f"{found[1]} cannot be {found[2].replace(',', '')}; see vitrail {name} --help."
    return text


def options(rest: list[str], place: str) -> dict[str, list[str]]:
    """["--optim.lr", "3e-4", "--compile"] -> {"optim.lr": ["3e-4"], "compile": []}; hyphens are underscores in a name.

    place: what stands before the options, for the message. ValueError for words that belong to no option, and for an
    option that is given twice.
    """
    found: dict[str, list[str]] = {}
    words: list[str] | None = None
    for word in rest:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").replace("-", "_").partition("=")
            if name in found:
                raise ValueError(f"{option(name)} is given twice; leave one.")
            words = found[name] = [word.partition("=")[2]] if value else []
        elif words is None:
            raise ValueError(f"{word!r} belongs to no option; vitrail {place}.")
        else:
            words.append(word)
    return found


def overrides(rest: list[str]) -> dict[str, Any]:
    """["--patch-size", "8", "16", "--pool", "avg"] -> {"patch_size": (8, 16), "pool": "avg"}.

    ValueError as `options` raises, and for an option without a value.
    """
    found: dict[str, Any] = {}
    for name, words in options(rest, "info takes one model").items():
        if not words:
            near = difflib.get_close_matches(name, ("json", "help", "image_size"), n=1)
            raise ValueError(f"{option(name)} needs a value{f'; did you mean {option(near[0])}?' if near else '.'}")
        found[name] = plain(words[0]) if len(words) == 1 else tuple(map(plain, words))
    return found


def plain(word: str) -> Any:
    """A finite number, True, False or None where the word reads as one; otherwise the word."""
    if word in CONSTANTS:
        return CONSTANTS[word]
    for kind in (int, float):
        try:
            number = kind(word)
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    return word


def option(name: str) -> str:
    """ "optim.layer_decay" -> "--optim.layer-decay"."""
    return f"--{name.replace('_', '-')}"
