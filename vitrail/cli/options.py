"""A command's own options, and one for every field of a Run.

command, given = parse(Train, "vitrail train", ["small", "--data", "photos", "--optim.lr", "3e-4"])
run = override(run, given)                          # given is {"optim.lr": ["3e-4"]}
show(run, "vitrail train small", "A small ViT ...") # help: every option, its value and what it does
"""

import inspect
import json as jsonlib
import shutil
import textwrap
import typing
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, ClassVar, TypeVar

from tyro.conf import Positional, arg

from vitrail.cli.reading import names, option, read

T = TypeVar("T")
CommandT = TypeVar("CommandT", bound="Command")
Given = dict[str, list[str]]
Flag = Annotated[bool, arg(help_behavior_hint="")]  # without "(default: False)"
Model = Positional[Annotated[str, arg(metavar="MODEL")]]
DataPlace = Positional[Annotated[str, arg(metavar="DATA", help="The images, of any kind that vitrail train reads.")]]
Out = Annotated[str, arg(metavar="FOLDER", help_behavior_hint="")]

# One option for several fields, of those that there are.
TOGETHER = {
    "image_size": ("model.image_size", "preprocessing.image_size"),
    "model.channels": ("model.channels", "model.stem.channels"),
    "channels": ("channels", "stem.channels"),
}
OTHERS_SAY = """amp precision, batch_size batch, clip_grad optim.clip, epochs duration, hold_back data.val_fraction,
    img_size image_size, label_smoothing task.smoothing, learning_rate optim.lr, num_classes model.classes, num_workers
    workers, path data, steps duration, val_split data.val_fraction, wd optim.weight_decay"""
KNOWN_AS = {pair[0]: pair[1] for pair in map(str.split, OTHERS_SAY.split(","))}


@dataclass(kw_only=True)
class Command(ABC):
    """A command: its fields are its options, its docstring the help.

    extends: whether the fields of a Run or Config are options, too.
    """

    extends: ClassVar[bool] = False
    json: Flag = False
    """Print the result as one JSON document on standard output."""
    code: Annotated[tuple[str, ...], arg(metavar="FILE.py...", help_behavior_hint="")] = ()
    """Files with your own code (a task, an evaluator, data) that is needed; they are run first."""

    @abstractmethod
    def run(self, given: Given) -> None:
        """Does the work. given: options that are not the command's own. ValueError where it cannot be done."""

    def answer(self, document: Any, text: str) -> None:
        """Prints the result for programs or for people."""
        print(jsonlib.dumps(document, indent=2) if self.json else text)

    @classmethod
    def help(cls, prog: str, words: Sequence[str]) -> None:
        """Prints the help and exits."""
        show(cls, prog, inspect.getdoc(cls) or "")


def parse(kind: type[CommandT], prog: str, words: Sequence[str]) -> tuple[CommandT, Given]:
    """A command, and the options that are not its own. ValueError, in one sentence, for what cannot be read."""
    own = {field.name: field.default for field in fields(kind)}
    mine, given = split(words, own)
    if given and not kind.extends:
        raise ValueError(unknown(next(iter(given)), list(own), prog))
    command, left = read(kind, mine)
    if left:
        raise ValueError(f"{prog} has no place for {left[0]}; see {prog} --help.")
    if command is None:
        for word, after in pairwise([*mine, "--"]):
            if word.startswith("--") and after.startswith("--") and own.get(_name(word), False) is not False:
                raise ValueError(f"{option(_name(word))} needs a value; see {prog} --help.")
        hints = typing.get_type_hints(kind, include_extras=True)
        needed = {name: Positional in typing.get_args(hints[name]) for name in own if own[name] is MISSING}
        needs = " and ".join(name.upper() if placed else option(name) for name, placed in needed.items())
        raise ValueError(f"{prog} needs {needs}{', before other options' if given else ''}; see {prog} --help.")
    return command, given


def split(words: Sequence[str], own: Container[str]) -> tuple[list[str], Given]:
    """The words of own options and those before any option; the words of other options by their names.

    ValueError for an option that is given twice.
    """
    mine, given, seen = list[str](), Given(), set[str]()
    here = mine
    for place, word in enumerate(words):
        if word == "--":
            return [*mine, *words[place:]], given
        if not word.startswith("--"):
            here.append(word)
            continue
        flag, _, value = word.partition("=")
        name = _name(flag)
        if name in seen:
            raise ValueError(f"{option(name)} is given twice; leave one.")
        seen.add(name)
        if name in own:
            here = mine
            mine.append(word)
        else:
            here = given[name] = [value] if value else []
    return mine, given


def override(value: T, given: Mapping[str, Sequence[str]], command: Command | None = None, prefix: str = "") -> T:
    """A dataclass with the named fields replaced, all at once; names are in full (with the prefix).

    command: whose options may have been meant. ValueError for an unknown name, for words that are not of the field's
    type, and where a dataclass refuses its fields.
    """
    known, words = names(value, prefix), list[str]()
    for name, said in given.items():
        meant = [full for full in TOGETHER.get(name, (name,)) if full in known]
        if not meant:
            own = [field.name for field in fields(command)] if command else []
            raise ValueError(unknown(name, [*own, *TOGETHER, *known], "vitrail train RECIPE"))
        for full in meant:
            flag = option(full.removeprefix(prefix))
            words += [f"{flag}={said[0]}", *said[1:]] if said else [flag]  # after "=" a value may look like an option
    changed, left = read(value, words, prefix=prefix)
    if left or changed is None:
        raise ValueError(f"{(left or words)[0]!r} cannot be read; see vitrail train RECIPE --help.")
    return changed


def unknown(name: str, known: Sequence[str], prog: str) -> str:
    """The sentence for an option that does not exist, with the one that may have been meant."""
    near = nearest(name, known)
    return f"there is no {option(name)}; {f'did you mean {option(near)}?' if near else f'see {prog} --help.'}"


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The name that was meant, by its whole or its last part; None where none is near."""
    before, _, last = name.rpartition(".")
    if full := KNOWN_AS.get(last):
        return next((other for other in (full, full.rpartition(".")[2]) if other in known), None)
    ends = {other.rpartition(".")[2]: other for other in reversed(known)}
    near = [ends[end] for end in get_close_matches(last, ends, 1, 1.0 if before else 0.65)]
    return next(iter([*get_close_matches(name, known, 1, 0.65), *near]), None)


def show(what: Any, prog: str, about: str) -> None:
    """Prints the help for a command or a Run and exits. about: paragraphs, of which an indented one keeps its lines."""
    parts = about.replace("\nExpected:", "\n\nExpected:").split("\n\n")
    wrap = partial(textwrap.fill, width=shutil.get_terminal_size().columns, break_on_hyphens=False)
    print("\n\n".join(part if part[:1] in (" ", "") else wrap(" ".join(part.split())) for part in parts), end="\n\n")
    read(what, ["--help"], prog)


def columns(rows: Mapping[str, str]) -> str:
    """Names and the first lines of their texts, side by side."""
    wide = max(map(len, rows)) + 4
    wrap = partial(textwrap.fill, width=shutil.get_terminal_size().columns, subsequent_indent=" " * wide)
    return "\n".join(wrap(f"  {name}".ljust(wide) + text.splitlines()[0]) for name, text in rows.items())


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
