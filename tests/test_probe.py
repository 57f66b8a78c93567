"""The linear probe: ridge regression that is judged without the image, and becomes a head."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from vitrail.evaluate import probe as probing
from vitrail.evaluate.probe import ridge


def problem(count=40, width=6, classes=3, several=False):
    draw = torch.Generator().manual_seed(count + width)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=draw).double()
    rows = torch.nn.functional.one_hot(labels, classes).double()
    if several:
        rows[::4, 0] = 1
    return rows @ centres + 0.5 * torch.randn(count, width, generator=draw).double(), rows


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("count", "width"), [(40, 6), (20, 60)])  # more features than images, too
def test_an_image_is_judged_by_a_regression_that_has_not_seen_it(monkeypatch, several, count, width):
    x, y = problem(count, width, several=several)
    monkeypatch.setattr(probing, "PENALTIES", torch.tensor([0.3]).double())
    monkeypatch.setattr(probing, "SCALES", torch.tensor([4.0]).double())
    weight, bias, alone = ridge(x, y, several)
    penalty = 0.3 * float(((x - x.mean(0)) ** 2).sum()) / width
    whole = Ridge(alpha=penalty).fit(x.numpy(), y.numpy())
    assert np.allclose(weight, 4 * whole.coef_)
    assert np.allclose(x @ weight.T + bias, 4 * (whole.predict(x.numpy()) - 0.5))
    for index in (0, 7):
        rest = np.arange(count) != index
        # The mean of the features is that of all images, which moves the intercept alone: none of the others' is used.
        left = Ridge(alpha=penalty).fit(x.numpy()[rest], y.numpy()[rest])
        assert np.allclose(alone[index], 4 * (left.predict(x.numpy()[[index]])[0] - 0.5), atol=1e-8)


def test_penalty_and_scale_are_those_of_the_least_loss():
    x, y = problem(90)
    weight, bias, alone = ridge(x, y, several=False)
    assert float((alone.argmax(1) == y.argmax(1)).double().mean()) > 0.8
    loss = torch.nn.functional.cross_entropy(alone, y)
    assert loss < 0.7 * np.log(3)
    assert all(torch.nn.functional.cross_entropy(factor * alone, y) >= loss for factor in (0.5, 2))
    assert weight.shape == (3, 6)
    assert bias.shape == (3,)


def test_features_that_say_nothing_give_a_head_that_says_little():
    draw = torch.Generator().manual_seed(0)
    y = torch.nn.functional.one_hot(torch.arange(60) % 2, 2).double()
    _, _, alone = ridge(torch.randn(60, 30, generator=draw).double(), y, several=False)
    assert torch.nn.functional.cross_entropy(alone, y) < 0.75  # chance is 0.69
    _, _, same = ridge(torch.ones(60, 4).double(), y, several=False)
    assert torch.isfinite(same).all()
