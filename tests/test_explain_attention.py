"""Attention maps reproduce the fused forward pass in every kind of ViT, equal timm's, and planted ones have the
rollout and the distances that follow on paper."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from reference import perturb
from test_vit import CASES, pixels, tiny
from timm.utils import AttentionExtract

import vitrail
from vitrail.explain.attention import attention, distance, heads, last, patches, rollout
from vitrail.models import resnet, vit
from vitrail.models.config import Rotary

MORE = {
    "rotary": {"rotary": Rotary(), "registers": 2},
    "relative": {"relative": "geometric", "positions": "none"},
    "relative, shared": {"relative": "bilinear", "relative_shared": True},
    "class and mean": {"pool": "token_avg", "registers": 1},
    "distilled": {"pool": "distilled", "registers": 1},
    "norms and keys without bias": {"attention_norm": True, "mlp_norm": True, "key_bias": False},
    "dropout": {"dropout": 0.5, "attention_dropout": 0.5, "drop_path": 0.5},
}


@pytest.mark.parametrize("size", [None, (20, 8)], ids=["its size", "another"])
@pytest.mark.parametrize("case", [*CASES, *MORE])
def test_maps_sum_to_one_and_the_pass_stays_the_fused_one(case, size):
    config = tiny(case) if case in CASES else tiny(**MORE[case])
    size = size if size is None or config.stem is None else (64, 96)
    model, images = perturb(config.build(), dtype=torch.float32), pixels(config, size=size, dtype=torch.float32)
    model.train()
    with torch.no_grad(), attention(model) as maps:
        found = model(images)
    assert model.training
    expected = model.eval()(images).detach()
    torch.testing.assert_close(found, expected, atol=1e-6 * max(1.0, float(expected.abs().max())), rtol=0)
    tokens = config.prefix + math.prod(config.grid(images.shape[-2:]))
    block, pool = (2, config.heads, tokens, tokens), (2, config.heads, 1, tokens)
    assert [each.shape for each in maps] == [block] * config.depth + [pool] * (config.pool == "map")
    for each in maps:
        torch.testing.assert_close(each.sum(-1), torch.ones(each.shape[:-1]))


def test_maps_are_timms_on_timms_model(monkeypatch):
    monkeypatch.setattr("timm.layers.config._USE_FUSED_ATTN", 0)  # which hides its maps
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=64, depth=3)
    perturb(theirs, dtype=torch.float32)
    config = vitrail.configure("vit_tiny_patch16_224", classes=3, image_size=64, depth=3)
    ours = config.build().eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), attention(ours) as maps:
        ours(images)
    expected = AttentionExtract(theirs, method="fx")(images)
    assert len(expected) == len(maps) == 3
    for mine, other in zip(maps, expected.values(), strict=True):
        torch.testing.assert_close(mine, other.detach(), atol=1e-6, rtol=1e-5)


def test_other_threads_keep_the_fused_path():
    config = tiny()
    model, images = perturb(config.build(), dtype=torch.float32), pixels(config, dtype=torch.float32)
    with torch.no_grad(), attention(model) as maps, ThreadPoolExecutor(1) as pool:
        pool.submit(model, images).result()
        assert maps == []
        model(images)
    assert len(maps) == config.depth
    model(images)
    assert len(maps) == config.depth


def test_a_resnet_has_no_attention():
    model = resnet.ResNet(resnet.Config((1,), classes=2, image_size=(32, 32)))
    with pytest.raises(ValueError, match="ResNet has no attention"), attention(model):
        pass


def random_maps(config, grid, seed=0, batch=2):
    tokens = config.prefix + math.prod(grid)
    draw = torch.Generator().manual_seed(seed)
    rows = [tokens] * config.depth + [1] * (config.pool == "map")
    made = [torch.randn(batch, config.heads, n, tokens, generator=draw, dtype=torch.float64) for n in rows]
    return [each.softmax(-1) for each in made]


def row_of(config, maps):
    """How the head reads the tokens, written out by pooling."""
    row = np.zeros((len(maps[0]), maps[0].shape[-1]))
    patch = slice(config.prefix, None)
    if config.pool == "map":
        return maps[-1].mean(1)[:, 0].numpy()
    if config.pool == "token":
        row[:, 0] = 1
    elif config.pool == "distilled":
        row[:, :2] = 0.5
    elif config.pool == "avg":
        row[:, patch] = 1 / row[:, patch].shape[1]
    else:
        row[:, 0], row[:, patch] = 0.5, 0.5 / row[:, patch].shape[1]
    return row


POOLS = [
    {}, {"registers": 2}, {"pool": "avg"}, {"pool": "avg", "class_token": False}, {"pool": "token_avg", "registers": 1},
    {"pool": "distilled", "registers": 1}, {"pool": "map"}, {"pool": "map", "class_token": False},
]  # fmt: skip


@pytest.mark.parametrize("fields", POOLS, ids=str)
def test_rollout_and_heads_are_the_products_of_whole_matrices(fields):
    config, grid = tiny(**fields, depth=3), (3, 2)
    maps = random_maps(config, grid)
    row, product = row_of(config, maps), np.eye(maps[0].shape[-1])
    for each in maps[:3]:
        product = (0.5 * each.mean(1).numpy() + 0.5 * np.eye(product.shape[-1])) @ product
    np.testing.assert_allclose(rollout(maps, config), np.einsum("bn,bnm->bm", row, product), atol=1e-12)
    several = np.einsum("bn,lbhnm->blhm", row, torch.stack(maps[:3]).numpy())
    np.testing.assert_allclose(heads(maps, config), several, atol=1e-12)
    expected = row if config.pool == "map" else several[:, 2].mean(1)
    np.testing.assert_allclose(last(maps, config), expected, atol=1e-12)
    np.testing.assert_array_equal(
        patches(rollout(maps, config), config, grid).flatten(1), rollout(maps, config)[:, config.prefix :]
    )


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_planted_attention_has_its_distances(prefix):
    fields = {"pool": "avg", "class_token": prefix > 0, "registers": max(0, prefix - 1), "patch_size": (4, 2)}
    config, (rows, columns) = tiny(**fields, image_size=(12, 8)), (3, 4)
    tokens = prefix + rows * columns
    itself, even = torch.eye(tokens), torch.full((tokens, tokens), 1 / tokens)
    right = torch.eye(tokens)
    for y in range(rows):
        for x in range(columns):  # to the next patch on the right, of the last to the first
            place = prefix + y * columns
            right[place + x] = torch.eye(tokens)[place + (x + 1) % columns]
    maps = [torch.stack([itself, even])[None], torch.stack([right, even])[None]]
    found = distance(maps, config, (rows, columns))[0]
    every = [(4 * y, 2 * x) for y in range(rows) for x in range(columns)]
    mean = np.mean([math.dist(a, b) for a in every for b in every])
    np.testing.assert_allclose(found, [[0.0, mean], [(3 * 2 + 6) / 4, mean]], rtol=1e-5)


def test_planted_attention_has_its_rollout():
    config = tiny(depth=3)
    tokens = 1 + 6
    itself, even = (each.expand(1, 2, -1, -1) for each in (torch.eye(tokens), torch.full((tokens, tokens), 1 / tokens)))
    assert torch.equal(rollout([itself] * 3, config), torch.eye(tokens)[:1])
    # Of even attention (0.5 + 0.5 E)^3 = 0.125 + 0.875 E, because E E = E.
    expected = torch.full((1, tokens), 0.875 / tokens)
    expected[0, 0] += 0.125
    torch.testing.assert_close(rollout([even] * 3, config), expected)


def test_a_hybrids_distances_are_in_pixels_of_the_image():
    config = tiny("hybrid")  # 16 pixels a cell
    tokens = 1 + 6
    swapped = torch.eye(tokens)
    swapped[1:] = torch.eye(tokens)[[2, 1, 3, 5, 4, 6]]  # of each row of three the first two
    assert distance([swapped[None, None]] * 2, config, (2, 3)).tolist() == [[[pytest.approx(16 * 4 / 6)]] * 2]


def test_in_half_precision_maps_are_computed_in_single():
    config = tiny()
    model, images = perturb(config.build(), dtype=torch.bfloat16), pixels(config, dtype=torch.bfloat16)
    with torch.no_grad(), attention(model) as maps:
        found = model(images)
    assert {each.dtype for each in maps} == {torch.float32}
    torch.testing.assert_close(found, model(images).detach(), atol=0.1, rtol=0.02)
    assert isinstance(model, vit.ViT)
