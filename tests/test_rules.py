"""Rules -> parameter groups: the paper's decay mask by name, first match wins, layer decay, freezing, errors."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vitrail.optim.rules import Rule, freeze, groups, is_hidden_matrix, layer_decay


class Owner(nn.Module):
    """Stands for a Task: every name gets the prefix `model.`."""

    def __init__(self, model):
        super().__init__()
        self.model = model


def tiny(**settings):
    shape = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    return timm.models.VisionTransformer(**shape | settings)


def by_name(found, key):
    return {name: group[key] for group in found for name in group["names"]}


BLOCK = ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")
POOL = ("q.weight", "kv.weight", "proj.weight", "mlp.fc1.weight", "mlp.fc2.weight")


def test_only_kernels_decay_by_default():
    model = Owner(tiny(reg_tokens=2, init_values=1e-5, global_pool="map"))
    blocks = [f"blocks.{i}.{kernel}" for i in (0, 1) for kernel in BLOCK]
    pool = [f"attn_pool.{kernel}" for kernel in POOL]
    kernels = {f"model.{name}" for name in ("patch_embed.proj.weight", *blocks, *pool, "head.weight")}
    named = dict(model.named_parameters())
    assert by_name(groups(model), "weight_decay_scale") == {name: float(name in kernels) for name in named}
    for group in groups(model):
        assert group["lr_scale"] == 1
        assert all(p is named[name] for p, name in zip(group["params"], group["names"], strict=True))


def test_hidden_matrices_are_those_of_attention_and_mlp_in_the_blocks():
    model = Owner(tiny(reg_tokens=2, init_values=1e-5, global_pool="map"))
    model.decoder = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])})
    model.stem = nn.ModuleDict({"blocks": nn.ModuleList([nn.Conv2d(2, 2, 1)])})
    assert {name for name, parameter in model.named_parameters() if is_hidden_matrix(name, parameter)} == {
        *(f"model.blocks.{i}.{kernel}" for i in (0, 1) for kernel in BLOCK),
        "decoder.blocks.0.weight",
    }


patterns = [".*", "blocks", "blocks.0", "blocks.1.mlp", "norm", "head", "bias", "cls_token", "mlp.fc1.weight", "weight"]
multipliers = st.sampled_from([None, 0.0, 0.5, 1.0, 10.0])
rules = st.tuples(st.sampled_from(patterns), multipliers, multipliers).filter(lambda rule: rule[1:] != (None, None))


@settings(max_examples=50, deadline=None)
@given(st.lists(rules, max_size=5), st.sampled_from([None, "model.pos_embed"]))
def test_first_rule_that_speaks_wins_and_each_parameter_is_in_one_group(chosen, frozen):
    model, trained = Owner(tiny()), {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name != frozen)
        lr, decay = 1.0, float(name.endswith("weight") and parameter.ndim > 1)
        for pattern, rule_lr, rule_decay in reversed(chosen):
            if pattern == ".*" or f".{pattern}." in f".{name}.":
                lr = lr if rule_lr is None else rule_lr
                decay = decay if rule_decay is None else rule_decay
        if lr > 0 and name != frozen:  # before: no rule thaws it
            trained[name] = (lr, decay)
    if not trained:
        with pytest.raises(ValueError, match="parameters are frozen"):
            groups(model, [Rule(*rule) for rule in chosen])
        return
    found = groups(model, [Rule(*rule) for rule in chosen])
    assert sorted(name for group in found for name in group["names"]) == sorted(trained)
    assert {n: (g["lr_scale"], g["weight_decay_scale"]) for g in found for n in g["names"]} == trained
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(trained)


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        (r"blocks\.1", "model.blocks.1.fc1.bias", True), (r"blocks\.1", "model.blocks.10.fc1.bias", False),
        ("head|fc_norm", "model.fc_norm.weight", True), ("^head", "model.head.weight", False),
        ("head$", "head.weight", False), (".*bias$", "blocks.0.attn.qkv.bias", True),
    ],
)  # fmt: skip
def test_patterns_cover_whole_parts(pattern, name, matches):
    assert Rule(pattern, lr=1.0).matches(name) == matches


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (" norm : decay = 1e-3 ", Rule("norm", decay=1e-3)),
        ("^patch_embed:freeze", freeze("^patch_embed")),
        (r"blocks\.(?:0|1):freeze,decay=0", Rule(r"blocks\.(?:0|1)", lr=0.0, decay=0.0)),
        ("a,b=c:lr=1", Rule("a,b=c", lr=1.0)),
    ],
)
def test_rules_are_read_from_text(text, rule):
    assert Rule.parse(text) == rule


@given(rules)
def test_every_rule_can_be_written_as_text(rule):
    pattern, lr, decay = rule
    says = ",".join(f"{what}={value!r}" for what, value in (("lr", lr), ("decay", decay)) if value is not None)
    assert Rule.parse(f"{pattern}:{says}") == Rule(*rule)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # Python's, of "[[" in a pattern
@given(st.text(max_size=20))
def test_whatever_text_is_a_rule_or_an_error_in_one_sentence(text):
    for said in (text, f"{text}:freeze"):
        try:
            rule = Rule.parse(said)
        except ValueError as error:
            rule = str(error)
        assert isinstance(rule, Rule) or (rule.startswith("rule ") and "\n" not in rule)


def test_layer_decay_follows_the_closed_form():
    model = Owner(tiny(depth=11, reg_tokens=1))  # eleven, so that blocks.1 and blocks.10 are two things
    scales = by_name(groups(model, layer_decay(model, 0.7)), "lr_scale")
    for name, scale in scales.items():
        name = name.removeprefix("model.")
        if name.startswith(("cls_token", "reg_token", "pos_embed", "patch_embed")):
            depth = 0
        else:
            depth = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 12
        assert scale == pytest.approx(0.7 ** (12 - depth)), name
    assert len(set(scales.values())) == 13


def test_layer_decay_takes_only_the_encoders_blocks_and_rules_before_it_win():
    model = Owner(tiny())
    model.model.patch_embed.backbone = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])})
    model.decoder = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2) for _ in range(5)])})
    model.decoder.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))
    found = groups(model, [freeze("cls_token"), Rule("head", lr=5.0), *layer_decay(model, 0.5)])
    scales = by_name(found, "lr_scale")
    assert "model.cls_token" not in scales
    assert scales["model.head.weight"] == 5
    assert scales["model.patch_embed.backbone.blocks.0.weight"] == 0.5**3
    assert scales["model.blocks.0.mlp.fc1.weight"] == 0.5**2
    assert scales["decoder.blocks.0.weight"] == scales["decoder.pos_embed"] == 1
    assert by_name(found, "weight_decay_scale")["model.blocks.0.mlp.fc1.weight"] == 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: groups(tiny(), [freeze(r"blocks\.0\.atn")]), r"matches none of the 32 .*: blocks.0.attn.qkv.weight"),
        (lambda: groups(tiny(), [freeze(".*")]), "all 32 parameters are frozen"),
        (lambda: Rule("a)|(b", lr=1.0), "is not a regular expression"),
        (lambda: Rule("a{99999999999}", lr=1.0), "is not a regular expression"),
        (lambda: Rule("head"), "rule 'head' says nothing"),
        (lambda: layer_decay(tiny(), 1.5), r"layer decay 1.5 must lie in \(0, 1\]"),
        (lambda: layer_decay(nn.Linear(2, 2), 0.5), "needs patch_embed and blocks.*but Linear has weight, bias"),
        (lambda: Rule.parse(":lr=1"), "rule ':lr=1' is not a pattern, a colon and what holds for it"),
        (lambda: Rule.parse("head:"), "rule 'head:' says '' of 'head': after the last colon stand lr=NUMBER"),
        (lambda: Rule.parse("head:frozen"), "says 'frozen' of 'head'"),
        (lambda: Rule.parse(r"(?:a|b)"), "says 'a.b.' of '.*'"),
        (lambda: Rule.parse("head:lr=1,freeze"), "says lr twice: leave one, and freeze is lr=0"),
        (lambda: Rule.parse("head:lr=nan"), "rule 'head' has lr = nan"),
        (lambda: Rule.parse("head:decay=-1"), "rule 'head' has decay = -1.0"),
    ],
)
def test_errors_are_sentences(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        wrong()
