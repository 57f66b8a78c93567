"""The classification task: the paper's loss, and predictions that are the model's own."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing, normalise
from vitrail.models import resnet, vit
from vitrail.tasks import Classify, ClassifyConfig
from vitrail.tasks.classify import class_weights

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
    return Batch(images=torch.from_numpy(images), targets=torch.from_numpy(generator.integers(0, 5, size)))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_softmax_cross_entropy_and_the_accuracy_the_fraction_of_right_answers(name):
    owner, given = task(name), batch()
    with torch.no_grad():
        logits = owner.model(normalise(given["images"], HOW, torch.float32)).double().numpy()
    targets = given["targets"].numpy()
    logarithms = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss, metrics = owner(given)
    assert float(loss.detach()) == pytest.approx(-logarithms[np.arange(6), targets].mean(), rel=1e-5)
    assert {name: float(value) for name, value in metrics.items()} == {
        "loss": float(loss.detach()), "accuracy": pytest.approx((logits.argmax(-1) == targets).mean()),
    }  # fmt: skip
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_predict_gives_features_and_the_heads_answer_to_them(name):
    owner, given = task(name), batch()
    found = owner.predict(given)
    assert found.keys() == {"features", "logits", "probabilities", "losses"}
    exact = F.cross_entropy(found["logits"].double(), given["targets"], reduction="none")
    assert torch.allclose(found["losses"], exact)
    assert torch.equal(found["probabilities"], found["logits"].softmax(-1))
    assert torch.equal(found["logits"], owner.model.head(found["features"]).detach())
    assert torch.allclose(found["logits"], owner.model(normalise(given["images"], HOW, torch.float32)), atol=1e-5)
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bfloat16_model_predicts_nearly_the_same_in_float32_and_so_is_its_loss(name):
    half, expected = task(name, dtype=torch.bfloat16), task(name).predict(batch())
    found = half.predict(batch())
    for key in ("features", "logits"):
        assert (found[key] - expected[key]).norm() < 0.05 * expected[key].norm()
        assert found[key].dtype == torch.float32
    assert half(batch())[0].dtype == torch.float32
    assert task(name, dtype=torch.float64)(batch())[0].dtype == torch.float64


def configured(counts=None, **fields):
    weights = None if counts is None else class_weights(counts)
    return Classify(task().model, HOW, ClassifyConfig(**fields), (), weights)


def loss_of(owner, given):
    return float(owner(given)[0].detach())


@pytest.mark.parametrize("loss", ["softmax", "sigmoid", "several"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_softmax_is_torchs_and_sigmoid_sums_over_classes(smoothing, loss):
    owner, given = configured(loss="softmax" if loss == "softmax" else "sigmoid", smoothing=smoothing), batch()
    logits, rows = owner.predict(given)["logits"], F.one_hot(given["targets"], 5).float()
    if loss == "several":
        rows = torch.tensor([[1.0, 0, 1, 0, 0], [0.0] * 5] * 3)
        given = given.plus(targets=rows)
    expected = F.binary_cross_entropy_with_logits(logits, rows * (1 - smoothing) + smoothing / 5, reduction="sum") / 6
    if loss == "softmax":
        expected = F.cross_entropy(logits, given["targets"], label_smoothing=smoothing)
    assert loss_of(owner, given) == pytest.approx(float(expected), rel=1e-6)
    assert ("accuracy" in owner(given)[1]) == (loss != "several")


def test_a_mixed_pair_has_the_loss_of_the_mixed_image_under_both_labels():
    owner, given = configured(), batch(2)
    given = given.plus(lam=torch.full((2,), 0.3), box=torch.zeros(2, 4, dtype=torch.int64))
    images, targets = given["images"].float(), given["targets"]
    with torch.no_grad():
        logits = owner.model(normalise(0.3 * images + 0.7 * images.flip(0), HOW, torch.float32))
    expected = 0.3 * F.cross_entropy(logits, targets) + 0.7 * F.cross_entropy(logits, targets.flip(0))
    assert loss_of(owner, given) == pytest.approx(float(expected), rel=1e-5)


COUNTS = np.array([10, 10, 20, 40, 120])


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_class_weights_are_one_on_average_and_split_with_the_batch(loss):
    weights = class_weights(COUNTS)
    assert float((weights * torch.from_numpy(COUNTS)).sum() / COUNTS.sum()) == pytest.approx(1)
    assert weights.tolist() == pytest.approx([4.0, 4.0, 2.0, 1.0, 1 / 3])
    owner, given = configured(COUNTS, loss=loss, class_weights=True), batch(7)
    first, last = (loss_of(owner, part) for part in given.split(4))
    assert loss_of(owner, given) == pytest.approx((4 * first + 3 * last) / 7, rel=1e-5)
    one, plain = given.split(1)[0], configured(loss=loss)
    ratio = loss_of(owner, one) / loss_of(plain, one)
    assert ratio == pytest.approx(float(weights[one["targets"][0]]), rel=1e-5)
    assert owner.state_dict().keys() == plain.state_dict().keys()
    with pytest.raises(ValueError, match="class 1 has no images"):
        class_weights(np.array([1, 0, 3, 1, 1]))


@pytest.mark.parametrize("bias", [-2.0, 0.0])
def test_the_head_starts_with_its_bias(bias):
    owner = configured(head_bias=bias)
    before = owner.model.head.bias.clone()
    owner.init_head()
    assert torch.equal(owner.model.head.bias, torch.full_like(before, bias) if bias else before)


WRONG = [("smoothing", 1.0), ("smoothing", -0.1), ("head_bias", 1e308), ("loss", "hinge")]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_loss_that_cannot_be_is_refused(unchecked, name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name} is {value!r}; ")):
        ClassifyConfig(**{name: value})
