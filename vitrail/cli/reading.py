"""Words into dataclasses by tyro, with sentences in place of its boxes.

    command, left = read(Predict, ["runs/demo", "a.jpg"])
    run, _ = read(run, ["--optim.lr=3e-4"])             # the run with that field replaced

tyro draws a box around what it refuses, and exits. The ValueError is still in the context of that exit: that of the
dataclass itself, or of our reader of a field, which a rule of ours, `_structure`, puts around tyro's own.
"""

import ast
import contextlib
import dataclasses
import inspect
import io
import math
import re
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from vitrail.config import name_of

FIXED = ("recipe", "data.path")  # given before the options
COMMAND, RUN = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone), (tyro.conf.FlagConversionOff,)


def read(what: Any, words: Sequence[str], prog: str = "", prefix: str = "") -> tuple[Any, list[str]]:
    """What the words make of a command's class, or of a dataclass, whose fields they replace all at once; and the words
    that belong to no option. (None, []) where required words are missing.

    prog: prints the help under this name for --help, and exits. prefix: before the names of fields in messages.
    ValueError for words that are not of the field's type, and where a dataclass refuses its fields.
    """
    given = {} if isinstance(what, type) else {"default": what}
    registry = ConstructorRegistry()
    registry.struct_rule(partial(_structure, {id(part): place for place, part in _parts(what, prefix)}))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(
                type(what) if given else what,
                prog=prog,
                description="",
                args=words,
                return_unknown_args=True,
                add_help=bool(prog),
                config=RUN if given else COMMAND,
                registry=registry,
                **given,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        error = stop.__context__
        while error is not None and not isinstance(error, ValueError):
            error = error.__context__
        if error is not None:
            raise error from None
        return None, []


def names(value: Any, prefix: str = "") -> list[str]:
    """The options for a dataclass, dotted where fields have fields."""
    found = ((place, field) for place, part in _parts(value, prefix) for field in _fields(type(part), part, place))
    return [place + field.name for place, field in found if not is_dataclass(field.default)]


def option(name: str) -> str:
    """ "optim.layer_decay" -> "--optim.layer-decay"."""
    return f"--{name.replace('_', '-')}"


@cache
def describe(kind: type) -> Mapping[str, str]:
    """What each field of a dataclass is: the string below it, or what a class's docstring says after its name."""
    name = rf"(?:{'|'.join(field.name for field in fields(kind))})"
    found = dict[str, str]()
    for owner in reversed(kind.__mro__):
        if not is_dataclass(owner):
            continue
        _, *parts = re.split(rf"\b({name}(?:, {name})*): ", " ".join((owner.__doc__ or "").split()))
        found |= {n: text for named, text in zip(parts[::2], parts[1::2], strict=True) for n in named.split(", ")}
        source: Any = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        for pair in pairwise(source.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(field)), ast.Expr(ast.Constant(str(text))):
                    found[field] = " ".join(text.split())
    return {field: text.rstrip("; ") for field, text in found.items()}


def _parts(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A dataclass and those in it, each after what stands before the names of its fields."""
    yield prefix, value
    for field in () if isinstance(value, type) else fields(value):
        if is_dataclass(inner := getattr(value, field.name)):
            yield from _parts(inner, f"{prefix}{field.name}.")


def _structure(places: Mapping[int, str], info: StructTypeInfo) -> StructConstructorSpec | None:
    """tyro's rule for the command or the dataclasses with these ids; others have no options."""
    if id(info.default) in places:
        found = _fields(info.type, info.default, places[id(info.default)])
        return StructConstructorSpec(partial(replace, info.default), tuple(found))
    return StructConstructorSpec(info.type, tuple(_fields(info.type, None, ""))) if id(info.type) in places else None


def _fields(kind: type, value: Any, prefix: str) -> Iterator[StructFieldSpec]:
    """The fields that words can express, with our readers. value: a dataclass of that kind, None for a command."""
    own = list(inspect.get_annotations(kind))  # what all commands have comes last
    for field in sorted(fields(kind), key=lambda field: [*own, field.name].index(field.name)):
        default = field.default if value is None else getattr(value, field.name)
        hint, name = typing.get_type_hints(kind, include_extras=True)[field.name], prefix + field.name
        if is_dataclass(default):
            yield StructFieldSpec(field.name, type(default), default)
        elif (value is None or name not in FIXED) and (spec := _spec(hint, name, value is None)):
            default = tyro.MISSING if default is dataclasses.MISSING else default
            yield StructFieldSpec(field.name, Annotated[hint, spec], default, partial(_about, kind, field.name))  # type: ignore[arg-type]


def _about(kind: type, field: str) -> str:
    return describe(kind).get(field, "")


def _spec(annotation: Any, name: str, command: bool) -> PrimitiveConstructorSpec[Any] | None:
    """How words become a value; None for a field that words cannot express. command: an option of the command itself,
    after whose value there may be other words."""
    info = PrimitiveTypeInfo.make(annotation, set())
    kind, parse = next(iter(typing.get_args(info.type)), None), None
    if info.type_origin is tuple and isinstance(kind, type) and "parse" in vars(kind):  # such as rules
        info, parse = PrimitiveTypeInfo.make(tuple[str, ...], set()), kind.parse
    spec = ConstructorRegistry.get_primitive_spec(info)
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    if command and info.type in (bool, str, tuple[str, ...]):  # any word will do
        return spec
    nargs = 1 if command and spec.nargs == 1 else "*"
    return replace(spec, nargs=nargs, choices=None, instance_from_str=partial(_value, spec, info.type, name, parse))


def _value(
    spec: PrimitiveConstructorSpec[Any], hint: Any, name: str, parse: Callable[[str], Any] | None, words: Sequence[str]
) -> Any:
    """The value that tyro reads. For fewer words to type, an option alone is True, one number a square, several words a
    text. ValueError for others."""
    if hint is bool:
        words = [word.capitalize() for word in words] or ["True"]
    elif hint is not str and typing.get_origin(hint) is not Literal:
        words = ["None" if word.lower() == "none" else word for word in words]
    said = " ".join(words)
    if not words:
        raise ValueError(f"{option(name)} needs a value.")
    if said == "None" and typing.get_origin(hint) is tuple:
        return ()
    if parse is not None:
        try:
            return tuple(map(parse, words))
        except ValueError as error:
            raise ValueError(f"{option(name)}: {error}") from None
    if spec.nargs == 1:
        words = [said]
    elif len(words) == 1 and said not in ("None", "any") and tuple[int, int] in (hint, *typing.get_args(hint)):
        words = [said, said]
    counts = (spec.nargs,) if isinstance(spec.nargs, int) else spec.nargs
    if (counts == "*" or len(words) in counts) and set(words) <= set(spec.choices or words):
        with contextlib.suppress(ValueError, TypeError):
            value = spec.instance_from_str(list(words))
            if all(math.isfinite(v) for v in (value if isinstance(value, tuple) else [value]) if isinstance(v, float)):
                return value
    raise ValueError(f"{option(name)} is {said[:80]!r}; it must be {name_of(hint)}.")
