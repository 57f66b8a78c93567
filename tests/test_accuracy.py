"""Evaluation counts every sample once, as scikit-learn does, and leaves the task as it found it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from vitrail.data.transforms import Preprocessing
from vitrail.evaluate.accuracy import Accuracy
from vitrail.models import vit
from vitrail.tasks.classify import Classify

HOW = Preprocessing((8, 8), (0.5,), (0.5,))


@dataclass
class Noise:
    length: int = 53
    class_names = ("a", "b", "c", "d")

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        generator = np.random.default_rng(index)
        return generator.integers(0, 256, (8, 8, 1), np.uint8), int(generator.integers(4)), f"noise[{index}]"


def task(dropout=0.0):
    torch.manual_seed(0)
    model = vit.ViT(vit.Config((8, 8), (4, 4), 1, 16, 1, 2, 32, 4, dropout=dropout))
    torch.nn.init.normal_(model.head.weight)
    return Classify(model, HOW)


def reference(owner, source):
    records = [source[index] for index in range(len(source))]
    images = torch.from_numpy(np.stack([image for image, _, _ in records])).permute(0, 3, 1, 2).contiguous()
    targets = np.array([target for _, target, _ in records])
    training = owner.training
    logits = owner.eval().predict({"images": images, "targets": torch.from_numpy(targets)})["logits"]
    owner.train(training)
    share = logits.double().softmax(-1).numpy()
    return accuracy_score(targets, share.argmax(-1)), log_loss(targets, share, labels=range(4))


@pytest.mark.parametrize("batch", [1, 7, 52, 53, 54, 500])
def test_the_batch_size_does_not_change_the_result(batch):
    owner, source = task(), Noise()
    found = dict(Accuracy(source, batch).run(owner))
    accuracy, loss = reference(owner, source)
    assert list(found) == ["accuracy", "loss", "samples"]
    assert found["samples"] == 53
    assert found["accuracy"] == accuracy
    assert 0 < accuracy < 1
    assert found["loss"] == pytest.approx(loss, rel=1e-6)


def test_a_single_sample_is_evaluated():
    found = dict(Accuracy(Noise(1)).run(task()))
    assert found["samples"] == 1
    assert found["accuracy"] in (0.0, 1.0)


def test_dropout_is_off_while_evaluating():
    owner = task(dropout=0.5).train()
    assert dict(Accuracy(Noise(), 9).run(owner)) == dict(Accuracy(Noise(), 9).run(owner))
    assert dict(Accuracy(Noise(), 9).run(owner))["loss"] == pytest.approx(reference(owner, Noise())[1], rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_tasks_mode_is_restored(training):
    owner = task().train(training)
    list(Accuracy(Noise()).run(owner))
    assert {module.training for module in owner.modules()} == {training}


class Gone(Noise):
    def __getitem__(self, index):
        if index == 40:
            raise OSError("the disk has gone")
        return super().__getitem__(index)


@pytest.mark.parametrize("training", [True, False])
def test_the_tasks_mode_is_restored_after_an_exception(training):
    owner = task().train(training)
    with pytest.raises(OSError, match="the disk has gone"):
        list(Accuracy(Gone(), 8).run(owner))
    assert {module.training for module in owner.modules()} == {training}


def test_the_tasks_mode_is_restored_where_only_the_first_value_is_read():
    owner = task().train()
    results = Accuracy(Noise()).run(owner)
    next(results)
    assert owner.training


def test_evaluation_leaves_no_gradient():
    owner = task()
    list(Accuracy(Noise()).run(owner))
    assert all(parameter.grad is None for parameter in owner.parameters())
