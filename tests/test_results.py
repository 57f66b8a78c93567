"""Rates, confusion, average precision and calibration are scikit-learn's, the interval is scipy's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import several, single
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, precision_recall_fscore_support

from vitrail.evaluate.results import BINS, MultiLabel, SingleLabel, accuracy_interval, average_precision


def examined(targets, predicted, classes, confidence=None):
    targets, predicted = np.array(targets), np.array(predicted)
    confidence = np.full(len(targets), 0.5) if confidence is None else np.array(confidence)
    names = tuple(map(str, range(classes)))
    return SingleLabel(names, np.arange(len(targets)), confidence, (), targets, predicted, confidence, confidence)


answers = st.integers(2, 6).flatmap(
    lambda k: st.tuples(st.just(k), st.lists(st.tuples(*[st.integers(0, k - 1)] * 2), min_size=1, max_size=40))
)


@given(answers)
def test_rates_and_confusion_are_scikit_learns(drawn):
    classes, pairs = drawn
    targets, predicted = zip(*pairs, strict=True)
    examination, labels = examined(targets, predicted, classes), range(classes)
    assert np.array_equal(examination.confusion(), confusion_matrix(targets, predicted, labels=labels))
    expected = precision_recall_fscore_support(targets, predicted, labels=labels, zero_division=np.nan)
    rates = examination.per_class()
    for found, wanted in zip((rates.precision, rates.recall, rates.f1, rates.support), expected, strict=True):
        assert found == pytest.approx(wanted, nan_ok=True)
    assert examination.metrics["accuracy"] == np.mean(np.equal(targets, predicted))


@given(answers)
def test_pairs_are_the_confusion_off_its_diagonal_most_first(drawn):
    classes, pairs = drawn
    examination = examined(*zip(*pairs, strict=True), classes)
    found = examination.pairs()
    matrix = np.zeros((classes, classes), np.int64)
    for pair in found:
        matrix[pair.truth, pair.taken] = pair.count
    confusion = examination.confusion()
    np.fill_diagonal(confusion, 0)
    assert np.array_equal(matrix, confusion)
    assert [pair.count for pair in found] == sorted((pair.count for pair in found), reverse=True)


def test_many_classes_need_no_square_of_memory():
    classes = 1_000_000
    examination = examined([0, 5, classes - 1], [0, 7, 3], classes)
    assert [(p.truth, p.taken, p.count) for p in examination.pairs()] == [(5, 7, 1), (classes - 1, 3, 1)]
    assert examination.per_class().support.sum() == 3


def test_the_worst_are_the_most_confident_mistakes():
    examination = examined([0, 1, 0, 1, 0], [1, 1, 1, 0, 1], 2, [0.6, 0.99, 0.8, 0.7, 0.8])
    assert examination.worst(3).tolist() == [2, 4, 3]
    assert examination.worst(99).tolist() == [2, 4, 3, 0]
    assert len(examined([0], [0], 1).worst(5)) == 0


def test_the_worst_of_several_labels_have_the_greatest_loss():
    examination = several()
    worst = examination.worst(7)
    assert examination.losses[worst].min() >= np.delete(examination.losses, worst).max()


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_is_scikit_learns(drawn):
    confidence, right = (np.array(column) for column in zip(*drawn, strict=True))
    found = examined(np.zeros(len(right), int), np.where(right, 0, 1), 2, confidence).calibration()
    shares, means = calibration_curve(right, confidence, n_bins=BINS)
    filled = found.count > 0
    assert found.accuracy[filled] == pytest.approx(shares)
    assert found.confidence[filled] == pytest.approx(means)
    assert np.isnan(found.accuracy[~filled]).all()
    assert found.count.sum() == len(right)
    assert found.error == pytest.approx((found.count[filled] / len(right) * np.abs(shares - means)).sum())


def test_a_perfectly_calibrated_model_has_no_error():
    right = np.array([True] * 3 + [False])
    examination = examined(np.zeros(4, int), np.where(right, 0, 1), 2, np.full(4, 0.75))
    assert examination.calibration().error == 0


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1).filter(lambda rows: any(p for _, p in rows)))
def test_average_precision_is_scikit_learns_with_ties_too(rows):
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    assert average_precision(scores / 2, positive) == pytest.approx(average_precision_score(positive, scores))


def test_several_labels_are_scored_as_by_scikit_learn():
    examination = several()
    targets, logits = examination.targets, examination.logits
    found, kept = examination.metrics, targets.any(0)
    assert not kept.all()
    macro = average_precision_score(targets[:, kept], logits[:, kept], average="macro")
    assert found["mAP"] == pytest.approx(macro)
    assert found["f1"] == pytest.approx(f1_score(targets, logits >= 0, average="micro"))
    assert list(found) == ["mAP", "f1", "loss", "samples"]
    expected = precision_recall_fscore_support(targets, logits >= 0, zero_division=np.nan)
    rates = examination.per_class()
    for values, wanted in zip((rates.precision, rates.recall, rates.f1, rates.support), expected, strict=True):
        assert values == pytest.approx(wanted, nan_ok=True)
    assert np.isnan(examination.average_precisions()).tolist() == (~kept).tolist()


def test_images_without_any_label_cannot_be_judged():
    with pytest.raises(ValueError, match="none of the images has a label, so there is nothing to evaluate"):
        MultiLabel(("a",), np.arange(2), np.zeros(2), (), np.zeros((2, 1), bool), np.zeros((2, 1)))


@pytest.mark.parametrize("count", [1, 2, 10, 137, 2000, 50_000])
def test_the_interval_is_scipys(count):
    for right in {0, 1, count // 3, count // 2, count - 1, count}:
        wanted = binomtest(right, count).proportion_ci(method="wilson")
        low, high = accuracy_interval(right, count)
        assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
        assert 0 <= low <= right / count <= high <= 1


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).binomial(300, 0.9, 2000)
    covered = [low <= 0.9 <= high for low, high in (accuracy_interval(int(right), 300) for right in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
    with pytest.raises(AssertionError, match="3 of 2 are right"):
        accuracy_interval(3, 2)


def test_what_was_left_out_is_counted():
    examination = single(problems=("a.jpg is damaged", "b.jpg is empty"))
    assert list(examination.metrics) == ["accuracy", "loss", "samples", "unreadable"]
    assert (examination.metrics["samples"], examination.metrics["unreadable"]) == (200, 2)
    assert list(single(tuple("abcdef")).metrics) == ["accuracy", "top5", "loss", "samples"]


def test_a_model_that_says_nothing_finite_is_still_reported():
    broken = examined([0, 1], [0, 0], 2, [math.nan, math.nan])
    assert math.isnan(broken.metrics["loss"])
    assert math.isnan(broken.calibration().error)
    assert len(broken.worst(5)) == 1
