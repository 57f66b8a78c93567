"""The ViT against the equations in plain numpy, its gradients against finite differences, and what it refuses."""

import numpy as np
import pytest
import torch
from reference import forward, perturb, weights

from vitrail.models import resnet
from vitrail.models.layers import Dropout, DropPath
from vitrail.models.vit import Block, Config, ViT

SMALL = {"image_size": (12, 8), "patch_size": (4, 4), "width": 16, "depth": 2, "heads": 2, "mlp_dim": 24, "classes": 5}
HYBRID = {"patch_size": (1, 1), "stem": resnet.Config(blocks=(1, 1, 1), classes=0), "image_size": (32, 48)}
R26 = {"patch_size": (1, 1), "stem": resnet.Config(blocks=(2, 2, 2, 2), classes=0), "image_size": (64, 32)}
STEM = {"patch_size": (8, 8), "stem": resnet.Config(blocks=(), classes=0), "image_size": (32, 64)}
MEAN = {"pool": "avg", "class_token": False}
CASES = {
    "plain": {},
    "mean": {"pool": "avg"},
    "mean without class": MEAN,
    "mean, norm after": {**MEAN, "norm_first": False},
    "class, norm after": {"norm_first": False},
    "pre-logits": {"representation": 12},
    "registers": {"registers": 3},
    "registers, class without position": {"registers": 3, "class_position": False},
    "class without position": {"class_position": False},
    "mean with registers": {"pool": "avg", "registers": 2},
    "LayerScale": {"layer_scale": 1e-5},
    "MAP": {"pool": "map", "class_token": False},
    "MAP with class, tanh": {"pool": "map", "activation": "gelu_tanh"},
    "SwiGLU": {"activation": "swiglu"},
    "MAP, SwiGLU": {"activation": "swiglu", "pool": "map"},
    "GELU tanh": {"activation": "gelu_tanh"},
    "sin-cos": {"positions": "sincos"},
    "sin-cos of MAE": {"positions": "sincos_mae"},
    "no positions": {"positions": "none"},
    "CLIP": {"pre_norm": True, "activation": "quick_gelu", "patch_bias": False, "norm_eps": 1e-2},
    "qk norm": {"qk_norm": True, "norm_eps": 1e-2},
    "no qkv bias": {"qkv_bias": False},
    "wide patch": {"patch_size": (2, 4), "channels": 4},
    "hybrid": HYBRID,
    "R26": R26,
    "R": STEM,
}


def tiny(case="plain", **overrides):
    return Config(**{**SMALL, **CASES[case], **overrides})


def pixels(config, batch=2, size=None, dtype=torch.float64):
    shape = (batch, config.channels, *(size or config.image_size))
    return torch.randn(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_the_forward_pass_is_the_papers_equations(case, dtype):
    config = tiny(case)
    model, images = perturb(ViT(config), dtype=dtype), pixels(config, dtype=dtype)
    expected = forward(weights(model), config, images.numpy())
    assert 0.1 < np.abs(expected).mean() < 10
    with torch.no_grad():
        np.testing.assert_allclose(model(images), expected, rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("R26", "R")])
def test_gradients_are_those_of_finite_differences(case):
    small = {"stem": resnet.Config(blocks=(1, 1), classes=0), "image_size": (16, 24), "depth": 1}
    config = tiny(case, **(small if case == "hybrid" else {}))
    model, images = perturb(ViT(config)), pixels(config)
    target = torch.randn(2, config.classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss():
        return (model(images) * target).sum()

    loss().backward()
    generator, step = torch.Generator().manual_seed(2), 1e-6
    for name, p in model.named_parameters():
        direction = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()  # short steps: a ReLU has kinks
        with torch.no_grad():
            p.add_(step * direction)
            above = loss()
            p.sub_(2 * step * direction)
            below = loss()
            p.add_(step * direction)
        # A shift of all keys leaves the softmax as it is.
        assert (p.grad.norm() > 1e-4) != name.endswith("k_norm.bias"), f"the gradient of {name} is {p.grad.norm()}"
        slope, expected = (p.grad * direction).sum().item(), ((above - below) / (2 * step)).item()
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7), name


def test_the_public_steps_compose_to_the_logits():
    model = perturb(ViT(tiny("registers, class without position", representation=12, norm_first=False)))
    images = pixels(model.config)
    y = model.pool(model.norm(model.blocks(model.embed(images))))
    assert torch.equal(model.head(model.pre_logits(y)), model(images))
    headless = perturb(ViT(tiny(classes=0)))
    assert torch.equal(headless(images), headless.tokens(images)[:, 0])


@pytest.mark.parametrize("case", ["plain", "MAP", "hybrid"])
def test_a_samples_logits_do_not_depend_on_the_others(case):
    model = perturb(ViT(tiny(case)))
    images = pixels(model.config, batch=5)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=0, atol=1e-12)


def test_dropout_follows_the_positions_and_every_dense_layer_but_qkv():
    model, widths = ViT(tiny(dropout=0.5, depth=1)).train(), []
    for module in model.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(lambda m, x, y: widths.append((m.rate, x[0].shape[-1])))
    model(pixels(model.config, dtype=torch.float32))
    # positions, U_msa, and the two layers of the MLP
    assert widths == [(0.5, 16), (0.5, 16), (0.5, 24), (0.5, 16)]


def test_stochastic_depth_grows_with_the_depth_and_drops_whole_samples():
    rates = [(b.drop_path1.rate, b.drop_path2.rate) for b in ViT(tiny(depth=4, drop_path=0.3)).blocks]
    assert np.array(rates) == pytest.approx(np.repeat([[0.0], [0.1], [0.2], [0.3]], 2, 1))
    kept = DropPath(0.25)(torch.ones(200, 2, 3))
    assert torch.equal(kept, kept[:, :1, :1].expand_as(kept))


def test_a_dropped_block_is_the_identity():
    block = Block(tiny(), drop_path=1 - 1e-12, device=None).train()
    z = torch.randn(3, 4, 16)
    assert torch.equal(block(z), z)


BAD = [
    ({"heads": 3}, "3 heads .* 16.* 2"), ({"positions": "sincos", "width": 18}, "4, not 18"),
    ({"class_token": False}, "class_token is False"), ({"image_size": (0, 8)}, r"image_size is \(0, 8\)"),
    ({"classes": -1}, "classes is -1"), ({"dropout": 1.0}, r"dropout is 1\.0"), ({"activation": "relu"}, "is 'relu'"),
    ({"pool": "max"}, "pool is 'max'.*token, avg, map"), ({"stem": resnet.Config()}, "3 channels and 1000 classes"),
    ({"depth": 0}, "depth is 0"), ({"remainder": "drop"}, "remainder is 'drop'.*pad, refuse, crop"),
    ({"image_size": (12, 10), "remainder": "refuse"}, "12 x 10 .*4 x 4"),
    ({"stem": resnet.Config(classes=0), "channels": 1}, "3 channels .* 1 channels"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_a_configuration_that_cannot_be_is_refused_with_its_numbers(overrides, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Config(**{**SMALL, **overrides})
