"""The initial value of every parameter against its stated distribution, and initialisation as a function of a seed."""

import re
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import nn

from vitrail.models import resnet
from vitrail.models.init import initialise
from vitrail.models.resnet import ResNet
from vitrail.models.vit import Config, ViT
from vitrail.models.zoo import configure, create

D, M, P = 64, 96, 4
FULL = Config(
    image_size=(32, 48), patch_size=(P, P), width=D, depth=2, heads=4, mlp_dim=M, classes=5, pool="map", registers=8,
    representation=80, layer_scale=1e-4, qk_norm=True, pre_norm=True,
)  # fmt: skip
SMALL = {"image_size": (32, 32), "patch_size": (8, 8), "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24}


def seeded(model, seed=0):
    model.init_weights(seed)
    return {name: p.detach() for name, p in model.named_parameters()}


def xavier(inputs, outputs):
    bound = (6 / (inputs + outputs)) ** 0.5
    return stats.uniform(-bound, 2 * bound)


def lecun(inputs):
    """Variance 1 / inputs after the cut at two standard deviations of what is cut."""
    std = inputs**-0.5 / stats.truncnorm(-2, 2).std()
    return stats.truncnorm(-2, 2, scale=std)


DRAWN = [
    ("pos_embed", stats.norm(scale=0.02)),
    ("reg_token", stats.norm(scale=0.02)),
    ("patch_embed.proj.weight", lecun(3 * P * P)),
    ("blocks.1.attn.proj.weight", xavier(D, D)), ("pre_logits.fc.weight", lecun(D)),
    ("blocks.1.mlp.fc1.weight", xavier(D, M)), ("blocks.1.mlp.fc2.weight", xavier(M, D)),
    ("blocks.1.mlp.fc1.bias", stats.norm(scale=1e-6)), ("blocks.1.mlp.fc2.bias", stats.norm(scale=1e-6)),
    ("attn_pool.latent", xavier(1, D)), ("attn_pool.q.weight", xavier(D, D)),
    ("attn_pool.proj.weight", xavier(D, D)), ("attn_pool.mlp.fc1.weight", xavier(D, M)),
]  # fmt: skip


def agrees(values, distribution):
    """The values come from the distribution: Kolmogorov-Smirnov, the bounds, and the standard deviation."""
    values = values.double().flatten().numpy()
    assert stats.kstest(values, distribution.cdf).pvalue > 1e-3
    low, high = distribution.support()
    assert values.min() >= low * (1 + 1e-6)
    assert values.max() <= high * (1 + 1e-6)
    assert values.std() == pytest.approx(distribution.std(), rel=4 / values.size**0.5)


@pytest.mark.parametrize(("name", "distribution"), DRAWN, ids=[name for name, _ in DRAWN])
def test_each_parameter_is_drawn_from_its_stated_distribution(name, distribution):
    agrees(seeded(ViT(FULL))[name], distribution)


@pytest.mark.parametrize(("name", "parts"), [("blocks.0.attn.qkv.weight", 3), ("attn_pool.kv.weight", 2)])
def test_q_k_and_v_and_the_kernels_of_swiglu_have_their_own_fans(name, parts):
    for part in seeded(ViT(FULL))[name].chunk(parts):
        agrees(part, xavier(D, D))
    gated = seeded(ViT(Config(**SMALL | {"activation": "swiglu", "width": D})))["blocks.0.mlp.fc1.weight"]
    for part in gated.chunk(2):
        agrees(part, xavier(D, 24))


def test_what_is_not_drawn_is_zero_one_or_the_layer_scale():
    constants = {
        r"^cls_token$|^head\.|(qkv|q|kv|proj|pre_logits\.fc)\.bias$|norm\w*\.bias$": 0.0,
        r"norm\w*\.weight$": 1.0,
        r"gamma$": 1e-4,
    }
    drawn = {re.sub(r"\.\d\.", ".1.", name) for name, _ in DRAWN} | {"blocks.1.attn.qkv.weight"}
    for name, p in seeded(ViT(FULL)).items():
        value = next((v for pattern, v in constants.items() if re.search(pattern, name)), None)
        if value is None:
            assert re.sub(r"\.\d\.", ".1.", name) in drawn | {"attn_pool.kv.weight"} or "attn_pool.mlp" in name, name
        else:
            assert torch.equal(p, torch.full_like(p, value)), name


def test_a_bottleneck_starts_as_its_shortcut_and_its_kernels_are_lecun_normal():
    values = seeded(ResNet(resnet.Config(blocks=(1, 2), classes=3)))
    for name, p in values.items():
        if name.endswith("conv.weight") or re.search(r"conv\d\.weight$", name):
            agrees(p, lecun(p[0].numel()))
        else:
            one = name.endswith("norm.weight") or re.search(r"norm[12]\.weight$", name)
            assert torch.equal(p, torch.full_like(p, 1.0 if one else 0.0)), name
    model = ResNet(resnet.Config(blocks=(2,), classes=0))
    x = torch.randn(1, 256, 4, 4)
    assert torch.equal(model.stages[0].blocks[1](x), x.relu())


def test_the_seed_decides_every_value():
    first, again, other = (seeded(ViT(FULL), seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name, p in first.items() if p.std() > 0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    create("ViT-Ti/16", **SMALL, seed=3)
    assert torch.equal(torch.get_rng_state(), before)  # a seed leaves the global generator alone
    table = create("ViT-Ti/16", **SMALL).pos_embed  # without one it decides
    assert not torch.equal(table, create("ViT-Ti/16", **SMALL).pos_embed)
    torch.manual_seed(0)
    assert torch.equal(table, create("ViT-Ti/16", **SMALL).pos_embed)


def test_a_value_is_a_function_of_seed_and_name_alone():
    """Other layers, their order, and other draws in between change nothing."""
    whole = seeded(ViT(FULL), 7)
    fewer = replace(FULL, registers=0, pool="token", representation=None, depth=1, classes=9)
    for name, value in seeded(ViT(fewer), 7).items():
        if value.shape == whole[name].shape:
            assert torch.equal(value, whole[name]), name
    names = ["blocks.1.mlp.fc1.weight", "blocks.0.mlp.fc1.weight"]
    assert not torch.equal(*(whole[name] for name in names))
    model = ViT(FULL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3)
    for name in names:
        torch.rand(5)
        model.init_weights(7, only={name})
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, whole[name] if name in names else torch.full_like(parameter, 3)), name


def shrunk(name):
    """The zoo's model with every part that it has, at a size that costs nothing."""
    config = configure(name)
    if isinstance(config, resnet.Config):
        return {"blocks": (1, 1), "width_factor": 1, "classes": 3}
    stem = {"stem": resnet.Config(blocks=(1,), classes=0), "patch_size": (2, 2)} if config.stem else {}
    return {**SMALL, "classes": 3, **stem}


KINDS = ("ViT-Ti/16", "R50+ViT-B/16", "BiT-R50x1", "MAE-B/16", "vit_giant_patch14_reg4_dinov2",
         "vit_base_patch16_siglip_224", "vit_base_patch16_clip_224")  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_meta_then_initialised_is_the_same_as_direct_and_overwrites_every_element(name):
    shape = shrunk(name)
    direct = create(name, **shape, seed=4)
    model = create(name, **shape, device="meta")
    assert all(p.is_meta for p in model.parameters())
    assert not list(model.buffers())
    model.to_empty(device="cpu")
    for p in model.parameters():
        nn.init.constant_(p, float("nan"))
    model.init_weights(4)
    for (key, p), q in zip(model.named_parameters(), direct.parameters(), strict=True):
        assert torch.equal(p, q), key


def test_a_parameter_without_a_rule_is_an_error():
    with pytest.raises(AssertionError, match=r"no initial value is written for mystery\.weight"):
        initialise(nn.ModuleDict({"mystery": nn.Linear(2, 2)}))
