"""Values into the fields of frozen dataclasses: how run.json and config.json are read, and overrides are checked.

parse(Run, json.loads(text)["run"])
parse_field(vit.Config, "patch_size", [16, 16])      # (16, 16)
"""

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")


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
        raise ValueError(f"{field} is {value!r}; it must be {_name(hint)}.") from None


def _parse(kind: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _parse(next(a for a in arguments if a is not type(None)), value)
    if origin is typing.Literal:
        if value not in arguments:
            raise TypeError(f"{value!r} is none of {_name(kind)}")
        return value
    if is_dataclass(kind):
        return value if isinstance(value, typing.cast(type, kind)) else _dataclass(typing.cast(type, kind), value)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{value!r} is not a list")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise TypeError(f"{value!r} has {len(value)} elements, not {len(kinds)}")
        return tuple(_parse(k, v) for k, v in zip(kinds, value, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {_name(kind)}")
    return value


def _dataclass(kind: type, value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not {_name(kind)}")
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
            raise TypeError(f"{name}: {error}") from None
    return kind(**found)


def _name(hint: Any) -> str:
    """An annotation in words: "int or None", "pad or crop", "(int, int)"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_name, arguments))
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple:
        return f"({', '.join('...' if a is Ellipsis else _name(a) for a in arguments)})"
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a word", type(None): "None"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))
