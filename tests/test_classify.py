"""The classification task: the paper's loss, and predictions that are the model's own."""

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
    given = given.plus(targets=torch.where(wrong, (answers + 1) % 5, answers))
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
    assert found.keys() == {"features", "logits", "probabilities", "losses"}
    assert torch.allclose(
        found["losses"], F.cross_entropy(found["logits"].double(), given["targets"], reduction="none")
    )
    assert torch.equal(found["probabilities"], found["logits"].softmax(-1))
    assert torch.equal(found["logits"], owner.model.head(found["features"]).detach())
    assert torch.allclose(found["logits"], owner.model(normalise(given["images"], HOW, torch.float32)), atol=1e-5)
    assert found["features"].shape == (6, owner.model.head.in_features)
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bfloat16_model_predicts_nearly_the_same_in_float32(name):
    found, expected = task(name, dtype=torch.bfloat16).predict(batch()), task(name).predict(batch())
    assert {value.dtype for key, value in found.items() if key != "losses"} == {torch.float32}
    for key in ("features", "logits"):
        value = found[key]
        assert (value - expected[key]).norm() < 0.05 * expected[key].norm()


def test_predict_reads_the_model_in_the_mode_it_is_in():
    torch.manual_seed(0)
    config = vit.Config((8, 8), (4, 4), 1, 16, 2, 2, 32, 5, dropout=0.5)
    owner, given = Classify(vit.ViT(config), HOW), batch()
    assert not torch.equal(owner.train().predict(given)["features"], owner.predict(given)["features"])
    assert torch.equal(owner.eval().predict(given)["features"], owner.predict(given)["features"])


def configured(counts=None, **fields):
    owner = task()
    return Classify(owner.model, HOW, ClassifyConfig(**fields), (), None if counts is None else class_weights(counts))


def logits_of(owner, given):
    return owner.predict(given)["logits"]


def soft(targets, smoothing=0.0):
    return F.one_hot(targets, 5).float() * (1 - smoothing) + smoothing / 5


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_softmax_is_torchs(smoothing):
    owner, given = configured(smoothing=smoothing), batch()
    expected = F.cross_entropy(logits_of(owner, given), given["targets"], label_smoothing=smoothing)
    assert float(owner(given)[0].detach()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sigmoid_sums_over_classes(smoothing):
    owner, given = configured(loss="sigmoid", smoothing=smoothing), batch()
    rows = soft(given["targets"], smoothing)
    expected = F.binary_cross_entropy_with_logits(logits_of(owner, given), rows, reduction="sum") / 6
    assert float(owner(given)[0].detach()) == pytest.approx(float(expected), rel=1e-6)


def test_several_labels_are_rows():
    owner, given = configured(loss="sigmoid"), batch()
    given = given.plus(targets=torch.tensor([[1.0, 0, 1, 0, 0], [0.0] * 5] * 3))
    loss, metrics = owner(given)
    expected = F.binary_cross_entropy_with_logits(logits_of(owner, given), given["targets"], reduction="sum") / 6
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert set(metrics) == {"loss"}


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_mixing_with_nothing_changes_nothing(loss):
    owner, given = configured(loss=loss, smoothing=0.1), batch()
    plain = float(owner(given)[0].detach())
    given = given.plus(lam=torch.ones(6), box=torch.zeros(6, 4, dtype=torch.int64))
    assert float(owner(given)[0].detach()) == pytest.approx(plain, rel=1e-5)


def test_a_mixed_pair_has_the_loss_of_the_mixed_image_under_both_labels():
    owner, given = configured(), batch(2)
    given = given.plus(lam=torch.full((2,), 0.3), box=torch.zeros(2, 4, dtype=torch.int64))
    images, targets = given["images"].float(), given["targets"]
    mixed = 0.3 * images + 0.7 * images.flip(0)
    logits = owner.model(normalise(mixed, HOW, torch.float32))
    expected = 0.3 * F.cross_entropy(logits, targets) + 0.7 * F.cross_entropy(logits, targets.flip(0))
    assert float(owner(given)[0].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


COUNTS = np.array([10, 10, 20, 40, 120])


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_class_weights_are_one_on_average_and_split_with_the_batch(loss):
    weights = class_weights(COUNTS)
    assert float((weights * torch.from_numpy(COUNTS)).sum() / COUNTS.sum()) == pytest.approx(1)
    assert weights.tolist() == pytest.approx([4.0, 4.0, 2.0, 1.0, 1 / 3])
    owner, given = configured(COUNTS, loss=loss, class_weights=True), batch(7)
    whole = float(owner(given)[0].detach())
    first, last = given.split(4)
    parts = [float(owner(part)[0].detach()) for part in (first, last)]
    assert whole == pytest.approx((4 * parts[0] + 3 * parts[1]) / 7, rel=1e-5)
    one = given.split(1)[0]
    plain = configured(loss=loss)(one)[0]
    ratio = float((owner(one)[0] / plain).detach())
    assert ratio == pytest.approx(float(weights[one["targets"][0]]), rel=1e-5)


def test_weights_are_no_part_of_the_state():
    assert configured(COUNTS, class_weights=True).state_dict().keys() == configured().state_dict().keys()


def test_the_head_starts_with_its_bias():
    owner = configured(head_bias=-2.0)
    owner.init_head()
    assert owner.model.head.bias.eq(-2).all()
    plain = configured()
    before = plain.model.head.bias.clone()
    plain.init_head()
    assert torch.equal(plain.model.head.bias, before)


def test_the_loss_of_a_bfloat16_model_is_computed_in_float32():
    loss, _ = task(dtype=torch.bfloat16)(batch())
    assert loss.dtype == torch.float32
    assert task(dtype=torch.float64)(batch())[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"smoothing": 1.0}, "smoothing is 1.0; it must be 0 or more, and below 1"),
        ({"smoothing": -0.1}, "smoothing is -0.1"),
        ({"head_bias": 1e308}, "head_bias is 1e[+]308; it must be from -100 to 100"),
    ],
)
def test_a_loss_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ClassifyConfig(**fields)


def test_an_unknown_loss_is_refused(unchecked):
    with pytest.raises(ValueError, match="loss is 'hinge'; choose softmax or sigmoid"):
        ClassifyConfig(loss="hinge")


def test_classes_that_cannot_be_weighed_are_named():
    with pytest.raises(ValueError, match="class 1 has no images"):
        class_weights(np.array([1, 0, 3, 1, 1]))
