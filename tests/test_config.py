"""JSON back into frozen dataclasses: every configuration survives, and what does not fit is named."""

import json
import re
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


def through_json(value):
    return json.loads(json.dumps(dump(value)))


@pytest.mark.parametrize("name", zoo())
def test_every_zoo_configuration_survives_json(name):
    config = zoo()[name]
    assert parse(type(config), through_json(config)) == config


def test_a_run_survives_json():
    rules = (Rule("head", lr=2.0), Rule("pos", decay=0.0))
    run = replace(demo("folder", "3 steps", 7), optim=OptimConfig(rules=rules, clip=None))
    found = parse(Run, through_json(run))
    assert found == run
    assert isinstance(found.model.patch_size, tuple)


UNFIT = [
    ({"zeal": 1, "air": 2}, "Outer has no field air, zeal"), ({"inner": {}}, "inner: Inner needs the field size"),
    ({"inner": [1, 2]}, "inner: [1, 2] is not Inner"), ({"inner": None}, "inner: None is not Inner"),
    ({"inner": {"size": [1]}}, "inner: size: [1] has 1 elements, not 2"), ({"rate": "1"}, "rate: '1' is not a number"),
    ({"inner": {"size": [1, 2.0]}}, "size: 2.0 is not a whole number"), ({"rate": True}, "rate: True is not a number"),
    ({"inner": {"size": "12"}}, "size: '12' is not a list"), ({"kind": "c"}, "kind: 'c' is none of a or b"),
    ({"inner": {"size": [1, 2], "names": ["a", 3]}}, "names: 3 is not a word"),
    ({"count": 1.5}, "count: 1.5 is not a whole number"), ({"count": True}, "count: True is not a whole number"),
    ({"flag": 1}, "flag: 1 is not True or False"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), UNFIT)
def test_what_does_not_fit_is_a_type_error_that_names_the_field(change, message):
    with pytest.raises(TypeError, match=f"{re.escape(message)}$"):
        parse(Outer, {"inner": {"size": [1, 2]}, **change})
    with pytest.raises(ValueError, match="rate is below 0"):  # what the dataclass itself refuses
        parse(Outer, {"inner": {"size": [1, 2]}, "rate": -1.0})


READ = [
    (vit.Config, "patch_size", [16, 8], (16, 8)), (vit.Config, "layer_scale", 1, 1.0),
    (vit.Config, "layer_scale", None, None), (vit.Config, "pool", "avg", "avg"),
    (vit.Config, "stem", resnet.Config(classes=0), resnet.Config(classes=0)),
    (vit.Config, "stem", {"kind": "resnet", "config": {"classes": 0}}, resnet.Config(classes=0)),
    (resnet.Config, "blocks", [1, 2, 3], (1, 2, 3)), (resnet.Config, "blocks", [], ()),
    (Outer, "inners", [{"size": [3, 4]}], (Inner((3, 4)),)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "field", "value", "expected"), READ)
def test_one_field_is_read_as_its_annotation_says(kind, field, value, expected):
    found = parse_field(kind, field, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("field", "value", "must"), [
    ("classes", 10.0, "a whole number"), ("dropout", "x", "a number"), ("class_token", 0, "True or False"),
    ("pool", "max", "token or avg or map or token_avg or distilled"), ("representation", 1.5, "a whole number or None"),
    ("patch_size", 16, "(a whole number, a whole number)"), ("blocks", 3, "(a whole number, ...)"),
])  # fmt: skip
def test_a_field_that_cannot_be_is_a_sentence_with_field_value_and_kind(field, value, must):
    message = re.escape(f"{field} is {value!r}; it must be {must}.")
    with pytest.raises(ValueError, match=f"^{message}$"):
        parse_field(resnet.Config if field == "blocks" else vit.Config, field, value)


def test_one_of_several_kinds_is_tagged_and_read_back():
    zoo = Zoo(Cat(3), (Cat(lives=1), Cat()), resnet.Config(blocks=(1,)))
    text = through_json(zoo)
    assert text["first"] == {"kind": "cat", "config": {"age": 3, "lives": 9}}
    assert text["model"]["kind"] == "resnet"
    assert parse(Zoo, text) == zoo
    assert kinds(Animal) == {"cat": Cat}
    for value, message in (
        ({"kind": "newt", "config": {}}, "first: .*'newt' .* cat"),
        ({"kind": "cat", "config": {"wings": 2}}, "Cat has no field wings"),
        ({"kind": "cat"}, "kind.*config"),
        (None, "kind.*config"),
    ):
        with pytest.raises(TypeError, match=message):
            parse(Zoo, {"first": value})
    assert kinds(vit.Config | resnet.Config) == {"vit": vit.Config, "resnet": resnet.Config}
    assert kinds(Inner) == kinds(int) == kinds(tuple[Animal, ...]) == {}


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
    for text, fault in (("1 / 0", "ZeroDivisionError"), ("(", "SyntaxError")):
        (tmp_path / "no.py").write_text(text)
        with pytest.raises(ValueError, match=rf"no\.py.*{fault}"):
            attribute(f"{tmp_path / 'no.py'}:x", run=True)
