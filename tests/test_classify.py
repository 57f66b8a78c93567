"""The classification task: the paper's loss, and predictions that are the model's own."""

import numpy as np
import pytest
import torch

from vitrail.data.transforms import Preprocessing, normalise
from vitrail.models import resnet, vit
from vitrail.tasks.classify import Classify

HOW = Preprocessing((8, 8), (0.4,), (0.3,))
CONFIGS = {
    "token": vit.Config((8, 8), (4, 4), 1, width=16, depth=2, heads=2, mlp_dim=32, classes=5),
    "average": vit.Config((8, 8), (4, 4), 1, 16, 2, 2, 32, 5, pool="avg", class_token=False),
    "map": vit.Config((8, 8), (4, 4), 1, 16, 1, 2, 32, 5, pool="map", class_token=False),
    "pre-logits": vit.Config((8, 8), (4, 4), 1, 16, 1, 2, 32, 5, representation=24),
    "resnet": resnet.Config(blocks=(1, 1), channels=1, classes=5, image_size=(8, 8)),
}


def task(name="token", **kind):
    """A task whose head is not zero, so that its logits say something."""
    torch.manual_seed(0)
    config = CONFIGS[name]
    model = resnet.ResNet(config) if isinstance(config, resnet.Config) else vit.ViT(config)
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.head.bias)
    return Classify(model, HOW).to(**kind) if kind else Classify(model, HOW)


def batch(size=6):
    generator = np.random.default_rng(size)
    images = generator.integers(0, 256, (size, 1, 8, 8), np.uint8)
    return {"images": torch.from_numpy(images), "targets": torch.from_numpy(generator.integers(0, 5, size))}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_softmax_cross_entropy_and_the_accuracy_the_share_of_right_answers(name):
    owner, given = task(name), batch()
    with torch.no_grad():
        logits = owner.model(normalise(given["images"], HOW, torch.float32)).double().numpy()
    targets = given["targets"].numpy()
    logarithms = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss, metrics = owner(given)
    assert float(loss.detach()) == pytest.approx(-logarithms[np.arange(6), targets].mean(), rel=1e-5)
    assert set(metrics) == {"loss", "accuracy"}
    assert float(metrics["loss"]) == float(loss.detach())
    assert float(metrics["accuracy"]) == pytest.approx((logits.argmax(-1) == targets).mean())


@pytest.mark.parametrize("right", range(4))
def test_the_accuracy_counts_right_answers(right):
    owner, given = task(), batch(3)
    answers = owner.predict(given)["logits"].argmax(-1)
    wrong = torch.arange(3) >= right
    given["targets"] = torch.where(wrong, (answers + 1) % 5, answers)
    assert float(owner(given)[1]["accuracy"]) == pytest.approx(min(right, 3) / 3)


def test_metrics_carry_no_gradient_but_the_loss_does():
    loss, metrics = task()(batch())
    assert loss.requires_grad
    assert loss.shape == ()
    assert not any(value.requires_grad for value in metrics.values())
    assert all(value.shape == () for value in metrics.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_gradient_reaches_every_parameter(name):
    owner = task(name)
    if name == "resnet":  # the last scale of a bottleneck starts at 0, and would stop the gradient of what is before it
        with torch.no_grad():
            for parameter in owner.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    owner(batch())[0].backward()
    silent = [n for n, p in owner.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent


def test_the_gradient_of_the_logits_is_softmax_minus_the_target():
    owner, given = task(), batch()
    owner(given)[0].backward()
    logits = owner.predict(given)["logits"]
    expected = (logits.softmax(-1) - torch.nn.functional.one_hot(given["targets"], 5)).mean(0)
    assert torch.allclose(owner.model.head.bias.grad, expected, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_predict_gives_features_and_the_heads_answer_to_them(name):
    owner, given = task(name), batch()
    found = owner.predict(given)
    assert found.keys() == {"features", "logits"}
    assert torch.equal(found["logits"], owner.model.head(found["features"]).detach())
    assert torch.allclose(found["logits"], owner.model(normalise(given["images"], HOW, torch.float32)), atol=1e-5)
    assert found["features"].shape == (6, owner.model.head.in_features)
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bfloat16_model_predicts_nearly_the_same_in_float32(name):
    found, expected = task(name, dtype=torch.bfloat16).predict(batch()), task(name).predict(batch())
    for key, value in found.items():
        assert value.dtype == torch.float32
        assert (value - expected[key]).norm() < 0.05 * expected[key].norm()


def test_predict_reads_the_model_in_the_mode_it_is_in():
    torch.manual_seed(0)
    config = vit.Config((8, 8), (4, 4), 1, 16, 2, 2, 32, 5, dropout=0.5)
    owner, given = Classify(vit.ViT(config), HOW), batch()
    assert not torch.equal(owner.train().predict(given)["features"], owner.predict(given)["features"])
    assert torch.equal(owner.eval().predict(given)["features"], owner.predict(given)["features"])
