"""Between the words of a command line and our values: tyro's complaints as sentences, overrides as fields.

sentence("demo", complaint)                              # "--out needs a value; see vitrail demo --help."
overrides(["--patch-size", "8", "16", "--pool", "avg"])  # {"patch_size": (8, 16), "pool": "avg"}
"""

import difflib
import json
import re
from typing import Any


def sentence(name: str, box: str) -> str:
    """tyro's framed complaint as one sentence; a complaint that is not known here keeps its words."""
    # The frame is of box characters, or of hyphens where the terminal has none.
    text = " ".join(re.sub("[│╭╮╰╯]|[─-]{3,}", " ", box).split())
    text = text.partition(" Argument helptext:")[0].partition(" For full helptext")[0]
    if found := re.search(r"Missing value for argument '(--\S+)'", text):
        return f"{found[1]} needs a value; see vitrail {name} --help."
    if found := re.search(r"Missing (?:from .*?: ([A-Z]+)|value for argument '(\w+)')", text):
        return f"vitrail {name} needs a {(found[1] or found[2]).lower()}; name it before the options."
    if found := re.search(r"invalid choice ('.*?') for argument '(\S+)'\. Expected one of \((.*?)\)", text):
        return f"{found[2]} cannot be {found[1]}; choose one of {found[3].replace(chr(39), '')}."
    if found := re.search(r"Error parsing (\S+): .*?('[^\]]*')", text):
        return f"{found[1]} cannot be {found[2].replace(',', '')}; see vitrail {name} --help."
    return text


def overrides(rest: list[str]) -> dict[str, Any]:
    """["--patch-size", "8", "16", "--pool", "avg"] -> {"patch_size": (8, 16), "pool": "avg"}.

    ValueError for words that belong to no option, and an option without a value.
    """
    found: dict[str, Any] = {}
    name = ""
    for word in rest:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").replace("-", "_").partition("=")
            found[name] = [value] if value else []
        elif name:
            found[name].append(word)
        else:
            raise ValueError(f"{word!r} belongs to no option; vitrail info takes one model.")
    for name, words in found.items():
        if not words:
            near = difflib.get_close_matches(name, ("json", "help", "image_size"), n=1)
            hint = f"; did you mean --{near[0].replace('_', '-')}?" if near else "."
            raise ValueError(f"--{name.replace('_', '-')} needs a value{hint}")
        values = [_value(word) for word in words]
        found[name] = values[0] if len(values) == 1 else tuple(values)
    return found


def _value(word: str) -> Any:
    """A number, true, false or null where it reads as one; otherwise the word."""
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(word, word))
    except json.JSONDecodeError:
        return word
