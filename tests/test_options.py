"""Every field of a Run is an option: found by its name, read as its annotation says, explained in the help."""

import re
from dataclasses import dataclass, fields, replace

import pytest
from command_line import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.cli import COMMANDS
from vitrail.cli.options import INSTEAD, KNOWN_AS, nearest, override, split
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


READ = [
    ("batch 1_000", 1000), ("optim.lr 1", 1.0), ("optim.lr 3e-4", 3e-4), ("optim.clip none", None),
    ("optim.betas 0.9 0.95", (0.9, 0.95)), ("task.head_bias -6.9", -6.9), ("model.patch_size 14", (14, 14)),
    ("model.patch_size 14 7", (14, 7)), ("compile", True), ("compile false", False), ("workers 0", 0),
    ("optim.rules head:lr=10 ^patch_embed:freeze", (Rule("head", lr=10.0), Rule("^patch_embed", lr=0.0))),
    ("optim.rules -a:freeze", (Rule("-a", lr=0.0),)), ("optim.rules None", ()), ("duration 3 epochs", "3 epochs"),
    ("data.label_column True", "True"), ("augment.crop none", "none"), ("start None", None),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), READ)
def test_a_field_is_read_as_its_annotation_says(words, expected):
    name, *words = words.split()
    run = override(demo(), {name: words})
    assert value(run, name) == expected
    assert type(value(run, name)) is type(expected)
    assert [other for other in NAMES if other != name and value(run, other) != value(demo(), other)] == []


def test_one_option_sets_fields_that_belong_together():
    run = override(demo(), {"image_size": ["56", "42"]})
    assert run.model.image_size == run.preprocessing.image_size == (56, 42)
    model = override(HYBRID.model, {"channels": ["3"]})
    assert (model.channels, model.stem.channels) == (3, 3)


def test_fields_are_replaced_all_at_once():
    words = {"augment.shift": ["2"], "optim.weight_decay": ["0"], "augment.crop": ["shift"], "optim.name": ["sgd"]}
    for ordered in (words, dict(reversed(words.items()))):
        assert override(demo(), ordered).augment.shift == 2


def test_the_options_are_the_fields_that_there_are():
    assert {"recipe", "data.path", "evaluate"}.isdisjoint(NAMES)  # given before the options; not expressed in words
    assert not any(name.startswith("model.stem") for name in NAMES)
    assert override(HYBRID, {"model.stem.blocks": ["1", "2"]}).model.stem.blocks == (1, 2)
    assert override(Data("photos"), {"data.val_fraction": ["0.3"]}, prefix="data.") == Data("photos", val_fraction=0.3)


MEANT = """optim.learning_rate optim.lr, lr optim.lr, optim.lrr optim.lr, wd optim.weight_decay, epochs duration,
    batch_size batch, mixp augment.mixup, augment.mixp augment.mixup, data.hold_back data.val_fraction, imagesize
    image_size, depth model.depth, jsn json, zzz None, model.stem.blocks None, data.path data, amp precision,
    imgsz image_size, opt optim.name, sched optim.schedule.kind, name out, save_dir out, smoothing task.smoothing,
    fp16 precision, weights start, pretrained start, lora None, cache None, quiet None, fold None, bag None"""


@pytest.mark.parametrize(("name", "meant"), [pair.split() for pair in MEANT.split(",")])
def test_an_unknown_name_is_answered_with_the_nearest_or_none(name, meant):
    hint = "see vitrail train RECIPE --help" if meant == "None" else f"did you mean --{meant.replace('_', '-')}?"
    with pytest.raises(ValueError, match=rf"no --{name.replace('_', '-')}; {re.escape(hint)}"):
        override(demo(), {name: ["1"]}, Train())
    assert nearest("num_classes", ["classes", "depth"]) == "classes"
    assert nearest("learning_rate", ["out", "seed"]) is None


@pytest.mark.parametrize("name", ["freeze", "patience", "resume", "arch", "model"])
def test_what_there_is_not_is_answered_with_what_there_is(name):
    with pytest.raises(
        ValueError, match=rf"no --{name}; .*(--optim\.rules|--duration|vitrail resume|vitrail train)"
    ) as e:
        override(demo(), {name: ["1"]}, Train())
    assert "did you mean" not in str(e.value)


def test_every_word_of_others_leads_to_an_option_that_there_is():
    own = {field.name for kind in COMMANDS.values() for field in fields(kind)}
    assert {ours for several in KNOWN_AS.values() for ours in several} <= {*own, *NAMES, "image_size", "classes"}
    text = " ".join(INSTEAD.values())
    assert set(re.findall(r"--([a-z][\w.-]*)", text)) <= {"help", *(name.replace("_", "-") for name in NAMES)}


@pytest.mark.parametrize(("words", "sentence"), [
    ("finetune --data x --weights w", "DATA is given without --data: vitrail finetune DATA"),
    ("finetune x --model w", "no --model; did you mean --weights?"), ("predict m x --topk 3", "did you mean --top?"),
    ("evaluate --model m d", "MODEL is given without --model"), ("predict x.jpg --weights w", "MODEL is given without"),
    ("predict m x --conf 3", "no --conf; see vitrail predict --help"), ("data check --data d", "data check DATA"),
])  # fmt: skip
def test_a_commands_words_are_looked_up_among_its_own(capsys, words, sentence):
    assert sentence in refused(capsys, *words.split())


REFUSED = [
    ("optim.lr x", ["--optim.lr", "'x'", "a number"]), ("optim.lr nan", ["--optim.lr", "'nan'"]),
    ("optim.lr 1e999", ["--optim.lr", "'1e999'"]), ("optim.lr None", ["--optim.lr", "'None'"]),
    ("optim.lr", ["--optim.lr", "value"]), ("optim.lr -1", ["lr", "-1.0"]), ("batch 1 2", ["--batch", "'1 2'"]),
    ("optim.rules head", ["--optim.rules", "'head'", "head:lr=10"]), ("compile maybe", ["'Maybe'", "True or False"]),
    ("model.pool max", ["--model.pool", "'max'", "token or avg or map"]), ("augment.scale 0.5", ["'0.5'"]),
    ("model.image_size 1 2 3", ["--model.image-size", "'1 2 3'"]), ("optim.rules a:freeze -b:freeze", ["'-b:freeze'"]),
    ("data.val_fraction 2", ["val_fraction is 2.0"]), ("optim.schedule.warmup 50", ["'50'", "50 steps"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "parts"), REFUSED)
def test_a_value_that_cannot_be_is_named_with_what_the_field_takes(words, parts):
    name, *words = words.split()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the parts are compared below
        override(demo(), {name: words})
    assert [part for part in parts if part not in str(caught.value)] == []


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.lists(st.text(), max_size=3))
def test_any_words_give_a_run_or_a_sentence(name, words):
    try:
        override(demo(), {name: words})
    except ValueError as error:
        assert str(error)  # noqa: PT017 - any other error would fail the test


@pytest.mark.parametrize(("words", "mine", "others"), [
    ("", "", {}), ("small --compile --json x", "small --json x", {"compile": []}),
    ("--optim.lr 3e-4 --out=y --compile", "--out=y", {"optim.lr": ["3e-4"], "compile": []}),
    ("--optim.layer-decay=0.75 --data.val=a=2", "", {"optim.layer_decay": ["0.75"], "data.val": ["a=2"]}),
    ("a --task.head-bias -6.9 -- --b", "a -- --b", {"task.head_bias": ["-6.9"]}),
])  # fmt: skip
def test_words_are_the_commands_own_or_another_options(words, mine, others):
    assert split(words.split(), ("json", "out")) == (mine.split(), others)
    for name in ("--log-every", "--out"):
        with pytest.raises(ValueError, match=f"^{name} is given twice"):
            split([name, "3", f"{name.replace('g-e', 'g_e')}=4"], ("out",))


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
    texts = ["of the class.", "both of these, in two lines", "Below the field, which wins.", "a name here."]
    assert describe(Example) == dict(zip(("first", "second", "third", "fourth"), texts, strict=True))
