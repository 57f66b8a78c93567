"""Features that are kept, and what is found by them: wrong labels, copies, classifiers from few images."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cleanlab.count import compute_confident_joint, get_confident_thresholds
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from judging import HOW, cloud, judged, samples, source, task
from photos import photo
from sklearn.metrics import average_precision_score

from vitrail.data.images.preprocessing import Preprocessing
from vitrail.data.sources.source import Arrays
from vitrail.evaluate import Attentive, Copies, Fewshot, Knn, Labels, Linear, Validation, features, labels, shots
from vitrail.evaluate.evaluator import evaluating, judge
from vitrail.tasks import Classify


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def flipped(count=600, classes=4, seed=0):
    """(probabilities out of sample, labels, which are wrong): a class's centre, and 5 % of the labels changed."""
    x, y = cloud(count, 12, classes, seed, noise=1.2)
    draw = np.random.default_rng(seed)
    wrong = draw.random(count) < 0.05
    given = np.where(wrong, (y + draw.integers(1, classes, count)) % classes, y)
    return labels.out_of_sample(x, given, classes), given, wrong


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_label_errors_are_those_of_cleanlab(seed):
    probabilities, given, wrong = flipped(seed=seed)
    np.testing.assert_allclose(labels.thresholds(probabilities, given), get_confident_thresholds(given, probabilities))
    counts = compute_confident_joint(given, probabilities, calibrate=False)
    scaled = counts / counts.sum(1, keepdims=True) * np.bincount(given)[:, None]
    np.testing.assert_allclose(labels.joint(probabilities, given), scaled)
    found = labels.suspected(probabilities, given)
    theirs = find_label_issues(
        given, probabilities, filter_by="prune_by_noise_rate", min_examples_per_class=0, n_jobs=1
    )
    assert (found == theirs).mean() > 0.99
    assert (found & wrong).sum() / wrong.sum() > 0.7
    ours = average_precision_score(wrong, -labels.quality(probabilities, given))
    methods = ("self_confidence", "normalized_margin")
    theirs = [get_label_quality_scores(given, probabilities, method=method) for method in methods]
    best = max(average_precision_score(wrong, -scores) for scores in theirs)
    assert ours >= best - 1e-9


def test_suspects_are_named_the_worst_first():
    images, wrong = source(90, noise=60), [4, 20, 33, 50, 71, 80]
    images = replace(images, labels=np.where(np.isin(np.arange(90), wrong), (images.labels + 1) % 3, images.labels))
    numbers, results = judged(Labels(), images=images)
    found = results["labels"]
    assert numbers["label_errors"] == len(found.names) < 15
    assert len({f"noise[{n}]" for n in wrong} & set(found.names)) >= 4
    assert found.probability.tolist() == sorted(found.probability.tolist())
    assert found.document()[0].keys() == {"image", "label", "likely", "probability"}
    assert "noise" in found.lines()[1]
    with pytest.raises(ValueError, match="all images have one"):
        judged(Labels(), images=source(20, classes=1))


def test_images_in_both_sets_are_found():
    shown = np.stack([photo(40, 40, wave=3 + n) for n in range(13)])
    both = Arrays(shown[:12], np.arange(12) % 3, ("a", "b", "c"), "train")
    val = np.stack([shown[5], shown[12], shown[7][:, ::-1]])
    numbers, results = judged(Copies(), images=Arrays(val, np.arange(3), ("a", "b", "c"), "val"), train=both)
    assert numbers == {"copies": 2.0, "samples": 3.0}
    assert results["leaks"].pairs == (("val[0]", "train[5]", "same file"), ("val[2]", "train[7]", "mirrored"))


def test_features_are_computed_once_and_anew_where_anything_changed(monkeypatch, cache):
    owner, images, calls = task(), source(30), []

    def taken(owner, images, how=HOW, blocks=0):
        seen = len(calls)
        data = Validation(images, how, partial(owner.config.collate, source=images), 16, keep=True)
        with evaluating(owner):
            found = features.features(owner, data, blocks)
        return found, len(calls) > seen

    plain = Classify.predict
    monkeypatch.setattr(Classify, "predict", lambda self, batch: calls.append(1) or plain(self, batch))
    first, new = taken(owner, images)
    assert new
    again, new = taken(task(), source(30))
    assert not new
    np.testing.assert_array_equal(again.values, first.values)
    np.testing.assert_array_equal(again.targets, images.labels)
    changed = source(30)
    changed = replace(changed, images=changed.images ^ (np.arange(changed.images.size) == 5000).reshape(-1, 8, 8, 3))
    other = task()
    with torch.no_grad():
        other.model.pos_embed[0, 0, 0] += 1
    assert taken(owner, changed)[1]
    assert taken(other, images)[1]
    assert taken(owner, images, Preprocessing((8, 8), (0.4,) * 3, (0.5,) * 3))[1]
    assert taken(owner, replace(source(30), labels=np.zeros(30, np.int64)))[1]
    for file in (cache / "features").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert taken(owner, images)[1]
    assert not taken(owner, images)[1]
    deep, _ = taken(owner, images, blocks=2)
    with torch.inference_mode():
        tokens = owner.model.tokens(owner.input(owner.config.collate(samples(images), images)["images"]))
    np.testing.assert_allclose(deep.values[:, -1], torch.stack([tokens[:, 0], tokens[:, 1:].mean(1)], 1), atol=1e-5)
    np.testing.assert_allclose(deep.values[:, -1, 0], first.values, atol=1e-5)
    with pytest.raises(ValueError, match="not a ViT with 4 blocks"):
        taken(owner, images, blocks=4)
    assert not [*(cache / "features").glob("*.part")]
    kept, seen = len([*(cache / "features").iterdir()]), len(calls)
    judged(Knn((1,)), owner, source(33), train=source(21, seed=5))  # as in a run
    assert len(calls) == seen + 3 + 2
    assert len([*(cache / "features").iterdir()]) == kept


def test_the_evaluators_of_one_evaluation_share_features(monkeypatch):
    owner, images, calls = task(), source(30), []
    plain = Classify.predict
    monkeypatch.setattr(Classify, "predict", lambda self, batch: calls.append(1) or plain(self, batch))
    data = Validation(images, HOW, partial(owner.config.collate, source=images), 16, train=source(40, seed=2))
    with evaluating(owner):
        found, _ = judge([Knn((3,)), Fewshot((2,)), Labels()], owner, data)
    assert len(calls) == 2 + 3
    assert {"knn", "fewshot_2", "label_errors"} <= found.keys()


def test_several_labels_and_none_are_refused():
    blank = replace(source(9), labels=None, class_names=())
    for evaluator in (Knn(), Fewshot(), Linear(), Labels(), Attentive()):
        with pytest.raises(ValueError, match="label"):
            judged(evaluator, images=blank, train=blank)


def test_a_head_from_few_images_knows_what_it_has_not_seen():
    x, y = cloud(40, 60, classes=5, noise=0.8)
    head = shots.fitted(x, y, 5)
    test, truth = cloud(500, 60, classes=5, seed=3, noise=0.8)
    logits = torch.from_numpy(test).double() @ head.weight.T + head.bias
    assert (logits.argmax(1).numpy() == truth).mean() == pytest.approx(head.accuracy, abs=0.08)
    accepted = float((logits.amax(1) >= head.none_below).double().mean())
    assert accepted > 0.85
    strange = np.random.default_rng(4).standard_normal((500, 60)).astype(np.float32)
    unknown = torch.from_numpy(strange).double() @ head.weight.T + head.bias
    assert float((unknown.amax(1) >= head.none_below).double().mean()) < accepted - 0.3
    assert 0 <= head.false < 0.9
    with pytest.raises(ValueError, match="there is one class"):
        shots.fitted(x, np.zeros(40, np.int64), 1)
    for classes, count in ((2, 8), (5, 5)):  # two classes; one image of each
        few = shots.fitted(x[:count], y[:count] % classes, classes)
        assert few.none_below is None
        assert np.isnan(few.false)
