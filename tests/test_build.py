"""The optimiser with its rules against NumPy and torch over several steps; learning rates, clipping."""

import numpy as np
import pytest
import torch
from torch import nn

from vitrail.models import vit
from vitrail.optim.build import Config, build, clip, set_lr
from vitrail.optim.rules import Rule, freeze
from vitrail.optim.schedule import Schedule, multiplier

RULES = (Rule("first.weight", lr=0.25), Rule("last.weight", decay=0.5), freeze("first.bias"))
SCALES = {"first.weight": (0.25, 1.0), "last.weight": (1.0, 0.5)}
SCALES |= dict.fromkeys(["norm.weight", "norm.bias", "last.bias"], (1.0, 0.0))


def small():
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(4, 3), "norm": nn.LayerNorm(3), "last": nn.Linear(3, 2)})
    return model.double()


def test_adamw_equals_numpy_with_mask_and_scales():
    schedule = Schedule(warmup="2 steps")
    config = Config(lr=0.1, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-3, rules=RULES, schedule=schedule)
    model, random = small(), np.random.default_rng(1)
    optimizer = build(model, config)
    w = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    m = v = dict.fromkeys(w, 0.0)
    for t in range(6):
        gradients = {name: random.normal(size=value.shape) for name, value in w.items()}
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(gradients[name]) if parameter.requires_grad else None
        set_lr(optimizer, config, multiplier(schedule, t, 6))
        optimizer.step()
        m = {name: 0.8 * m[name] + 0.2 * gradient for name, gradient in gradients.items()}
        v = {name: 0.95 * v[name] + 0.05 * gradient**2 for name, gradient in gradients.items()}
        for name, (lr_scale, decay_scale) in SCALES.items():
            lr = 0.1 * lr_scale * (t / 2 if t < 2 else (6 - t) / 4)
            w[name] = w[name] * (1 - lr * 0.3 * decay_scale)
            w[name] -= lr * (m[name] / (1 - 0.8 ** (t + 1))) / (np.sqrt(v[name] / (1 - 0.95 ** (t + 1))) + 1e-3)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), w[name], rtol=1e-12, err_msg=name)


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
    model(torch.randn(6, 1, 8, 8, generator=random)).square().sum().backward()


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


def test_muon_without_matrices_is_refused():
    with pytest.raises(ValueError, match=r"muon trains the matrices .*, and ModuleDict has none to train: use adamw"):
        build(small(), Config("muon"))
    with pytest.raises(ValueError, match="ViT has none to train"):
        build(tiny(), Config("muon", rules=(freeze("blocks"),)))


def test_clip_is_by_the_global_norm():
    first, second, without = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    parameters = [first, second, without]
    for limit, scale in ((None, 1.0), (10.0, 1.0), (1.0, 0.2)):  # one factor for both: the direction stays
        first.grad, second.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
        assert clip(iter(parameters), limit) == 5
        tolerance = {} if limit == 1 else {"rtol": 0, "atol": 0}  # below the limit: untouched, bit for bit
        torch.testing.assert_close(first.grad + second.grad, scale * torch.tensor([3.0, 4.0]), **tolerance)
    second.grad[0] = torch.nan
    assert clip(parameters, 1.0).isnan()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"name": "adam"}, "optimiser 'adam' is unknown: choose adamw, sgd or muon"),
        ({"lr": -1.0}, r"lr = -1.0"), ({"weight_decay": float("nan")}, "weight_decay = nan"),
        ({"betas": (0.9, 1.0)}, r"betas = \(0.9, 1.0\)"), ({"momentum": -0.1}, "momentum = -0.1"),
        ({"eps": 0.0}, "eps = 0.0"), ({"clip": 0.0}, "clip = 0.0"),
        ({"name": "sgd"}, "sgd has no decoupled weight decay, but weight_decay = 0.3"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(unchecked, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Config(**settings)


@pytest.mark.parametrize("most", [None, 0.1, 100.0])
def test_the_exact_norm_is_torchs_in_any_order(most):
    numbers = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3e-3
    norms, scaled = [], []
    for sizes in ([1000], [1, 999], [500, 13, 487], [0, 1000]):
        pieces = [nn.Parameter(torch.zeros(size)) for size in sizes]
        for piece, gradient in zip(pieces, numbers.split(sizes), strict=True):
            piece.grad = gradient.clone()
        norms.append(clip(pieces, most, exact=True))
        scaled.append(torch.cat([piece.grad for piece in pieces]))
        assert torch.equal(norms[-1], norms[0])
        assert torch.equal(scaled[-1], scaled[0])
    whole = nn.Parameter(torch.zeros(1000))
    whole.grad = numbers.clone()
    torch.testing.assert_close(norms[0], clip([whole], most), rtol=3e-7, atol=0)
    torch.testing.assert_close(scaled[0], whole.grad, rtol=3e-7, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_exact_norm_of_what_is_not_finite_is_not_finite(bad):
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1.0, bad, 2.0])
    assert not clip([parameter], 1.0, exact=True).isfinite()
    parameter.grad = torch.zeros(3)
    assert clip([parameter], 1.0, exact=True) == 0
