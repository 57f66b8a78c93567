"""Relevance against literal transcriptions of its definitions, by autograd on whole matrices and by differences."""

import numpy as np
import pytest
import torch
from reference import perturb
from test_explain_attention import MORE, POOLS, row_of
from test_vit import CASES, pixels, tiny

from vitrail.explain.attention import attention
from vitrail.explain.relevance import gradient, legrad, relevance


def literal(model, images, label):
    """Chefer et al., 2021b: R of each image as a whole matrix, each step by its own gradient."""
    config = model.config
    with attention(model) as maps:
        logits = model(images)
    weighted = []
    for each in maps:
        (slope,) = torch.autograd.grad(logits[:, label].sum(), each, retain_graph=True)
        weighted.append((slope * each).clamp(min=0).mean(1).detach().numpy())
    found = []
    for b in range(len(images)):
        R = np.eye(maps[0].shape[-1])
        for each in weighted[: config.depth]:
            R = R + each[b] @ R
        row = weighted[-1][b] if config.pool == "map" else row_of(config, maps)[b][None]
        found.append((row @ R)[0, config.prefix :])
    return np.array(found)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "fields", [*POOLS, MORE["rotary"], MORE["relative"], MORE["dropout"], CASES["hybrid"]], ids=str
)
def test_gradient_is_its_definition(fields, frozen):
    config = tiny(**{"depth": 3, **fields})
    model, images = perturb(config.build()), pixels(config)
    classes = torch.tensor([[2, 0], [2, 4]])
    first, second = literal(model, images, 2), [literal(model, images, label)[b] for b, label in enumerate((0, 4))]
    found = gradient(model.requires_grad_(not frozen), images, classes)
    assert found.shape == (2, 2, *config.grid(images.shape[-2:]))
    np.testing.assert_allclose(found.flatten(2), np.stack([first, second], 1), atol=1e-12)
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad():  # as it may be called
        assert torch.equal(relevance(model, images, "gradient", classes), found)


def logit_after(model, z, places, block, changed, label):
    """s_l as a function of block l's map, by NumPy-free hands: the attention with `changed` added to its weights."""
    attn = block.attn
    q, k, v = attn.project(block.norm1(z))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) + changed
    y = attn.proj(attn.norm((weights @ v).transpose(1, 2).flatten(2)))
    z = z + block.ls1(y)
    z = z + block.ls2(block.mlp(block.norm2(z)))
    return model.head(model.pre_logits(model.pool(model.norm(z))))[:, label].sum(), z


@pytest.mark.parametrize("fields", [f for f in POOLS if f.get("pool") != "map"], ids=str)
def test_legrad_is_its_definition(fields):
    config, label = tiny(**fields, depth=3), 3
    model, images = perturb(config.build()), pixels(config)
    z, total = model.embed(images).detach(), 0.0
    for block in model.blocks:
        changed = torch.zeros(2, config.heads, z.shape[1], z.shape[1], dtype=torch.float64, requires_grad=True)
        score, z = logit_after(model, z.detach(), None, block, changed, label)
        (slope,) = torch.autograd.grad(score, changed)
        total = total + slope.clamp(min=0).sum((1, 2)) / (config.heads * z.shape[1])
    found = legrad(model, images, torch.full((2, 1), label))
    np.testing.assert_allclose(found[:, 0].flatten(1), total[:, config.prefix :] / 3, atol=1e-12)


def test_legrad_reads_the_poolings_own_attention():
    config, label = tiny(pool="map", class_token=False, depth=2), 1
    model, images = perturb(config.build()), pixels(config)
    z, total = model.embed(images), 0.0
    for block in model.blocks:
        z = block(z).detach()
        with attention(model) as maps:
            score = model.head(model.pool(model.norm(z)))[:, label].sum()
        (slope,) = torch.autograd.grad(score, maps[0])
        total = total + slope.clamp(min=0).mean(1)[:, 0] / 2
    found = legrad(model, images, torch.full((2, 1), label))
    np.testing.assert_allclose(found[:, 0].flatten(1), total, atol=1e-12)


def planted(pool="token", **fields):
    """A model whose class 1 is that some patch is white, and an image with one such patch, the seventh: attention is
    even, and carries the first coordinate, which only white patches have, to all tokens."""
    config = tiny(**{"depth": 1, "heads": 1, "image_size": (16, 16), "positions": "none", "pool": pool, **fields})
    model, one, images = config.build().double().eval(), torch.eye(16), torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(float("norm" in name and name.endswith("weight")))
        model.patch_embed.proj.weight[0] = 1 / 48
        model.cls_token[..., 1] = 1
        for block in model.blocks:
            block.attn.qkv.weight[32:], block.attn.proj.weight[:] = one, one
        if pool == "map":
            model.attn_pool.kv.weight[16:], model.attn_pool.proj.weight[:] = one, one
        model.head.weight[1, 0] = 100
    images[:, :, 4:8, 8:12] = 1
    return model, images


@pytest.mark.parametrize("method", ["gradient", "legrad"])
@pytest.mark.parametrize("pool", ["token", "avg", "map"])
def test_the_patch_that_decides_is_the_most_relevant(method, pool):
    found = relevance(*planted(pool), method, torch.tensor([[1, 0]]))[0]
    assert found[0].flatten().argmax() == 6
    others = found[0].flatten()[torch.arange(16) != 6]
    assert others.max() < found[0, 1, 2] - 1e-3
    if pool == "token":  # no other patch speaks for it
        assert others.max() == 0


def test_a_class_needs_a_head_and_rollout_none():
    config = tiny(classes=0)
    model, images = perturb(config.build()), pixels(config)
    for method in ("gradient", "legrad"):
        with pytest.raises(ValueError, match="head"):
            relevance(model, images, method, torch.zeros(2, 1, dtype=torch.int64))
    for method in ("rollout", "attention"):
        found = relevance(model, images, method)
        assert found.shape == (2, 1, 3, 2)
        assert (found > 0).all()
