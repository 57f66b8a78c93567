"""Evaluation counts every image once, as scikit-learn does, and leaves the task as it found it."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    top_k_accuracy_score,
)

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.source import Example
from vitrail.evaluate import Accuracy, Validation
from vitrail.evaluate.evaluator import evaluating
from vitrail.models import vit
from vitrail.tasks import Classify, ClassifyConfig

HOW = Preprocessing((8, 8), (0.5,), (0.5,))


@dataclass
class Noise:
    """gone: images that cannot be read. unlabelled: those without a label."""

    length: int = 53
    classes: int = 4
    targets: str = "class"
    gone: tuple[int, ...] = ()
    unlabelled: tuple[int, ...] = ()

    @property
    def class_names(self):
        return tuple("abcdefgh"[: self.classes])

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.gone:
            raise ValueError(f"{self.name(index)} is cut short")
        return Example(pixels(index), self.target(index), self.name(index))

    def target(self, index):
        generator = np.random.default_rng([index, 1])
        if self.targets == "classes":
            return tuple(np.flatnonzero(generator.random(self.classes) < 0.4).tolist())
        return None if index in self.unlabelled else int(generator.integers(self.classes))

    def name(self, index):
        return f"noise[{index}]"


def pixels(index):
    return np.random.default_rng(index).integers(0, 256, (8, 8, 1), np.uint8)


def task(dropout=0.0, classes=4, **config):
    torch.manual_seed(0)
    model = vit.ViT(vit.Config((8, 8), (4, 4), 1, 16, 1, 2, 32, classes, dropout=dropout))
    torch.nn.init.normal_(model.head.weight)
    return Classify(model, HOW, ClassifyConfig(**config))


def result(owner, source, batch=500, **more):
    config = ClassifyConfig("sigmoid" if source.targets == "classes" else "softmax")
    with evaluating(owner):
        return Accuracy().judge(owner, Validation(source, HOW, partial(config.collate, source=source), batch, **more))


def answers(owner, source, indices=range(53)):
    """(targets, logits float64) of all images at once."""
    images = torch.from_numpy(np.stack([pixels(i) for i in indices])).permute(0, 3, 1, 2).contiguous()
    logits = copy.deepcopy(owner).eval().predict(Batch(images=images))["logits"]
    return [source.target(i) for i in indices], logits.double()


@pytest.mark.parametrize("batch", [1, 7, 52, 53, 54])
def test_the_batch_size_does_not_change_the_result_and_dropout_is_off(batch):
    owner, source = task(dropout=0.5), Noise()
    found = result(owner, source, batch).metrics
    targets, logits = answers(owner, source)
    assert list(found) == ["accuracy", "loss", "balanced_accuracy", "samples"]
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, logits.argmax(-1)))
    assert found["samples"] == 53
    assert found["accuracy"] == accuracy_score(targets, logits.argmax(-1))
    assert 0 < found["accuracy"] < 1
    assert found["loss"] == pytest.approx(log_loss(targets, logits.softmax(-1), labels=range(4)), rel=1e-6)


@pytest.mark.parametrize("batch", [9, 500])
def test_with_more_than_five_classes_the_best_five_count_too(batch):
    owner, source = task(classes=8), Noise(200, 8)
    targets, logits = answers(owner, source, range(200))
    found = result(owner, source, batch).metrics
    assert list(found) == ["accuracy", "top5", "loss", "balanced_accuracy", "samples"]
    assert found["top5"] == pytest.approx(top_k_accuracy_score(targets, logits, k=5, labels=range(8)))


def cross_entropies(logits, truth):
    return -(logits.sigmoid().log().numpy() * truth + (-logits).sigmoid().log().numpy() * ~truth).sum(1)


@pytest.mark.parametrize("batch", [8, 500])
def test_several_labels_are_scored_as_by_scikit_learn(batch):
    owner, source = task(loss="sigmoid"), Noise(targets="classes")
    numbers, logits = answers(owner, source)
    targets = np.array([[k in several for k in range(4)] for several in numbers])
    found = result(owner, source, batch).metrics
    assert list(found) == ["mAP", "f1", "loss", "samples"]
    assert found["mAP"] == pytest.approx(average_precision_score(targets, logits, average="macro"))
    assert found["f1"] == pytest.approx(f1_score(targets, logits >= 0, average="micro"))
    assert found["loss"] == pytest.approx(cross_entropies(logits, targets).mean(), rel=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_every_image_is_told_of(loss):
    owner, source = task(loss=loss), Noise()
    found = result(owner, source, 10)
    targets, logits = answers(owner, source)
    probabilities = logits.softmax(-1) if loss == "softmax" else logits.sigmoid()
    assert found.indices.tolist() == list(range(53))
    assert found.targets.tolist() == targets
    assert found.predicted.tolist() == logits.argmax(-1).tolist()
    assert found.confidence == pytest.approx(probabilities.max(-1).values.numpy(), rel=1e-5)
    assert found.truth == pytest.approx(probabilities[range(53), targets].numpy(), rel=1e-4)
    several = cross_entropies(logits, np.eye(4, dtype=bool)[targets])
    assert found.losses == pytest.approx(several if loss == "sigmoid" else -np.log(found.truth), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("gone", [(3, 11, 12, 52), tuple(range(10, 20))])
def test_images_that_cannot_be_read_are_counted_apart(gone, several):
    owner, source, told = task(), Noise(gone=gone, targets="classes" if several else "class"), []
    found = result(owner, source, 10, skipped=told.append)
    left = [i for i in range(53) if i not in gone]
    assert found.indices.tolist() == left
    assert found.metrics["samples"] == len(left)
    assert found.metrics["unreadable"] == len(gone)
    assert list(found.problems) == told == [f"noise[{i}] is cut short" for i in gone]
    if not several:
        targets, logits = answers(owner, source, left)
        assert found.metrics["accuracy"] == accuracy_score(targets, logits.argmax(-1))
        assert result(owner, Noise(unlabelled=gone), 7).indices.tolist() == left


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Noise(2, gone=(0,), unlabelled=(1,)), "none of the images can be read and has a label"),
        (Noise(0), "none of the images can be read and has a label"),
        (Noise(classes=8), r"8 classes .* 4"),
        (Noise(classes=2), r"2 classes.* 4"),
    ],
)
def test_where_nothing_can_be_judged_a_sentence_says_so(source, message):
    with pytest.raises(ValueError, match=message):
        result(task(), source, skipped=lambda problem: None)


@pytest.mark.parametrize(
    ("gone", "ends"), [((), nullcontext()), ((40,), pytest.raises(ValueError, match=r"noise\[40\] is cut short"))]
)
@pytest.mark.parametrize("training", [True, False])
def test_every_modules_mode_is_restored_after_an_exception_too(training, gone, ends):
    owner = task().train(training)
    owner.model.blocks.train(not training)  # frozen in another mode than the rest
    before = [module.training for module in owner.modules()]
    with ends:
        result(owner, Noise(gone=gone), 8)
    assert [module.training for module in owner.modules()] == before
