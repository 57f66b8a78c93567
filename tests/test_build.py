"""The optimiser against NumPy in float64 over several steps; learning rates, clipping, the command line."""

import copy
import json
from dataclasses import asdict

import numpy as np
import pytest
import timm
import torch
import tyro
from torch import nn

from vitrail.models import vit
from vitrail.optim.build import Config, Joint, build, clip, set_lr
from vitrail.optim.muon import Muon
from vitrail.optim.rules import Rule, freeze
from vitrail.optim.schedule import Schedule, multiplier

RULES = (Rule("first.weight", lr=0.25), Rule("last.weight", decay=0.5), freeze("first.bias"))
SCALES = {
    "first.weight": (0.25, 1.0),
    "norm.weight": (1.0, 0.0),
    "norm.bias": (1.0, 0.0),
    "last.weight": (1.0, 0.5),
    "last.bias": (1.0, 0.0),
}


def small():
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(4, 3), "norm": nn.LayerNorm(3), "last": nn.Linear(3, 2)})
    return model.double()


def train(model, config, steps=6):
    """Runs the optimiser on given gradients; returns the parameters at the start, and the gradients."""
    start = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    optimizer, random, seen = build(model, config), np.random.default_rng(1), []
    for step in range(steps):
        seen.append({name: random.normal(size=value.shape) for name, value in start.items()})
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(seen[-1][name].copy()) if parameter.requires_grad else None
        set_lr(optimizer, config, multiplier(config.schedule, step, steps))
        optimizer.step()
    return start, seen


def assert_parameters(model, expected):
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-12, err_msg=name)


def test_adamw_equals_numpy_with_mask_and_scales():
    config = Config(
        lr=0.1, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-3, rules=RULES, schedule=Schedule(warmup="2 steps")
    )
    model = small()
    w, grads = train(model, config)
    for name, (lr_scale, decay_scale) in SCALES.items():
        m = v = 0.0
        for t, gradient in enumerate(grads):
            lr = 0.1 * lr_scale * (t / 2 if t < 2 else (6 - t) / 4)
            m, v = 0.8 * m + 0.2 * gradient[name], 0.95 * v + 0.05 * gradient[name] ** 2
            w[name] = w[name] * (1 - lr * 0.3 * decay_scale)
            w[name] = w[name] - lr * (m / (1 - 0.8 ** (t + 1))) / (np.sqrt(v / (1 - 0.95 ** (t + 1))) + 1e-3)
    assert_parameters(model, w)


def test_sgd_equals_numpy():
    config = Config("sgd", lr=0.1, weight_decay=0.0, rules=RULES, schedule=Schedule("cosine"))
    model = small()
    w, grads = train(model, config)
    for name, (lr_scale, _) in SCALES.items():
        velocity = 0.0
        for t, gradient in enumerate(grads):
            velocity = 0.9 * velocity + gradient[name]
            w[name] = w[name] - 0.1 * lr_scale * (1 + np.cos(np.pi * t / 6)) / 2 * velocity
    assert_parameters(model, w)


def tiny():
    torch.manual_seed(0)
    model = vit.ViT(vit.Config((8, 8), (4, 4), 1, width=16, depth=2, heads=2, mlp_dim=32, classes=3))
    nn.init.normal_(model.head.weight)  # from 0, as it is, no gradient would pass it
    return model


MUON = Config(
    "muon",
    lr=0.01,
    rules=(freeze("pos_embed"), Rule("blocks.0", lr=0.5), Rule("blocks.0.mlp.fc1.weight", decay=0.0)),
    schedule=Schedule("cosine", warmup="2 steps"),
)


MATRICES = [f"blocks.{b}.{m}.weight" for b in (0, 1) for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


def rest_by_hand(model):
    """torch's AdamW for what is no hidden matrix, with a group for each parameter."""
    model.pos_embed.requires_grad_(False)
    groups = []
    for name, parameter in model.named_parameters():
        if name != "pos_embed" and name not in MATRICES:
            decay = 0.3 if name in ("patch_embed.proj.weight", "head.weight") else 0.0
            scale = 0.5 if "blocks.0" in name else 1.0
            groups.append({"params": [parameter], "weight_decay": decay, "scale": scale})
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)


def learn(model, step):
    random = torch.Generator().manual_seed(step)
    loss = model(torch.randn(6, 1, 8, 8, generator=random)).square().sum()
    loss.backward()


def test_what_muon_leaves_is_torchs_adamws_bit_for_bit():
    model, twin = tiny(), tiny()
    optimizer, by_hand = build(model, MUON), rest_by_hand(twin)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    named, others = dict(model.named_parameters()), dict(twin.named_parameters())
    for step in range(5):
        factor = multiplier(MUON.schedule, step, 5)
        set_lr(optimizer, MUON, factor)
        for group in by_hand.param_groups:
            group["lr"] = 0.01 * factor * group["scale"]
        learn(model, step)
        for name, parameter in others.items():
            parameter.grad = named[name].grad
        optimizer.step()
        by_hand.step()
        optimizer.zero_grad()
        for name in MATRICES:  # whose own steps test_muon.py has
            others[name].data.copy_(named[name])
    for name, parameter in named.items():
        assert torch.equal(parameter, others[name]), name
        assert torch.equal(parameter, start[name]) == (name == "pos_embed")


def test_muon_and_adamw_share_their_groups_and_their_state_with_whoever_holds_both():
    model = tiny()
    optimizer = build(model, MUON)
    assert isinstance(optimizer, Joint)
    learn(model, 0)
    optimizer.step()
    state = {name: set(optimizer.state[p]) for name, p in model.named_parameters() if p in optimizer.state}
    assert state["blocks.1.attn.qkv.weight"] == {"momentum_buffer"}
    assert state["patch_embed.proj.weight"] == {"step", "exp_avg", "exp_avg_sq"}
    names = [name for group in optimizer.param_groups for name in group["names"]]
    assert sorted(names) == sorted(state) == sorted(name for name, _ in model.named_parameters() if name != "pos_embed")
    assert optimizer.step(lambda: 1.5) == 1.5
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_muon_alone_needs_no_joint():
    optimizer = build(tiny(), Config("muon", rules=(Rule(r"blocks\.\d+\.(attn|mlp)\..*weight", lr=1.0), freeze(".*"))))
    assert isinstance(optimizer, Muon)


def test_muon_without_matrices_is_refused():
    with pytest.raises(ValueError, match=r"muon trains the matrices .*, and ModuleDict has none to train: use adamw"):
        build(small(), Config("muon"))
    with pytest.raises(ValueError, match="ViT has none to train"):
        build(tiny(), Config("muon", rules=(freeze("blocks"),)))


def test_decay_alone_touches_kernels_only():
    model = timm.models.VisionTransformer(img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    build(model, Config(lr=0.5, weight_decay=0.2)).step()
    for name, parameter in model.named_parameters():
        kernel = name.endswith(("proj.weight", "qkv.weight", "fc1.weight", "fc2.weight", "head.weight"))
        assert torch.equal(parameter, torch.full_like(parameter, 1 - 0.5 * 0.2 if kernel else 1.0)), name


def test_default_is_the_papers():
    config = Config()
    optimizer = build(small(), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["lr"], group["weight_decay"]) == ((0.9, 0.999), 3e-3, 0.3)
    assert config.clip == 1
    steps = 91_500  # 300 epochs of ImageNet, batch 4096
    assert multiplier(config.schedule, 5_000, steps, batch=4096) == 0.5
    assert multiplier(config.schedule, 10_000, steps, batch=4096) == 1
    assert multiplier(config.schedule, 20_000, 2 * steps, batch=2048) == 1


def test_set_lr_depends_on_its_arguments_alone():
    config = Config(lr=0.1, rules=RULES)
    optimizer = build(small(), config)
    for factor in (1.0, 0.0, 0.5, 0.5):
        set_lr(optimizer, config, factor)
        for group in optimizer.param_groups:
            assert group["lr"] == 0.1 * factor * (0.25 if "first.weight" in group["names"] else 1)


def test_layer_decay_comes_after_the_rules():
    model = timm.models.VisionTransformer(img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    optimizer = build(model, Config(lr=1.0, layer_decay=0.5, rules=(Rule("cls_token", lr=1.0),)))
    lrs = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert (lrs["cls_token"], lrs["pos_embed"], lrs["blocks.0.norm1.bias"], lrs["head.bias"]) == (1, 0.125, 0.25, 1)


def test_clip_is_by_the_global_norm():
    first, second, without = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    parameters = [first, second, without]
    assert clip(parameters, None) == 5
    assert clip(parameters, 10.0) == 5
    assert torch.equal(first.grad, torch.tensor([3.0, 0.0]))  # below the limit: untouched, bit for bit
    assert clip(iter(parameters), 1.0) == 5  # one factor for both: the direction stays
    torch.testing.assert_close(first.grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(second.grad, torch.tensor([0.0, 0.8]))
    second.grad[0] = torch.nan
    assert clip(parameters, 1.0).isnan()


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("by", ["state_dict", "parameter"])
def test_state_survives_a_restart(name, by):
    config = MUON if name == "muon" else Config(lr=0.1, rules=RULES, schedule=Schedule())
    model, twin = (tiny(), tiny()) if name == "muon" else (small(), small())
    first, second = build(model, config), build(twin, config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    first.step()
    twin.load_state_dict(model.state_dict())
    if by == "state_dict":
        second.load_state_dict(copy.deepcopy(first.state_dict()))  # torch would share the tensors
    else:  # as a checkpoint does
        for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
            if parameter.requires_grad:
                second.state[other] = copy.deepcopy(first.state[parameter])
    set_lr(second, config, 0.5)
    set_lr(first, config, 0.5)
    for optimizer, owner in ((first, model), (second, twin)):
        for parameter in owner.parameters():
            parameter.grad = torch.full_like(parameter, 0.3) if parameter.requires_grad else None
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_config_is_plain_and_reads_from_the_command_line():
    config = Config(rules=RULES, layer_decay=0.75)
    data = json.loads(json.dumps(asdict(config)))
    assert data["rules"][0] == {"pattern": "first.weight", "lr": 0.25, "decay": None}
    data |= {
        "betas": tuple(data["betas"]),
        "rules": tuple(Rule(**rule) for rule in data["rules"]),
        "schedule": Schedule(**data["schedule"]),
    }
    assert Config(**data) == config
    args = ["--lr", "3e-4", "--clip", "None", "--schedule.warmup", "5%", "--schedule.kind", "rsqrt"]
    expected = Config(lr=3e-4, clip=None, rules=RULES, layer_decay=0.75, schedule=Schedule("rsqrt", warmup="5%"))
    assert tyro.cli(Config, default=config, args=args) == expected


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "adam"}, "optimiser 'adam' is unknown: choose adamw, sgd or muon"),
        ({"lr": -1.0}, r"optimiser lr = -1.0 must be 0 or more"),
        ({"weight_decay": float("nan")}, "optimiser weight_decay = nan must be 0 or more"),
        ({"betas": (0.9, 1.0)}, r"optimiser betas = \(0.9, 1.0\) and momentum = 0.9 must be 0 or more, and below 1"),
        ({"momentum": -0.1}, "momentum = -0.1 must be"),
        ({"eps": 0.0}, "eps = 0.0 above 0"),
        ({"clip": 0.0}, "clip = 0.0 must be above 0: use None"),
        ({"name": "sgd"}, "sgd has no decoupled weight decay, but weight_decay = 0.3: set it to 0.0"),
    ],
)
def test_config_errors_are_sentences(unchecked, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Config(**settings)
