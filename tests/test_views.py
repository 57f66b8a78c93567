"""Views: SIGReg against its closed form, what the loss is made of, and the evaluator that watches pre-training."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from judging import HOW, judged, source
from reference import perturb
from scipy.stats import kstest

from vitrail.batch import Batch
from vitrail.data.sources.fingerprint import spread as evenly
from vitrail.data.sources.source import Subset
from vitrail.evaluate import Knn
from vitrail.evaluate.watch import Watch, effective_rank, spread
from vitrail.models import vit
from vitrail.models.layers import drawing
from vitrail.tasks.views import EXPECTED, ViewsConfig, directions, sigreg

MODEL = vit.Config((16, 16), (4, 4), 3, 16, 2, 2, 32, 0)
CONFIG = ViewsConfig(hidden=24, width=8, directions=32)


def task(config=CONFIG, model=MODEL):
    return perturb(config.task(model.build("cpu"), replace(HOW, image_size=model.image_size), ()))


def batch(count=20, seed=0):
    draw = np.random.default_rng(seed)
    images = torch.from_numpy(draw.integers(0, 256, (count, 3, 20, 20), np.uint8))
    return Batch(images=images, keys=torch.from_numpy(draw.integers(-(2**63), 2**63, count)))


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def closed(x):
    """T of (N,) numbers: the integral over all t, by Gaussians' own integrals."""
    n, apart = len(x), x[:, None] - x
    pairs = math.sqrt(2 * math.pi) / n * (-apart.square() / 2).exp().sum()
    return pairs - 2 * math.sqrt(math.pi) * (-x.square() / 4).exp().sum() + n * math.sqrt(2 * math.pi / 3)


ONE = torch.ones(1, 1, dtype=torch.float64)


def statistic(x):
    return sigreg(x[:, None, None], ONE)


@pytest.mark.parametrize("count", [1, 16, 100])
@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (0.1, 0), (2, 1), (0, 0), (0, 3)])
def test_sigreg_and_its_gradient_are_the_closed_forms(count, scale, shift):
    x = (normal(count) * scale + shift).requires_grad_()
    found, expected = statistic(x), closed(x)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    ours, theirs = (torch.autograd.grad(value, x)[0] for value in (found, expected))
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max() + 1e-9


def test_sigregs_gradient_is_that_of_its_sums():
    along = torch.nn.functional.normalize(normal(3, 5), dim=0)
    assert torch.autograd.gradcheck(lambda z: sigreg(z, along), normal(6, 2, 3, seed=1).requires_grad_())


@pytest.mark.parametrize("count", [4, 16, 128])
def test_of_a_gaussian_it_is_the_same_on_average_for_every_number_of_images(count):
    draws = np.array([float(statistic(normal(count, seed=seed))) for seed in range(600)])
    assert draws.mean() == pytest.approx(EXPECTED, abs=4 * draws.std() / math.sqrt(len(draws)))
    assert pytest.approx(1.06, abs=0.005) == EXPECTED


@pytest.mark.parametrize("count", [16, 128])
def test_of_collapsed_embeddings_it_is_two_fifths_of_their_number(count):
    x = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    assert float(statistic(x).detach()) == pytest.approx(0.409 * count, rel=1e-3)
    assert torch.autograd.grad(statistic(x), x)[0].abs().max() < 1e-12


def test_each_view_has_a_statistic_of_its_own_and_their_mean_counts():
    z, along = normal(20, 3, 8), directions(torch.arange(20), 8, 32)
    alone = [float(closed(z[:, v] @ along[:, d])) for v in range(3) for d in range(32)]
    assert float(sigreg(z, along)) == pytest.approx(np.mean(alone), rel=1e-4)
    together = np.mean([float(closed((z @ along[:, d]).flatten())) for d in range(32)])
    assert abs(together - np.mean(alone)) > 0.01


@pytest.mark.parametrize(("count", "factor"), [(20, 0.05 * 128 / 20), (4, 0.9)])
def test_the_loss_is_the_papers_with_lambda_for_128_images(count, factor):
    one, given = task(), batch(count)
    loss, metrics = one(given)
    z = one.embed(given).detach()
    each, first = z[:, : 6 * 8].unflatten(1, (6, 8)), z[:, 6 * 8 : -3]
    mean = (each[:, 0] + each[:, 1]) / 2
    apart = np.mean([(mean - each[:, v]).square().mean() for v in range(6)])
    along = directions(given["keys"], 8, 32)
    regular = np.mean([float(closed(each[:, v] @ along[:, d])) for v in range(6) for d in range(32)])
    assert float(metrics["invariance"]) == pytest.approx(apart, abs=1e-10)
    assert float(metrics["gaussian"]) == pytest.approx(regular / EXPECTED, rel=1e-4)
    assert float(loss.detach()) == pytest.approx((1 - factor) * apart + factor * regular, rel=1e-4)
    assert float(metrics["spread"]) == pytest.approx(spread(first.numpy()), abs=1e-10)
    assert first.norm(dim=1).numpy() == pytest.approx(np.ones(count), abs=1e-10)


def test_global_views_belong_to_both_terms():
    """Two global ones, without any other: half of their distance squared, and the statistic of each."""
    one, given = task(replace(CONFIG, local_views=0)), batch()
    each = one.embed(given).detach()[:, :16].unflatten(1, (2, 8))
    metrics = one(given)[1]
    assert float(metrics["invariance"]) == pytest.approx(
        float((each[:, 0] - each[:, 1]).square().mean() / 4), abs=1e-10
    )
    both = sigreg(each, directions(given["keys"], 8, 32)) / EXPECTED
    assert float(metrics["gaussian"]) == pytest.approx(float(both), abs=1e-10)


def test_directions_are_unit_vectors_everywhere_and_new_with_every_batch():
    keys = torch.from_numpy(np.random.default_rng(3).integers(-(2**63), 2**63, 50))
    found = directions(keys, 8, 2000)
    torch.testing.assert_close(found.norm(dim=0), torch.ones(2000, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(directions(keys[torch.randperm(50)], 8, 2000), found)
    other = directions(keys + torch.arange(50).eq(0), 8, 2000)
    assert (other * found).sum(0).abs().mean() < 0.5
    assert found.mean(1).abs().max() < 4.5 / math.sqrt(8 * 2000)
    assert (found @ found.T / 2000 - torch.eye(8) / 8).abs().max() < 0.02
    uniform = directions(keys, 3, 2000)  # on a sphere, each coordinate is uniform
    assert all(kstest(row, "uniform", (-1, 2)).pvalue > 1e-3 for row in uniform.numpy())


@pytest.mark.parametrize("noise", [{}, {"dropout": 0.2, "drop_path": 0.3, "attention_dropout": 0.1}])
def test_an_images_embedding_does_not_depend_on_those_beside_it(noise):
    one, given = task(model=replace(MODEL, **noise)).train(), batch()

    def embedded(some):
        with torch.no_grad(), drawing(one, some["keys"], one.shown):
            return one.embed(some)

    found = embedded(given)
    torch.testing.assert_close(torch.cat([embedded(part) for part in given.split(7)]), found, rtol=0, atol=1e-10)
    order = torch.randperm(20)
    turned = Batch(images=given["images"][order], keys=given["keys"][order])
    torch.testing.assert_close(embedded(turned), found[order], rtol=0, atol=1e-10)
    one.eval()
    assert torch.allclose(embedded(given), found) == (not noise)


def test_dropout_draws_anew_for_each_view():
    """Of views that are alike: crops of images of one colour, without a change of it."""
    noisy = task(replace(CONFIG, preset="none"), replace(MODEL, drop_path=0.9, depth=4, positions="none")).train()
    given = batch()
    given["images"][:] = 77
    with torch.no_grad(), drawing(noisy, given["keys"], noisy.shown):
        each = noisy.embed(given)[:, : 6 * 8].unflatten(1, (6, 8))
    assert ((each[:, 0] - each[:, 1]).abs().amax(1) > 1e-6).double().mean() > 0.5


def rank_by_numpy(values):
    x = values - values.mean(0)
    eigenvalues = np.clip(np.linalg.eigvalsh(x.T @ x), 0, None)
    p = np.sqrt(eigenvalues) / np.sqrt(eigenvalues).sum()
    return np.prod(np.where(p > 0, p, 1) ** -p)


def test_rank_and_spread_are_their_formulas():
    values = normal(60, 12).numpy() * np.arange(1, 13) + 3
    assert effective_rank(values) == pytest.approx(rank_by_numpy(values), rel=1e-6)
    unit = values / np.sqrt((values**2).sum(1, keepdims=True))
    assert spread(values) == pytest.approx(np.sqrt(unit.var(0).sum()), abs=1e-10)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_so_many_directions_that_are_used_alike_are_their_rank(k):
    values = np.concatenate([np.eye(8)[:k], -np.eye(8)[:k]])
    assert effective_rank(values + 5) == pytest.approx(k, abs=1e-9)
    assert spread(values) == pytest.approx(1, abs=1e-12)


def test_one_point_has_neither_rank_nor_spread():
    values = np.tile(np.arange(4.0) + 1, (9, 1))
    assert (effective_rank(values), spread(values)) == (0, pytest.approx(0, abs=1e-7))
    assert (effective_rank(0 * values), spread(0 * values)) == (0, 0)


def watching(images, train):
    one = task(model=replace(MODEL, image_size=(8, 8), patch_size=(2, 2))).eval()
    return judged(Watch(), one, images, train)[0]


def test_watch_is_knn_and_the_two_formulas_on_the_same_images():
    images, train = source(60, seed=1), source(90)
    one = task(model=replace(MODEL, image_size=(8, 8), patch_size=(2, 2))).eval()
    found, known = judged(Watch(), one, images, train)[0], judged(Knn(), one, images, train)[0]
    assert {name: found[name] for name in ("knn", "knn_low", "knn_high")} == {
        name: known[name] for name in ("knn", "knn_low", "knn_high")
    }
    assert 0 < found["knn_low"] < found["knn"] < found["knn_high"] <= 1
    pixels = torch.stack([torch.from_numpy(images[i].image).permute(2, 0, 1) for i in range(60)])
    values = one.predict(Batch(images=pixels))["features"].numpy().astype(np.float64)
    assert found["rank"] == pytest.approx(rank_by_numpy(values), rel=1e-4)
    assert found["spread"] == pytest.approx(spread(values), rel=1e-5)
    assert found["samples"] == 60


def test_watch_looks_at_some_images_evenly_spaced():
    one = task(model=replace(MODEL, image_size=(8, 8), patch_size=(2, 2))).eval()
    found = judged(Watch(images=20, bank=30), one, source(60), source(90))[0]
    images, train = Subset(source(60), evenly(60, 20)), Subset(source(90), evenly(90, 30))
    assert found == judged(Watch(), one, images, train)[0]
    assert found["samples"] == 20
    with pytest.raises(ValueError, match=r"1 images .* 2 or more"):
        Watch(images=1)


def test_images_without_labels_are_watched_without_neighbours():
    labelled, images, train = source(60), source(60), replace(source(90), labels=None)
    found = watching(replace(images, labels=None), train)
    assert found.keys() == {"rank", "spread", "samples"}
    assert found == {name: watching(labelled, source(90))[name] for name in found}
    none = np.full(60, -1)
    assert watching(replace(images, labels=none), source(90)).keys() == found.keys()
    assert watching(images, train).keys() == found.keys()


def test_where_some_have_labels_these_are_judged_by_those_that_have_them():
    labels, theirs = source(60).labels.copy(), source(90).labels.copy()
    labels[::2], theirs[:40] = -1, -1
    found = watching(replace(source(60), labels=labels), replace(source(90), labels=theirs))
    images, train = Subset(source(60), range(1, 60, 2)), Subset(source(90), range(40, 90))
    assert found["knn"] == watching(images, train)["knn"]
    assert (found["samples"], found["rank"]) == (60, watching(source(60), train)["rank"])


def test_classes_are_matched_by_name_however_both_number_them():
    images, train = source(60), source(90, seed=3)
    turned = replace(train, labels=2 - np.asarray(train.labels), class_names=train.class_names[::-1])
    assert watching(images, turned) == watching(images, train)
    more = replace(train, labels=np.asarray(train.labels) + 1, class_names=("zebra", *train.class_names))
    assert watching(images, more) == watching(images, train)
