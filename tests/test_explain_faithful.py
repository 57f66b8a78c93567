"""Removal is what a shorter sequence gives, and finds a planted patch; other weights give another map."""

import numpy as np
import pytest
import scipy.stats
import torch
from reference import perturb
from test_explain_attention import MORE
from test_explain_relevance import planted
from test_vit import CASES, pixels, tiny

from vitrail.explain.faithful import Removal, randomised, removal, spearman, student, summary
from vitrail.explain.relevance import relevance
from vitrail.models.rotary import turn

KINDS = {name: MORE[name] for name in ("rotary", "relative", "relative, shared", "class and mean", "distilled")}
KINDS |= {name: CASES[name] for name in ("plain", "mean without class", "registers", "MAP", "hybrid")}


def by_hand(model, image, kept):
    """Probabilities with the patches `kept`: every attention is cut by hand, token by token."""
    config = model.config
    index = torch.tensor([*range(config.prefix), *(config.prefix + n for n in kept)])
    z, places = model.embed(image), model.places(image)
    whole = z.shape[1]
    z = z[:, index]
    for block in model.blocks:
        normed = block.norm1(z)
        q, k, v = block.attn.project(normed)
        if places is not None and places.turn is not None:
            cut = places.turn._replace(cos=places.turn.cos[kept], sin=places.turn.sin[kept])
            q, k = turn(q, cut), turn(k, cut)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if (bias := block.attn.bias(places, None)) is not None:
            assert bias.shape[-1] == whole
            scores = scores + bias[..., index, :][..., index]
        y = block.attn.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        z = z + y
        z = z + block.mlp(block.norm2(z))
    return model.head(model.pool(model.norm(z))).softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_is_a_shorter_sequence(kind):
    config = tiny(**KINDS[kind])
    model, images = perturb(config.build()), pixels(config)
    grid, classes = config.grid(config.image_size), torch.tensor([1, 4])
    scores = torch.randn(2, *grid, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = removal(model, images, scores, classes, steps=3, orders=2, seed=5)
    count, whole = scores[0].numel(), model(images).softmax(-1).detach()
    stays = int(config.pool in ("avg", "token_avg") or not config.prefix)
    counts = [0, round(count / 3), round(2 * count / 3), count - stays]
    np.testing.assert_allclose(found.removed * count, counts, atol=1e-6)
    for b in range(2):
        order = scores[b].flatten().argsort(descending=True).tolist()
        for n, number in enumerate(counts):
            for curve, ranked in ((found.most, order), (found.least, order[::-1])):
                expected = by_hand(model, images[b : b + 1], sorted(ranked[number:]))[0, classes[b]]
                assert curve[b, n].item() == pytest.approx(expected.item(), abs=1e-6)
        every = torch.cat([found.most[b, None], found.least[b, None], found.random[b]])
        assert every[:, 0].tolist() == pytest.approx([whole[b, classes[b]].item()] * 4, abs=1e-6)
        if not stays:  # nothing but [class] and registers is left, in whatever order it came to that
            assert every[:, -1].tolist() == pytest.approx([every[0, -1].item()] * 4, abs=1e-6)


def test_orders_follow_from_the_seed():
    config = tiny()
    model, images, scores = perturb(config.build()), pixels(config), torch.rand(2, 3, 2)
    first, again, other = (removal(model, images, scores, torch.tensor([0, 1]), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.random, again.random)
    assert not torch.equal(first.random, other.random)
    assert first.random.shape == (2, 20, 11)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("method", ["gradient", "legrad", "attention", "rollout"])
def test_a_patch_that_decides_alone_is_removed_first(method, sigmoid):
    """The perfect area, for methods that know the class; attention is even here, and knows nothing."""
    model, images = planted()
    label = torch.tensor([[1]])
    scores = relevance(model, images, method, label)[:, 0]
    found = removal(model, images, scores, label[0], steps=16, orders=50, sigmoid=sigmoid)
    numbers = summary([found])
    assert found.most[0, 0] > 0.99
    if method in ("gradient", "legrad"):
        assert found.most[0, 1:].max() < 0.21
        assert found.least[0, :-1].min() > 0.99
        assert numbers["low"] <= numbers["gain"] == pytest.approx(numbers["random"] - numbers["most"])
        assert found.area(found.most)[0] <= found.area(found.random).min()
    else:  # all scores are equal, to rounding
        assert scores.std() < 1e-12
        assert numbers["low"] < 0 < numbers["high"]


def test_areas_and_intervals():
    removed = torch.tensor([0.0, 0.5, 1.0])
    falling, even, late = (
        torch.tensor([[1.0, 0.0, 0.0]]),
        torch.tensor([[1.0, 0.5, 0.0]]),
        torch.tensor([[1.0, 1.0, 0.0]]),
    )
    random = torch.stack([falling, even, late], 1)
    one = Removal(removed, falling, late, random)
    numbers = summary([one])
    assert (numbers["most"], numbers["least"], numbers["random"]) == (0.25, 0.75, 0.5)
    assert (numbers["gain"], numbers["high"] - numbers["low"]) == (0.25, pytest.approx(2 * 1.96 * 0.25, rel=1e-4))
    two = Removal(torch.tensor([0.0, 1.0]), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.ones(1, 3, 2))
    numbers = summary([one, two])  # gains of 0.25 and 0.5: their standard error is 0.125
    half = 0.125 * scipy.stats.t.ppf(0.975, 1)
    assert (numbers["low"], numbers["gain"], numbers["high"]) == pytest.approx(
        (0.375 - half, 0.375, 0.375 + half), rel=1e-4
    )
    for freedom in (1, 2, 3, 4, 5, 9, 30, 1000):
        assert student(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=3e-3)


def test_other_weights_give_another_map_of_gradients():
    config = tiny(depth=4, heads=4, image_size=(32, 32))
    model, images = perturb(config.build()), pixels(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    label = torch.tensor([[1], [2]])
    explain = lambda other: relevance(other, images, "gradient", label)[:, 0]  # noqa: E731
    seen = []
    found = randomised(model, lambda other: seen.append(other) or explain(other), seed=3)
    expected = [scipy.stats.spearmanr(*(explain(one)[b].flatten() for one in seen)).statistic for b in range(2)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.abs().max() < 0.99
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    changed = {name for name, tensor in seen[1].state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] for name in changed} == {"2", "3"}
    assert torch.equal(found, randomised(model, explain, seed=3))
    assert torch.equal(randomised(model, lambda other: images[:, 0], blocks=1), torch.ones(2))


def test_spearman_is_scipys():
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 6, (5, 30)), draw.normal(size=(5, 30))  # with ties, and without
    first[4] = 3
    found = spearman(torch.from_numpy(first).double(), torch.from_numpy(second))
    expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(first[:4], second[:4], strict=True)]
    np.testing.assert_allclose(found, [*expected, 0.0], atol=1e-6)
