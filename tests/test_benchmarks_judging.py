"""benchmarks.judging: the contestants do the same work. Nothing is timed."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))  # they are no part of the package

from benchmarks import judging, rounds


@pytest.fixture
def few(monkeypatch):
    plain = judging.clouds
    monkeypatch.setattr(
        judging, "clouds", lambda n, width, k, seed=0: plain(n // 50, width // 16, k if k < 1000 else 10, seed)
    )


def test_neighbours_and_shots_are_the_same_work(few):
    ours, theirs = judging.knn().values()
    assert (ours() == theirs()).mean() > 0.99
    ours, theirs = judging.fewshot().values()
    fitted, like = ours(), theirs()
    assert fitted.weight.shape == like.coef_.T.shape


def test_the_grid_is_the_same_side_by_side(few):
    work = judging.grid()
    together, apart = work["vitrail"](), work["one after another"]()
    for n, head in enumerate(apart):
        np.testing.assert_allclose(head.weight[:, 0], together.weight[:, n], atol=0.02)


@pytest.mark.parametrize("method", ["rollout", "gradient"])
def test_what_is_explained_is_what_goes_through_the_model(method):
    work = judging.explanation(method, batch=2)
    assert list(work) == ["vitrail", "bare forward"]
    maps, logits = work["vitrail"](), work["bare forward"]()
    assert (maps.shape, logits.shape) == ((2, 1, 14, 14), (2, 1000))
    assert not logits.requires_grad
    assert (maps[0] != maps[1]).any()  # each image has its own


def test_every_case_has_work_and_is_described(monkeypatch):
    made = []
    for name in ("features", "knn", "fewshot", "grid"):
        monkeypatch.setattr(judging, name, lambda name=name: made.append(name) or {"vitrail": lambda: None})
    monkeypatch.setattr(judging, "explanation", lambda name: made.append(name) or {"vitrail": lambda: None})
    assert judging.main(["--rounds", "1", "--threads", "1"]) == 0
    assert made == [*judging.CASES]
    assert all(case in judging.__doc__.lower().replace("-", "") for case in judging.CASES)


def test_the_table_has_everybody():
    record = rounds.new("knn", "vitrail")
    rounds.take_turns(record, {"vitrail": lambda: {"seconds": 1.0}, "scikit-learn": lambda: {"seconds": 2.0}}, 3)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in judging.text([record]).splitlines()[2:]]
    assert rows == [
        ["knn", "vitrail", "1 (1 to 1)", ""],
        ["knn", "scikit-learn", "2 (2 to 2)", "0.500 (0.500 to 0.500)"],
    ]
