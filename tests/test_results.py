"""Rates, confusion, average precision and calibration are scikit-learn's, the interval is scipy's."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import labelled, several
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

from vitrail.evaluate.results import BINS, accuracy_interval, agreement, average_precision


def made(targets, predicted, classes, confidence=0.5):
    return labelled(targets, predicted, tuple(map(str, range(classes))), confidence)


answers = st.integers(2, 6).flatmap(
    lambda k: st.tuples(st.just(k), st.lists(st.tuples(*[st.integers(0, k - 1)] * 2), min_size=1, max_size=40))
)


@given(answers)
def test_rates_and_confusion_are_scikit_learns(drawn):
    classes, pairs = drawn
    targets, predicted = zip(*pairs, strict=True)
    result, labels = made(targets, predicted, classes), range(classes)
    assert np.array_equal(result.confusion(), confusion_matrix(targets, predicted, labels=labels))
    expected = precision_recall_fscore_support(targets, predicted, labels=labels, zero_division=np.nan)
    rates = result.per_class()
    for found, wanted in zip((rates.precision, rates.recall, rates.f1, rates.support), expected, strict=True):
        assert found == pytest.approx(wanted, nan_ok=True)
    assert result.metrics["accuracy"] == np.mean(np.equal(targets, predicted))


@given(answers)
def test_pairs_are_the_confusion_off_its_diagonal_most_first(drawn):
    classes, pairs = drawn
    result = made(*zip(*pairs, strict=True), classes)
    found = result.pairs()
    matrix = np.zeros((classes, classes), np.int64)
    for pair in found:
        matrix[pair.truth, pair.predicted] = pair.count
    confusion = result.confusion()
    np.fill_diagonal(confusion, 0)
    assert np.array_equal(matrix, confusion)
    assert [pair.count for pair in found] == sorted((pair.count for pair in found), reverse=True)


def test_many_classes_need_no_square_of_memory():
    result = made([0, 5, 10**6 - 1], [0, 7, 3], 10**6)
    assert [(p.truth, p.predicted, p.count) for p in result.pairs()] == [(5, 7, 1), (10**6 - 1, 3, 1)]


def test_the_worst_are_the_most_confident_mistakes_or_have_the_greatest_loss():
    result = made([0, 1, 0, 1, 0], [1, 1, 1, 0, 1], 2, [0.6, 0.99, 0.8, 0.7, 0.8])
    assert (result.worst(3).tolist(), result.worst(99).tolist()) == ([2, 4, 3], [2, 4, 3, 0])
    assert len(made([0], [0], 1).worst(5)) == 0
    result, worst = several(), several().worst(7)
    assert result.losses[worst].min() >= np.delete(result.losses, worst).max()


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_is_scikit_learns(drawn):
    confidence, right = (np.array(column) for column in zip(*drawn, strict=True))
    found = made(np.zeros(len(right), int), np.where(right, 0, 1), 2, confidence).calibration()
    accuracies, means = calibration_curve(right, confidence, n_bins=BINS)
    filled = found.count > 0
    assert found.accuracy[filled] == pytest.approx(accuracies)
    assert found.confidence[filled] == pytest.approx(means)
    assert np.isnan(found.accuracy[~filled]).all()
    assert found.count.sum() == len(right)
    assert found.error == pytest.approx((found.count[filled] / len(right) * np.abs(accuracies - means)).sum())


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1).filter(lambda rows: any(p for _, p in rows)))
def test_average_precision_is_scikit_learns_with_ties_too(rows):
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    assert average_precision(scores / 2, positive) == pytest.approx(average_precision_score(positive, scores))


def test_several_labels_are_scored_as_by_scikit_learn():
    result = several()
    targets, logits = result.targets, result.logits
    kept = targets.any(0)
    assert not kept.all()
    macro = average_precision_score(targets[:, kept], logits[:, kept], average="macro")
    assert result.metrics["mAP"] == pytest.approx(macro)
    expected = precision_recall_fscore_support(targets, logits >= 0, zero_division=np.nan)
    rates = result.per_class()
    for values, wanted in zip((rates.precision, rates.recall, rates.f1, rates.support), expected, strict=True):
        assert values == pytest.approx(wanted, nan_ok=True)
    assert np.isnan(result.average_precisions()).tolist() == (~kept).tolist()


@pytest.mark.parametrize("count", [1, 2, 10, 137, 2000, 50_000])
def test_the_interval_is_scipys(count):
    for right in {0, 1, count // 3, count // 2, count - 1, count}:
        wanted = binomtest(right, count).proportion_ci(method="wilson")
        low, high = accuracy_interval(right, count)
        assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
        assert 0 <= low <= right / count <= high <= 1
    with pytest.raises(AssertionError, match="3 of 2"):
        accuracy_interval(3, 2)


def test_a_model_whose_outputs_are_nan_is_still_reported():
    broken = made([0, 1], [0, 0], 2, [math.nan, math.nan])
    assert math.isnan(broken.metrics["loss"])
    assert math.isnan(broken.calibration().error)
    assert len(broken.worst(5)) == 1


def test_agreement_is_of_the_images_that_are_in_both():
    one, other = made([0, 1, 1, 0], [0, 0, 1, 1], 2), made([1, 1, 0], [1, 1, 1], 2)
    assert agreement(one, replace(other, indices=np.array([1, 2, 9]))) == 1 / 2
    assert agreement(several(), several()) == 1
