"""An option for every field of a Run, dotted where fields have fields.

    run = override(run, {"optim.lr": ["3e-4"], "image_size": ["160"]})
    print(table(run, 80))                               # every option, what it takes, what it is, what it does

The values are read as the annotations say (parse.py), rules as Rule.parse reads them. All fields of one dataclass are
replaced at once, so that what belongs together may be given in any order.
"""

import ast
import difflib
import inspect
import re
import shlex
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

from vitrail.cli.words import option, plain
from vitrail.config import parse_field
from vitrail.optim.rules import Rule

T = TypeVar("T")

# One option for two fields that only make sense together: the size of the images, and what the model is made for.
TOGETHER = {"image_size": ("model.image_size", "preprocessing.image_size")}
# A recipe's name and its data are given before the options.
FIXED = ("recipe", "data.path")
# What others call it.
KNOWN_AS = {
    "learning_rate": "optim.lr",
    "wd": "optim.weight_decay",
    "batch_size": "batch",
    "epochs": "duration",
    "steps": "duration",
}


@dataclass(frozen=True)
class Leaf:
    """A field that has no fields. name: dotted. owner: the dataclass that it is in."""

    name: str
    owner: type
    value: Any

    @property
    def field(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def hint(self) -> Any:
        return typing.get_type_hints(self.owner)[self.field]

    def read(self, words: Sequence[str]) -> Any:
        """The words as a value of the field. ValueError, naming the option, for those that cannot be one."""
        if not words and self.hint is not bool:
            raise ValueError(f"{option(self.name)} needs a value.")
        if self.field in ("image_size", "patch_size") and len(words) == 1:
            words = [*words, *words]  # a square
        try:
            return parse_field(self.owner, self.field, _value(self.hint, words))
        except ValueError as error:
            raise ValueError(str(error).replace(f"{self.field} is", f"{option(self.name)} is", 1)) from None


def leaves(value: Any, prefix: str = "") -> Iterator[Leaf]:
    """Every field that can be an option, in the order of the dataclasses. prefix: in front of the names."""
    for field in fields(value):
        inner, name = getattr(value, field.name), prefix + field.name
        if is_dataclass(inner):
            yield from leaves(inner, f"{name}.")
        elif name not in FIXED and (inner is not None or not _holds_fields(type(value), field.name)):
            yield Leaf(name, type(value), inner)


def override(value: T, words: Mapping[str, Sequence[str]], own: Iterable[str] = (), prefix: str = "") -> T:
    """A dataclass with the fields replaced that are named (in full, prefix and all).

    own: the command's other options, which may have been meant. ValueError for a name that is none, with the nearest
    that is, and for a value that is not of the field's type, or that a dataclass refuses.
    """
    known = {leaf.name: leaf for leaf in leaves(value, prefix)}
    changes = {}
    for name, said in words.items():
        for full in TOGETHER.get(name, (name,)):
            if full not in known:
                near = nearest(name, [*own, *TOGETHER, *known])
                hint = f"did you mean {option(near)}?" if near else "vitrail train RECIPE --help lists all."
                raise ValueError(f"there is no {option(name)}; {hint}")
            changes[full.removeprefix(prefix)] = known[full].read(said)
    return _replaced(value, changes)


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The option that was meant, by its whole name or its last part; None where none is near."""
    last = name.rpartition(".")[2]
    if last in KNOWN_AS:
        return KNOWN_AS[last]

    def likeness(other: str) -> float:
        pairs = ((name, other), (last, other.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    best = max(known, key=likeness)
    return best if likeness(best) >= 0.65 else None


def table(run: Any, width: int) -> str:
    """Every option with what it takes, its value in the run, and what it is; lines of at most `width` columns."""
    known = sorted(leaves(run), key=lambda leaf: "." in leaf.name)
    about = {owner: describe(owner) for owner in {leaf.owner for leaf in known}}
    wrap = partial(textwrap.wrap, width=width, subsequent_indent=" " * 4, break_on_hyphens=False)
    lines, group = list[str](), ""
    for leaf in known:
        if (here := leaf.name.rpartition(".")[0]) != group:
            lines, group = [*lines, ""], here
        lines += wrap(f"{option(leaf.name)} {_takes(leaf.hint)} = {_typed(leaf.value)}")
        lines += wrap(about[leaf.owner].get(leaf.field, ""), initial_indent=" " * 4)
    return "\n".join(lines)


def describe(kind: type) -> dict[str, str]:
    """What each field of a dataclass is: the string below it, or what the class's docstring says behind its name."""
    name = rf"(?:{'|'.join(field.name for field in fields(kind))})"
    _, *parts = re.split(rf"\b({name}(?:, {name})*): ", " ".join((kind.__doc__ or "").split()))
    found = {field: text for names, text in zip(parts[::2], parts[1::2], strict=True) for field in names.split(", ")}
    owner = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(owner, ast.ClassDef)
    for field, below in pairwise(owner.body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return {field: text.rstrip("; ") for field, text in found.items()}


def _holds_fields(owner: type, field: str) -> bool:
    """Whether a field without a value would have fields if it had one, such as a model's stem."""
    return any(map(is_dataclass, typing.get_args(typing.get_type_hints(owner)[field])))


def _value(hint: Any, words: Sequence[str]) -> Any:
    """What the words say to a field of that annotation, as JSON would; what does not fit is left for parse_field."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if [word.lower() for word in words] == ["none"]:
            return None
        return _value(next(a for a in arguments if a is not type(None)), words)
    if origin is tuple:
        return [_value(arguments[0], [word]) for word in words if word.lower() != "none"]
    if hint is bool and not words:
        return True
    word = " ".join(words)  # --duration 3 epochs
    if hint is Rule:
        return Rule.parse(word)
    return word if hint is str or origin is typing.Literal else plain(word)


def _replaced(value: T, changes: Mapping[str, Any]) -> T:
    here, below = {}, dict[str, dict[str, Any]]()
    for name, new in changes.items():
        first, _, rest = name.partition(".")
        if rest:
            below.setdefault(first, {})[rest] = new
        else:
            here[first] = new
    inner = {field: _replaced(getattr(value, field), changed) for field, changed in below.items()}
    return replace(value, **here, **inner)  # type: ignore[type-var]


def _takes(hint: Any) -> str:
    """An annotation as help texts write it: "N | None", "NUMBER NUMBER"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_takes, arguments))
    if origin is typing.Literal:
        return " | ".join(arguments)
    if origin is tuple:
        return " ".join("..." if a is Ellipsis else _takes(a) for a in arguments)
    words = {int: "N", float: "NUMBER", bool: "True | False", str: "TEXT", type(None): "None", Rule: "REGEX:lr=X"}
    return words[hint]


def _typed(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, tuple):
        return " ".join(map(_typed, value)) or "None"
    return shlex.quote(value) if isinstance(value, str) else str(value)
