"""Words of a command line: complaints become sentences, options keep their words, values read as they look."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.cli.words import option, options, overrides, plain, sentence

BOX = """╭─ Missing argument ───────────────────────╮
│ {} │
│ ──────────────────────────────────────── │
│ For full helptext, run vitrail x --help  │
╰──────────────────────────────────────────╯"""


@pytest.mark.parametrize(
    ("complaint", "expected"),
    [
        ("Missing value for argument '--out'. Expected 1 values.", "--out needs a value; see vitrail x --help."),
        ("Missing value for argument 'model'. Expected 1", "vitrail x needs a model; name it before the options."),
        ("Missing from vitrail x: RECIPE The recipe.", "vitrail x needs a recipe; name it before the options."),
        ("Missing from vitrail x: DATA The images: all.", "vitrail x needs data; name it before the options."),
        ("Missing from vitrail x: --data PATH Images: all.", "vitrail x needs --data PATH; see vitrail x --help."),
        (
            "invalid choice 'a' for argument '--to'. Expected one of ('b', 'c').",
            "--to cannot be 'a'; choose one of b, c.",
        ),
        ("Error parsing --seed: ['one'] is no int", "--seed cannot be 'one'; see vitrail x --help."),
        ("What nobody has seen yet", "Missing argument What nobody has seen yet"),
    ],
)
def test_a_complaint_becomes_a_sentence(complaint, expected):
    assert sentence("x", BOX.format(complaint)) == expected
    assert sentence("x", BOX.translate(str.maketrans("╭╮╰╯─│", "----- ")).format(complaint)) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {}),
        ("--compile", {"compile": []}),
        ("--optim.lr 3e-4 --compile", {"optim.lr": ["3e-4"], "compile": []}),
        ("--optim.layer-decay=0.75", {"optim.layer_decay": ["0.75"]}),
        ("--optim.layer_decay 0.75", {"optim.layer_decay": ["0.75"]}),
        ("--task.head-bias -6.9", {"task.head_bias": ["-6.9"]}),
        ("--data.val my-folder=2", {"data.val": ["my-folder=2"]}),
        ("--data.val=my-folder=2", {"data.val": ["my-folder=2"]}),
        ("--optim.rules head:lr=10 ^patch_embed:freeze", {"optim.rules": ["head:lr=10", "^patch_embed:freeze"]}),
    ],
)
def test_options_keep_their_words(words, expected):
    assert options(words.split(), "x") == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("10 --batch 3", "'10' belongs to no option; vitrail train takes one recipe."),
        ("--batch 3 --batch=4", "--batch is given twice; leave one."),
        ("--log-every 3 --log_every 4", "--log-every is given twice; leave one."),
    ],
)
def test_words_that_belong_nowhere_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        options(words.split(), "train takes one recipe")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("8", 8),
        ("-8", -8),
        ("1_000", 1000),
        ("1e-5", 1e-5),
        (".5", 0.5),
        ("5.", 5.0),
        ("True", True),
        ("false", False),
        ("None", None),
        ("null", None),
        ("none", "none"),
        ("nan", "nan"),
        ("-inf", "-inf"),
        ("1e999", "1e999"),
        ("3 epochs", "3 epochs"),
        ("", ""),
    ],
)
def test_a_word_reads_as_it_looks(word, value):
    found = plain(word)
    assert found == value
    assert type(found) is type(value)


@given(st.text())
def test_any_word_is_a_finite_value(word):
    found = plain(word)
    assert found is None or isinstance(found, bool | int | str) or math.isfinite(found)


def test_overrides_are_values_or_tuples_of_them():
    assert overrides(["--patch-size", "8", "16", "--pool", "avg", "--layer-scale", "None"]) == {
        "patch_size": (8, 16),
        "pool": "avg",
        "layer_scale": None,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [("--classes", "--classes needs a value."), ("--jsn", "--jsn needs a value; did you mean --json?")],
)
def test_an_override_without_a_value_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        overrides(words.split())


def test_an_options_name_has_hyphens():
    assert option("optim.layer_decay") == "--optim.layer-decay"
