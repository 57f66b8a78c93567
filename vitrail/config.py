"""Frozen dataclasses to JSON and back: how run.json and config.json are written and read, and overrides are checked.

    text = json.dumps(dump(run))
    run = parse(Run, json.loads(text))
    parse_field(vit.Config, "patch_size", [16, 16])      # (16, 16)

Where a field may hold one of several dataclasses, each has a `kind`, and the JSON says which it is:
{"kind": "vit", "config": {...}}. Which there are, the annotation tells: the members of a union, or the subclasses of an
abstract class, those in a file of the user's among them (`attribute`).
"""

import inspect
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

UNIONS = (typing.Union, types.UnionType)
PACKAGE = "vitrail."


class UnknownKind(TypeError):
    """A kind that no class here has, perhaps because it is in a file of the user's."""


def dump(value: Any) -> Any:
    """A value of dataclasses, tuples, lists, dicts and plain values as JSON has it."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {field.name: dump(getattr(value, field.name)) for field in fields(value)}
        kind = _kind(type(value))
        return found if kind is None else {"kind": kind, "config": found}
    if isinstance(value, dict):
        return {name: dump(item) for name, item in value.items()}
    return [dump(item) for item in value] if isinstance(value, tuple | list) else value


def parse(kind: type[T], value: Any) -> T:
    """JSON back into a dataclass, field by field, with tuples and nested dataclasses as the annotations say.

    TypeError where a value is not of its annotation; ValueError where the dataclass itself refuses it.
    """
    return typing.cast(T, _parse(kind, value))


def parse_field(kind: type, field: str, value: Any) -> Any:
    """A value for one field of a dataclass, lists as tuples. ValueError where it is not of the field's annotation."""
    hint = typing.get_type_hints(kind)[field]
    try:
        return _parse(hint, value)
    except TypeError:
        raise ValueError(f"{field} is {value!r}; it must be {name_of(hint)}.") from None


def kinds(base: Any) -> dict[str, type]:
    """The dataclasses that a field of this annotation may hold, by their `kind`; none where they have none.

    ValueError where code of the user's has a kind that is ours.
    """
    members = typing.get_args(base) if typing.get_origin(base) in UNIONS else (base,)
    found: dict[str, type] = {}
    for kind in (kind for member in members if isinstance(member, type) for kind in _family(member)):
        if (name := _kind(kind)) is None:
            continue
        if name in found and kind.__module__.startswith(PACKAGE) != found[name].__module__.startswith(PACKAGE):
            raise ValueError(f"{kind.__module__} has a kind {name!r}, which Vitrail has already; give it another name.")
        found[name] = kind
    return found


def attribute(reference: str, run: bool = False) -> Any:
    """What "folder/file.py:name" refers to. run: whether the file may be run, where it has not been yet.

    It can import other files in its folder. ValueError where it is not such a reference, may not be run, fails, or has
    no such name.
    """
    place, _, name = reference.rpartition(":")
    path = Path(place).resolve()
    module = next((m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == str(path)), None)
    if module is None:
        if not run:
            raise ValueError(f"{reference} is code of your own, which runs only if you say so: --code {place}")
        if path.suffix != ".py" or not path.is_file():
            raise ValueError(f"{place} is not a Python file; {reference!r} must name one, and something in it.")
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # at the end: it hides no other module
        # Where another module has the file's name, its path is its name.
        mine = path.stem.isidentifier() and getattr(find_spec(path.stem), "origin", None) == str(path)
        spec = spec_from_file_location(path.stem if mine else str(path), path)
        module = sys.modules[spec.name] = module_from_spec(spec)  # type: ignore[union-attr, arg-type]
        try:
            spec.loader.exec_module(module)  # type: ignore[union-attr]
        except Exception as error:
            del sys.modules[module.__name__]
            raise ValueError(f"{place} cannot be run ({type(error).__name__}: {error}).") from error
    if name not in vars(module):
        raise ValueError(f"{place} has nothing called {name!r}.")
    return vars(module)[name]


def _kind(kind: type) -> str | None:
    """A dataclass's tag: an attribute of the class. A field of that name is none."""
    found = getattr(kind, "kind", None)
    return found if isinstance(found, str) and "kind" not in {field.name for field in fields(kind)} else None


def _family(kind: type) -> Iterator[type]:
    """A dataclass and those that are derived from it, but for the abstract ones."""
    if is_dataclass(kind) and not inspect.isabstract(kind):
        yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


def _parse(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS and value is None and type(None) in arguments:
        return None
    if tagged := kinds(hint):
        return _tagged(tagged, value)
    if origin in UNIONS:
        if any(type(value) is member for member in arguments):
            return value
        return _parse(next(a for a in arguments if a is not type(None)), value)
    if origin is typing.Literal:
        if value not in arguments:
            raise TypeError(f"{value!r} is none of {name_of(hint)}")
        return value
    if is_dataclass(hint):
        return value if isinstance(value, typing.cast(type, hint)) else _dataclass(typing.cast(type, hint), value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{value!r} is not a list")
        items = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(items) != len(value):
            raise TypeError(f"{value!r} has {len(value)} elements, not {len(items)}")
        return tuple(_parse(k, v) for k, v in zip(items, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TypeError(f"{value!r} is not {name_of(hint)}")
    return value


def _tagged(tagged: dict[str, type], value: Any) -> Any:
    if isinstance(value, tuple(tagged.values())):
        return value
    if not isinstance(value, dict) or set(value) != {"kind", "config"}:
        raise TypeError(f'{value!r} is not {{"kind": ..., "config": ...}}')
    if value["kind"] not in tagged:
        raise UnknownKind(f"the kind {value['kind']!r} is not known here; there is {', '.join(sorted(tagged))}")
    return _dataclass(tagged[value["kind"]], value["config"])


def _dataclass(kind: type, value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not {name_of(kind)}")
    hints, known = typing.get_type_hints(kind), {field.name for field in fields(kind)}
    if unknown := set(value) - known:
        raise TypeError(f"{kind.__name__} has no field {', '.join(sorted(unknown))}")
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if missing := required - set(value):
        raise TypeError(f"{kind.__name__} needs the field {', '.join(sorted(missing))}")
    found = {}
    for name, item in value.items():
        try:
            found[name] = _parse(hints[name], item)
        except TypeError as error:
            raise type(error)(f"{name}: {error}") from None
    return kind(**found)


def name_of(hint: Any) -> str:
    """An annotation in words: "a whole number or None", "pad or crop", "(a whole number, a whole number)"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return " or ".join(map(name_of, arguments))
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return f"({', '.join('...' if a is Ellipsis else name_of(a) for a in arguments)})"
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a word", type(None): "None"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))
