"""Evaluators of frozen features, beside scikit-learn, torchmetrics and what their papers' code does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from judging import HOW, cloud, judged, samples, source, task
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from torchmetrics.classification import MulticlassCalibrationError

from vitrail.evaluate import (
    Attentive,
    Calibration,
    Fewshot,
    Knn,
    Linear,
    Validation,
    attentive,
    calibration,
    fewshot,
    knn,
    linear,
)
from vitrail.evaluate.lbfgs import minimised
from vitrail.models import resnet


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("count", "width"), [(60, 12), (30, 90)])
def test_few_shot_weights_solve_the_normal_equations_and_each_shot_is_judged_by_the_others(count, width):
    x, y = cloud(count, width)
    found = fewshot.ridge(x, y, 3)
    z = (x.astype(np.float64) - x.mean(0, dtype=np.float64)) / x.astype(np.float64).std(0)
    rows = 2.0 * np.eye(3)[y] - 1
    like = Ridge(alpha=found.l2, solver="cholesky").fit(z, rows)
    np.testing.assert_allclose(found.scores(x), like.predict(z), atol=1e-9)
    left = []
    for i in range(count):
        fit = Ridge(found.l2).fit(np.delete(z, i, 0), np.delete(rows, i, 0))
        left.append(((fit.predict(z[[i]]) - rows[i]) ** 2).mean())
    assert found.error == pytest.approx(np.mean(left), rel=1e-4)
    others = [10.0**k for k in range(-1, 5)]
    errors = [Ridge(l2).fit(z, rows) for l2 in others]
    leverage = [np.diag(z @ np.linalg.solve(z.T @ z + l2 * np.eye(width), z.T)) + 1 / count for l2 in others]
    pairs = zip(errors, leverage, strict=True)
    whole = [(((rows - fit.predict(z)) / (1 - h)[:, None]) ** 2).mean() for fit, h in pairs]
    assert found.error <= min(whole) * 1.001


def authors(shots, y, classes, test):
    """big_vision's fewshot_lsr.py in float64: whitening by the shots, a constant feature of 100, l2 of 2^10."""
    mean, std = shots.mean(0), shots.std(0) + 1e-5
    x, t = (np.pad((one - mean) / std, ((0, 0), (0, 1)), constant_values=100.0) for one in (shots, test))
    return t @ np.linalg.solve(x.T @ x + 2.0**10 * np.eye(x.shape[1]), x.T @ (2.0 * np.eye(classes)[y] - 1))


@pytest.mark.parametrize(("count", "width"), [(60, 12), (30, 90), (3, 20)])
def test_few_shot_by_the_authors_protocol(count, width):
    x, y = cloud(count, width)
    test = cloud(40, width, seed=5)[0]
    found = fewshot.ridge(x, y, 3, authors=True)
    assert found.l2 == 1024
    assert (fewshot.ridge(x, y, 3).l2 == 1024) == (count == 3)  # single shots
    np.testing.assert_allclose(found.scores(test), authors(*(x.astype(np.float64), y, 3, test)), rtol=1e-7, atol=1e-8)


def test_shots_are_drawn_class_by_class_from_one_generator():
    y = np.array([0, 1, 0, 2, 1, 0, 2, 2, 1, 1])
    generator = np.random.default_rng(7)
    wanted = [generator.permutation(np.flatnonzero(y == k))[:2] for k in range(3)]
    assert fewshot.draw(y, 2, seed=7).tolist() == np.concatenate(wanted).tolist()
    assert len(fewshot.draw(y, 4, seed=0)) == 3 + 4 + 3


def test_features_that_are_constant_over_the_shots_count_for_nothing():
    x, y = cloud(6, 10)
    x[:, 0] = 1.0
    test, truth = cloud(90, 10, seed=3)
    wild = test.copy()
    wild[:, 0] = 1000 * np.random.default_rng(0).standard_normal(90)
    found = fewshot.ridge(x, y, 3)
    np.testing.assert_array_equal(found.scores(wild), found.scores(test))
    assert (found.scores(test).argmax(1) == truth).mean() > 0.6


def test_the_interval_covers_draws_and_images():
    draw = np.random.default_rng(0)
    right = draw.random((3, 400)) < 0.7
    low, high = fewshot.interval(right)
    assert low < right.mean() < high
    assert 0.03 < high - low < 0.12
    apart = np.stack([draw.random(400) < p for p in (0.5, 0.7, 0.9)])
    assert np.subtract(*fewshot.interval(apart)[::-1]) > 2 * (high - low)
    assert fewshot.interval(np.ones((3, 50), bool)) == (1.0, 1.0)


def test_few_shot_says_which_class_is_too_small(capsys):
    found, _ = judged(Fewshot((1, 5, 30)), train=source(60, seed=3))
    ends = ("low", "high", "authors")
    assert [name for name in found if "_" in name[8:]] == [f"fewshot_{n}_{end}" for n in (1, 5) for end in ends]
    assert found["fewshot_5_low"] <= found["fewshot_5"] <= found["fewshot_5_high"]
    assert found["samples"] == 60
    said = capsys.readouterr().err
    assert "30" in said
    assert "20 training images" in said
    with pytest.raises(ValueError, match=r"a has 20 training images, fewer than the 25 shots"):
        judged(Fewshot((25,)), train=source(60))
    with pytest.raises(ValueError, match="no training images"):
        judged(Fewshot())


@pytest.mark.parametrize("k", [1, 7, 50])
def test_neighbours_vote_as_in_scikit_learn(k):
    x, y = cloud(200, 20, noise=3)
    test, _ = cloud(90, 20, seed=4, noise=3)
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (x, test)]
    weigh = lambda distances: np.exp((1 - distances**2 / 2) / 0.07)  # noqa: E731
    like = KNeighborsClassifier(k, weights=weigh).fit(unit[0], y)
    cosines, places = knn.neighbours(test, x, k)
    votes = knn.votes(cosines, places, y, 3, 0.07)
    np.testing.assert_allclose(votes / votes.sum(1, keepdims=True), like.predict_proba(unit[1]), atol=1e-3)
    assert (votes.argmax(1) == like.predict(unit[1])).mean() > 0.98


def test_an_image_is_not_its_own_neighbour(monkeypatch):
    x, _ = cloud(50, 8)
    monkeypatch.setattr(knn, "CHUNK", 7 * 50)
    cosines, places = knn.neighbours(x, x, 60, own=True)
    assert places.shape == (50, 49)
    assert not (places == np.arange(50)[:, None]).any()
    np.testing.assert_allclose(cosines, np.sort(cosines, 1)[:, ::-1], atol=1e-6)
    found, _ = judged(Knn((1, 5)))  # without training images
    assert list(found) == ["knn", "knn_low", "knn_high", "knn_5", "samples"]
    with pytest.raises(ValueError, match="must be above 0"):
        Knn((0,))


def test_functions_are_minimised_each_with_its_own_step():
    """Quadratics whose curvatures span 1e4, scaled by 1e3 from one to the next."""
    curves = torch.logspace(0, 3, 12).double()[:, None, None] * torch.logspace(-2, 4, 3)[None, :, None]
    lowest = torch.arange(36.0).view(12, 3, 1)

    def objective(w, which):
        away = w - lowest[:, which]
        return (curves[:, which] * away**2).sum((0, 2)) / 2, curves[:, which] * away

    found = minimised(objective, torch.zeros(12, 3, 1).double(), enough=1e-6)
    assert (found - lowest).abs().max() < 1e-4
    assert minimised(lambda w, which: (w.sum((0, 2)) * 0, w * 0), torch.ones(4, 2, 1)).eq(1).all()


def test_heads_beside_each_other_are_logistic_regressions():
    x, y = cloud(300, 10, noise=2)
    test, truth = cloud(400, 10, seed=8, noise=2)
    l2 = torch.tensor([1e-4, 1e-2, 1.0])
    heads = linear.fit(torch.from_numpy(x), y, 3, l2, enough=1e-5)
    assert heads.right(torch.from_numpy(test), truth).shape == (3, 400)
    for g, penalty in enumerate(l2.tolist()):
        like = LogisticRegression(C=1 / (penalty * 300), tol=1e-8, max_iter=10_000).fit(x, y)
        said = heads.logits(torch.from_numpy(test))[:, g].softmax(1)
        np.testing.assert_allclose(said, like.predict_proba(test), atol=2e-3)


def test_the_linear_probe_chooses_on_what_is_held_back():
    found, _ = judged(Linear(), train=source(90, seed=3))
    assert list(found) == [
        "linear",
        "linear_low",
        "linear_high",
        "linear_l2",
        "linear_blocks",
        "linear_mean",
        "samples",
    ]
    assert found["linear"] > 0.9
    assert found["linear_blocks"] in (1, 3)
    config = resnet.Config(blocks=(1,), width_factor=0.5, classes=3, image_size=(8, 8))
    assert judged(Linear(), task(config), train=source(90, seed=3))[0]["linear_blocks"] == 0
    with pytest.raises(ValueError, match="not a ViT"):
        judged(Attentive(), task(config), train=source(90, seed=3))


@pytest.mark.parametrize(
    ("numbers", "shape", "left_out"),
    [
        (90 * 3 * 2 * 16, (90, 3, 2, 16), []),
        (90 * 3 * 2 * 16 - 1, (90, 1, 2, 16), ["the last block alone: 3 blocks of 90 images"]),
        (90 * 2 * 16 - 1, (90, 16), ["the features of `predict` alone: 3 blocks of 90 images"]),
        (45 * 16 + 15, (45, 16), ["the features of `predict` alone: 3 blocks of 90 images", "on 45 of 90 images"]),
    ],
)
def test_the_linear_probe_keeps_what_fits_and_says_what_it_leaves_out(monkeypatch, capsys, numbers, shape, left_out):
    monkeypatch.setattr(linear, "BYTES", 4 * numbers)
    kept = {}
    found, _ = judged(Linear(), train=source(90, seed=3), shared=kept)
    test, bank = (arrays for *_, arrays in kept.values())
    assert bank["values"].shape == shape
    assert bank["indices"][0] == 0  # evenly spaced from the first to the last
    assert np.ptp(np.bincount(bank["targets"])) <= 2
    assert test["values"].shape == (60, *shape[1:])  # all of them are judged
    assert found["samples"] == 60
    assert found["linear"] > 0.75
    assert (found["linear_blocks"] == 0) == (len(shape) == 2)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("the linear probe")]
    assert len(said) == len(left_out)
    assert all(words in line for words, line in zip(left_out, said, strict=True))


def test_the_attentive_probe_finds_the_token_that_matters():
    """One of nine tokens tells the class, each time another one, which no mean of noise does."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 3
    tokens = torch.randn(600, 9, 16, generator=draw)
    signs = torch.zeros(3, 16)
    signs[range(3), range(3)] = 6.0
    place = torch.randint(9, (600,), generator=draw)
    tokens[range(600), place] = signs[y] + torch.tensor([8.0] * 2 + [0.0] * 14).roll(8)
    owner = Attentive(epochs=60)
    data = Validation(source(3), HOW, lambda samples: None)
    probe = owner._trained(tokens, y, torch.arange(500), 3, 3e-2, data)
    assert attentive._right(probe, tokens[500:], y[500:], data).float().mean() > 0.95
    torch.testing.assert_close(probe.maps(tokens[:4]).sum(2), torch.ones(4, 16))
    mean = LogisticRegression(max_iter=2000).fit(tokens[:500].mean(1), y[:500])
    assert mean.score(tokens[500:].mean(1), y[500:]) < 0.9
    found, _ = judged(Attentive(epochs=3), train=source(60, seed=3))
    assert list(found) == ["attentive", "attentive_low", "attentive_high", "attentive_lr", "samples"]


@pytest.mark.parametrize("count", [500])
def test_a_calibrated_model_has_no_error_beyond_chance(count):
    excess = []
    for seed in range(400):
        draw = np.random.default_rng(seed)
        confidence = draw.beta(5, 2, count)
        excess.append(
            calibration.ece(confidence, draw.random(count) < confidence) - calibration.ece_by_chance(confidence)
        )
    assert abs(np.mean(excess)) < 0.003
    draw = np.random.default_rng(1)
    confidence = draw.beta(5, 2, count)
    assert (
        calibration.ece(confidence, draw.random(count) < confidence - 0.1) - calibration.ece_by_chance(confidence)
        > 0.02
    )


def test_temperature_and_losses_are_those_of_scikit_learn():
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4_000, 3, generator=draw).double()
    truth = torch.distributions.Categorical(logits=logits / 2.5).sample()
    least = minimize_scalar(lambda t: log_loss(truth, (logits / t).softmax(1)), bounds=(0.1, 10), method="bounded").x
    assert calibration.temperature(logits, truth) == pytest.approx(least, rel=0.005)
    assert least == pytest.approx(2.5, rel=0.1)
    owner, images = task(), source(61)
    found, _ = judged(Calibration(), owner, images)
    with torch.inference_mode():
        batch = owner.config.collate(samples(images), images)
        logits = owner.predict(batch)["logits"].double()
    probabilities, y = logits.softmax(1), torch.tensor(images.labels)
    assert found["nll"] == pytest.approx(log_loss(y, probabilities, labels=range(3)), rel=1e-6)
    assert found["brier"] == pytest.approx(float(((probabilities - torch.eye(3)[y]) ** 2).sum(1).mean()), rel=1e-6)
    reference = MulticlassCalibrationError(3, n_bins=15, norm="l1")
    assert found["ece"] == pytest.approx(float(reference(probabilities, y)), abs=1e-6)
    assert found["nll_scaled"] < found["nll"]
    with pytest.raises(ValueError, match="one label each"):
        judged(Calibration(), images=replace(source(9), labels=None, class_names=()))
