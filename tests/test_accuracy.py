"""Evaluation counts every image once, as scikit-learn does, whatever its form, and leaves the task as it found it."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss, top_k_accuracy_score

from vitrail.batch import Batch
from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.source import Example
from vitrail.evaluate import Accuracy, Validation
from vitrail.evaluate.evaluator import evaluating, judge
from vitrail.models import vit
from vitrail.tasks import Classify, ClassifyConfig

HOW = Preprocessing((8, 8), (0.5,), (0.5,))


@dataclass
class Noise:
    """length: images. kind: of content. gone: images that cannot be read. unlabelled: those without a label."""

    length: int = 53
    classes: int = 4
    targets: str = "class"
    encoded: bool = False
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
        image = np.random.default_rng(index).integers(0, 256, (8, 8, 1), np.uint8)
        if not self.encoded:
            return Example(image, self.target(index), self.name(index))
        stream = BytesIO()
        Image.fromarray(image[..., 0]).save(stream, "png")
        return Example(stream.getvalue(), self.target(index), self.name(index))

    def target(self, index):
        generator = np.random.default_rng([index, 1])
        if self.targets == "classes":
            return tuple(np.flatnonzero(generator.random(self.classes) < 0.4).tolist())
        return None if index in self.unlabelled else int(generator.integers(self.classes))

    def name(self, index):
        return f"noise[{index}]"


def task(dropout=0.0, classes=4, **config):
    torch.manual_seed(0)
    model = vit.ViT(vit.Config((8, 8), (4, 4), 1, 16, 1, 2, 32, classes, dropout=dropout))
    torch.nn.init.normal_(model.head.weight)
    return Classify(model, HOW, ClassifyConfig(**config))


def validation(source, batch=500, **more):
    config = ClassifyConfig("sigmoid" if source.targets == "classes" else "softmax")
    return Validation(source, HOW, partial(config.collate, source=source), batch, **more)


def result(owner, source, batch=500, **more):
    with evaluating(owner):
        return Accuracy().judge(owner, validation(source, batch, **more))


def metrics(owner, source, batch=500):
    with evaluating(owner):
        return judge([Accuracy()], owner, validation(source, batch))[0]


def answers(owner, source, indices=None):
    """(targets, logits float64) of all images at once."""
    indices = range(len(source)) if indices is None else indices
    images = np.stack([np.random.default_rng(i).integers(0, 256, (8, 8, 1), np.uint8) for i in indices])
    modes = [module.training for module in owner.modules()]
    logits = owner.eval().predict(Batch(images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()))["logits"]
    for module, mode in zip(owner.modules(), modes, strict=True):
        module.training = mode
    return [source.target(i) for i in indices], logits.double()


@pytest.mark.parametrize("batch", [1, 7, 52, 53, 54, 500])
def test_the_batch_size_does_not_change_the_result(batch):
    owner, source = task(), Noise()
    found = metrics(owner, source, batch)
    targets, logits = answers(owner, source)
    assert list(found) == ["accuracy", "loss", "samples"]
    assert found["samples"] == 53
    assert found["accuracy"] == accuracy_score(targets, logits.argmax(-1))
    assert 0 < found["accuracy"] < 1
    assert found["loss"] == pytest.approx(log_loss(targets, logits.softmax(-1), labels=range(4)), rel=1e-6)


@pytest.mark.parametrize("batch", [9, 500])
def test_with_more_than_five_classes_the_best_five_count_too(batch):
    owner, source = task(classes=8), Noise(200, 8)
    targets, logits = answers(owner, source)
    found = metrics(owner, source, batch)
    assert list(found) == ["accuracy", "top5", "loss", "samples"]
    assert found["top5"] == pytest.approx(top_k_accuracy_score(targets, logits, k=5, labels=range(8)))


@pytest.mark.parametrize("batch", [8, 500])
def test_several_labels_are_scored_as_by_scikit_learn(batch):
    owner, source = task(loss="sigmoid"), Noise(targets="classes")
    numbers, logits = answers(owner, source)
    targets = np.array([[k in several for k in range(4)] for several in numbers])
    found = metrics(owner, source, batch)
    assert list(found) == ["mAP", "f1", "loss", "samples"]
    assert found["mAP"] == pytest.approx(average_precision_score(targets, logits, average="macro"))
    assert found["f1"] == pytest.approx(f1_score(targets, logits >= 0, average="micro"))
    losses = -(logits.sigmoid().log().numpy() * targets + (-logits).sigmoid().log().numpy() * ~targets).sum(1)
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_files_and_arrays_give_the_same_result():
    owner = task()
    assert metrics(owner, Noise(encoded=True)) == metrics(owner, Noise())


@pytest.mark.parametrize("source", [Noise(), Noise(targets="classes"), Noise(classes=8), Noise(unlabelled=(0, 7))])
def test_what_is_examined_is_what_is_scored(source):
    owner = task(classes=source.classes)
    found = result(owner, source, 10)
    assert found.metrics == metrics(owner, source, 10)


def test_every_image_is_told_of():
    owner, source = task(), Noise()
    found = result(owner, source, 10)
    targets, logits = answers(owner, source)
    shares = logits.softmax(-1)
    assert found.indices.tolist() == list(range(53))
    assert found.targets.tolist() == targets
    assert found.predicted.tolist() == logits.argmax(-1).tolist()
    assert found.confidence == pytest.approx(shares.max(-1).values.numpy(), rel=1e-5)
    assert found.truth == pytest.approx(shares[range(53), targets].numpy(), rel=1e-4)
    assert found.losses == pytest.approx(-np.log(found.truth), abs=1e-6)


def test_a_task_of_sigmoids_is_judged_by_them():
    owner, source = task(loss="sigmoid"), Noise()
    found = result(owner, source)
    targets, logits = answers(owner, source)
    truth = np.eye(4, dtype=bool)[targets]
    losses = -(logits.sigmoid().log().numpy() * truth + (-logits).sigmoid().log().numpy() * ~truth).sum(1)
    assert found.losses == pytest.approx(losses, rel=1e-5)
    assert found.confidence == pytest.approx(logits.max(-1).values.sigmoid().numpy(), rel=1e-5)


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


def test_an_image_that_cannot_be_read_stops_where_nobody_is_told():
    with pytest.raises(ValueError, match=r"noise\[11\] is cut short"):
        result(task(), Noise(gone=(11,)))


def test_images_without_a_label_are_not_judged():
    unlabelled = (0, 1, 30)
    found = result(task(), Noise(unlabelled=unlabelled), 7)
    assert found.indices.tolist() == [i for i in range(53) if i not in unlabelled]


@pytest.mark.parametrize(
    "source",
    [Noise(2, unlabelled=(0, 1)), Noise(2, gone=(0, 1)), Noise(2, gone=(0,), unlabelled=(1,)), Noise(0)],
)
def test_where_no_image_can_be_judged_a_sentence_says_so(source):
    with pytest.raises(ValueError, match="none of the images can be read and has a label"):
        result(task(), source, skipped=lambda problem: None)


def test_classes_must_agree():
    with pytest.raises(ValueError, match=r"8 classes .* 4"):
        result(task(), Noise(classes=8))
    with pytest.raises(ValueError, match=r"2 classes.* 4"):
        result(task(), Noise(classes=2))


def test_a_single_sample_is_evaluated():
    found = metrics(task(), Noise(1))
    assert found["samples"] == 1
    assert found["accuracy"] in (0.0, 1.0)


def test_dropout_is_off_while_evaluating():
    owner = task(dropout=0.5).train()
    targets, logits = answers(owner, Noise())
    expected = log_loss(targets, logits.softmax(-1), labels=range(4))
    assert metrics(owner, Noise(), 9)["loss"] == pytest.approx(expected, rel=1e-6)


class Gone(Noise):
    def __getitem__(self, index):
        if index == 40:
            raise OSError("the disk has gone")
        return super().__getitem__(index)


@pytest.mark.parametrize("ends", [nullcontext(), pytest.raises(OSError, match="the disk has gone")])
@pytest.mark.parametrize("training", [True, False])
def test_every_modules_mode_is_restored_after_an_exception_too(training, ends):
    owner = task().train(training)
    owner.model.blocks.train(not training)  # frozen in another mode than the rest
    before = [module.training for module in owner.modules()]
    with ends as failure:
        result(owner, Gone() if failure else Noise(), 8)
    assert [module.training for module in owner.modules()] == before


def test_evaluation_leaves_no_gradient():
    owner = task()
    result(owner, Noise())
    assert all(parameter.grad is None for parameter in owner.parameters())
