"""JSON back into frozen dataclasses: every configuration survives, and what does not fit is named."""

import json
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import pytest

from vitrail.config import attribute, dump, kinds, parse, parse_field
from vitrail.models import resnet, vit
from vitrail.models.zoo import zoo
from vitrail.optim.build import Config as OptimConfig
from vitrail.optim.rules import Rule
from vitrail.recipes.demo import demo
from vitrail.run import Run
from vitrail.tasks import TaskConfig


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    count: int | None = None
    flag: bool = False
    inners: tuple[Inner, ...] = ()

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError("rate is below 0")


def through_json(value):
    return json.loads(json.dumps(dump(value)))


@pytest.mark.parametrize("name", zoo())
def test_every_zoo_configuration_survives_json(name):
    config = zoo()[name]
    assert parse(type(config), through_json(config)) == config


@pytest.mark.parametrize(
    "run",
    [
        demo(),
        demo("folder", "3 steps", 7),
        replace(demo(), optim=OptimConfig(rules=(Rule("head", lr=2.0), Rule("pos", decay=0.0)), clip=None)),
    ],
)
def test_a_run_survives_json(run):
    found = parse(Run, through_json(run))
    assert found == run
    assert isinstance(found.model.patch_size, tuple)


def test_values_take_the_types_of_the_annotations():
    found = parse(Outer, {"inner": {"size": [1, 2]}, "rate": 1, "count": None, "inners": [{"size": [3, 4]}]})
    assert found == Outer(Inner((1, 2)), rate=1.0, inners=(Inner((3, 4)),))
    assert type(found.rate) is float
    assert parse(Outer, {"inner": Inner((1, 2))}).inner == Inner((1, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "Outer has no field colour"),
        ({"zeal": 1, "air": 2}, "Outer has no field air, zeal"),
        ({"inner": {}}, "inner: Inner needs the field size"),
        ({"inner": [1, 2]}, r"inner: \[1, 2\] is not Inner"),
        ({"inner": None}, "inner: None is not Inner"),
        ({"inner": {"size": [1]}}, r"inner: size: \[1\] has 1 elements, not 2"),
        ({"inner": {"size": [1, 2, 3]}}, "has 3 elements, not 2"),
        ({"inner": {"size": [1, 2.0]}}, "size: 2.0 is not a whole number"),
        ({"inner": {"size": 1}}, "size: 1 is not a list"),
        ({"inner": {"size": "12"}}, "size: '12' is not a list"),
        ({"inner": {"size": [1, 2], "names": ["a", 3]}}, "names: 3 is not a word"),
        ({"rate": "1"}, "rate: '1' is not a number"),
        ({"rate": True}, "rate: True is not a number"),
        ({"kind": "c"}, "kind: 'c' is none of a or b"),
        ({"kind": None}, "kind: None is none of a or b"),
        ({"count": 1.5}, "count: 1.5 is not a whole number"),
        ({"count": True}, "count: True is not a whole number"),
        ({"flag": 1}, "flag: 1 is not True or False"),
        ({"flag": None}, "flag: None is not True or False"),
    ],
)
def test_what_does_not_fit_is_a_type_error_that_names_the_field(change, message):
    with pytest.raises(TypeError, match=f"{message}$"):
        parse(Outer, {"inner": {"size": [1, 2]}, **change})


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_object_is_refused(value):
    with pytest.raises(TypeError, match="is not Outer"):
        parse(Outer, value)


def test_a_missing_field_is_named():
    with pytest.raises(TypeError, match="Outer needs the field inner"):
        parse(Outer, {})


def test_what_the_dataclass_itself_refuses_stays_a_value_error():
    with pytest.raises(ValueError, match="rate is below 0"):
        parse(Outer, {"inner": {"size": [1, 2]}, "rate": -1.0})


@pytest.mark.parametrize(
    ("kind", "field", "value", "expected"),
    [
        (vit.Config, "patch_size", [16, 8], (16, 8)),
        (vit.Config, "patch_size", (16, 8), (16, 8)),
        (vit.Config, "classes", 10, 10),
        (vit.Config, "layer_scale", 1, 1.0),
        (vit.Config, "layer_scale", None, None),
        (vit.Config, "pool", "avg", "avg"),
        (vit.Config, "stem", None, None),
        (vit.Config, "stem", resnet.Config(classes=0), resnet.Config(classes=0)),
        (
            vit.Config,
            "stem",
            {"kind": "resnet", "config": {"classes": 0, "blocks": [1, 2]}},
            resnet.Config(blocks=(1, 2), classes=0),
        ),
        (resnet.Config, "blocks", [1, 2, 3], (1, 2, 3)),
        (resnet.Config, "blocks", [], ()),
    ],
)
def test_one_field_is_read_as_its_annotation_says(kind, field, value, expected):
    found = parse_field(kind, field, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("classes", "ten", "classes is 'ten'; it must be a whole number."),
        ("classes", 10.0, "classes is 10.0; it must be a whole number."),
        ("classes", None, "classes is None; it must be a whole number."),
        ("dropout", "x", "dropout is 'x'; it must be a number."),
        ("class_token", 0, "class_token is 0; it must be True or False."),
        ("pool", "max", "pool is 'max'; it must be token or avg or map."),
        ("layer_scale", "x", "layer_scale is 'x'; it must be a number or None."),
        ("representation", 1.5, "representation is 1.5; it must be a whole number or None."),
        ("patch_size", (1, 2, 3), "patch_size is (1, 2, 3); it must be (a whole number, a whole number)."),
        ("patch_size", 16, "patch_size is 16; it must be (a whole number, a whole number)."),
    ],
)
def test_a_field_that_cannot_be_is_a_sentence_with_field_value_and_kind(field, value, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        parse_field(vit.Config, field, value)
    assert str(caught.value) == message


def test_a_list_of_any_length_says_so():
    with pytest.raises(ValueError, match=r"blocks is 3; it must be \(a whole number, \.\.\.\)\."):
        parse_field(resnet.Config, "blocks", 3)


@dataclass(frozen=True)
class Animal(ABC):
    age: int = 0

    @abstractmethod
    def noise(self): ...


@dataclass(frozen=True)
class Cat(Animal):
    kind: ClassVar[str] = "cat"
    lives: int = 9

    def noise(self):
        return "meow"


@dataclass(frozen=True)
class Zoo:
    first: Animal
    others: tuple[Animal, ...] = ()
    model: vit.Config | resnet.Config | None = None


def test_one_of_several_kinds_is_tagged_and_read_back():
    zoo = Zoo(Cat(3), (Cat(lives=1), Cat()), resnet.Config(blocks=(1,)))
    text = dump(zoo)
    assert text["first"] == {"kind": "cat", "config": {"age": 3, "lives": 9}}
    assert text["model"]["kind"] == "resnet"
    assert parse(Zoo, json.loads(json.dumps(text))) == zoo
    assert kinds(Animal) == {"cat": Cat}
    assert kinds(vit.Config | resnet.Config) == {"vit": vit.Config, "resnet": resnet.Config}
    assert kinds(Inner) == kinds(int) == kinds(tuple[Animal, ...]) == {}


def test_a_kind_that_is_defined_later_is_read_too():
    @dataclass(frozen=True)
    class Dog(Animal):
        kind: ClassVar[str] = "dog"

        def noise(self):
            return "woof"

    assert parse(Zoo, dump(Zoo(Dog(1)))).first == Dog(1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "newt", "config": {}}, "first: .*'newt' .* cat"),
        ({"kind": "cat", "config": {"wings": 2}}, "Cat has no field wings"),
        ({"kind": "cat"}, "kind.*config"),
        ({"age": 3}, "kind.*config"),
        (None, "kind.*config"),
    ],
)
def test_a_kind_that_cannot_be_read_is_named(value, message):
    with pytest.raises(TypeError, match=message):
        parse(Zoo, {"first": value})


def test_a_kind_of_ours_is_not_replaced():
    @dataclass(frozen=True)
    class Other(TaskConfig):
        kind: ClassVar[str] = "classify"

        def task(self, model, preprocessing, class_names): ...

    with pytest.raises(ValueError, match="'classify'"):
        kinds(TaskConfig)
    Other.kind = "another"  # it stays a subclass for as long as this process lives


def test_code_of_the_users_own_runs_once_and_only_where_it_may(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_code.py").write_text("VALUE = 7\n")
    mine = tmp_path / "mine_code.py"
    mine.write_text("import beside_code\nfrom vitrail import run\nRUNS = []\nRUNS.append(beside_code.VALUE)\n")
    with pytest.raises(ValueError, match=rf"{mine}.*--code"):
        attribute(f"{mine}:RUNS")
    assert attribute(f"{mine}:RUNS", run=True) == [7]
    assert attribute(f"{mine}:RUNS") is attribute(f"{mine}:RUNS", run=True)
    monkeypatch.chdir(tmp_path)
    assert attribute("mine_code.py:RUNS") is attribute(f"{mine}:RUNS")
    with pytest.raises(ValueError, match=r"mine_code\.py.*'Missing'"):
        attribute("mine_code.py:Missing")
    (tmp_path / "json.py").write_text("NAME = 'not the standard library'\n")
    assert attribute("json.py:NAME", run=True).startswith("not")
    assert json.loads("[1]") == [1]


@pytest.mark.parametrize(
    ("text", "message"), [(None, r"no\.py"), ("1 / 0", r"no\.py.*ZeroDivisionError"), ("(", r"no\.py.*SyntaxError")]
)
def test_code_that_cannot_be_run_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "no.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        attribute(f"{tmp_path / 'no.py'}:x", run=True)
