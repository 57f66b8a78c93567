"""Every field of a Run is an option: found by its name, read as its annotation says, explained in the help."""

import re
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.cli.overrides import describe, leaves, nearest, override, table
from vitrail.data.sources.open import Data
from vitrail.models import resnet, vit
from vitrail.optim.rules import Rule
from vitrail.recipes import RECIPES
from vitrail.recipes.demo import demo

NAMES = [leaf.name for leaf in leaves(demo())]


def value(run, name):
    return next(leaf.value for leaf in leaves(run) if leaf.name == name)


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        ("batch", "128", 128),
        ("optim.lr", "3e-4", 3e-4),
        ("optim.lr", "1", 1.0),
        ("optim.clip", "None", None),
        ("optim.clip", "none", None),
        ("optim.clip", "2", 2.0),
        ("optim.betas", "0.9 0.95", (0.9, 0.95)),
        ("optim.rules", "head:lr=10 ^patch_embed:freeze", (Rule("head", lr=10.0), Rule("^patch_embed", lr=0.0))),
        ("optim.rules", "None", ()),
        ("optim.schedule.warmup", "5%", "5%"),
        ("optim.schedule.kind", "cosine", "cosine"),
        ("duration", "3 epochs", "3 epochs"),
        ("data.label_column", "7", "7"),
        ("data.hold_back", "0.25", 0.25),
        ("augment.crop", "none", "none"),
        ("augment.scale", "0.2 1", (0.2, 1.0)),
        ("task.head_bias", "-6.9", -6.9),
        ("model.depth", "6", 6),
        ("model.patch_size", "14", (14, 14)),
        ("model.patch_size", "14 7", (14, 7)),
        ("compile", "True", True),
        ("compile", "false", False),
        ("compile", "", True),
        ("workers", "0", 0),
        ("start", "hf-hub:a/b", "hf-hub:a/b"),
    ],
)
def test_a_field_is_read_as_its_annotation_says(name, words, expected):
    run = override(demo(), {name: words.split()})
    found = value(run, name)
    assert found == expected
    assert type(found) is type(expected)
    unchanged = [other for other in NAMES if other != name]
    assert [value(run, other) for other in unchanged] == [value(demo(), other) for other in unchanged]


def test_the_size_of_images_is_one_option_for_model_and_preprocessing():
    run = override(demo(), {"image_size": ["56", "42"]})
    assert run.model.image_size == run.preprocessing.image_size == (56, 42)
    assert override(demo(), {"image_size": ["56"]}).model.image_size == (56, 56)


def test_what_belongs_together_may_come_in_any_order():
    words = {"augment.shift": ["2"], "optim.weight_decay": ["0"], "augment.crop": ["shift"], "optim.name": ["sgd"]}
    for order in (list(words), list(reversed(words))):
        run = override(demo(), {name: words[name] for name in order})
        assert (run.augment.shift, run.optim.name) == (2, "sgd")


def test_a_stem_has_options_only_where_there_is_one():
    assert not any(name.startswith("model.stem") for name in NAMES)
    hybrid = replace(demo(), model=vit.Config(channels=1, patch_size=(1, 1), stem=resnet.Config(channels=1, classes=0)))
    assert override(hybrid, {"model.stem.blocks": ["1", "2"]}).model.stem.blocks == (1, 2)


def test_a_part_of_a_run_is_overridden_by_its_full_names():
    found = override(Data("photos"), {"data.hold_back": ["0.3"]}, prefix="data.")
    assert found == Data("photos", val_fraction=0.3)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("optim.learning_rate", "--optim.lr"),
        ("lr", "--optim.lr"),
        ("optim.lrr", "--optim.lr"),
        ("wd", "--optim.weight-decay"),
        ("epochs", "--duration"),
        ("batch_size", "--batch"),
        ("mixp", "--augment.mixup"),
        ("augment.mixp", "--augment.mixup"),
        ("hold_back", "--data.hold-back"),
        ("imagesize", "--image-size"),
        ("depth", "--model.depth"),
        ("jsn", "--json"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, meant):
    with pytest.raises(ValueError, match="there is no --") as caught:
        override(demo(), {name: ["1"]}, own=["data", "out", "json"])
    assert str(caught.value).endswith(f"; did you mean {meant}?")


def test_where_nothing_is_near_the_help_is_named():
    with pytest.raises(ValueError, match=r"there is no --zzz; vitrail train RECIPE --help lists all\."):
        override(demo(), {"zzz": ["1"]})
    assert nearest("zzz", ["batch"]) is None


@pytest.mark.parametrize("fixed", ["recipe", "data.path"])
def test_what_stands_before_the_options_is_none(fixed):
    with pytest.raises(ValueError, match="there is no"):
        override(demo(), {fixed: ["x"]})


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("optim.lr", "x", "--optim.lr is 'x'; it must be a number."),
        ("optim.lr", "nan", "--optim.lr is 'nan'; it must be a number."),
        ("optim.lr", "None", "--optim.lr is None; it must be a number."),
        ("optim.lr", "", "--optim.lr needs a value."),
        ("optim.lr", "-1", "optimiser lr = -1.0 must be 0 or more, and finite"),
        ("optim.weight_decay", "x", "--optim.weight-decay is 'x'; it must be a number."),
        ("optim.rules", "head", "rule 'head' is not a pattern, a colon and what holds for it, such as 'head:lr=10'"),
        ("batch", "1.5", "--batch is 1.5; it must be a whole number."),
        ("batch", "1 2", "--batch is '1 2'; it must be a whole number."),
        ("batch", "0", "batch is 0; it must be 1 or more."),
        ("compile", "maybe", "--compile is 'maybe'; it must be True or False."),
        ("model.pool", "max", "--model.pool is 'max'; it must be token or avg or map."),
        ("model.image_size", "1 2 3", r"--model.image-size is [1, 2, 3]; it must be (a whole number, a whole number)."),
        ("augment.scale", "0.5", "--augment.scale is [0.5]; it must be (a number, a number)."),
        ("data.hold_back", "2", "hold_back is 2.0; it is a share above 0 and up to 0.9."),
    ],
)
def test_a_value_that_cannot_be_says_what_the_field_wants(name, words, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        override(demo(), {name: words.split()})
    assert str(caught.value) == message


@given(st.sampled_from(NAMES), st.lists(st.text(), max_size=3))
def test_any_words_give_a_run_or_a_sentence(name, words):
    try:
        override(demo(), {name: words})
    except ValueError as error:
        assert str(error)  # noqa: PT017 - any other error would fail the test


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("recipe", ["demo", "r50_vit_b16_jft", "small"])
def test_the_table_has_every_option_and_fits(recipe, width):
    run = RECIPES[recipe](data="photos")
    text = table(run, width)
    assert max(map(len, text.splitlines())) <= width
    for leaf in leaves(run):
        assert re.search(rf"^--{re.escape(leaf.name.replace('_', '-'))} .*", text, re.MULTILINE)
    assert "\n--optim.lr NUMBER = " in text
    assert "The base learning rate, for the batch" in text
    assert "\n--precision auto | fp32 | bf16 | fp8 | fp64 = auto\n" in text
    assert "\n--preprocessing.mean NUMBER ... = 0.5" in text or recipe == "small"


def test_the_table_shows_values_as_one_would_type_them():
    run = replace(demo(), duration="3 epochs")
    assert "\n--duration TEXT = '3 epochs'\n" in table(run, 80)
    assert "\n--optim.betas NUMBER NUMBER = 0.9 0.999\n" in table(run, 80)


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


def test_what_a_field_is_stands_below_it_or_in_the_docstring_of_its_class():
    assert describe(Example) == {
        "first": "of the class.",
        "second": "both of these, in two lines",
        "third": "Below the field, which wins.",
        "fourth": "a name here.",
    }
