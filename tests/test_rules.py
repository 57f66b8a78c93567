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


@pytest.mark.parametrize("wrap", [lambda model: model, Owner])
def test_only_kernels_decay_by_default(wrap):
    model = wrap(tiny(reg_tokens=2, init_values=1e-5, global_pool="map"))
    prefix = "model." if wrap is Owner else ""
    decays = by_name(groups(model), "weight_decay_scale")
    assert {name for name, decay in decays.items() if decay == 1} == {
        f"{prefix}{name}"
        for name in (
            "patch_embed.proj.weight",
            *(f"blocks.{i}.{kernel}" for i in (0, 1) for kernel in BLOCK),
            *(f"attn_pool.{kernel}" for kernel in POOL),
            "head.weight",
        )
    }
    assert {name.removeprefix(prefix) for name, decay in decays.items() if decay == 0} >= {
        "cls_token", "reg_token", "pos_embed", "attn_pool.latent", "patch_embed.proj.bias", "norm.weight",
        "blocks.0.norm1.weight", "blocks.1.norm2.bias", "blocks.0.ls1.gamma", "blocks.1.attn.qkv.bias", "head.bias",
    }  # fmt: skip


def test_groups_are_for_torch():
    model = tiny()
    first, second = groups(model)
    assert (first["lr_scale"], first["weight_decay_scale"]) == (1.0, 0.0)
    assert (second["lr_scale"], second["weight_decay_scale"]) == (1.0, 1.0)
    assert first["names"][:2] == ["cls_token", "pos_embed"]
    named = dict(model.named_parameters())
    assert all(p is named[n] for g in (first, second) for p, n in zip(g["params"], g["names"], strict=True))


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
@given(st.lists(rules, max_size=5))
def test_first_rule_that_speaks_wins_and_each_parameter_is_in_one_group(chosen):
    model = Owner(tiny())
    expected = {}
    for name, parameter in model.named_parameters():
        lr, decay = 1.0, float(name.endswith("weight") and parameter.ndim > 1)
        for pattern, rule_lr, rule_decay in reversed(chosen):
            if pattern == ".*" or f".{pattern}." in f".{name}.":
                lr = lr if rule_lr is None else rule_lr
                decay = decay if rule_decay is None else rule_decay
        expected[name] = (lr, decay)
    trained = {name: scales for name, scales in expected.items() if scales[0] > 0}
    if not trained:
        with pytest.raises(ValueError, match="parameters are frozen"):
            groups(model, [Rule(*rule) for rule in chosen])
        return
    found = groups(model, [Rule(*rule) for rule in chosen])
    assert sorted(name for group in found for name in group["names"]) == sorted(trained)
    assert {n: (g["lr_scale"], g["weight_decay_scale"]) for g in found for n in g["names"]} == trained
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(trained)


def test_patterns_cover_whole_parts():
    assert Rule(r"blocks\.1", lr=1.0).matches("model.blocks.1.mlp.fc1.bias")
    assert not Rule(r"blocks\.1", lr=1.0).matches("model.blocks.10.mlp.fc1.bias")
    assert Rule("head|fc_norm", lr=1.0).matches("model.fc_norm.weight")
    assert not Rule("head", lr=1.0).matches("headline.weight")
    assert not Rule("^head", lr=1.0).matches("model.head.weight")
    assert not Rule("head$", lr=1.0).matches("head.weight")
    assert Rule(".*bias$", decay=1.0).matches("blocks.0.attn.qkv.bias")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("head:lr=10", Rule("head", lr=10.0)),
        ("pos_embed:lr=0.1,decay=1", Rule("pos_embed", lr=0.1, decay=1.0)),
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


def test_linear_probe():
    model = Owner(tiny())
    found = groups(model, [Rule("head", lr=1.0), freeze(".*")])
    assert set(by_name(found, "lr_scale")) == {"model.head.weight", "model.head.bias"}
    assert not model.model.cls_token.requires_grad
    assert not model.model.blocks[0].attn.qkv.weight.requires_grad


def test_frozen_before_stays_out():
    model = tiny()
    model.pos_embed.requires_grad_(False)
    assert "pos_embed" not in by_name(groups(model, [Rule("pos_embed", lr=1.0)]), "lr_scale")


@pytest.mark.parametrize("wrap", [lambda model: model, Owner])
def test_layer_decay_follows_the_closed_form(wrap):
    model = wrap(tiny(depth=11, reg_tokens=1))  # eleven, so that blocks.1 and blocks.10 are two things
    scales = by_name(groups(model, layer_decay(model, 0.7)), "lr_scale")
    for name, scale in scales.items():
        name = name.removeprefix("model.")
        if name.startswith(("cls_token", "reg_token", "pos_embed", "patch_embed")):
            depth = 0
        else:
            depth = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 12
        assert scale == pytest.approx(0.7 ** (12 - depth)), name
    assert len(set(scales.values())) == 13


def test_layer_decay_takes_only_the_encoders_blocks():
    class Hybrid(Owner):
        def __init__(self):
            super().__init__(tiny())
            self.model.patch_embed.backbone = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2)])})
            self.decoder = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(2, 2) for _ in range(5)])})
            self.decoder.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))

    model = Hybrid()
    scales = by_name(groups(model, layer_decay(model, 0.5)), "lr_scale")
    assert scales["model.patch_embed.backbone.blocks.0.weight"] == 0.5**3
    assert scales["model.blocks.0.mlp.fc1.weight"] == 0.5**2
    assert scales["decoder.blocks.0.weight"] == scales["decoder.pos_embed"] == 1


def test_rules_before_layer_decay_win():
    model = tiny()
    found = groups(model, [freeze("patch_embed"), Rule("head", lr=5.0), *layer_decay(model, 0.5)])
    scales = by_name(found, "lr_scale")
    assert "patch_embed.proj.weight" not in scales
    assert (scales["head.weight"], scales["cls_token"], scales["blocks.1.norm1.bias"]) == (5.0, 0.125, 0.5)
    assert by_name(found, "weight_decay_scale")["blocks.0.mlp.fc1.weight"] == 1


def test_errors_are_sentences():
    with pytest.raises(ValueError, match=r"'blocks\\\\.0\\\\.atn' matches none of the 32 .*: blocks.0.attn.qkv.weight"):
        groups(tiny(), [Rule(r"blocks\.0\.atn", lr=0.5)])
    with pytest.raises(ValueError, match=r"rule 'hed' matches none .*nearest are: head.weight, head.bias"):
        groups(tiny(), [freeze("hed")])
    with pytest.raises(ValueError, match="all 32 parameters are frozen"):
        groups(tiny(), [freeze(".*")])
    with pytest.raises(ValueError, match=r"rule '\(' is not a regular expression"):
        Rule("(", lr=1.0)
    for pattern in ("a)|(b", "a{99999999999}", "(" * 9999 + ")" * 9999):
        with pytest.raises(ValueError, match="is not a regular expression"):
            Rule(pattern, lr=1.0)
    with pytest.raises(ValueError, match="rule 'head' says nothing"):
        Rule("head")
    with pytest.raises(ValueError, match=r"rule 'head' has decay = -1.0"):
        Rule("head", decay=-1.0)
    with pytest.raises(ValueError, match=r"layer decay 1.5 must lie in \(0, 1\]"):
        layer_decay(tiny(), 1.5)
    with pytest.raises(ValueError, match=r"needs patch_embed and blocks.*but Linear has weight, bias"):
        layer_decay(nn.Linear(2, 2), 0.5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("head", "rule 'head' is not a pattern, a colon and what holds for it, such as 'head:lr=10'"),
        (":lr=1", "rule ':lr=1' is not a pattern, a colon"),
        ("", "rule '' is not a pattern"),
        ("head:", "rule 'head:' says '' of 'head': after the last colon stand lr=NUMBER, decay=NUMBER or freeze"),
        ("head:lr", "says 'lr' of 'head'"),
        ("head:lr=fast", "says 'lr=fast' of 'head'"),
        ("head:frozen", "says 'frozen' of 'head'"),
        ("head:lr=1,,decay=0", "says '' of 'head'"),
        (r"(?:a|b)", "says 'a.b.' of '.*'"),
        ("head:lr=1,lr=2", "rule 'head:lr=1,lr=2' says lr twice: leave one"),
        ("head:lr=1,freeze", "says lr twice: leave one, and freeze is lr=0"),
        ("head:lr=nan", "rule 'head' has lr = nan"),
        ("head:decay=-1", "rule 'head' has decay = -1.0"),
        ("(:lr=1", r"rule '\(' is not a regular expression"),
    ],
)
def test_errors_of_rules_as_text_are_sentences(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        Rule.parse(text)
