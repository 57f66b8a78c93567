"""Every field of a Run is an option: found by its name, read as its annotation says, explained in the help."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.cli.options import nearest, override, split
from vitrail.cli.reading import describe, names
from vitrail.cli.train import Train
from vitrail.data.sources.open import Data
from vitrail.models import resnet, vit
from vitrail.optim.rules import Rule
from vitrail.recipes.demo import demo

NAMES = names(demo())
HYBRID = replace(demo(), model=vit.Config(channels=1, patch_size=(1, 1), stem=resnet.Config(channels=1, classes=0)))


def value(run, name):
    for part in name.split("."):
        run = getattr(run, part)
    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("batch 1_000", 1000),
        ("optim.lr 3e-4", 3e-4),
        ("optim.lr 1", 1.0),
        ("optim.clip none", None),
        ("optim.clip 2", 2.0),
        ("optim.betas 0.9 0.95", (0.9, 0.95)),
        ("optim.rules head:lr=10 ^patch_embed:freeze", (Rule("head", lr=10.0), Rule("^patch_embed", lr=0.0))),
        ("optim.rules -a:freeze", (Rule("-a", lr=0.0),)),
        ("optim.rules None", ()),
        ("optim.schedule.warmup 5%", "5%"),
        ("duration 3 epochs", "3 epochs"),
        ("data.label_column True", "True"),
        ("data.val_fraction 0.25", 0.25),
        ("augment.crop none", "none"),
        ("task.head_bias -6.9", -6.9),
        ("model.patch_size 14", (14, 14)),
        ("model.patch_size 14 7", (14, 7)),
        ("compile True", True),
        ("compile false", False),
        ("compile", True),
        ("workers 0", 0),
        ("start hf-hub:a/b", "hf-hub:a/b"),
        ("start None", None),
    ],
)
def test_a_field_is_read_as_its_annotation_says(words, expected):
    name, *words = words.split()
    run = override(demo(), {name: words})
    assert value(run, name) == expected
    assert type(value(run, name)) is type(expected)
    unchanged = [other for other in NAMES if other != name]
    assert [value(run, other) for other in unchanged] == [value(demo(), other) for other in unchanged]


def test_one_option_sets_fields_that_belong_together():
    run = override(demo(), {"image_size": ["56", "42"]})
    assert run.model.image_size == run.preprocessing.image_size == (56, 42)
    assert override(demo(), {"image_size": ["56"]}).model.image_size == (56, 56)
    model = override(HYBRID.model, {"channels": ["3"]})
    assert (model.channels, model.stem.channels) == (3, 3)


def test_fields_are_replaced_all_at_once():
    words = {"augment.shift": ["2"], "optim.weight_decay": ["0"], "augment.crop": ["shift"], "optim.name": ["sgd"]}
    for order in (list(words), list(reversed(words))):
        run = override(demo(), {name: words[name] for name in order})
        assert (run.augment.shift, run.optim.name) == (2, "sgd")


def test_the_options_are_the_fields_that_there_are():
    assert {"recipe", "data.path", "evaluate"}.isdisjoint(NAMES)  # given before the options; not expressed in words
    assert {"optim.schedule.warmup", "task.smoothing", "optim.rules", "model.pool"} <= set(NAMES)
    assert not any(name.startswith("model.stem") for name in NAMES)
    assert override(HYBRID, {"model.stem.blocks": ["1", "2"]}).model.stem.blocks == (1, 2)
    convolutional = replace(demo(), model=resnet.Config(channels=1))
    assert override(convolutional, {"model.width_factor": ["2"]}).model == resnet.Config(channels=1, width_factor=2)
    assert override(Data("photos"), {"data.val_fraction": ["0.3"]}, prefix="data.") == Data("photos", val_fraction=0.3)


MEANT = """optim.learning_rate optim.lr, lr optim.lr, optim.lrr optim.lr, wd optim.weight_decay, epochs duration,
    batch_size batch, mixp augment.mixup, augment.mixp augment.mixup, data.hold_back data.val_fraction, imagesize
    image_size, depth model.depth, jsn json, zzz None, model.stem.blocks None, data.path data"""


@pytest.mark.parametrize(("name", "meant"), [pair.split() for pair in MEANT.split(",")])
def test_an_unknown_name_is_answered_with_the_nearest_or_none(name, meant):
    hint = "see vitrail train RECIPE --help" if meant == "None" else f"did you mean --{meant.replace('_', '-')}?"
    with pytest.raises(ValueError, match=rf"no --{name.replace('_', '-')}; ") as caught:
        override(demo(), {name: ["1"]}, Train())
    assert hint in str(caught.value)


def test_what_others_call_it_is_hinted_only_where_it_exists():
    assert nearest("num_classes", ["classes", "depth"]) == "classes"
    assert nearest("learning_rate", ["out", "seed"]) is None


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("optim.lr x", ["--optim.lr", "'x'", "a number"]),
        ("optim.lr nan", ["--optim.lr", "'nan'"]),
        ("optim.lr 1e999", ["--optim.lr", "'1e999'"]),
        ("optim.lr None", ["--optim.lr", "'None'"]),
        ("optim.lr", ["--optim.lr", "value"]),
        ("optim.lr -1", ["lr", "-1.0"]),
        ("optim.rules head", ["--optim.rules", "'head'", "head:lr=10"]),
        ("batch 1 2", ["--batch", "'1 2'", "a whole number"]),
        ("batch 0", ["batch is 0"]),
        ("compile maybe", ["--compile", "'Maybe'", "True or False"]),
        ("model.pool max", ["--model.pool", "'max'", "token or avg or map"]),
        ("model.image_size 1 2 3", ["--model.image-size", "'1 2 3'"]),
        ("augment.scale 0.5", ["--augment.scale", "'0.5'"]),
        ("data.val_fraction 2", ["val_fraction is 2.0"]),
        ("optim.schedule.warmup 50", ["'50'", "50 steps"]),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_the_field_takes(words, parts):
    name, *words = words.split()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the parts are compared below
        override(demo(), {name: words})
    assert [part for part in parts if part not in str(caught.value)] == []


@given(st.sampled_from(NAMES), st.lists(st.text(), max_size=3))
def test_any_words_give_a_run_or_a_sentence(name, words):
    try:
        override(demo(), {name: words})
    except ValueError as error:
        assert str(error)  # noqa: PT017 - any other error would fail the test


@pytest.mark.parametrize(
    ("words", "mine", "others"),
    [
        ("", "", {}),
        ("small --compile --json x", "small --json x", {"compile": []}),
        ("--optim.lr 3e-4 --out=y --compile", "--out=y", {"optim.lr": ["3e-4"], "compile": []}),
        ("--optim.layer-decay=0.75 --data.val=a=2", "", {"optim.layer_decay": ["0.75"], "data.val": ["a=2"]}),
        ("a --task.head-bias -6.9 -- --b", "a -- --b", {"task.head_bias": ["-6.9"]}),
    ],
)
def test_words_are_the_commands_own_or_another_options(words, mine, others):
    assert split(words.split(), ("json", "out")) == (mine.split(), others)


@pytest.mark.parametrize("words", ["--batch 3 --batch=4", "--log-every 3 --log_every 4", "--out a --out b"])
def test_an_option_that_is_given_twice_is_refused(words):
    with pytest.raises(ValueError, match=r"^--(batch|log-every|out) is given twice"):
        split(words.split(), ("out",))


@dataclass
class Example:
    """An example.

    first: of the class. second, third: both of these,
    in two lines; fourth: a name here.
    """

    first: int = 0
    second: int = 0
    third: int = 0
    """Below the field, which wins."""
    fourth: int = 0
    fifth: int = 0


def test_a_field_is_explained_below_it_or_in_the_docstring_of_its_class():
    assert describe(Example) == {
        "first": "of the class.",
        "second": "both of these, in two lines",
        "third": "Below the field, which wins.",
        "fourth": "a name here.",
    }
